"""`python -m experiments.physics`: differential equations by rules, Gauss-Newton and others."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common import command
from common.arguments import among, positive
from common.cells import Store, sources_of
from common.study import Choice, Numbers, Plan, conduct
from common.tables import report

from .methods import METHODS
from .problems import HARD, PROBLEMS
from .report import Results, figures, numbers_of, page
from .run import Settings, perform

HERE = Path(__file__).parent
SEEDS = (2, 4, 8)
SIZES = {  # seconds a run, points of a reference along an axis; seeds that choose; problems
    "quick": (Settings(0.25, 21), (1000,), ("Poisson 2-D", "Korteweg-de Vries")),
    "default": (Settings(2.0, 41), (1000,), tuple(PROBLEMS)),
    "full": (Settings(30.0, 101), (1000, 1001), tuple(PROBLEMS)),
}
MEET = ("Adam", "L-BFGS", "Gauss-Newton", "SPRING")
"""Who meets the variants that are hard for Gauss-Newton."""


def _parser():
    found = command.parser(
        "physics",
        "Small networks that solve differential equations: the relative L2 error that Adam, "
        "L-BFGS, rules for the terms of the loss and Gauss-Newton reach in equal seconds (of "
        "processor time; on another device, of the clock), each at its best setting of a grid. "
        "The default takes about 15 minutes of one core. --rules names methods.",
        list(METHODS),
        SEEDS,
    )
    said = f"comma-separated, from {', '.join(PROBLEMS)} (default: all; with --quick two)"
    said += f"; on {', '.join(HARD)} run {', '.join(MEET)} alone"
    found.add_argument("--problems", type=among(list(PROBLEMS)), metavar="A,B,…", help=said)
    found.add_argument("--seconds", type=positive, help="of a run, instead of the size's")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    size, out = command.size_of(given), command.out_of(given, parser)
    settings, tuning, problems = SIZES[size]
    settings = settings._replace(seconds=given.seconds or settings.seconds)
    problems = tuple(given.problems or problems)
    if {*problems} <= {*HARD} and not {*given.rules} & {*MEET}:
        parser.error(f"argument --rules: on these problems run {', '.join(MEET)} alone; add one")
    seeds = command.seeds_of(given)
    there = given.device.type != "cpu"

    def body() -> None:
        store = Store(
            out / "cells" / (given.device.type if there else ""), sources_of(HERE), settings
        )
        choices: dict[str, dict[str, tuple[Choice, ...]]] = {p: {} for p in problems}
        runs: dict[str, dict[str, list[Numbers]]] = {p: {} for p in problems}
        for method in given.rules:
            some = tuple(p for p in problems if p not in HARD or method in MEET)
            plan = Plan({method: ("",)}, METHODS[method].grid, tuning, seeds, some)
            one = functools.partial(perform, settings, given.device)
            # runs side by side would share a device, and its seconds
            found = conduct(plan, one, store, 1 if there else given.workers)
            for problem in some:
                choices[problem] |= found.choices[problem]
                runs[problem] |= found.runs[problem]
        met = {problem: row for problem, row in runs.items() if row}
        clock = "the clock" if there else "processor time"
        results = Results(met, choices, seeds, tuning, settings, clock)
        described = settings._asdict() | {
            "seeds": list(seeds), "tuning": list(tuning), "device": str(given.device),
            "torch": torch.__version__,
        }  # fmt: skip
        text = page(results)
        report(out, numbers_of(results, described), text, figures(results))

    return command.finish(body, out)


if __name__ == "__main__":
    sys.exit(main())
