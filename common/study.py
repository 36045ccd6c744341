"""Rates chosen on validation data, then results on seeds: all that a plan needs, nothing twice."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .cells import Cell, Store
from .pool import perform_all
from .progress import Progress

Numbers = dict[str, Any]
"""What a cell leaves: plain numbers; `"score"` is its score on validation data, higher is better
and -inf for a run that failed.
"""

Perform = Callable[[Cell], Numbers]
"""Performs a cell; a function at the top of a module or a partial of one, to reach a worker."""

Together = Callable[[Sequence[Cell]], list[Numbers]]
"""Performs several cells in one program, and gives the numbers of each in their order."""


BEYOND = 3
"""Rates beyond the grid that are tried at most, one after the other."""


class Plan(NamedTuple):
    """What is compared."""

    methods: dict[str, tuple[str, ...]]  # each with the variants that validation chooses from
    rates: tuple[float, ...]  # rising: one grid for all
    # seeds that choose rates and variants for all; with none, every seed chooses its own, and
    # intervals over seeds count that another choice might have been made
    tuning: tuple[int, ...]
    seeds: tuple[int, ...]  # seeds that results are taken on; those of the tuning may be among them
    problems: tuple[str, ...] = ("",)
    beyond: int = BEYOND
    left_out: tuple[tuple[str, str], ...] = ()  # problems with methods that they are not for
    # methods all of whose variants run, on the first problem at the rate chosen there for `leader`
    fronts: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    leader: str = ""
    front_seeds: tuple[int, ...] = ()


class Choice(NamedTuple):
    """What validation chose for a method, and from what."""

    variant: str
    rate: float
    scores: dict[str, dict[float, float]]  # by variant and rate: mean over the seeds that choose
    # rates beyond the grid that were tried, each because the best so far lay at the edge
    widened: tuple[float, ...]
    edge: bool  # whether the choice lies at the edge of what was tried even so


class Found(NamedTuple):
    """A finished study, by problem and method."""

    choices: dict[str, dict[str, tuple[Choice, ...]]]  # one a seed, or one for all of them
    runs: dict[str, dict[str, list[Numbers]]]  # one entry a seed of the plan, at the choice
    fronts: dict[str, dict[str, list[Numbers]]] = {}  # noqa: RUF012  by method and variant


def alike(cell: Cell) -> Hashable:
    """What cells that differ in rate and seed alone agree in."""
    return cell.problem, cell.method, cell.variant


def conduct(plan: Plan, perform: Perform, store: Store, workers: int | str = 1) -> Found:
    """`conduct_together`, every cell alone."""
    return conduct_together(plan, functools.partial(_each, perform), lambda c: c, store, workers)


def _each(perform: Perform, cells: Sequence[Cell]) -> list[Numbers]:
    return [perform(cell) for cell in cells]


def conduct_together(
    plan: Plan,
    perform: Together,
    by: Callable[[Cell], Hashable],
    store: Store,
    workers: int | str = 1,
) -> Found:
    """Tune, widen, run: every method of the plan at the rate that is best for it.

    All rates and variants run on the seeds that choose. While a method's best rate is the smallest
    or the largest of those tried, one more beyond it, by the ratio of the last two, is tried with
    its best variant, at most `plan.beyond` times. The choice then runs on the other seeds that it
    is for, and the fronts last. Finished cells are kept one by one, so that this can be stopped
    anywhere and goes on there.

    Args:
        plan: what is compared.
        perform: cells that agree in `by`, in one program, a vmapped one say.
        by: which cells are performed together; read in this process only.
        store: of finished cells.
        workers: processes side by side, or the address of a scheduler.

    Returns:
        choices and runs.

    Raises:
        ValueError: for a grid that does not rise.
        OSError: where a finished cell cannot be written.
    """
    if not plan.rates or any(a >= b for a, b in itertools.pairwise(plan.rates)):
        raise ValueError(f"rates: expected one or more, rising, got {plan.rates}")
    known: dict[Cell, Numbers] = {}

    progress = Progress(0, "all runs", "runs")

    def fill(cells: Sequence[Cell]) -> None:
        _fill(known, cells, perform, by, store, workers, progress)

    def chosen(by_whom: Sequence[_Search]) -> list[Cell]:
        # by seed first, so that an interruption leaves every method with some
        return [
            search.best(known)._replace(seed=seed)
            for seed in plan.seeds
            for search in by_whom
            if seed in search.taken_on
        ]

    shares = [(plan.tuning, plan.seeds)] if plan.tuning else [((s,), (s,)) for s in plan.seeds]
    # by seed first where each chooses for itself, as one's data may be held in memory
    searches = [
        _Search(
            choosing,
            taken_on,
            [Cell(problem, method, v, rate, choosing[0]) for v in variants for rate in plan.rates],
        )
        for choosing, taken_on in shares
        for problem in plan.problems
        for method, variants in plan.methods.items()
        if (problem, method) not in plan.left_out
    ]
    first = [c for search in searches for c in _over(search.tried, search.choosing)]
    later = sum(len({*search.taken_on} - {*search.choosing}) for search in searches)
    fronts = sum(map(len, plan.fronts.values())) * len(plan.front_seeds)
    progress.total = len(set(first)) + later + fronts
    with progress:
        # what is kept of all phases, so that the time left is that of what is missing
        _read(known, first, store, progress)
        decided = [search for search in searches if search.decided(known, plan.beyond)]
        _read(known, chosen(decided), store, progress)
        if any(_leads(plan, search) for search in decided):
            _read(known, _flat(_fronts(plan, decided, known)), store, progress)
        fill(first)
        for _ in range(plan.beyond):
            added = [c for search in searches for c in search.widen(known)]
            progress.total += len(added)
            fill(added)
        fill(chosen(searches))
        shown = _fronts(plan, searches, known)
        fill(_flat(shown))
    choices: dict[str, dict[str, tuple[Choice, ...]]] = {problem: {} for problem in plan.problems}
    runs: dict[str, dict[str, list[Numbers]]] = {problem: {} for problem in plan.problems}
    for search in searches:
        cell = search.best(known)
        before = choices[cell.problem].get(cell.method, ())
        choices[cell.problem][cell.method] = (*before, search.choice(known))
        here = runs[cell.problem].setdefault(cell.method, [])
        here += [known[c] for c in _over([cell], search.taken_on)]
    return Found(
        choices,
        runs,
        {m: {v: [known[c] for c in own] for v, own in each.items()} for m, each in shown.items()},
    )


def _fronts(
    plan: Plan, searches: Sequence["_Search"], known: Mapping[Cell, Numbers]
) -> dict[str, dict[str, list[Cell]]]:
    """The cells of the methods that take another one's rate, by method and variant."""
    if not plan.fronts:
        return {}
    lead = next(search.best(known) for search in searches if _leads(plan, search))
    return {
        method: {
            v: _over([lead._replace(method=method, variant=v)], plan.front_seeds) for v in variants
        }
        for method, variants in plan.fronts.items()
    }


