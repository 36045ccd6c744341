"""Gramians of task and sample gradients: time, peak memory and error of every way to compute them.

    python -m experiments.benchmarks.gramian [--cases mlp-task ...] [--seconds S]

Writes gramian.json and gramian.md.

Time: one call from parameters and batch to the Gramian. All contenders of a case take turns, in
random order, so that what else the machine does hits all of them alike; compare ratios, not
milliseconds. The least is one gradient of the mean loss. Memory: the most that tensors hold beyond
what was there before the call. Error: worst |G_ij - H_ij| / √(H_ii H_jj) against a float64 Gramian
H from a loop of backward passes.
"""

import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap
from tqdm import tqdm

import mtlfunc as mf
from experiments.benchmarks.measuring import Call, in_turns, with_memory
from experiments.benchmarks.networks import PROBLEMS, Problem, problem
from experiments.benchmarks.record import Row
from experiments.benchmarks.runner import Axis, command


def vector(losses: Any) -> Tensor:
    """Losses as one tensor."""
    return losses if isinstance(losses, Tensor) else torch.stack(losses)


def losses_of(task: Problem) -> Callable[[mf.types.Params, Any], Any]:
    """The losses as a function of parameters and batch."""
    return lambda params, batch: functional_call(task.module, params, (batch,))


def gram(rows: Any) -> Tensor:
    """J Jᵀ from rows leaf by leaf."""
    return torch.stack([x.flatten(1) @ x.flatten(1).mT for x in rows]).sum(0)


def leaves_of(task: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shared parameters and heads, as autograd's leaves."""
    named: dict[str, Tensor] = dict(task.module.named_parameters())
    prefix = task.shared.removesuffix("*")
    shared = {n: x for n, x in named.items() if n.startswith(prefix)}
    return shared, {n: x for n, x in named.items() if n not in shared}


def mean_gradient(task: Problem) -> Call:
    """The least: one gradient of the mean loss."""
    leaves = list(task.module.parameters())
    return lambda: torch.autograd.grad(vector(task.module(task.batch)).mean(), leaves)


def loop(task: Problem) -> Call:
    """autograd.grad of every loss."""
    shared = list(leaves_of(task)[0].values())

    def call() -> Tensor:
        losses = task.module(task.batch)
        last = len(losses) - 1
        rows = [
            torch.autograd.grad(losses[i], shared, retain_graph=i < last)
            for i in range(len(losses))
        ]
        return gram([torch.stack(parts) for parts in zip(*rows, strict=True)])

    return call


def vmap_vjp(task: Problem) -> Call:
    """All rows at once, by plain torch.func."""
    params, fixed = ({n: x.detach() for n, x in each.items()} for each in leaves_of(task))
    f = losses_of(task)

    def call() -> Tensor:
        losses, pull = vjp(lambda p: vector(f(p | fixed, task.batch)), params)[:2]
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


def ours(task: Problem, engine: Any = "auto") -> Call:
    """Ours, by its public functions."""
    params, f = mf.parameters(task.module), losses_of(task)
    if task.per_sample:
        return lambda: mf.sample_gramian(f, params, task.batch, engine=engine)[1]
    return lambda: mf.task_gramian(f, params, task.batch, shared=task.shared, engine=engine)[1]


FLOOR, OURS, TORCHJD = "mean gradient", "ours, auto", ("TorchJD autojac", "TorchJD autogram")
CONTENDERS: dict[str, Callable[[Problem], Call]] = {
    FLOOR: mean_gradient,
    "loop": loop,
    "vmap(vjp)": vmap_vjp,
    "vmap(grad)": vmap_grad,  # of samples
    **dict(zip(TORCHJD, (autojac, autogram), strict=True)),
    OURS: ours,
}


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


def apart(gramian: Tensor, truth: Tensor) -> float:
    """Worst |G_ij - H_ij| / √(H_ii H_jj)."""
    scale = truth.diagonal().sqrt()
    return float(((gramian.double() - truth).abs() / (scale[:, None] * scale)).amax())


def measure(case: Case, seconds: float, methods: Sequence[str] = tuple(CONTENDERS)) -> list[Row]:
    """A row for these contenders of a case, which take `seconds` each; what one cannot do stands
    under "failed".
    """
    family, count, batch, image, device = case
    base = problem(family, count, batch, image)
    task, truth = base.to(device), loop(base.to(device, torch.float64))()
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in methods:
            if method == "vmap(grad)" and not task.per_sample:
                continue
            row = rows[method] = Row(case=case.name(), method=method)
            try:
                call = CONTENDERS[method](task)
                answer, row["memory"] = with_memory(call, device)
                if method != FLOOR:
                    row["error"] = apart(answer, truth)
                del answer
                calls[method] = call
            except Exception as reason:  # a peer that cannot do this is a result too
                row["failed"] = f"{type(reason).__name__}: {reason}"
                first = row["failed"].splitlines()[0]
                tqdm.write(f"{case.name()} {device}: {method} failed: {first}")
        del truth
        block, whole = seconds / 10, seconds * len(calls)
        for name, taken in in_turns(calls, whole, device, block=block, least=5).items():
            rows[name]["median"] = median(taken)
    return list(rows.values())


BARS: list[tuple[str, tuple[str, ...], float]] = [
    ("mlp-sample", (FLOOR,), 2.0), ("mlp-sample", TORCHJD[1:], 1 / 50),
    ("mlp-task", TORCHJD[1:], 0.5), ("mlp-task", ("loop",), 0.5),
    ("resnet18", ("loop", "vmap(vjp)", *TORCHJD), 1.05), ("decoders", ("loop",), 1.3),
    ("jets-128-sample", (FLOOR,), 7.0), ("jets-256-sample", (FLOOR,), 3.5),
    ("autograd-128-sample", (FLOOR,), 12.0), ("autograd-256-sample", (FLOOR,), 6.0),
]  # fmt: skip
"""Family, our rivals, and the most of the best one's time that ours may take."""


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every bar of which both sides were measured."""
    found = []
    for family, others, limit in BARS:
        case = {row["method"]: row for row in rows if row["family"] == family and "median" in row}
        rivals = [case[name] for name in others if name in case]
        if OURS in case and rivals:
            best = min(rivals, key=lambda row: row["median"])
            ratio = case[OURS]["median"] / best["median"]
            about = {"case": best["case"], "against": best["method"]}
            found.append(about | {"ratio": ratio, "limit": limit})
    return found


def measured(given: Namespace, family: str) -> list[Row]:
    """The rows of a case on the CPU."""
    return measure(Case(family, *PROBLEMS[family].size, 32, "cpu"), given.seconds)


AXES = {"family": Axis("cases", list(PROBLEMS))}
main = command("gramian", __doc__, AXES, measured, seconds=(1.0, "for each contender of a case"))

if __name__ == "__main__":
    main()
