"""Solvers of the small problems against each other: time a problem and worst certificate.

    python -m experiments.benchmarks.solvers [--out DIR] [--seconds S] [--instances N] [--tasks 2 8
    ...] [--batches 1 64 ...] [--clock cpu]

Writes solvers.json (after every cell; a run that was stopped goes on where it was, --again measures
again), solvers.md and solvers.png. A cell is reused only where machine, versions, sources and
settings are the same. On a busy machine, OMP_NUM_THREADS=1 and --clock cpu count the processor's
time instead of the wall's. Time: the whole call from Gramians to weights, problems of all hard
families mixed; solvers that take one problem at a time are looped over as many as fit in the time
allowed. Accuracy: `certify` on every instance that was solved, in float64.
"""

import argparse
import math
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from common.arguments import at_least
from experiments.benchmarks import runner
from experiments.benchmarks.families import FAMILIES, gramians
from experiments.benchmarks.measuring import in_turns, timed
from experiments.benchmarks.record import Row, plain
from experiments.benchmarks.solvers_peers import ERRORS, KINDS, MOST, SOLVERS, Weigh, problem
from mtlfunc import solvers
from mtlfunc.core.files import write_whole
from mtlfunc.types import Certificate


def worst(row: Row, key: str) -> float:
    """The worst of all families of a certificate's entry; NaN where none was solved."""
    found = [family[key] for family in row["families"].values() if key in family]
    values = [value for value in found if not math.isnan(value)]
    return (min(values) if key == "kappa" else max(values)) if values else math.nan


def count(row: Row, key: str) -> int:
    """How many instances of all families were "solved", "failed" or answered by "zero"."""
    return sum(family[key] for family in row["families"].values())