def _leads(plan: Plan, search: "_Search") -> bool:
    cell = search.tried[0]
    return (cell.problem, cell.method) == (plan.problems[0], plan.leader)


def _flat(fronts: Mapping[str, Mapping[str, list[Cell]]]) -> list[Cell]:
    return [cell for each in fronts.values() for cells in each.values() for cell in cells]


class _Search:
    """The choice of a method's rate and variant on some seeds."""

    def __init__(
        self, choosing: tuple[int, ...], taken_on: tuple[int, ...], cells: list[Cell]
    ) -> None:
        self.choosing, self.taken_on = choosing, taken_on
        self.tried = cells  # on the first of the seeds
        self.widened: list[float] = []

    def score(self, known: Mapping[Cell, Numbers], cell: Cell) -> float:
        """Mean over the seeds that choose."""
        return _mean([known[c]["score"] for c in _over([cell], self.choosing)])

    def decided(self, known: Mapping[Cell, Numbers], beyond: int) -> bool:
        """Whether the best is known already, and no other rate will be tried."""
        made = all(cell in known for cell in _over(self.tried, self.choosing))
        return made and (beyond == 0 or self.beyond(self.best(known)) is None)

    def best(self, known: Mapping[Cell, Numbers]) -> Cell:
        return max(self.tried, key=lambda cell: self.score(known, cell))

    def beyond(self, best: Cell) -> float | None:
        """The next rate where the best lies at the edge of those tried with its variant."""
        return _beyond(best.rate, sorted(c.rate for c in self.tried if c.variant == best.variant))

    def widen(self, known: Mapping[Cell, Numbers]) -> list[Cell]:
        """Cells to be run next; none where the best lies inside."""
        best = self.best(known)
        rate = self.beyond(best)
        if rate is None:
            return []
        self.widened.append(rate)
        self.tried.append(best._replace(rate=rate))
        return _over(self.tried[-1:], self.choosing)

    def choice(self, known: Mapping[Cell, Numbers]) -> Choice:
        best, scores = self.best(known), {cell.variant: {} for cell in self.tried}
        for cell in self.tried:
            scores[cell.variant][cell.rate] = self.score(known, cell)
        edge = self.beyond(best) is not None
        return Choice(best.variant, best.rate, scores, tuple(self.widened), edge)


