"""`python -m experiments.auxiliary`: few labels, auxiliary tasks, every rule at its best rate."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import command
from common.arguments import among
from common.cells import Store, sources_of, unfinished_in
from common.files import Files, Source
from common.study import Plan, alike, conduct, conduct_together
from common.tables import report

from . import data, search
from . import report as of_rules
from .tasks import AUXILIARIES, CHOSEN
from .train import ALONE, RULES, Settings, alone, benchmark_of, count_of, network, together

HERE = Path(__file__).parent
SEEDS = (2, 12, 32)
TUNING = {"quick": 1, "default": 4, "full": 8}
RATES = (3e-3, 1e-2, 3e-2)
WIDE_RATES = (3e-4, 1e-3, 3e-3)  # For WRN-28-2


def _parser():
    found = command.parser(
        "auxiliary",
        "Images with few labels: a main task, their class, among auxiliary tasks on images without "
        "labels, with every rule at its own best learning rate, against the main task alone, which "
        "always runs. Without --data on scikit-learn's digits with a small network, all rates and "
        "seeds of a rule as one vmapped program; with it on CIFAR-10 with WRN-28-2, and --full "
        "then takes the papers' 200,000 steps.",
        RULES,
        SEEDS,
        "CIFAR-10, torchvision's Python files, unpacked: data_batch_1 … data_batch_5, test_batch, "
        "or cifar-10-batches-py with them (default: scikit-learn's digits)",
    )
    add, usual = found.add_argument, list(CHOSEN)
    said = f"auxiliary tasks, comma-separated, from {', '.join(AUXILIARIES)} (default: "
    said += f"{', '.join(usual)})"
    add("--tasks", type=among(AUXILIARIES), default=usual, metavar="A,B,…", help=said)
    said = (
        "which auxiliary tasks help: each of them and two sets, by the mean loss, with 50 labels "
    )
    said += f"on digits, on seeds {search.SEEDS[0]} to {search.SEEDS[-1]} by default; without "
    add("--search", action="store_true", help=f"{said}--data, --rules, --tasks")
    return found


def settings_of(
    size: str, data: Source | None, auxiliaries: Sequence[str], device: str
) -> Settings:
    """Schedule of a size."""
    if data is None:
        steps = {"quick": 40, "default": 200, "full": 2000}[size]
        return Settings(None, tuple(auxiliaries), steps, 32, 0, 0, device)
    steps = {"quick": 10, "default": 2_000, "full": 200_000}[size]
    return Settings(data, tuple(auxiliaries), steps, 100, 0.8, 1000, device)


def plan_of(size: str, settings: Settings, rules: Sequence[str], seeds: tuple[int, ...]) -> Plan:
    """Which runs a size has. The first seeds choose the rates, on validation images."""
    rates = WIDE_RATES if settings.data else (1e-3, *RATES, 1e-1) if size == "full" else RATES
    return Plan(
        dict.fromkeys((ALONE, *rules), ("",)), rates, seeds[: 1 if settings.data else TUNING[size]],
        seeds, tuple(f"{count} labels" for count in benchmark_of(settings).labels),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.search and not given.out:
        given.out = HERE / "out" / "search"
    size, out = command.size_of(given), command.out_of(given, parser)
    if given.search and (given.data or given.rules != list(RULES) or given.tasks != list(CHOSEN)):
        parser.error(
            "argument --search: it takes every task by the mean loss on digits; leave out "
            "--data, --rules and --tasks"
        )

    def body() -> None:
        shown = search if given.search else of_rules
        files = Files(given.data, data.files(given.data)) if given.data else None
        settings = settings_of(size, files and files.source, given.tasks, str(given.device))
        benchmark = benchmark_of(settings)
        # fails now rather than in a worker
        images = data.divide(settings.data, max(benchmark.labels), 0)
        plan = (
            search.plan(RATES, given.seeds or search.SEEDS)
            if given.search
            else plan_of(size, settings, given.rules, command.seeds_of(given))
        )
        unfinished = unfinished_in(out, sources_of(HERE), settings)
        store = Store(out / "cells", sources_of(HERE), settings, unfinished, files)
        if settings.data:
            one = functools.partial(alone, settings, unfinished)
            found = conduct(plan, one, store, given.workers)
        else:
            perform = functools.partial(search.perform if given.search else together, settings)
            found = conduct_together(plan, perform, alike, store, given.workers)
        described: dict[str, Any] = settings._asdict() | {
            "images": f"{benchmark.name} ({len(images.unlabelled)} without labels, "
            f"{len(images.validation)} that choose rates, {len(images.test)} to test on)",
            "network": f"{'WRN-28-2' if settings.data else 'a small convolutional network'} of "
            f"{count_of(network(settings, 0)):,} parameters",
            "torch": torch.__version__,
            "workers": given.workers,
        }
        text = shown.table(found, plan, described)
        numbers = shown.numbers_of(found, plan, described)
        report(out, numbers, text, {})

    return command.finish(body, out)


if __name__ == "__main__":
    sys.exit(main())