def figure(rows: Sequence[Row], path: Path) -> None:
    """Time of one problem against its worst certified gap, a panel a problem."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    families = len(rows[0]["families"])
    panels = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    axes = panels.subplots(1, len(kinds), sharey=True, squeeze=False)
    colours = {name: f"C{i}" for i, name in enumerate(SOLVERS)}
    for axis, kind in zip(axes[0], kinds, strict=True):
        for row in rows:
            if row["kind"] == kind and row["batch"] == 1 and row["median"]:
                colour = colours[row["solver"]]
                place = 1e6 * row["median"], max(worst(row, "gap"), 1e-18)
                axis.annotate(str(row["tasks"]), place, (5, 4), textcoords="offset points", size=7)
                axis.scatter(
                    *place,
                    s=12 + 14 * math.log2(row["tasks"]),
                    facecolors="none" if count(row, "failed") else colour,
                    edgecolors=colour,
                    alpha=0.75,
                )
        axis.set(xscale="log", yscale="log", xlabel="time of one problem (µs)", title=kind)
        axis.margins(x=0.12)  # for the numbers
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(f"worst normalised gap, {families} families")
    used = {row["solver"] for row in rows}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colours[name], label=name)
        for name in SOLVERS
        if name in used
    ]
    panels.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5,
        frameon=False,
        title="one dot per solver and number of tasks T, which stands at the dot; hollow: some "
        "problems were not solved, and their gaps are left out",
    )
    write_whole(path, lambda file: panels.savefig(file, format="png", dpi=150))


EXACT = ("active_set", "auto", "faces")
WIDE = 2**20  # entries of a batch of Gramians that an eager, iterative solver is given at most


def mixed(count: int, batch: int) -> Tensor:
    """Gramians of all families in turn, as many of each as are needed."""
    each = -(-batch // len(FAMILIES))
    found = torch.stack([gramians(name, count, each, 1) for name in FAMILIES], 1)
    return found.flatten(0, 1)[:batch]


class Timing(NamedTuple):
    """Seconds a problem; None where none was solved."""

    median: float | None
    fastest: float | None
    timed: int  # problems timed, or taken together
    failed: int


def seconds_a_problem(weigh: Weigh, batched: bool, g: Tensor, seconds: float, clock: str) -> Timing:
    """Time a problem: of a batch at once where the solver takes one, else one after the other."""
    if batched and len(g) > 1:
        call = vmap(weigh)
        call(g)
        (found,) = in_turns({"": lambda: call(g)}, seconds, clock, least=3).values()
        times = [t / len(g) for t in found]
        return Timing(median(times), min(times), len(g), 0)
    failed, times, end = 0, [], time.perf_counter() + seconds
    pool = list(g) if len(g) > 1 else list(mixed(g.shape[-1], len(FAMILIES)))
    number = 0
    while number < 3 or (time.perf_counter() < end and number < max(1000, len(g))):
        one = pool[number % len(pool)]
        number += 1
        try:
            times.append(timed(lambda one=one: weigh(one), clock))
        except ERRORS:
            failed += 1
    if not times:
        return Timing(None, None, 0, failed)
    return Timing(median(times), min(times), len(times), failed)


def audit(
    weigh: Weigh, kind: str, batched: bool, problems: dict[str, Tensor], seconds: float
) -> dict[str, Row]:
    """What certificates say of each family.

    Args:
        weigh: the solver.
        kind: one of `KINDS`.
        batched: whether it vmaps.
        problems: Gramians of each family.
        seconds: time for all of them, where one is solved after the other.

    Returns:
        For each family worst kappa away from stationarity, worst relative gap and infeasibility,
        how many instances were solved and how many failed: by an error, or by weights that are
        not finite; and how many of those solved have weights that are all 0.
    """
    table = {}
    for name, g in problems.items():
        end = time.perf_counter() + seconds / len(problems)
        answers, kept, failed = [], [], 0
        if batched:
            answers, kept = list(vmap(weigh)(g).cpu().double()), list(g)
        else:
            for one in g:
                try:
                    answers.append(weigh(one).detach().cpu().double())
                    kept.append(one)
                except ERRORS:
                    failed += 1
                if time.perf_counter() > end:
                    break
        good = [bool(answer.isfinite().all()) for answer in answers]
        row: Row = {"solved": sum(good), "failed": failed + len(good) - sum(good)}
        row["zero"] = sum(ok and not bool(x.any()) for ok, x in zip(good, answers, strict=True))
        if any(good):
            chosen = torch.tensor(good)
            row |= measure(kind, torch.stack(kept).cpu()[chosen], torch.stack(answers)[chosen])
        table[name] = row
    return table


def measure(kind: str, g: Tensor, w: Tensor) -> dict[str, float]:
    """Worst kappa, relative gap and infeasibility of weights `[batch, task]`."""
    n = g.diagonal(dim1=-2, dim2=-1).sqrt()
    magnitude = (n * w.abs()).sum(-1)
    rates = torch.einsum("bij,bj->bi", g, w)
    if kind == "upgrad":  # a sum of projections: no conflict is what is left to certify
        slack = (rates / n.where(n > 0, 1.0)).amin(-1) / magnitude
        kappa = 1 + float(slack.amin().clamp_max(0))
        return {"kappa": kappa, "gap": float((-slack).amax().clamp_min(0)), "infeasibility": 0.0}
    found = vmap(lambda g, w: tuple(solvers.certify(problem(kind, g), w)))(g, w)
    certificate = Certificate(*found)
    clear = ~certificate.stationary
    if kind == "min_norm":
        clear = (w * rates).sum(-1) > 1e-6 * magnitude**2
    return {
        "kappa": float(certificate.kappa[clear].amin()) if bool(clear.any()) else float("nan"),
        "gap": float(certificate.relative_gap.amax()),
        "infeasibility": abs(float(certificate.infeasibility.amax())),
    }


Cell = tuple[str, str, int, int]
FIELDS = ("kind", "solver", "tasks", "batch")


def cells(given: argparse.Namespace) -> list[Cell]:
    """What the command line names and the solvers can do.

    A thousand eager iterations on thousands of large problems need minutes and gigabytes and show
    nothing new: these are left out.
    """
    return [
        (kind, name, tasks, batch)
        for kind in given.kinds
        for name in given.solvers
        for tasks in given.tasks
        for batch in given.batches
        if kind in (solver := SOLVERS[name]).kinds
        and tasks <= solver.most
        and (batch == 1 or (solver.batched and kind != "upgrad"))
        and (batch * tasks**2 <= WIDE or name in EXACT or not solver.batched)
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    allowed = "time for each cell's timing, and again for its audit"
    parser = runner.parser(__doc__, 2.0, "wall", allowed)
    add = parser.add_argument
    instances = "problems audited, of each family and number of tasks"
    add("--instances", type=at_least(1), default=64, help=instances)
    add("--tasks", type=at_least(2, MOST), nargs="+", default=[2, 3, 8, 32, 64, 128])
    add("--batches", type=at_least(1), nargs="+", default=[1, 64, 4096])
    add("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    add("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    given = parser.parse_args(arguments)
    wanted = cells(given)
    if not wanted:
        parser.error("none of these solvers takes these problems, numbers of tasks and batches")

    def order(row: Row) -> tuple[Any, ...]:
        first = KINDS.index(row["kind"]), list(SOLVERS).index(row["solver"])
        return *first, row["tasks"], row["batch"]

    record = runner.record_of(given, "solvers", FIELDS, order, instances=given.instances)

    @lru_cache(maxsize=1)  # for all batches of a solver
    def audited(kind: str, name: str, tasks: int) -> dict[str, Row]:
        problems = {x: gramians(x, tasks, given.instances, 2) for x in FAMILIES}
        together = SOLVERS[name].batched and kind != "upgrad"
        return audit(SOLVERS[name].make(kind), kind, together, problems, given.seconds)

    def one(kind: str, name: str, tasks: int, batch: int) -> list[Row]:
        weigh, g = SOLVERS[name].make(kind), mixed(tasks, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the certificate says how far
            families = audited(kind, name, tasks)
            found = seconds_a_problem(weigh, SOLVERS[name].batched, g, given.seconds, given.clock)
        cell = zip(FIELDS, (kind, name, tasks, batch), strict=True)
        return [dict(cell) | found._asdict() | {"families": families}]

    runner.run(given, record, wanted, one, table, figure)


def table(rows: list[Row], line: str) -> str:
    """Every row, with the worst that certificates say of all families."""
    said = [
        row
        | {key: worst(row, key) for key in ("kappa", "gap", "infeasibility")}
        | {key: count(row, key) for key in ("solved", "failed", "zero")}
        for row in rows
    ]
    return plain(said, line)


if __name__ == "__main__":
    main()