def _over(cells: Sequence[Cell], seeds: Sequence[int]) -> list[Cell]:
    return [cell._replace(seed=seed) for cell in cells for seed in seeds]


def _fill(
    known: dict[Cell, Numbers],
    cells: Sequence[Cell],
    perform: Together,
    by: Callable[[Cell], Hashable],
    store: Store,
    workers: int | str,
    progress: Progress,
) -> None:
    """Put every cell into `known`: from the store, or performed and kept there."""
    missing: dict[Hashable, list[Cell]] = {}
    for cell in _read(known, cells, store, progress):
        missing.setdefault(by(cell), []).append(cell)

    def keep(group: Sequence[Cell], found: list[Numbers]) -> None:
        for cell, numbers in zip(group, found, strict=True):
            store.write(cell, numbers)
            known[cell] = numbers
        progress.update(len(group))

    perform_all(perform, list(missing.values()), workers, keep)


def _read(
    known: dict[Cell, Numbers], cells: Sequence[Cell], store: Store, progress: Progress
) -> list[Cell]:
    """Put what the store has into `known`; the others."""
    missing = []
    for cell in dict.fromkeys(cells):
        if cell in known:
            continue
        kept = store.read(cell)
        if kept is None:
            missing.append(cell)
        else:
            known[cell] = kept
            progress.skip()
    return missing


def _mean(scores: Sequence[float]) -> float:
    """-inf as soon as one run failed."""
    if any(math.isnan(score) for score in scores):
        return -math.inf
    return sum(scores) / len(scores)


def _beyond(rate: float, rates: Sequence[float]) -> float | None:
    """The next rate after an edge of some; None inside them, and for one rate that is given."""
    if len(rates) == 1:
        return None
    if rate == rates[-1]:
        return float(f"{rate * rates[-1] / rates[-2]:.6g}")
    if rate == rates[0]:
        return float(f"{rate * rates[0] / rates[1]:.6g}")
    return None


def rate_of(choices: Sequence[Choice]) -> str:
    """For a table: the rate, whether it lies at the edge of what was tried, the variant; with
    several choices each with the number of seeds that made it.
    """

    def counted(each: Iterable[str]) -> str:
        found = Counter(each)
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{what} × {count}" for what, count in found.items())

    ordered = sorted(choices, key=lambda choice: choice.rate)
    rates = counted(f"{choice.rate:g}{' (edge)' if choice.edge else ''}" for choice in ordered)
    variants = counted(choice.variant for choice in sorted(choices, key=lambda x: x.variant))
    return rates + (f", {variants}" if variants else "")


def about_rates(plan: Plan, found: Found) -> list[str]:
    """Sentences for the notes of a table: the grid, what lay at its edge, what still does."""
    if len(plan.rates) == 1 and all(len(variants) == 1 for variants in plan.methods.values()):
        return [f"Learning rate: {plan.rates[0]:g} for all, not chosen here."]
    grid = ", ".join(f"{rate:g}" for rate in plan.rates)
    count = f"{len(plan.tuning)} seed{'s' if len(plan.tuning) > 1 else ''}"
    if not plan.tuning:
        how = "every seed for itself, so that intervals over seeds count the choice"
    elif set(plan.tuning) & set(plan.seeds):
        how = f"on the first {count} of the results"
    else:
        how = f"on {count} of no result"
    lines = [
        f"Learning rates: each method at the best of {grid} by its score on validation data, {how}."
    ]
    for problem, choices in found.choices.items():
        where = f" ({problem})" if problem else ""
        wide = {
            name: dict.fromkeys(sorted(rate for choice in each for rate in choice.widened))
            for name, each in choices.items()
        }
        tried = ", ".join(
            f"{name} {' and '.join(f'{rate:g}' for rate in rates)}"
            for name, rates in wide.items()
            if rates
        )
        if tried:
            lines.append(
                "While the best lay at the edge of what was tried, the next rate beyond was tried"
                f"{where}: {tried}."
            )
        edge = [name for name, each in choices.items() if any(choice.edge for choice in each)]
        lines.append(
            f"**Still best at the edge{where}: {', '.join(edge)}**; better rates may lie beyond."
            if edge
            else f"No method's rate lies at the edge of what was tried{where}."
        )
    return lines
