"""`python -m experiments.published`: CelebA, CIFAR-100 and QM9 by any rule."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import command
from common.arguments import at_least
from common.cells import Store, sources_of, unfinished_in
from common.files import Files, Source
from common.study import Plan, conduct
from common.tables import report

from .benchmark import Benchmark
from .report import numbers_of, table
from .train import BENCHMARKS, CHOSEN, RULES, Settings, alone, data_of, perform

HERE = Path(__file__).parent
SEEDS = (2, 2, 3)
OWN = {
    "epochs": ("epochs", None, "in place of the schedule's"),
    "samples": ("most", None, "of each part that are used, of CIFAR-100 per task (default: all)"),
    "narrower": ("narrower", 64, "what the network's widths are divided by, 1 to 64 (default: 1)"),
}
"""Options that go over those of a size: the field of `Settings`, the most, the help."""


def _parser():
    found = command.parser(
        "published",
        "CelebA (40 attributes), CIFAR-100 (20 superclasses) or QM9 (11 properties) from the files "
        "that the papers' code reads, by any rule at the published rate. --full is the published "
        "schedule; the default a tenth of its epochs; --quick one epoch of a narrow network on few "
        "samples, without --data on files of its own making. Nothing is downloaded.",
        RULES,
        SEEDS,
        "; ".join(benchmark.expected for benchmark in BENCHMARKS.values()),
        CHOSEN,
    )
    said = "the data set, whose name the default folder of --out also has"
    found.add_argument("benchmark", choices=list(BENCHMARKS), help=said)
    said = "one network per task as well, which Δm needs: 40, 20 or 11 runs more per seed"
    found.add_argument("--alone", action="store_true", help=said)
    for option, (field, most, said) in OWN.items():
        read = at_least(1, most)
        found.add_argument(f"--{option}", dest=field, type=read, metavar="N", help=said)
    return found


def settings_of(name: str, size: str, data: Source, device: str, **own: int) -> Settings:
    """Schedule and network of a size, with settings of one's own."""
    benchmark = BENCHMARKS[name]
    share = {"quick": benchmark.epochs, "default": 10, "full": 1}[size]
    narrower, most, batch = (16, 32, 8) if size == "quick" else (1, 0, benchmark.batch)
    batch = min(batch, benchmark.batch)
    usual = Settings(name, data, max(1, benchmark.epochs // share), batch, narrower, most, device)
    return usual._replace(**own)


def plan_of(
    benchmark: Benchmark, rules: Sequence[str], singles: bool, seeds: tuple[int, ...]
) -> Plan:
    """Which runs there are: all at the published rate."""
    methods = (*(alone(benchmark) if singles else ()), *rules)
    return Plan(dict.fromkeys(methods, ("",)), (benchmark.rate,), seeds[:1], seeds)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    size, benchmark = command.size_of(given), BENCHMARKS[given.benchmark]
    if given.data is None and size != "quick":
        parser.error(
            f"--data FOLDER is needed without --quick. Expected {benchmark.expected}; nothing is "
            "downloaded here"
        )
    own = {x: getattr(given, x) for x, *_ in OWN.values() if getattr(given, x) is not None}
    parts = (f"{name}-{own[x]}" for name, (x, *_) in OWN.items() if x in own)
    given.out = given.out or HERE / "out" / given.benchmark / "-".join([size, *parts])
    out = command.out_of(given, parser)

    def body() -> None:
        folder = given.data
        if folder is None:
            folder = out / "made"
            benchmark.make(folder)
        what = benchmark.title
        if given.data is None:
            what = f"files of this study's own making, not {benchmark.title}"
        elif other := benchmark.checked(folder):
            print(f"warning: {folder}: {other}", file=sys.stderr)
            what += f" ({other})"
        files = Files(folder, benchmark.files(folder))
        settings = settings_of(given.benchmark, size, files.source, str(given.device), **own)
        data_of.cache_clear()
        parts = data_of(settings, 0, out)  # fails now rather than in a worker
        plan = plan_of(benchmark, given.rules, given.alone, command.seeds_of(given))
        unfinished = unfinished_in(out, sources_of(HERE), settings)
        store = Store(out / "cells", sources_of(HERE), settings, unfinished, files)
        run = functools.partial(perform, settings, out, unfinished)
        found = conduct(plan, run, store, given.workers)
        described = settings._asdict() | _described(what, settings, benchmark, parts)
        described |= {"torch": torch.__version__, "workers": given.workers}
        text = table(found, plan, benchmark, described)
        report(out, numbers_of(found, plan, benchmark, described), text, {})

    return command.finish(body, out)


def _described(
    what: str, settings: Settings, benchmark: Benchmark, parts: Sequence[Any]
) -> dict[str, Any]:
    """For the notes of the table."""
    per_task = settings.benchmark == "cifar100"
    counts = [min(len(part), settings.most or len(part)) for part in parts]
    net = benchmark.network(settings.narrower)
    return {
        "samples": f"{what} ({counts[0]:,} samples{' per task' if per_task else ''} to learn from, "
        f"{counts[1]:,} that choose the epoch, {counts[2]:,} to test on)",
        "per": " per task" if per_task else "",
        "parameters": sum(p.numel() for p in net.parameters()),
        "narrowed": f", {settings.narrower} times narrower than published"
        if settings.narrower > 1
        else "",
    }


if __name__ == "__main__":
    sys.exit(main())
