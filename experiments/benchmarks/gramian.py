"""Gramians of task and sample gradients: time, peak memory and error of every way to compute them.

    python -m experiments.benchmarks.gramian [--cases mlp-task ...] [--tasks T] [--batch B]
    [--seconds S]

Writes gramian.json and gramian.md.

Time: one call from parameters and batch to the Gramian, or to Gramian and combined gradient (a
step). All contenders of a case take turns, in random order, so that what else the machine does hits
all of them alike; compare ratios, not milliseconds. The least is one gradient of the mean loss.
Memory: the most that one call holds beyond what was there before it, as the allocator counts it.
Error: worst |G_ij - H_ij| / √(H_ii H_jj) against a float64 Gramian H from a loop of backward
passes; of a step, also of the gradient, ‖g - h‖ / ‖h‖.
"""

import importlib.util
import math
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap
from tqdm import tqdm

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import Call, in_shares, with_memory
from experiments.benchmarks.networks import PROBLEMS, Problem, problem
from experiments.benchmarks.record import Row
from experiments.benchmarks.runner import Axis, command


def vector(losses: Any) -> Tensor:
    """Losses as one tensor."""
    return losses if isinstance(losses, Tensor) else torch.stack(losses)


def losses_of(task: Problem, *, stacked: bool = False) -> Callable[[mf.types.Params, Any], Any]:
    """The losses as a function of parameters and batch; as one tensor, if asked."""
    last = vector if stacked else lambda losses: losses
    return lambda params, batch: last(functional_call(task.module, params, (batch,)))


def gram(rows: Any) -> Tensor:
    """J Jᵀ from rows leaf by leaf."""
    return torch.stack([x.flatten(1) @ x.flatten(1).mT for x in rows]).sum(0)


def some_weights(count: int, like: Tensor) -> Tensor:
    """Weights of no solver, which would be timed too."""
    weights = torch.linspace(1, 2, count, dtype=like.dtype, device=like.device)
    return weights / weights.sum()


