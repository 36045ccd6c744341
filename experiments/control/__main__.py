"""`python -m experiments.control`: every rule where one policy has many tasks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common import command
from common.arguments import among
from common.cells import Store, unfinished_in
from common.study import conduct, conduct_together
from common.tables import report

from . import robots
from .methods import RULES
from .parts import Part, grids_part, points_part, sac_part
from .report import numbers_of

HERE = Path(__file__).parent
SEEDS = (2, 10, 32)
MAZES = 4  # times as many seeds on mazes, where a run is cheap and seeds differ most

FREE = ("grids", "points")  # parts that need nothing but torch

PARTS = (*FREE, "sac", "mt10", "mt50")


def _parser():
    found = command.parser(
        "control",
        "Control of many tasks by one policy, with every rule at its own best learning rate: exact "
        "policy gradients on small mazes (grids, four times as many seeds), proximal policy "
        "optimisation of a point mass with ten goals (points), and on Meta-World, with the extra "
        "`control`, soft actor–critic on two tasks (sac) or on the papers' benchmarks (mt10, "
        "mt50), as CAGrad's own command sets it up. Rates are chosen on seeds of their own.",
        RULES,
        SEEDS,
    )
    said = f"comma-separated, from {', '.join(PARTS)} (default: {', '.join(FREE)}; with --full "
    said += "also sac)"
    found.add_argument("--parts", type=among(PARTS), metavar="A,B,…", help=said)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    size, out = command.size_of(given), command.out_of(given, parser)

    def body() -> None:
        absent = robots.missing()
        chosen = given.parts or (*FREE, *(("sac",) if size == "full" else ()))
        if absent and given.parts:
            if not set(chosen) <= set(FREE):
                robots.require()
        elif absent and size == "full":
            chosen = FREE
            print(f"left out: sac. {robots.needed()}", file=sys.stderr)
        for name in chosen:
            run(part(name, size, given, out), out, given.workers)

    return command.finish(body, out)


def part(name: str, size: str, given: argparse.Namespace, out: Path) -> Part:
    """A part at a size, with the seeds of the command."""
    seeds, device = command.seeds_of(given), str(given.device)
    if name == "grids":
        more = seeds if given.seeds else tuple(range(MAZES * len(seeds)))
        return grids_part(size, given.rules, more, device)
    if name == "points":
        return points_part(size, given.rules, seeds, device)
    unfinished = unfinished_in(out, [HERE / "sac.py", HERE / "robots.py"], (name, size, device))
    return sac_part(name, size, given.rules, seeds, device, unfinished)


def run(chosen: Part, out: Path, workers: int | str) -> None:
    """One part to its report, in a folder of its name."""
    store = Store(out / "cells", chosen.sources(), chosen.settings, chosen.unfinished)
    if chosen.together:
        found = conduct_together(
            chosen.plan, chosen.perform, lambda cell: cell.method, store, workers
        )
    else:
        found = conduct(chosen.plan, chosen.perform, store, workers)
    settings = chosen.settings._asdict() | {"torch": torch.__version__, "workers": workers}
    text = chosen.table(found)
    numbers = numbers_of(found, chosen.plan, chosen.shown, settings)
    report(out / chosen.name, numbers, text, {})


if __name__ == "__main__":
    sys.exit(main())
