"""Rates chosen on validation data, then results on seeds: all that a plan needs, nothing twice."""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from .cells import Cell, Store
from .pool import perform_all, unbroken

Numbers = dict[str, Any]
"""What a cell leaves: plain numbers; `"score"` is its score on validation data, higher is better
and -inf for a run that failed.
"""

Perform = Callable[[Cell], Numbers]
"""Performs a cell; a function at the top of a module or a partial of one, to reach a worker."""

Together = Callable[[Sequence[Cell]], list[Numbers]]
"""Performs several cells in one program, and gives the numbers of each in their order."""


class Plan(NamedTuple):
    """What is compared."""

    methods: dict[str, tuple[str, ...]]  # each with the variants that validation chooses from
    rates: tuple[float, ...]  # rising: one grid for all
    tuning: tuple[int, ...]  # seeds that choose rates and variants
    seeds: tuple[int, ...]  # seeds that results are taken on; those of the tuning may be among them
    problems: tuple[str, ...] = ("",)


class Choice(NamedTuple):
    """What validation chose for a method, and from what."""

    variant: str
    rate: float
    scores: dict[str, dict[float, float]]  # by variant and rate: mean over the tuning seeds
    # the rate beyond the grid that was tried because the best lay at its edge
    widened: float | None
    edge: bool  # whether the choice lies at the edge of what was tried even so


class Found(NamedTuple):
    """A finished study, by problem and method."""

    choices: dict[str, dict[str, Choice]]
    runs: dict[str, dict[str, list[Numbers]]]  # one entry a seed of the plan, at the choice


def alike(cell: Cell) -> Hashable:
    """What cells that differ in rate and seed alone agree in."""
    return cell.problem, cell.method, cell.variant


def conduct(plan: Plan, perform: Perform, store: Store, workers: int = 1) -> Found:
    """`conduct_together`, every cell by itself."""
    return conduct_together(plan, functools.partial(_each, perform), lambda c: c, store, workers)


def _each(perform: Perform, cells: Sequence[Cell]) -> list[Numbers]:
    return [perform(cell) for cell in cells]


def conduct_together(
    plan: Plan,
    perform: Together,
    by: Callable[[Cell], Hashable],
    store: Store,
    workers: int = 1,
) -> Found:
    """Tune, widen, run: every method of the plan at the rate that is best for it.

    All rates and variants run on the tuning seeds. Where a method's best rate is the smallest or
    the largest of the grid, one more beyond it, by the ratio of the last two, is tried with its
    best variant, once. The choice then runs on the other seeds. Finished cells are kept one by
    one, so that this can be stopped anywhere and goes on there.

    Args:
        plan: what is compared.
        perform: cells that agree in `by`, in one program, a vmapped one say.
        by: which cells are performed together; read in this process only.
        store: of finished cells.
        workers: processes side by side.

    Returns:
        choices and runs.

    Raises:
        ValueError: for a grid that does not rise.
        OSError: where a finished cell cannot be written.
    """
    if not plan.rates or any(a >= b for a, b in itertools.pairwise(plan.rates)):
        raise ValueError(f"rates: expected one or more, rising, got {plan.rates}")
    known: dict[Cell, Numbers] = {}

    def fill(cells: Sequence[Cell], doing: str) -> None:
        _fill(known, cells, perform, by, store, workers, doing)

    names = [(problem, method) for problem in plan.problems for method in plan.methods]
    tried = {
        (problem, method): {
            variant: [Cell(problem, method, variant, rate, 0) for rate in plan.rates]
            for variant in plan.methods[method]
        }
        for problem, method in names
    }

    def best(name: tuple[str, str]) -> tuple[Cell, dict[str, dict[float, float]]]:
        scores = {
            variant: {
                cell.rate: _mean([known[c]["score"] for c in _over([cell], plan.tuning)])
                for cell in cells
            }
            for variant, cells in tried[name].items()
        }
        every = [cell for cells in tried[name].values() for cell in cells]
        return max(every, key=lambda cell: scores[cell.variant][cell.rate]), scores

    fill(
        [c for of in tried.values() for cells in of.values() for c in _over(cells, plan.tuning)],
        "rates",
    )
    widened: dict[tuple[str, str], float] = {}
    for name in names:
        chosen, _ = best(name)
        beyond = _beyond(chosen.rate, plan.rates)
        if beyond is not None:
            widened[name] = beyond
            tried[name][chosen.variant].append(chosen._replace(rate=beyond))
    fill(
        [
            c
            for name, rate in widened.items()
            for cells in tried[name].values()
            for c in _over([cell for cell in cells if cell.rate == rate], plan.tuning)
        ],
        "beyond the grid",
    )
    choices: dict[str, dict[str, Choice]] = {problem: {} for problem in plan.problems}
    final: dict[tuple[str, str], Cell] = {}
    for name in names:
        final[name], scores = best(name)
        rate = final[name].rate
        choices[name[0]][name[1]] = Choice(
            final[name].variant, rate, scores, widened.get(name), rate == widened.get(name)
        )
    # by seed first, so that an interruption leaves every method with some
    fill([c for seed in plan.seeds for c in _over(list(final.values()), [seed])], "results")
    runs: dict[str, dict[str, list[Numbers]]] = {problem: {} for problem in plan.problems}
    for (problem, method), cell in final.items():
        runs[problem][method] = [known[c] for c in _over([cell], plan.seeds)]
    return Found(choices, runs)


