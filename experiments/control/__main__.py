"""`python -m experiments.control`: every rule where one policy has many tasks."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.arguments import among
from experiments.common import command
from experiments.common.cells import Store
from experiments.common.study import conduct_together
from experiments.common.tables import write_report

from .methods import RULES
from .parts import Part, part
from .report import numbers_of

HERE = Path(__file__).parent
SEEDS = (2, 10, 32)
PARTS = ("grids", "points")


def _parser():
    found = command.parser(
        "control",
        "Control of many tasks by one policy, with every rule at its own best learning rate: exact "
        "policy gradients on small mazes (grids), and proximal policy optimisation of a point mass "
        "with ten goals (points). Rates are chosen on seeds of their own.",
        RULES,
        SEEDS,
        "not used: every part makes its own",
    )
    found.add_argument(
        "--parts",
        type=among(PARTS),
        default=list(PARTS),
        metavar="A,B,…",
        help=f"comma-separated, from {', '.join(PARTS)} (default: all)",
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.data is not None:
        parser.error("argument --data: nothing is read here; every part makes its own tasks")
    size, out = command.size_of(given), command.out_of(given, parser)

    def body() -> None:
        for name in given.parts:
            seeds = command.seeds_of(given)
            run(part(name, size, given.rules, seeds, str(given.device)), out, given.workers)

    return command.finish(body, out)


def run(chosen: Part, out: Path, workers: int) -> None:
    """One part to its report, in a folder of its name."""
    sources = [*chosen.sources(), *(HERE.parent / "common").glob("*.py")]
    store = Store(out / "cells", sources, chosen.settings)
    perform = functools.partial(chosen.perform(), chosen.settings)
    found = conduct_together(
        chosen.plan, perform, lambda cell: (cell.method, cell.variant), store, workers
    )
    settings = chosen.settings._asdict() | {"torch": torch.__version__, "workers": workers}
    text = chosen.table(found)
    numbers = numbers_of(found, chosen.plan, chosen.shown, settings)
    paths = write_report(out / chosen.name, numbers, text, chosen.figure(found), chosen.name)
    print(f"\n{text}\nwritten: {', '.join(map(str, paths))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
