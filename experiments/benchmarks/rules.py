"""Every rule's time from Gramian to weights, alone and in a batch, against TorchJD's.

    python -m experiments.benchmarks.rules [--rules mgda ...] [--tasks 2 8 ...] [--batch 1024]
    [--seconds S]

Writes rules.json and rules.md.

Problems: Jacobians [T, 2T] of independent normal entries in float32, half of whose pairs of rows
conflict; losses uniform in [.5, 1.5]. One call of ours is `rule.update` with the state that the
last call left. TorchJD's is its weighting, at its defaults, on the same Gramian, or, where it takes
the Jacobian, on that, which is as narrow here as it will ever be; of its scalarizers, which make
one loss of many, the call with the backward pass to the losses, which gives the weights, and with
the optimizer's step where they learn, since ours takes it too. A batch is one `vmap` for ours; for
TorchJD too where that runs and gives what a loop gives, else a loop. Both take turns, so that what
else the machine does hits both alike: compare ratios. `mf.weights(mf.mgda(), G)` and
`mf.aggregate(mf.mgda(), J)`, which check all that they are given, stand against TorchJD's at two
and three tasks.
"""

import warnings
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from itertools import cycle, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.record import Row
from experiments.benchmarks.runner import Axis, Cell, command


class Problem(NamedTuple):
    """What a rule sees, with or without a batch in front."""

    jacobian: Tensor  # [task, param]
    gramian: Tensor
    losses: Tensor


Call = Callable[[Problem], Tensor]


class Peer(NamedTuple):
    """What TorchJD has, for T tasks."""

    name: str
    make: Callable[[int], Call]
    batched: Callable[[int], Call]  # what vmap is tried on


class Entry(NamedTuple):
    """A rule of ours and its peer."""

    make: Callable[[], mf.Rule]
    peer: Peer | None = None
    random: bool = False
    door: Callable[[mf.Rule, Problem], Tensor] | None = None  # None is `rule.update`


def on(
    field: str, name: str, *args: Any, make: Callable[[int], Any] | None = None, **options: Any
) -> Peer:
    """A weighting or an aggregator that takes the "gramian" or the "jacobian"."""

    def of(count: int) -> Call:
        weigh = make(count) if make else _peer(name, *args, **options)
        return lambda problem: weigh(getattr(problem, field))

    return Peer(name, of, of)


def on_losses(
    name: str,
    given: Callable[[int], tuple[Any, ...]] = lambda count: (),
    after: Callable[[Any], Callable[[Tensor], Any]] | None = None,
) -> Peer:
    """A scalarizer, `given` these; `after(scalarizer)` is called with the losses at each step."""

    def scalarizer(count: int) -> Any:
        return _peer(name, *given(count), module="scalarization")

    def of(count: int) -> Call:
        scalarize = scalarizer(count)
        finish = after(scalarize) if after else None

        def call(problem: Problem) -> Tensor:
            losses = problem.losses.detach().requires_grad_()
            scalarize(losses).backward()
            if finish:
                finish(problem.losses)
            assert losses.grad is not None
            return losses.grad

        return call

    def pure(count: int) -> Call:
        gradient = grad(scalarizer(count))
        return lambda problem: gradient(problem.losses)

    return Peer(name, of, of if after else pure)


def _peer(name: str, *args: Any, module: str = "aggregation", **options: Any) -> Any:
    return getattr(import_module(f"torchjd.{module}"), name)(*args, **options)