def _over(cells: Sequence[Cell], seeds: Sequence[int]) -> list[Cell]:
    return [cell._replace(seed=seed) for cell in cells for seed in seeds]


def _fill(
    known: dict[Cell, Numbers],
    cells: Sequence[Cell],
    perform: Together,
    by: Callable[[Cell], Hashable],
    store: Store,
    workers: int,
    doing: str,
) -> None:
    """Put every cell into `known`: from the store, or performed and kept there."""
    missing: dict[Hashable, list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        if cell not in known:
            kept = store.read(cell)
            if kept is None:
                missing.setdefault(by(cell), []).append(cell)
            else:
                known[cell] = kept
    jobs = list(missing.values())
    total = sum(map(len, jobs))
    with tqdm(total=total, desc=doing, unit="run", leave=False, disable=None) as bar:
        for group, found in perform_all(perform, jobs, workers):
            with unbroken():
                for cell, numbers in zip(group, found, strict=True):
                    store.write(cell, numbers)
                    known[cell] = numbers
            bar.update(len(group))


def _mean(scores: Sequence[float]) -> float:
    """-inf as soon as one run failed."""
    if any(math.isnan(score) for score in scores):
        return -math.inf
    return sum(scores) / len(scores)


def _beyond(rate: float, rates: Sequence[float]) -> float | None:
    """The next rate after an edge of the grid; None inside it, and for one rate that is given."""
    if len(rates) == 1:
        return None
    if rate == rates[-1]:
        return float(f"{rate * rates[-1] / rates[-2]:.6g}")
    if rate == rates[0]:
        return float(f"{rate * rates[0] / rates[1]:.6g}")
    return None


def rate_of(choice: Choice) -> str:
    """For a table: the rate, whether it lies at the edge of what was tried, the variant."""
    edge = " (edge)" if choice.edge else ""
    return f"{choice.rate:g}{edge}" + (f", weights {choice.variant}" if choice.variant else "")


def about_rates(plan: Plan, found: Found) -> list[str]:
    """Sentences for the notes of a table: the grid, what lay at its edge, what still does."""
    if len(plan.rates) == 1 and all(len(variants) == 1 for variants in plan.methods.values()):
        return [f"Learning rate: {plan.rates[0]:g} for all, not chosen here."]
    grid = ", ".join(f"{rate:g}" for rate in plan.rates)
    shared = set(plan.tuning) & set(plan.seeds)
    count = f"{len(plan.tuning)} seed{'s' if len(plan.tuning) > 1 else ''}"
    lines = [
        f"Learning rates: each method at the best of {grid} by its score on validation data, on "
        + (f"the first {count} of the results." if shared else f"{count} of no result.")
    ]
    for problem, choices in found.choices.items():
        where = f" ({problem})" if problem else ""
        wide = {name: choice for name, choice in choices.items() if choice.widened is not None}
        if wide:
            tried = ", ".join(f"{name} {choice.widened:g}" for name, choice in wide.items())
            lines.append(
                f"Best at the edge of the grid, so that one rate beyond was tried{where}: {tried}."
            )
        edge = [name for name, choice in choices.items() if choice.edge]
        lines.append(
            f"**Still best at the edge{where}: {', '.join(edge)}**; better rates may lie beyond."
            if edge
            else f"No method's rate lies at the edge of what was tried{where}."
        )
    return lines
