"""`python -m experiments.grouping`: which tasks should share a network, and what foretells it?"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import command
from common.arguments import at_least
from common.cells import Store, sources_of
from common.device import on
from common.grouping.data import FAMILIES, TASKS
from common.grouping.forecasts import NAMES, costs
from common.grouping.truth import GROUPS
from common.machine import threads
from common.tables import report

from .report import family, figure, table
from .run import Program, drawn

HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Train, forecast, judge; the exit status is that of `command.finish`."""
    parser = command.brief(
        "grouping",
        f"Trains all {len(GROUPS)} groups of {TASKS} tasks on every seed in one vmapped program, "
        "and judges what foretells a task's gain in a group: TAG, the linear part of ETAP, "
        "Grad-TAG, cosines, products without noise (conflict), trained pairs. The default takes "
        "five minutes of processor time.",
        (2, 8),
        (40, 300),
        kept="draw of tasks",
    )
    draws = "of six tasks, a family (default: 8; with --quick 2)"
    parser.add_argument("--draws", type=at_least(2), help=draws)
    given = command.settled(parser, argv, HERE / "out")
    given.draws = given.draws or (2 if given.quick else 8)
    with threads(1), on(given.device):
        return command.finish(lambda: _run(given, given.out), given.out)


def _run(given: argparse.Namespace, out: Path) -> None:
    settings = {
        "seeds": list(given.seeds), "draws": given.draws, "steps": given.steps,
        "device": str(given.device), "torch": torch.__version__,
    }  # fmt: skip
    store = Store(out / "cells", sources_of(HERE), {"device": given.device.type})
    kept: dict[str, list[dict[str, Any]]] = {where: [] for where in FAMILIES}
    for draw in range(given.draws):
        for where in FAMILIES:
            program = Program(where, draw, given.seeds[0], given.seeds[-1], given.steps)
            kept[where].append(store.kept(program, partial(drawn, program, given.seeds)))
    found = {
        where: family(
            [np.array(each["gains"]) for each in draws],
            {name: [np.array(each[name]) for each in draws] for name in NAMES},
        )
        for where, draws in kept.items()
    }
    shown = table(found, given.steps)
    numbers = {
        "settings": settings, "groups": [list(group) for group in GROUPS],
        "costs": costs(given.steps), "draws": kept,
    }  # fmt: skip
    report(out, numbers, shown, {"grouping": figure(found)})


if __name__ == "__main__":
    sys.exit(main())
