"""Several solvers at one problem: how good each answer is, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.expect import rule_name
from ..solvers import active_set, certify, faces, frank_wolfe, projected_gradient
from ..solvers.problems import DualCone, Problem, check_problem
from ..types import Solver
from ._cvx import cvx
from ._judge import describe_error, weights_of
from ._report import Printed, find_row

SHORTEST = 0.02
"""Seconds that a solver is called for again, so that a time is more than one call's."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One solver's answer to the problem."""

    solver: str
    weights: Tensor  # [task]
    rates: Tensor  # [task], gramian @ weights
    gap: float  # certified
    relative_gap: float  # in units of max ‖g_t‖ · Σ|w_t|‖g_t‖
    infeasibility: float
    seconds: float  # of one call, the median over several
    error: str = ""  # what it raised; the numbers are NaN then


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Printed):
    """A table when printed; `mtlfunc.plot.gaps` draws it."""

    problem: Problem
    rows: tuple[Compared, ...]

    def __getitem__(self, solver: str) -> Compared:
        return find_row({x.solver: x for x in self.rows}, solver, "solver in this comparison")

    def records(self) -> list[dict[str, Any]]:
        """One dict per solver, of plain values: `pandas.DataFrame(comparison.records())`."""
        return [
            vars(row) | {"weights": row.weights.tolist(), "rates": row.rates.tolist()}
            for row in self.rows
        ]

    def _lines(self) -> list[list[str]]:
        """Of many tasks the lowest rate alone."""
        few = len(self.problem.gramian) <= 4
        lines = [
            ["solver", "relative gap", "infeasible", "rates" if few else "lowest rate", "time"]
        ]
        for row in self.rows:
            rates = row.rates.tolist() if few else [float(row.rates.amin())]
            numbers = [f"{row.relative_gap:.1e}", f"{abs(row.infeasibility):.1e}"]
            numbers += [" ".join(f"{x:.4g}" for x in rates), f"{1e3 * row.seconds:.3g} ms"]
            lines.append([row.solver, *([row.error] if row.error else numbers)])
        return lines

    @property
    def title(self) -> str:
        return f"{type(self.problem).__name__}, {len(self.problem.gramian)} tasks"


def compare(
    problem: Problem, solvers: Mapping[str, Solver] | Iterable[Solver] | None = None
) -> Comparison:
    """Exact and fast solvers side by side at one problem.

    Gaps are those of `certify`, from the weights alone, whatever a solver says of itself.

    Args:
        problem: of `min_norm`, `cagrad` or `dual_cone`.
        solvers: by name, or several; each returns a `Solution`, or weights `[task]` alone. None
            is every solver of this package that takes the problem.

    Returns:
        a table: one row per solver with its weights, rates, certified gap and seconds per call, a
        wall-clock time of this machine. A solver that raises has the error in its row.

    Raises:
        TypeError: for anything but a problem, or but several solvers.

    Examples:
        >>> import mtlfunc as mf
        >>> problem = mf.solvers.min_norm(torch.tensor([[1.0, -0.5], [-0.5, 2.0]]))
        >>> table = compare(problem, {"exact": active_set(), "fast": frank_wolfe(5)})
        >>> [row.solver for row in table.rows]
        ['exact', 'fast']
        >>> bool(table["exact"].relative_gap < 1e-6)
        True
    """
    check_problem(problem)
    solvers = _all_that_take(problem) if solvers is None else solvers
    if isinstance(solvers, Mapping):
        found: dict[Any, Any] = dict(solvers)
    else:
        if not isinstance(solvers, Iterable):
            raise TypeError(f"solvers: expected several, got {rule_name(solvers, 'a function')}")
        several = list(solvers)
        names = [rule_name(solve, "solver") for solve in several]
        numbered = [f"{x} {names[: i + 1].count(x)}" for i, x in enumerate(names)]
        labels = [y if names.count(x) > 1 else x for x, y in zip(names, numbered, strict=True)]
        found = dict(zip(labels, several, strict=True))
    rows = [_row(name, solve, problem) for name, solve in found.items()]
    return Comparison(problem, tuple(rows))


def _all_that_take(problem: Problem) -> dict[str, Solver]:
    found = {"active_set()": active_set()}
    if len(problem.gramian) <= 6:
        found["faces()"] = faces()
    found |= {"cvx()": cvx(), "projected_gradient(100)": projected_gradient(100)}
    if isinstance(problem, DualCone):
        return found
    found["frank_wolfe(100)"] = frank_wolfe(100)
    return found | {'frank_wolfe(100, "pairwise")': frank_wolfe(100, "pairwise")}


def _row(name: str, solve: Any, problem: Problem) -> Compared:
    nan, seconds = problem.gramian[0] * torch.nan, []
    given = type(problem)(*(x.clone() for x in problem))  # should it write into them
    try:
        answer = solve(given)  # kernels are compiled and programs made at the first call
        while not seconds or (sum(seconds) < SHORTEST and len(seconds) < 100):
            start = time.perf_counter()
            answer = solve(given)
            seconds.append(time.perf_counter() - start)
        weights = weights_of(problem, answer).detach()
        proof = certify(problem, weights)
    except Exception as error:  # whatever a solver may raise
        return Compared(name, nan, nan, *[float("nan")] * 4, error=describe_error(error))
    numbers = map(float, (proof.gap, proof.relative_gap, proof.infeasibility))
    middle = sorted(seconds)[len(seconds) // 2]
    return Compared(name, weights, problem.gramian @ weights, *numbers, seconds=middle)
