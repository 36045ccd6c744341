"""A solver at the hard families, and the smallest problem that it gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_option
from ..core.expect import rule_name
from ..core.progress import progress_bar
from ..rules.common import required_arguments
from .families import FAMILIES, jacobian
from .integers import integers, pick, trimmed
from .judge import CLAIMS, AnySolver, Verdict, judge
from .report import Counterexample, SolverReport, SolverRow, in_words
from .strategies import KINDS, VARIANTS, pose, whole_range

INTEGERS = "small integers"
FEW = 12  # integer Jacobians of each number of tasks from 1 to 3, besides J = 0

# of each family: numbers of tasks, 8 for the largest, and powers of ten of all gradients
DRAWS = ((2, 0), (3, 0), (1, 0), (3, 10), (2, -10), (5, 0), (8, 0), (4, 7))
CLAIMED = (1, 2, 3, 5)  # numbers of tasks at which claims are tried, moved into a stated range
ALL = 8  # up to this many tasks every number is drawn with every family, beyond with a few in turn
SIZES = (*range(1, ALL + 1), 12, 20)  # numbers of tasks that are drawn if no range is stated


class Instance(NamedTuple):
    """One problem, as it was drawn."""

    family: str
    rows: Tensor  # [task, parameter]
    exponent: int  # all gradients are multiplied by this power of ten
    variant: int  # see `pose`

    def problem(self, kind: str) -> Any:
        return pose(kind, self.rows * 10.0**self.exponent, self.variant)


def check_solver(
    solver: AnySolver, problems: Iterable[str] | None = None, tolerance: float = 1e-6, *,
    claims: Iterable[str] = (), tasks: tuple[int, int] | None = None, name: str | None = None,
) -> SolverReport:  # fmt: skip
    """A solver at small integer Jacobians and the hard families; every answer has to prove itself.

    Answers are judged by `certified_error`: from problem and weights alone, so no other solver has
    to be trusted. (CAGrad's certificate takes a dual point that `active_set` finds; any point would
    be a bound.) A ValueError is not an answer: such problems are counted on their own, and do
    not fail as long as others of their kind are answered, of several tasks too. What writes to its
    problem in place, or draws from global random numbers, is a failure. A failure is then made
    smaller: fewer tasks and parameters, integers, a scale of 1.

    Args:
        solver: from a problem to a `Solution`, or to weights `[task]` alone. Problems have
            float64 Gramians.
        problems: kinds of problems, of `"min_norm"`, `"cagrad"` and `"dual_cone"`; None is all that
            it takes: a kind that it always refuses by TypeError is then reported, and no failure.
        tolerance: the largest certified error, in (0, 1). An exact solver stays below 1e-6.
        claims: `"vmap"`: batches also give certified answers; `"grad"`: first derivatives of the
            weights are difference quotients of the exact answer. Only what is claimed is tried, at
            1, 2, 3 and 5 tasks.
        tasks: the least and largest number of tasks; every number between is drawn. None is 1 to 8,
            12 and 20.
        name: of the solver in the report; None is its function's.

    Returns:
        a report: `.sound`; printed, the worst certified error for each problem and family and the
        smallest counterexamples; `.counterexamples[kind]` with `.jacobian`, `.problem`, `.weights`
        and as code `.literal`; `.records()` for a data frame.

    Raises:
        TypeError: for what cannot be a solver.
        ValueError: for an unknown kind or claim, a tolerance outside (0, 1) or an empty range.

    Examples:
        >>> from mtlfunc import solvers
        >>> check_solver(solvers.faces(), ["min_norm"], tasks=(1, 4)).sound
        True
        >>> def uniform(problem):
        ...     return torch.full_like(problem.gramian[0], 1 / len(problem.gramian))
        >>> report = check_solver(uniform, ["min_norm"])
        >>> print(report.counterexamples["min_norm"].literal)
        rows = torch.tensor([[1.], [0.]], dtype=torch.float64)
        problem = min_norm(rows @ rows.mT)
    """
    if not callable(solver) or required_arguments(solver) == 0:
        made = f"{rule_name(solver, 'solver')}, which takes none: call it"
        got = made if callable(solver) else type(solver).__name__
        raise TypeError(f"solver: expected a function of one problem, got {got}")
    if isinstance(problems, str) or isinstance(claims, str):
        raise ValueError('problems, claims: expected lists of names, such as ["min_norm"]')
    kinds, said = dict.fromkeys(problems or ()), dict.fromkeys(claims, "")
    for kind in kinds:
        check_option(kind, "problems", KINDS)
    for claim in said:
        check_option(claim, "claims", tuple(CLAIMS))
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number in (0, 1), got {tolerance}")
    sizes = SIZES if tasks is None else tuple(whole_range(tasks, "tasks"))
    counts = sorted({min(max(count, sizes[0]), sizes[-1]) for count in CLAIMED})
    rows: list[SolverRow] = []
    examples: dict[str, Counterexample] = {}
    not_taken: dict[str, str] = {}
    unanswered: dict[str, str] = {}
    label = name or rule_name(solver, "solver")
    for kind in kinds or KINDS:
        bar = progress_bar(list(draw(kind, sizes)), desc=f"{label}, {kind}", delay=3)
        found = [(each, judge(solver, each.problem(kind), tolerance)) for each in bar]
        if problems is None and all(x.wrong.startswith("raises TypeError") for _, x in found):
            not_taken[kind] = found[0][1].wrong
            continue
        rows += rows_of(kind, found)
        refused = [(len(each.rows), x.refused) for each, x in found if x.refused]
        if refused:
            where = in_words(sorted({count for count, _ in refused}))
            several = [bool(x.refused) for each, x in found if len(each.rows) > 1]
            mark = "✗ any problem of several tasks: " if several and all(several) else ""
            unanswered[kind] = f"{mark}{len(refused)} problems of {where} tasks, {refused[0][1]}"
        failing = [instance for instance, verdict in found if verdict.wrong]
        if failing:
            examples[kind] = counterexample(solver, kind, tolerance, sizes[0], failing)
        for claim in said:
            said[claim] = said[claim] or CLAIMS[claim](solver, kind, tolerance, counts)
    return SolverReport(label, tolerance, sizes, tuple(rows), examples, not_taken, unanswered, said)


def draw(kind: str, sizes: tuple[int, ...]) -> Iterator[Instance]:
    """All instances, the smallest first; CAGrad's radii and the cone's weights take turns."""
    number = 0
    for count in sorted({1, 2, 3}.intersection(sizes)):
        for rows in pick(integers(count), FEW):
            yield Instance(INTEGERS, trimmed(rows), 0, number % VARIANTS[kind])
            number += 1
        nothing = torch.zeros(count, 1, dtype=torch.float64)
        for variant in range(VARIANTS[kind]):
            yield Instance(INTEGERS, nothing, 0, variant)
    left = set(sizes)
    for i, (wanted, exponent) in enumerate(DRAWS):
        count = sizes[-1] if wanted == 8 else min(max(wanted, sizes[0]), sizes[-1])
        left.discard(count)
        for family in FAMILIES:
            yield Instance(family, jacobian(family, count, i), exponent, number % VARIANTS[kind])
            number += 1
    others = [family for family in FAMILIES if family != "gaussian"]
    for count in sorted(left):
        few = ["gaussian", *(others[(3 * count + k) % len(others)] for k in range(3))]
        for family in FAMILIES if count <= ALL else few:
            yield Instance(family, jacobian(family, count), 0, number % VARIANTS[kind])
            number += 1


def rows_of(kind: str, found: list[tuple[Instance, Verdict]]) -> list[SolverRow]:
    """One line for each family."""
    rows = []
    for family in dict.fromkeys(instance.family for instance, _ in found):
        each = [verdict for instance, verdict in found if instance.family == family]
        wrong, refused = sum(bool(x.wrong) for x in each), sum(bool(x.refused) for x in each)
        worst = max(x.error for x in each)
        rows.append(SolverRow(kind, family, len(each), wrong, worst, refused))
    return rows


def counterexample(
    solver: AnySolver, kind: str, tolerance: float, fewest: int, failing: list[Instance]
) -> Counterexample:
    """The failing instance with the fewest tasks, made smaller, with no fewer tasks than asked."""
    first = min(failing, key=lambda each: (len(each.rows), abs(each.exponent)))

    def verdict(instance: Instance) -> Verdict:
        return judge(solver, instance.problem(kind), tolerance)

    least = shrink(lambda x: len(x.rows) >= fewest and bool(verdict(x).wrong), first)
    rows, last = least.rows * 10.0**least.exponent, verdict(least)
    wrong = last.wrong or "it was wrong here once, and not again: its answers do not repeat"
    return Counterexample(least.problem(kind), rows, last.weights, wrong, first.family)


def shrink(fails: Callable[[Instance], bool], found: Instance) -> Instance:
    """The first simpler instance that fails, again and again, until none does."""
    if found.family != INTEGERS:  # an integer Jacobian at the same scale is simpler than any other
        counts = range(1, min(3, len(found.rows)) + 1)
        simple = (rows for count in counts for rows in pick(integers(count), 2 * FEW))
        tried = (found._replace(rows=trimmed(rows)) for rows in simple)
        found = next(filter(fails, tried), found)
    while simpler := next(filter(fails, simplifications(found)), None):
        found = simpler
    return found


def simplifications(found: Instance) -> Iterator[Instance]:
    """Instances that are simpler in one way, the boldest first."""
    rows, exponent = found.rows, found.exponent
    if found.variant:
        yield found._replace(variant=0)
    for smaller in dict.fromkeys((0, exponent // 2, exponent - (exponent > 0) + (exponent < 0))):
        if abs(smaller) < abs(exponent):
            yield found._replace(exponent=smaller)
    for task in range(len(rows) if len(rows) > 1 else 0):
        yield found._replace(rows=torch.cat([rows[:task], rows[task + 1 :]]))
    for column in range(rows.shape[1] if rows.shape[1] > 1 else 0):
        yield found._replace(rows=torch.cat([rows[:, :column], rows[:, column + 1 :]], 1))
    for digits in (0, 1, 2):
        rounded = rows.round(decimals=digits)
        if not torch.equal(rounded, rows) and bool(rounded.any()):
            yield found._replace(rows=rounded)