def _learned(scalarizer: Any) -> Callable[[Tensor], None]:
    optimizer = torch.optim.Adam(scalarizer.parameters(), lr=0.01)

    def step(losses: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def equal(count: int) -> Tensor:
    """Equal preferences."""
    return torch.full((count,), 1 / count)


def accumulated(rule: mf.Rule) -> mf.Rule:
    """ExcessMTL with its sum of squared gradients: here the probe's, in TorchJD the weighting's."""

    def init(losses: Tensor, key: Tensor) -> Any:
        return losses.new_zeros(len(losses), 2 * len(losses)), rule.init(losses, key)

    def update(geometry: mf.Geometry, state: Any) -> tuple[Tensor, Any]:
        square = geometry.extra["jacobian"].square()
        total = state[0] + square
        weights, inner = rule.update(
            geometry._replace(extra={"excess_risk": (square / total.sqrt()).sum(-1)}), state[1]
        )
        return weights, (total, inner)

    return mf.Rule(init, update)


RULES: dict[str, Entry] = {
    "mean": Entry(mf.mean, on("gramian", "MeanWeighting")),
    "rlw": Entry(mf.rlw, on("jacobian", "RandomWeighting"), random=True),
    "mgda": Entry(mf.mgda, on("gramian", "MGDAWeighting")),
    "cagrad": Entry(lambda: mf.cagrad(0.4), on("gramian", "CAGradWeighting", c=0.4)),
    "pcgrad": Entry(mf.pcgrad, on("gramian", "PCGradWeighting"), random=True),
    "gradvac": Entry(
        lambda: mf.gradvac(0.5), on("gramian", "GradVacWeighting", beta=0.5), random=True
    ),
    "dualproj": Entry(mf.dualproj, on("gramian", "DualProjWeighting")),
    "upgrad": Entry(mf.upgrad, on("gramian", "UPGradWeighting")),
    "imtl_g": Entry(mf.imtl_g, on("gramian", "IMTLGWeighting")),
    "aligned_mtl": Entry(mf.aligned_mtl, on("gramian", "AlignedMTLWeighting")),
    "config": Entry(mf.config, on("jacobian", "ConFIG")),
    "conicgrad": Entry(mf.conicgrad),
    "nash_mtl": Entry(
        lambda: mf.nash_mtl(max_norm=1.0),
        on("jacobian", "NashMTL", make=lambda count: _peer("NashMTL", count).weighting),
    ),
    "fairgrad": Entry(lambda: mf.fairgrad(2.0), on("gramian", "FairGradWeighting", 2.0)),
    "krum": Entry(mf.krum, on("gramian", "KrumWeighting", 0)),
    "pcd": Entry(mf.pcd, on("gramian", "PCDWeighting")),
    "modo": Entry(mf.modo, on("gramian", "MoDoWeighting")),
    "sdmgrad": Entry(mf.sdmgrad, on("gramian", "SDMGradWeighting")),
    "excess_mtl": Entry(
        lambda: accumulated(mf.excess_mtl(1.0)), on("jacobian", "ExcessMTLWeighting")
    ),
    "align": Entry(lambda: mf.align(0.1, "mean")),
    "momentum": Entry(
        lambda: mf.momentum(mf.mgda()),
        on(
            "gramian",
            "CRMOGMWeighting",
            make=lambda count: _peer("CRMOGMWeighting", _peer("MGDAWeighting")),
        ),
    ),
    "uw": Entry(lambda: mf.uw(0.01), on_losses("UW", lambda count: (count,), _learned)),
    "imtl_l": Entry(lambda: mf.imtl_l(0.01), on_losses("IMTLL", lambda count: (count,), _learned)),
    "dwa": Entry(lambda: mf.dwa(1), on_losses("DWA", after=lambda dwa: lambda losses: dwa.step())),
    "gls": Entry(mf.gls, on_losses("GeometricMean")),
    "stch": Entry(lambda: mf.stch(0.3), on_losses("STCH", lambda count: (0.3,))),
    "cosmos": Entry(lambda: mf.cosmos(0.3), on_losses("COSMOS", lambda count: (0.3, equal(count)))),
    "pbi": Entry(mf.pbi, on_losses("PBI", lambda count: (5.0, equal(count)))),
    "famo": Entry(
        lambda: mf.famo(full_batch=True),
        on_losses("FAMO", lambda count: (count,), lambda famo: famo.update),
    ),
    "gradnorm": Entry(lambda: mf.gradnorm(0.12)),
    "db_mtl": Entry(mf.db_mtl),
    "moco": Entry(mf.moco),
    "epo": Entry(mf.epo),
    "pareto_mtl": Entry(mf.pareto_mtl),
    "normalize": Entry(lambda: mf.normalize(mf.mgda())),
}

FEW = [2, 3]
"""Tasks where what stands around a kernel takes more time than the kernel."""
DOORS: dict[str, Entry] = {
    "mf.weights": Entry(
        mf.mgda,
        on("gramian", "MGDAWeighting"),
        door=lambda rule, problem: mf.weights(rule, problem.gramian),
    ),
    "mf.aggregate": Entry(
        mf.mgda,
        on("jacobian", "MGDA"),
        door=lambda rule, problem: mf.aggregate(rule, problem.jacobian),
    ),
}
"""The functions that apply a fresh rule once, with all that they check."""


POOL = 8  # different problems that single calls go through in turn
ENTRIES = RULES | DOORS
MANY = 32  # tasks of a batch at most, whose rows the page shows


@lru_cache(maxsize=1)
def problems(count: int, batch: int) -> Problem:
    """Problems side by side: `[batch, ...]`."""
    draw = torch.Generator().manual_seed(count)
    jacobian = torch.randn(batch, count, 2 * count, generator=draw)
    return Problem(jacobian, jacobian @ jacobian.mT, 0.5 + torch.rand(batch, count, generator=draw))


def one(given: Problem, at: int) -> Problem:
    return Problem(*(leaf[at] for leaf in given))


def ours(entry: Entry, count: int, given: Problem) -> Callable[[], Tensor]:
    """A call on the next problem, or on all of a batch, with the state that the last call left."""
    rule, door, size = entry.make(), entry.door, len(given.losses)
    preference, present = equal(count), torch.ones(count, dtype=torch.bool)

    def update(problem: Problem, state: Any) -> tuple[Tensor, Any]:
        if door:
            return door(rule, problem), state
        extra = {"jacobian": problem.jacobian}
        geometry = mf.Geometry(problem.losses, problem.gramian, preference, present, extra)
        return rule.update(geometry, state)

    if size > POOL:
        step, state = vmap(update), vmap(rule.init)(given.losses, torch.arange(size))
        several = cycle([given])
    else:
        step, state = update, rule.init(given.losses[0], mf.random.key(0))
        several = cycle([one(given, at) for at in range(size)])

    def call() -> Tensor:
        nonlocal state
        weights, state = step(next(several), state)
        return weights

    return call


def theirs(entry: Entry, count: int, given: Problem) -> tuple[Callable[[], Tensor], bool]:
    """A call of TorchJD's, and whether it takes the whole batch."""
    assert entry.peer
    size = len(given.losses)
    if size > POOL:
        try:
            batched = vmap(entry.peer.batched(count), randomness="different")
            batched(given)
            second = batched(given)  # after one step of the state, where there is one
            alone = (_second(entry.peer.make(count), one(given, at)) for at in range(POOL))
            if entry.random or all(
                torch.allclose(second[at], found, rtol=1e-3, atol=1e-5)
                for at, found in enumerate(alone)
            ):
                return lambda: batched(given), True
        except Exception:  # most branch on values, or keep what they saw inside of vmap
            pass
    weigh = entry.peer.make(count)
    several = cycle([one(given, at) for at in range(min(size, POOL))])
    return lambda: weigh(next(several)), False


def _second(weigh: Call, problem: Problem) -> Tensor:
    weigh(problem)
    return weigh(problem)


def measure(given: Namespace, rule: str, tasks: int, batch: int) -> list[Row]:
    """One cell: microseconds a problem, of the fastest block."""
    entry, some = ENTRIES[rule], problems(tasks, POOL if batch == 1 else batch)
    calls: dict[str, Callable[[], Any]] = {"ours": ours(entry, tasks, some)}
    sizes, row = {"ours": batch}, Row()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if entry.peer:
            row["peer"] = entry.peer.name
            try:
                call, row["together"] = theirs(entry, tasks, some)
                call()
                calls["TorchJD"], sizes["TorchJD"] = call, batch if row["together"] else 1
            except Exception as error:  # what it cannot do is a result, too
                row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        taken = in_turns(calls, given.seconds * len(calls), block=2e-3)
    return [row | {name: 1e6 * min(each) / sizes[name] for name, each in taken.items()}]


def apart(weights: Tensor, other: Tensor, jacobian: Tensor) -> float:
    """The distance of two unit directions, which may be given as such or as weights."""
    d, e = (x if len(x) == jacobian.shape[1] else x @ jacobian for x in (weights, other))
    return float((d / d.norm() - e / e.norm()).norm())


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every cell that both sides have, with the most that ours may take of TorchJD's time.

    No rule slower than TorchJD's, and PCGrad and GradVac faster by far at T = 32; the functions
    that check all they are given 1.2 of it for few tasks.
    """
    found = []
    for row in rows:
        if "TorchJD" in row:
            far = row["rule"] in ("pcgrad", "gradvac") and row["tasks"] == 32
            limit = (1 / 20 if row["batch"] == 1 else 1 / 100) if far else 1.0
            limit = 1.2 if row["rule"] in DOORS else limit
            found.append(row | {"ratio": row["ours"] / row["TorchJD"], "limit": limit})
    return found


def _batch(text: str) -> int:
    value = at_least(1)(text)
    if 1 < value <= POOL:
        raise ArgumentTypeError(f"expected 1, or more than {POOL}, got {value}")
    return value


def cells(given: Namespace) -> Iterator[Cell]:
    """Rules on all numbers of tasks that are asked for; the functions on few."""
    for tasks, batch, rule in product(
        dict.fromkeys([*given.tasks, *FEW]), given.batch, given.rules
    ):
        own = tasks in given.tasks and (batch == 1 or tasks <= MANY)
        if batch == 1 and tasks in FEW if rule in DOORS else own:
            yield rule, tasks, batch


main = command(
    "rules",
    __doc__,
    {
        "rule": Axis("rules", list(ENTRIES)),
        "tasks": Axis("tasks", (2, 8, 32, 128), at_least(2)),
        "batch": Axis("batch", (1, 1024), _batch),
    },
    measure,
    seconds=(0.3, "for each side of a comparison"),
    cells=cells,
)

if __name__ == "__main__":
    main()
