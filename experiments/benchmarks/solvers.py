"""Solvers of the small problems against each other: time a problem and worst certificate.

    python -m experiments.benchmarks.solvers [--seconds S] [--instances N] [--tasks 2 8 ...]
    [--batches 1 64 ...]

Writes solvers.json, solvers.md and solvers.png. Time: the whole call from Gramians to weights,
of hard families, on the processor; solvers that take one problem at a time are looped over as many
as fit in the time allowed. Accuracy: `certify` on all that were solved, in float64.
"""

import math
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.func import vmap

from common.arguments import at_least
from experiments.benchmarks.families import FAMILIES, gramians
from experiments.benchmarks.measuring import in_turns, timed
from experiments.benchmarks.record import Row
from experiments.benchmarks.runner import Axis, Cell, command
from experiments.benchmarks.solvers_peers import ERRORS, KINDS, MOST, SOLVERS, Weigh, problem
from mtlfunc import solvers
from mtlfunc.core.files import write_whole


def figure(rows: Sequence[Row], path: Path) -> None:
    """Time of one problem against its worst certified gap, a panel a problem."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    panels = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    axes = panels.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="time of one problem (µs)", title=kind)
        axis.margins(x=0.12)  # for the numbers
        axis.grid(alpha=0.25)
    named = {}
    for row in rows:
        if row["batch"] == 1 and row["median"]:
            axis, colour = axes[kinds.index(row["kind"])], f"C{list(SOLVERS).index(row['solver'])}"
            place = 1e6 * row["median"], max(row["gap"], 1e-18)
            axis.annotate(str(row["tasks"]), place, (5, 4), textcoords="offset points", size=7)
            area, fill = 12 + 14 * math.log2(row["tasks"]), "none" if row["failed"] else colour
            axis.scatter(*place, s=area, facecolors=fill, edgecolors=colour, alpha=0.75)
            named[row["solver"]] = axis.scatter([], [], color=colour)
    axes[0].set_ylabel(f"worst normalised gap, {len(FAMILIES)} families")
    title = """one dot per solver and number of tasks T, which stands at the dot; hollow: some
        problems were not solved, and their gaps are left out"""
    panels.legend(
        named.values(),
        named,
        loc="outside lower center",
        ncols=5,
        frameon=False,
        title=" ".join(title.split()),
    )
    write_whole(path, lambda file: panels.savefig(file, format="png", dpi=150))


EXACT = ("active_set", "auto", "faces")
WIDE = 2**20  # entries of a batch of Gramians that an eager, iterative solver is given at most


def mixed(count: int, batch: int, seed: int = 1) -> Tensor:
    """Gramians of all families in turn, as many of each as are needed."""
    each = -(-batch // len(FAMILIES))
    found = torch.stack([gramians(name, count, each, seed) for name in FAMILIES], 1)
    return found.flatten(0, 1)[:batch]


def seconds_a_problem(weigh: Weigh, batched: bool, g: Tensor, seconds: float) -> float | None:
    """Median: of a batch at once where the solver takes one, else one after the other; None where
    none was solved.
    """
    if batched and len(g) > 1:
        call = vmap(weigh)
        call(g)
        (found,) = in_turns({"": lambda: call(g)}, seconds, least=3).values()
        return median(found) / len(g)
    times, end, number = [], time.perf_counter() + seconds, 0
    pool = list(g) if len(g) > 1 else list(mixed(g.shape[-1], len(FAMILIES)))
    while number < 3 or (time.perf_counter() < end and number < max(1000, len(g))):
        one = pool[number % len(pool)]
        number += 1
        with suppress(*ERRORS):
            times.append(timed(lambda one=one: weigh(one)))
    return median(times) if times else None


def audit(weigh: Weigh, kind: str, batched: bool, g: Tensor, seconds: float) -> Row:
    """What certificates say of Gramians `[problem, task, task]`; where one is solved after the
    other, of one of each family, which take turns, and of as many more as `seconds` allow.

    Returns:
        the worst `gap`, how many are `solved` and how many `failed`: by an error, or by weights
        that are not finite; and how many of those solved have weights that are all 0.
    """
    end, answers, failed = time.perf_counter() + seconds, [], 0
    if batched:
        answers = list(zip(g, vmap(weigh)(g).double(), strict=True))
    else:
        for number, one in enumerate(g, 1):
            try:
                answers.append((one, weigh(one).detach().double()))
            except ERRORS:
                failed += 1
            if number >= len(FAMILIES) and time.perf_counter() > end:
                break
    good = [(one, w) for one, w in answers if w.isfinite().all()]
    worst = gap(kind, *map(torch.stack, zip(*good, strict=True))) if good else math.nan
    row: Row = {"gap": worst, "solved": len(good), "failed": failed + len(answers) - len(good)}
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


def possible(kind: str, name: str, tasks: int, batch: int) -> bool:
    """What the solvers can do.

    A thousand eager iterations on thousands of large problems need minutes and gigabytes and show
    nothing new: these are left out.
    """
    solver = SOLVERS[name]
    return (
        kind in solver.kinds
        and tasks <= solver.most
        and (batch == 1 or (solver.batched and kind != "upgrad"))
        and (batch * tasks**2 <= WIDE or name in EXACT or not solver.batched)
    )


def cells(given: Namespace) -> list[Cell]:
    """What is possible of what is asked for."""
    every = product(given.kinds, given.solvers, given.tasks, given.batches)
    return [cell for cell in every if possible(*cell)]


@lru_cache(maxsize=1)  # for all batches of a solver
def audited(kind: str, name: str, tasks: int, instances: int, seconds: float) -> Row:
    """Over all families."""
    solver, g = SOLVERS[name], mixed(tasks, instances * len(FAMILIES), 2)
    return audit(solver.make(kind), kind, solver.batched and kind != "upgrad", g, seconds)


def measured(given: Namespace, kind: str, name: str, tasks: int, batch: int) -> list[Row]:
    """A row of the record."""
    weigh, g = SOLVERS[name].make(kind), mixed(tasks, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the certificate says how far
        said = audited(kind, name, tasks, given.instances, given.seconds)
        took = seconds_a_problem(weigh, SOLVERS[name].batched, g, given.seconds)
    return [{"median": took} | said]


INSTANCES = {"type": at_least(1), "default": 64, "help": "problems audited, of each family and T"}
main = command(
    "solvers",
    __doc__,
    {
        "kind": Axis("kinds", KINDS),
        "solver": Axis("solvers", list(SOLVERS)),
        "tasks": Axis("tasks", (2, 3, 8, 32, 64, 128), at_least(2, MOST)),
        "batch": Axis("batches", (1, 64, 4096), at_least(1)),
    },
    measured,
    seconds=2.0,
    more={"instances": INSTANCES},
    about=("instances",),
    cells=cells,
    figure=figure,
)

if __name__ == "__main__":
    main()