def leaves_of(task: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shared parameters and heads, as autograd's leaves."""
    named: dict[str, Tensor] = dict(task.module.named_parameters())
    prefix = task.shared.removesuffix("*")
    shared = {n: x for n, x in named.items() if n.startswith(prefix)}
    return shared, {n: x for n, x in named.items() if n not in shared}


def mean_gradient(task: Problem) -> Call:
    """The least: one gradient of the mean loss."""
    shared, heads = leaves_of(task)
    leaves, f = shared | heads, losses_of(task, stacked=True)
    return lambda: torch.autograd.grad(f(leaves, task.batch).mean(), list(leaves.values()))


def loop(task: Problem, *, step: bool = False) -> Call:
    """autograd.grad of every loss; a step also takes the gradients of the tasks' own heads."""
    shared, heads = leaves_of(task)
    f = losses_of(task)

    def call() -> Any:
        losses = f(shared | heads, task.batch)
        count, rows, found = len(losses), [], {}
        for i in range(count):
            own = [n for n in heads if n.startswith(f"heads.{i}.")] if step else []
            grads = torch.autograd.grad(
                losses[i], [*shared.values(), *(heads[n] for n in own)], retain_graph=i + 1 < count
            )
            rows.append(grads[: len(shared)])
            found |= {n: x / count for n, x in zip(own, grads[len(shared) :], strict=True)}
        leaves = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        gramian = gram(leaves)
        if not step:
            return gramian
        weights = some_weights(count, gramian)
        return gramian, found | {
            n: torch.tensordot(weights, x, 1) for n, x in zip(shared, leaves, strict=True)
        }

    return call


def vmap_vjp(task: Problem) -> Call:
    """All rows at once, by plain torch.func."""
    params, fixed = ({n: x.detach() for n, x in each.items()} for each in leaves_of(task))
    f = losses_of(task, stacked=True)

    def call() -> Tensor:
        losses, pull = vjp(lambda p: f(p | fixed, task.batch), params)[:2]
        with torch.no_grad():  # or the rows would keep a graph of their own
            units = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
            return gram(vmap(lambda v: tuple(pull(v)[0].values()))(units))

    return call


def vmap_grad(task: Problem) -> Call:
    """The rows of all samples, by plain torch.func."""
    params, f = mf.parameters(task.module), losses_of(task)
    one = grad(lambda p, sample: f(p, tuple(x[None] for x in sample))[0])
    return lambda: gram(vmap(one, (None, 0))(params, task.batch).values())


def autojac(task: Problem) -> Call:
    """TorchJD's rows."""
    from torchjd.autojac import jac  # a test dependency

    leaves = list(leaves_of(task)[0].values())
    return lambda: gram(jac(task.module(task.batch), leaves))


def autogram(task: Problem) -> Call:
    """TorchJD's Gramian without rows."""
    from torchjd.autogram import Engine  # a test dependency

    # its hooks stay on the modules
    apart = task.to(task.batch[0].device.type, next(task.module.parameters()).dtype)
    engine = Engine(apart.trunk, batch_dim=0 if task.per_sample else None)
    return lambda: engine.compute_gramian(vector(apart.module(apart.batch)))


def ours(task: Problem, engine: Any = "auto", *, stacked: bool = False) -> Call:
    """Our Gramian alone."""
    params, f = mf.parameters(task.module), losses_of(task, stacked=stacked)
    if task.per_sample:
        return lambda: mf.sample_gramian(f, params, task.batch, engine=engine)[1]
    return lambda: mf.task_gramian(f, params, task.batch, shared=task.shared, engine=engine)[1]


def our_step(task: Problem, *, stacked: bool = False) -> Call:
    """Our probe's Gramian and the gradient that weights combine."""
    params, g = mf.parameters(task.module), losses_of(task, stacked=stacked)
    probe = mf.jacobian(task.shared)
    _, state = probe.init(mf.Run(g, params), task.batch, torch.tensor(0))

    def call() -> tuple[Tensor, Any]:
        measured, _ = probe.update(mf.Run(g, params), task.batch, state)
        gramian = measured.geometry.gramian
        assert gramian is not None
        return gramian, measured.combine(some_weights(len(gramian), gramian))

    return call


def contenders(task: Problem) -> Iterator[tuple[str, str, Callable[[Problem], Call]]]:
    """(quantity, method, how to make it) of all that can do the problem."""
    yield "gradient", "mean gradient", mean_gradient
    yield "gramian", "loop", loop
    yield "gramian", "vmap(vjp)", vmap_vjp
    if task.per_sample:
        yield "gramian", "vmap(grad)", vmap_grad
    if importlib.util.find_spec("torchjd"):
        yield "gramian", "TorchJD autojac", autojac
        yield "gramian", "TorchJD autogram", autogram
    yield "gramian", "ours, auto", ours
    if not task.per_sample:
        yield "step", "loop", partial(loop, step=True)
        yield "step", "ours, auto", our_step
        if leaves_of(task)[1]:
            # separate losses: what becomes of them where they come stacked to one vector
            yield "gramian", "ours, auto, stacked", partial(ours, stacked=True)
            yield "step", "ours, auto, stacked", partial(our_step, stacked=True)


class Case(NamedTuple):
    """One network and its batch on a device."""

    family: str
    tasks: int
    batch: int
    image: int  # its side in pixels
    device: str

    def name(self) -> str:
        tasks, batch, image = self[1:4]
        return PROBLEMS[self.family].what.format(tasks=tasks, batch=batch, image=image)


def reference(task: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Gramian and a step's gradient, for a problem in float64."""
    gramian, step = loop(task, step=True)()
    return gramian.detach(), step


def apart(gramian: Tensor, truth: Tensor) -> float:
    """Worst |G_ij - H_ij| / √(H_ii H_jj)."""
    scale = truth.diagonal().sqrt()
    return float(((gramian.double() - truth).abs() / (scale[:, None] * scale)).amax())


def error(quantity: str, answer: Any, truth: tuple[Tensor, dict[str, Tensor]]) -> float:
    """Worst relative error of a Gramian, and of a step's gradient; NaN for a mean gradient."""
    if quantity == "gradient":
        return math.nan
    gramian, step = answer if quantity == "step" else (answer, truth[1])
    assert step.keys() == truth[1].keys()
    g, h = (torch.cat([x[n].flatten().double() for n in truth[1]]) for x in (step, truth[1]))
    return max(apart(gramian, truth[0]), float((g - h).norm() / h.norm()))


def measure(case: Case, seconds: float, methods: Sequence[str] = ()) -> list[Row]:
    """A row for every contender of a case, or for these `methods` and the mean gradient, which have
    `seconds` each; what one cannot do stands under "failed".
    """
    family, count, batch, image, device = case
    base = problem(family, count, batch, image)
    task, double = base.to(device), base.to(device, torch.float64)
    truth = reference(double)
    rows: dict[tuple[str, str], Row] = {}
    calls: dict[tuple[str, str], Call] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for quantity, method, make in contenders(task):
            if methods and quantity != "gradient" and method not in methods:
                continue
            row: Row = {"case": case.name(), "quantity": quantity, "method": method}
            rows[quantity, method] = row
            try:
                call = make(task)
                answer, row["memory"] = with_memory(call, device)
                row["error"] = error(quantity, answer, truth)
                del answer
                calls[quantity, method] = call
            except Exception as reason:  # a peer that cannot do this is a result too
                row["failed"] = f"{type(reason).__name__}: {reason}"
                first = row["failed"].splitlines()[0]
                tqdm.write(f"{case.name()} {device}: {quantity}, {method} failed: {first}")
        del truth, double
        for name, taken in in_shares(calls, seconds, device).items():
            rows[name]["median"] = median(taken)
    return list(rows.values())


TORCHJD = ("TorchJD autojac", "TorchJD autogram")
OURS = "ours, auto"
BARS: list[tuple[str, str, str, tuple[str, ...], float]] = [
    ("mlp-sample", "gramian", OURS, ("mean gradient",), 2.0),
    ("mlp-sample", "gramian", OURS, TORCHJD[1:], 1 / 50),
    ("mlp-task", "gramian", OURS, TORCHJD[1:], 0.5),
    ("mlp-task", "gramian", OURS, ("loop",), 0.5),
    ("resnet18", "gramian", OURS, ("loop", "vmap(vjp)", *TORCHJD), 1.05),
    *(
        (family, quantity, f"{OURS}{stacked}", ("loop",), 1.3)
        for family in ("decoders", "own-inputs")
        for quantity in ("gramian", "step")
        for stacked in ("", ", stacked")
    ),
    ("jets-128-sample", "gramian", OURS, ("mean gradient",), 7.0),
    ("jets-256-sample", "gramian", OURS, ("mean gradient",), 3.5),
    ("autograd-128-sample", "gramian", OURS, ("mean gradient",), 12.0),
    ("autograd-256-sample", "gramian", OURS, ("mean gradient",), 6.0),
]
"""Family, quantity, contender, its rivals, and the most of the best one's time that it may take."""


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every bar of which both sides were measured."""
    found = []
    for family, quantity, method, others, limit in BARS:
        case = [
            row
            for row in rows
            if (row["family"], row["tasks"], row["batch"]) == (family, *PROBLEMS[family].size)
            and "median" in row
            and row["quantity"] in (quantity, "gradient")
        ]
        mine = [row for row in case if (row["quantity"], row["method"]) == (quantity, method)]
        rivals = [row for row in case if row["method"] in others]
        if mine and rivals:
            best = min(rivals, key=lambda row: row["median"])
            said = {"case": f"{mine[0]['case']}, {quantity}", "method": method}
            said |= {"against": best["method"], "limit": limit}
            found.append(said | {"median": mine[0]["median"] / best["median"]})
    return found


def measured(given: Namespace, family: str, tasks: int, batch: int) -> list[Row]:
    """The rows of a case on the CPU."""
    case = Case(family, tasks, batch, 32, "cpu")
    return measure(case, given.seconds)


def cells(given: Namespace) -> list[tuple[str, int, int]]:
    """Every case at its own size, or at another one."""
    own = [(family, *PROBLEMS[family].size) for family in given.cases]
    return [(family, given.tasks or tasks, given.batch or batch) for family, tasks, batch in own]


OTHER: dict[str, Any] = {"type": at_least(1), "help": "instead of each case's own"}
main = command(
    "gramian",
    __doc__,
    {
        "family": Axis("cases", list(PROBLEMS)),
        "tasks": Axis("", (), int),
        "batch": Axis("", (), int),
    },
    measured,
    seconds=1.0,
    more={"tasks": OTHER, "batch": OTHER},
    cells=cells,
)

if __name__ == "__main__":
    main()
