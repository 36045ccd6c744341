"""Solvers of the small problems against each other: time a problem and worst certificate.

    python -m experiments.benchmarks.solvers [--seconds S] [--tasks 2 8 ...] [--batches 1 4096]

Writes solvers.json and solvers.md. Time: the whole call from Gramians to weights, of hard families,
on the processor, one problem after the other or a batch at once. Accuracy: `certify` on what was
solved of four problems of each family, in float64.

Ours is at its defaults, through the public call. TorchJD's weightings are at theirs, which stop
MGDA after 100 steps or at 1e-3, regularise DualProj and UPGrad by 1e-4 and normalise CAGrad's
Gramian with an epsilon of 1e-4.
"""

import math
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from common.arguments import at_least
from experiments.benchmarks.families import FAMILIES, gramians
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.record import Row
from experiments.benchmarks.runner import Axis, Cell, command
from mtlfunc import solvers

C = 0.5
KINDS = ("min_norm", "cagrad", "dual_cone", "upgrad")
Weigh = Callable[[Tensor], Tensor]


def problem(kind: str, g: Tensor, w: Tensor | None = None) -> Any:
    """The problem of one Gramian, to project equal weights, or `w`, where it is the dual cone."""
    if kind == "min_norm":
        return solvers.min_norm(g)
    if kind == "cagrad":
        # a number would be copied to the GPU, which no CUDA graph can do
        return solvers.cagrad(g, g.new_full((), C) if g.is_cuda else C)
    return solvers.dual_cone(g, torch.full_like(g[0], 1 / len(g)) if w is None else w)


def ours(kind: str) -> Weigh:
    """Through the public call, for one Gramian."""
    solve = solvers.active_set()
    if kind == "upgrad":
        return lambda g: vmap(lambda w: solve(problem(kind, g, w)).weights)(
            torch.eye(len(g), dtype=g.dtype, device=g.device) / len(g)
        ).sum(0)
    return lambda g: solve(problem(kind, g)).weights


def torchjd(kind: str) -> Weigh:
    """TorchJD's weighting of the same method."""
    from torchjd import aggregation  # a test dependency

    return {
        "min_norm": aggregation.MGDAWeighting,
        "cagrad": partial(aggregation.CAGradWeighting, c=C),
        "dual_cone": aggregation.DualProjWeighting,
        "upgrad": aggregation.UPGradWeighting,
    }[kind]()


SOLVERS: dict[str, Callable[[str], Weigh]] = {"active_set": ours, "TorchJD (defaults)": torchjd}
AUDITED = 4 * len(FAMILIES)  # problems of which weights are certified


def mixed(count: int, batch: int, seed: int = 1) -> Tensor:
    """Gramians of all families in turn, as many of each as are needed."""
    each = -(-batch // len(FAMILIES))
    found = torch.stack([gramians(name, count, each, seed) for name in FAMILIES], 1)
    return found.flatten(0, 1)[:batch]


Found = tuple[list[float], Sequence[Tensor | None]]
"""Seconds of a problem, and weights: None where a solver gave up."""


def one_by_one(weigh: Weigh, g: Tensor, seconds: float) -> Found:
    """One problem of each family at least, and as many more as fit."""
    times, answers, end = [], [], time.perf_counter() + seconds
    for number in range(1000):
        if number >= len(FAMILIES) and time.perf_counter() > end:
            break
        start, answer = time.process_time(), None
        with suppress(Exception):  # a solver that gives up
            answer = weigh(g[number % len(g)])
            times.append(time.process_time() - start)
        if number < len(g):
            answers.append(answer)
    return times, answers


def together(weigh: Weigh, g: Tensor, seconds: float) -> Found:
    """A batch at once, and the weights of those that are audited."""
    call = partial(vmap(weigh), g)
    answers = list(call()[:AUDITED])
    (times,) = in_turns({"": call}, seconds, least=3).values()
    return [each / len(g) for each in times], answers


def audit(kind: str, g: Tensor, answers: Sequence[Tensor | None]) -> Row:
    """What certificates say of weights of the first problems of `[problem, task, task]`. Returns
    the worst `gap`, how many are `solved` and how many `failed`: by an error, or by weights that
    are not finite; and how many of those solved have weights that are all 0.
    """
    given = zip(g, answers, strict=False)
    good = [(one, w.detach().double()) for one, w in given if w is not None and w.isfinite().all()]
    worst = gap(kind, *map(torch.stack, zip(*good, strict=True))) if good else math.nan
    row: Row = {"gap": worst, "solved": len(good), "failed": len(answers) - len(good)}
    return row | {"zero": sum(not w.any() for _, w in good)}


def gap(kind: str, g: Tensor, w: Tensor) -> float:
    """The worst relative gap of weights `[batch, task]`."""
    if kind == "upgrad":  # a sum of projections: no conflict is what is left to certify
        n = g.diagonal(dim1=-2, dim2=-1).sqrt()
        rates = torch.einsum("bij,bj->bi", g, w)
        slack = (rates / n.where(n > 0, 1.0)).amin(-1) / (n * w.abs()).sum(-1)
        return float((-slack).amax().clamp_min(0))
    found = vmap(lambda g, w: solvers.certify(problem(kind, g), w).relative_gap)(g, w)
    return float(found.amax())


def cells(given: Namespace) -> list[Cell]:
    """What the solvers can do of what is asked for."""
    every = product(given.kinds, given.solvers, given.tasks, given.batches)
    return [
        (kind, name, tasks, batch)
        for kind, name, tasks, batch in every
        if batch == 1 or (name == "active_set" and kind != "upgrad")
    ]


def measured(given: Namespace, kind: str, name: str, tasks: int, batch: int) -> list[Row]:
    """A row of the record."""
    weigh, g = SOLVERS[name](kind), mixed(tasks, max(batch, AUDITED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the certificate says how far
        times, answers = (one_by_one if batch == 1 else together)(weigh, g, given.seconds)
    return [{"median": median(times) if times else None} | audit(kind, g, answers)]


main = command(
    "solvers",
    __doc__,
    {
        "kind": Axis("kinds", KINDS),
        "solver": Axis("solvers", list(SOLVERS)),
        "tasks": Axis("tasks", (2, 8, 32, 128), at_least(2)),
        "batch": Axis("batches", (1, 4096), at_least(1)),
    },
    measured,
    seconds=(0.5, "for a solver, a number of tasks and a batch"),
    cells=cells,
)

if __name__ == "__main__":
    main()
