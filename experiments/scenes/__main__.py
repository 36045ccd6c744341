"""`python -m experiments.scenes`: every rule on classes, depth and normals of every pixel."""

import functools
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from common import command
from common.cells import Cell, Store, sources_of, unfinished_in
from common.files import Files, Source
from common.study import Plan, alike, conduct, conduct_together
from common.tables import report

from . import data
from .report import numbers_of, table
from .train import ALONE, RULES, STATIC, Settings, benchmark_of, perform, together, weightings

HERE = Path(__file__).parent
SEEDS = (2, 8, 16)
RATES = (6e-3, 1.8e-2)
"""Both are edges, so that every choice has been compared with the rate beyond it."""
PAPERS = 1e-4  # the learning rate of the papers' code


def _parser():
    return command.parser(
        "scenes",
        "Dense prediction: semantic classes, depth and surface normals of every pixel by one "
        "network, with every rule at its own best learning rate, against networks that learn one "
        "task alone, which always run. Without --data on rooms that are rendered here, with a "
        "small network; --full trains it longer. With --data on NYUv2 or CityScapes in the layout "
        "of the papers' code; --full then is SegNet-MTAN, and SegNet for one task alone, with the "
        "papers' schedule and rate.",
        RULES,
        SEEDS,
        "NYUv2 or CityScapes: {train,val}/{image,label,depth,normal}/0.npy …; CityScapes has no "
        "normal, and label_7 or label (default: rendered rooms)",
    )


def settings_of(size: str, data: Source | None, device: str) -> Settings:
    """Schedule and network of a size."""
    common: dict[str, Any] = {"data": data, "device": device}
    if data is not None and size == "full":
        return Settings(
            epochs=200, width=0, halved_every=100, averaged=10, held_out=False, **common
        )
    epochs = {"quick": 1, "default": 4, "full": 60}[size]
    return Settings(epochs=epochs, width=32, halved_every=0, averaged=1, held_out=True, **common)


def plan_of(settings: Settings, rules: Sequence[str], seeds: tuple[int, ...]) -> Plan:
    """Which runs there are. Every seed chooses rates and weights for itself, on validation data."""
    tasks = benchmark_of(settings).tasks
    rates = RATES if settings.held_out else (PAPERS,)
    methods = {ALONE[task]: ("",) for task in tasks} | {
        rule: weightings(tasks) if rule == STATIC and settings.held_out else ("",) for rule in rules
    }
    return Plan(methods, rates, (), seeds)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    size, out = command.size_of(given), command.out_of(given, parser)

    def body() -> None:
        files = Files(given.data, data.files(given.data)) if given.data else None
        settings = settings_of(size, files and files.source, str(given.device))
        rules = _possible(given.rules, settings)
        benchmark = benchmark_of(settings)
        pixels = data.check(given.data) if given.data else benchmark.size
        plan = plan_of(settings, rules, command.seeds_of(given))
        unfinished = unfinished_in(out, sources_of(HERE), settings)
        store = Store(out / "cells", sources_of(HERE), settings, unfinished, files)
        if settings.data:
            one = functools.partial(perform, settings, unfinished)
            found = conduct(plan, one, store, given.workers)
        else:
            many = functools.partial(together, settings, unfinished)
            found = conduct_together(plan, many, _program, store, given.workers)
        described: dict[str, Any] = settings._asdict() | {
            "network": "a small encoder with three scales"
            if settings.width
            else "SegNet-MTAN for all tasks, SegNet for one alone",
            "torch": torch.__version__,
            "workers": given.workers,
        }
        text = table(found, plan, benchmark, described, pixels)
        numbers = numbers_of(found, plan, benchmark, described)
        report(out, numbers, text, {})

    return command.finish(body, out)


def _program(cell: Cell) -> Hashable:
    """Which rooms' runs are one program: a rule's on sixteen seeds, as memory is not endless."""
    return alike(cell), cell.seed // 16


def _possible(rules: Sequence[str], settings: Settings) -> list[str]:
    """The rules that the network admits; a line says which it does not."""
    if settings.width:
        return list(rules)
    left_out = [rule for rule in rules if rule in ("mgda_ub", STATIC)]
    if left_out:
        print(
            f"left out: {', '.join(left_out)}. SegNet-MTAN has no single representation between "
            "trunk and heads (mgda_ub), and at the papers' one rate nothing is chosen (static "
            "search)",
            file=sys.stderr,
        )
    return [rule for rule in rules if rule not in left_out]


if __name__ == "__main__":
    sys.exit(main())
