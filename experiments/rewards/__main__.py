"""`python -m experiments.rewards`: rules on rewards that agree, and on rewards that do not."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common import command
from common.arguments import positive
from common.cells import Store, sources_of
from common.device import there
from common.study import Plan, alike, conduct, conduct_together
from common.tables import report

from . import exact, train
from .methods import METHODS
from .report import Results, figure, numbers_of, table

HERE = Path(__file__).parent
SEEDS = (2, 8, 32)
RATE = 3e-3
EXACT_RATE = 5.0
SIZES = {  # steps of imitation, steps of policy gradient; steps of the exact policies
    "quick": (train.Settings(150, 30, 12, 8), 100),
    "default": (train.Settings(500, 120, 12, 8), 500),
    "full": (train.Settings(2000, 1000, 12, 8), 5000),
}


def _parser():
    found = command.parser(
        "rewards",
        "A transformer that adds, by policy gradient on sampled answers, with rewards for "
        "correctness, format and length: their sum, GRPO's and GDPO's normalisation, and rules on "
        "weightings of samples. Then softmax policies whose expected rewards and front are known "
        "in closed form. The default takes about five minutes on two cores.",
        list(METHODS),
        SEEDS,
    )
    found.add_argument(
        "--rate", type=positive, default=RATE,
        help=f"Adam's learning rate; SGD's is {train.STEEPER} times that (default: %(default)s)",
    )  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    size, out = command.size_of(given), command.out_of(given, parser)
    settings, steps = SIZES[size]
    cells = out / "cells" / ("" if given.device.type == "cpu" else given.device.type)

    def body() -> None:
        seeds = command.seeds_of(given)
        methods: dict[str, tuple[str, ...]] = dict.fromkeys(given.rules, ("",))
        own = sources_of(HERE)
        known = Plan(methods, (EXACT_RATE,), (), seeds, tuple(exact.PROBLEMS))
        every = functools.partial(there, given.device, exact.together, steps)
        store = Store(cells / "exact", own, steps)
        closed = conduct_together(known, every, alike, store, given.workers)
        plan = Plan(methods, (given.rate,), (), seeds, train.PROBLEMS)
        one = functools.partial(there, given.device, train.perform, settings)
        sampled = conduct(plan, one, Store(cells, own, settings), given.workers)
        results = Results(sampled.runs, closed.runs, seeds, settings, given.rate)
        text = table(results)
        described = settings._asdict() | {
            "rate": given.rate, "exact_steps": steps, "exact_rate": EXACT_RATE,
            "seeds": list(seeds), "torch": torch.__version__,
        }  # fmt: skip
        if given.device.type != "cpu":
            described["device"] = str(given.device)
        report(out, numbers_of(results, described), text, {"fronts": figure(results)})

    return command.finish(body, out)


if __name__ == "__main__":
    sys.exit(main())
