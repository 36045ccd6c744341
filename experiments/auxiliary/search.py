"""Which auxiliary tasks help: the mean loss with each of them against the main task alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.cells import Cell
from common.intervals import Estimate, bracket, paired, pm
from common.intervals import estimate as over_seeds
from common.study import Found, Numbers, Plan, about_rates, rate_of
from common.tables import as_dicts, page

from .tasks import AUXILIARIES, CHOSEN
from .train import ALONE, Settings, together

SETS = (*((name,) for name in AUXILIARIES), CHOSEN, CHOSEN[1:])
"""Each auxiliary by itself, those that run by default, and these without the first."""

SEEDS = tuple(range(100, 108))  # of no result

PROBLEM = "50 labels"


def plan(rates: tuple[float, ...], seeds: tuple[int, ...]) -> Plan:
    """A method a set of auxiliary tasks, all by the mean loss."""
    names = (ALONE, *map(", ".join, SETS))
    return Plan(dict.fromkeys(names, ("",)), rates, seeds[:4], seeds, (PROBLEM,))


def perform(settings: Settings, cells: Sequence[Cell]) -> list[Numbers]:
    """Cells of one set, side by side."""
    name = cells[0].method
    if name == ALONE:
        return together(settings, cells)
    chosen = settings._replace(auxiliaries=tuple(name.split(", ")))
    return together(chosen, [cell._replace(method="mean") for cell in cells])


def gains(found: Found) -> dict[str, Estimate]:
    """Test accuracy less that of the main task alone, points, corrected for the sets."""
    runs = {name: [100 * run["test"] for run in each] for name, each in found.runs[PROBLEM].items()}
    alone = runs.pop(ALONE)
    return {name: paired(each, alone, len(runs)) for name, each in runs.items()}


def table(found: Found, plan: Plan, settings: Mapping[str, Any]) -> str:
    """Markdown, the largest gain first."""
    every = gains(found)
    lines = [
        [
            name,
            pm(over_seeds([100 * run["test"] for run in found.runs[PROBLEM][name]])),
            bracket(every.get(name), 1),
            rate_of(found.choices[PROBLEM][name]),
        ]
        for name in (ALONE, *sorted(every, key=lambda name: -every[name].mean))
    ]
    notes = [
        f"{settings['images']}; {PROBLEM}, {settings['steps']} steps of the mean loss of the main "
        f"task and these; {len(plan.seeds)} seeds, {plan.seeds[0]} to {plan.seeds[-1]}, which no "
        "result uses.",
        f"± standard error; [95 % interval], paired by seed, for all {len(every)} sets together.",
        *about_rates(plan, found),
    ]
    columns = ["auxiliary tasks", "accuracy, %", "gain on the main task alone, points", "rate"]
    return page(columns, lines, [], notes)


def numbers_of(found: Found, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for `results.json`."""
    return {
        "settings": dict(settings), "plan": plan._asdict(), "gains": as_dicts(gains(found)),
        "choices": as_dicts(found.choices[PROBLEM]), "runs": found.runs[PROBLEM],
    }  # fmt: skip
