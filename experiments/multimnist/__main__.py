"""`python -m experiments.multimnist`: one network or two, wider, longer, in four architectures."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.common import command
from experiments.common.cells import Store, sources_of
from experiments.common.files import Files, Source
from experiments.common.study import Plan, alike, conduct_together
from experiments.common.tables import write_report

from . import mnist
from .report import figure, numbers_of, table
from .train import ALONE, RULES, SETTINGS, Settings, split, together

HERE = Path(__file__).parent
SEEDS = (2, 12, 32)
TUNING = {"quick": 1, "default": 4, "full": 8}
RATES = (6e-3, 1.8e-2, 5.4e-2)
PAPERS_RATES = (1e-3, 3e-3, 1e-2)
"""Of SGD with momentum .9, on MNIST."""


def _parser():
    return command.parser(
        "multimnist",
        "Two overlaid digits: one network for both against one for each, as wide and twice as "
        "wide, as long and twice as long, and in four architectures (hard sharing, "
        "task-conditioned, soft attention, cross-stitch), every method at its own best learning "
        "rate. Without --data on scikit-learn's digits with dense networks; with it on MultiMNIST "
        "with the official MultiLeNet, and --full then is the papers' 100 epochs of SGD. The "
        "networks that learn one task alone always run.",
        RULES,
        SEEDS,
        "MNIST's own files, as they are or with .gz: train-images-idx3-ubyte, "
        "train-labels-idx1-ubyte, t10k-… of both; or MNIST/raw with them (default: scikit-learn's "
        "digits)",
    )


def settings_of(size: str, data: Source | None, device: str) -> Settings:
    """Schedule of a size."""
    if data is None:
        return Settings(None, {"quick": 1, "default": 8, "full": 40}[size], 128, False, device)
    epochs = {"quick": 1, "default": 10, "full": 100}[size]
    return Settings(data, epochs, 256, True, device)


def plan_of(size: str, settings: Settings, rules: Sequence[str], seeds: tuple[int, ...]) -> Plan:
    """Which runs a size has. The first seeds choose the rates, on validation pairs."""
    rates = PAPERS_RATES if settings.papers else RATES
    if size == "full" and not settings.data:
        rates = (2e-3, *rates, 0.16)
    tuning = seeds[: 1 if settings.data else TUNING[size]]
    return Plan(
        dict.fromkeys((*ALONE.values(), *rules), ("",)), rates, tuning, seeds, tuple(SETTINGS)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    size, out = command.size_of(given), command.out_of(given, parser)

    def body() -> None:
        files = Files(given.data, mnist.files(given.data)) if given.data else None
        settings = settings_of(size, files and files.source, str(given.device))
        parts = split(settings, 0)  # fails now rather than in a worker
        plan = plan_of(size, settings, given.rules, command.seeds_of(given))
        own = [*sources_of(HERE), HERE.parent / "digits" / "data.py"]
        store = Store(out / "cells", own, settings, files=files)
        # a lane of MNIST has its own pairs, too many to hold those of all
        by = (lambda cell: cell) if settings.data else alike
        run = functools.partial(together, settings)
        found = conduct_together(plan, run, by, store, given.workers)
        counts = [f"{len(part.labels):,}" for part in parts]
        described: dict[str, Any] = settings._asdict() | {
            "images": f"{'MultiMNIST' if settings.data else 'overlaid digits of scikit-learn'} "
            f"({counts[0]} pairs to learn from, {counts[1]} that choose rates, {counts[2]} to test "
            "on)",
            "optimizer": "SGD with momentum .9, the rate .85 times as large after every tenth of "
            "them"
            if settings.papers
            else "Adam, the rate falling to 0 along a cosine",
            "torch": torch.__version__,
            "workers": given.workers,
        }
        text = table(found, plan, described)
        numbers = numbers_of(found, plan, described)
        paths = write_report(out, numbers, text, {"multimnist": figure(found)})
        print(f"\n{text}\nwritten: {', '.join(map(str, paths))}")

    return command.finish(body, out)


if __name__ == "__main__":
    sys.exit(main())
