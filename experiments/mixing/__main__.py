"""`python -m experiments.mixing`: which domains help a target of which there is little data?"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common import command
from common.arguments import among
from common.cells import Store, slug, sources_of
from common.machine import threads
from common.problems.digits import digits
from common.tables import report

from .data import PROBLEMS
from .report import figure, table
from .study import RATES, TUNING, Choice, Outcome, choose, methods, study

HERE = Path(__file__).parent
BESIDE = 100  # what is added to the seeds for the second run of every method


class Program(NamedTuple):
    """What a store of finished runs keeps together: all seeds and settings of a method."""

    problem: str
    method: str
    first: int  # seed
    last: int
    steps: int
    quick: bool

    @property
    def file(self) -> Path:
        size = "quick" if self.quick else "default"
        name = f"{slug(self.method)} seeds {self.first}-{self.last} steps {self.steps} {size}"
        return Path(slug(self.problem), f"{name}.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run every method on every set of domains; the exit status is that of `command.finish`."""
    parser = command.brief(
        "mixing",
        "Which of four domains of digits help a target of 40 images? Methods: static weights "
        "(uniform, and oracle, the best of 35 mixtures), the target's images alone, align, and "
        "PiKE, which has no target. Rate and setting are chosen on seeds of their own. All seeds "
        "and settings of a method are one vmapped program. The default takes four minutes on an "
        f"idle core; without --quick all methods also run on as many seeds from {BESIDE} on.",
        (4, 16),
        (100, 300),
        kept="method",
        devices=False,
    )
    parser.add_argument(
        "--methods", type=among(list(methods())), default=list(methods()), metavar="A,B,…",
        help=f"comma-separated, from {', '.join(methods())} (default: all)",
    )  # fmt: skip
    given = command.settled(parser, argv, HERE / "out")
    with threads(1):
        return command.finish(lambda: _run(given, given.out), given.out)


def _run(given: argparse.Namespace, out: Path) -> None:
    settings: dict[str, object] = {
        "seeds": list(given.seeds), "steps": given.steps, "rates": list(RATES),
        "seeds that choose": list(TUNING), "quick": given.quick, "torch": torch.__version__,
    }  # fmt: skip
    store = Store(out / "cells", sources_of(HERE), {"torch": torch.__version__})
    bases = [given.seeds]
    if not given.quick:
        bases.append(tuple(seed + BESIDE for seed in given.seeds))
    every, source = methods(quick=given.quick), digits()
    found: dict[tuple[str, str, str], Outcome] = {}
    choices: dict[tuple[str, str], Choice] = {}

    def kept(problem: str, name: str, some: Sequence[int], make: Callable[[], Any]) -> Any:
        program = Program(problem, name, some[0], some[-1], given.steps, given.quick)
        return store.kept(program, lambda: make()._asdict())

    common = source, given.steps
    for some in bases:
        for problem in PROBLEMS:
            for name in given.methods:
                which = problem, name, every[name]
                choice = Choice(
                    **kept(problem, f"choice for {name}", TUNING, partial(choose, *which, *common))
                )
                make = partial(study, *which, choice, source, some, given.steps)
                outcome = Outcome(**kept(problem, name, some, make))
                choices[problem, name] = choice
                found[problem, f"{some[0]}-{some[-1]}", name] = outcome
                error = sum(outcome.error) / len(outcome.error)
                print(f"{problem}, {name}, from seed {some[0]} on: {error:.1f} % wrong", flush=True)
    numbers = {
        "settings": settings,
        "choices": [
            {"problem": p, "method": name} | choice._asdict()
            for (p, name), choice in choices.items()
        ],
        "outcomes": [
            {"problem": p, "seeds": s, "method": name} | outcome._asdict()
            for (p, s, name), outcome in found.items()
        ],
    }
    shown = table(found, choices)
    report(out, numbers, shown, {"mixing": figure(found, given.steps)})


if __name__ == "__main__":
    sys.exit(main())
