"""Reports: what they share, and what `check_solver` found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..solvers import CAGrad, DualCone
from ..solvers.problems import Problem
from .integers import literal
from .judge import CLAIMS


class Printed:
    """A report: a table, remarks and examples."""

    title: Any = ""

    def _lines(self) -> list[list[str]]:
        """The cells of the table; a line that is one cell is a heading."""
        return []

    def _remarks(self) -> list[str]:
        return []

    def _examples(self) -> dict[str, list[str]]:
        """Lines of code and text, by what they are examples of."""
        return {}

    def __str__(self) -> str:
        lines, said = self._lines(), self._remarks()
        full = max(map(len, lines), default=0)
        # the last cell of a line that ends early may be of any length
        whole = [line if len(line) == full else line[:-1] for line in lines]
        widths = [max(len(x[i]) for x in whole if i < len(x)) for i in range(full)]
        text = [self.title]
        for line in lines:
            cells = (f"{x:{n}}" for x, n in zip(line, widths, strict=False))
            text += ["  ".join(cells).rstrip()] if len(line) > 1 else ["", *line]
        text += [""] * bool(said) + said
        for head, shown in self._examples().items():
            text += ["", head, *(f"    {line}" for line in shown)]
        return "\n".join(text)

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class SolverRow:
    """One kind of problem on one family of Gramians."""

    problem: str
    family: str
    instances: int  # that were tried
    failures: int
    worst: float  # the largest certified error; infinite where an answer cannot be one
    refused: int = 0  # instances without an answer, by a ValueError


@dataclass(frozen=True, eq=False)
class Counterexample:
    """The smallest problem found that the solver gets wrong."""

    problem: Problem
    jacobian: Tensor  # [task, parameter]
    weights: Tensor | None  # what the solver answered, if these were weights
    detail: str  # what is wrong with them
    family: str  # where it was found, before it was made smaller

    @property
    def literal(self) -> str:
        """The problem as code, after `import torch` and `from mtlfunc.solvers import *`."""
        problem, rows = self.problem, _wide(self.jacobian)
        name = {CAGrad: "cagrad", DualCone: "dual_cone"}.get(type(problem), "min_norm")
        more = ""
        if isinstance(problem, CAGrad):
            more = f", {float(problem.c):g}"
            if problem.preference.unique().numel() > 1:
                more += f", preference={_wide(problem.preference)}"
        elif isinstance(problem, DualCone):
            more = f", {_wide(problem.weights)}"
        return f"rows = {rows}\nproblem = {name}(rows @ rows.mT{more})"


def _wide(x: Tensor) -> str:
    """Code that gives a float64 tensor back."""
    sizes = x[x != 0].abs()
    power = 0 if not len(sizes) else math.floor(math.log10(float(sizes.amax())))
    if abs(power) > 3:  # a readable matrix times a power of ten, if that is exact
        scaled = (x / 10.0**power).to(torch.float32).double()
        if torch.equal(scaled * 10.0**power, x.double()):
            return f"1e{power} * {_wide(scaled)}"
    text = literal(x)
    return text if "float64" in text else f"{text[:-1]}, dtype=torch.float64)"


@dataclass(frozen=True, eq=False, repr=False)
class SolverReport(Printed):
    """What `check_solver` found; a table when printed."""

    solver: str
    tolerance: float
    tasks: tuple[int, ...]  # the numbers of tasks that were drawn
    rows: tuple[SolverRow, ...]
    counterexamples: dict[str, Counterexample]  # by kind of problem
    not_taken: dict[str, str]  # kinds that were not asked for and that it refuses: its error
    unanswered: dict[str, str]  # kinds of which it refuses some by ValueError: how many, its error
    claims: dict[str, str]  # "vmap", "grad": what is wrong, empty if nothing is

    @property
    def sound(self) -> bool:
        """Whether every kind that it takes has answers, all certified, and every claim holds."""
        wrong = any(row.failures for row in self.rows) or any(self.claims.values())
        answered = {row.problem for row in self.rows if row.instances > row.refused}
        wrong = wrong or any(text.startswith("✗") for text in self.unanswered.values())
        return bool(self.rows) and answered == {row.problem for row in self.rows} and not wrong

    def records(self) -> list[dict[str, Any]]:
        """One dict per problem and family: `pandas.DataFrame(report.records())`."""
        return [{"solver": self.solver} | vars(row) for row in self.rows]

    @property
    def title(self) -> str:
        tried, failed = sum(x.instances for x in self.rows), sum(x.failures for x in self.rows)
        found = f"wrong at {failed:,} of {tried:,} problems" if failed else f"{tried:,} problems"
        verdict = "sound" if self.sound else "not sound"
        return f"{self.solver} is {verdict}: {found}, {in_words(self.tasks)} tasks, float64"

    def _remarks(self) -> list[str]:
        """What was not tried, and the claims."""
        said = [f"✗: above {self.tolerance:g}, and at how many of how many problems"]
        said += [f"{kind}: not taken, {why}" for kind, why in self.not_taken.items()]
        said += [f"{kind}: no answer to {what}" for kind, what in self.unanswered.items()]
        for claim in CLAIMS:
            wrong = self.claims.get(claim, "not claimed, not tried")
            said.append(f"{claim}: {wrong or 'holds as claimed'}")
        return said

    def _lines(self) -> list[list[str]]:
        kinds = list(dict.fromkeys(row.problem for row in self.rows))
        cells = {(row.family, row.problem): _cell(row) for row in self.rows}
        families = dict.fromkeys(row.family for row in self.rows)
        lines = [[family, *(cells.get((family, x), "") for x in kinds)] for family in families]
        return [["worst certified error", *kinds], *lines] if kinds else []

    def _examples(self) -> dict[str, list[str]]:
        found = {}
        for kind, x in self.counterexamples.items():
            weights = [] if x.weights is None else [f"weights {x.weights.tolist()}"]
            head = f"{kind}, the smallest counterexample (found in {x.family}):"
            found[head] = [*x.literal.splitlines(), *weights, x.detail]
        return found


def in_words(sizes: Sequence[int]) -> str:
    """Ascending numbers; three and more in a row by their ends."""
    said: list[str] = []
    # numbers in a row are as far from their places as the first of them
    for _, places in groupby(enumerate(sizes), lambda place: place[1] - place[0]):
        run = [size for _, size in places]
        said += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return " and ".join([", ".join(said[:-1])] * (len(said) > 1) + said[-1:])


def _cell(row: SolverRow) -> str:
    if row.refused == row.instances:
        return "no answer"
    worst = "no answer" if row.worst == float("inf") else f"{row.worst:.0e}"
    return f"{worst} ✗ {row.failures}/{row.instances}" if row.failures else worst
