"""`python -m experiments.multimnist`: one network or two, many rules, architectures and fronts."""

import argparse
import functools
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import command
from common.arguments import among, at_least, folder, positive
from common.cells import Store, sources_of
from common.files import DataError, Files, Source
from common.study import BEYOND, Plan, alike, conduct_together
from common.tables import report

from . import mnist
from .report import figures, numbers_of, table
from .runs import Recorded
from .train import (
    ALONE,
    BASE,
    FRONTS,
    METHODS,
    OF_DATA,
    PREFERENCES,
    RULES,
    SETTINGS,
    TENTH,
    VARIANTS,
    Settings,
    split,
    together,
)

HERE = Path(__file__).parent
SEEDS, DATA_SEEDS = (2, 12, 32), (2, 6, 6)
TUNING = {"quick": 1, "default": 4, "full": 8}
RATES = (6e-3, 1.8e-2, 5.4e-2)
DATA_RATES = {"quick": (0.1,), "default": (0.03, 0.1, 0.3), "full": (1e-3, 3e-3, 1e-2)}
"""Of SGD with momentum .9, on whole data sets; the last start at 1e-3, that of Pareto MTL's code.
The middle ones lie about the best of a mean loss in two epochs on seed 77, on images held out: .1,
of .01, .03, .1 and .3.
"""


def _rate(text: str) -> float:
    """A learning rate that the name of a run holds, as the `type` of an argument."""
    value = positive(text)
    if float(f"{value:g}") != value:
        raise argparse.ArgumentTypeError(f"expected six digits at most, as runs' names, got {text}")
    return value


_rate.__name__ = "number"


def _runs(text: str) -> Path:
    """A file that can be written, and read if it is there, as the `type` of an argument."""
    path = Path(text)
    if path.exists() and not (path.is_file() and os.access(path, os.R_OK)):
        raise argparse.ArgumentTypeError(f"{path} is not a file that can be read")
    if not os.access(folder(str(path.parent)), os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written into {path.parent}")
    return path


def _parser() -> argparse.ArgumentParser:
    found = command.parser(
        "multimnist",
        "Two overlaid images: one network for both against one for each, every method at its own "
        "best learning rate. Without --data on scikit-learn's digits with dense networks, in six "
        "settings (wider, longer, four architectures): about five minutes. With --data on "
        "MultiMNIST, MultiFashion or both mixed, with the official MultiLeNet and SGD. Its own "
        f"defaults are {len(METHODS)} methods in hard sharing, four fronts and a tenth of the "
        "images, 10 epochs, 6 seeds: two to three hours on two cores. With --data and --full "
        "every setting has the papers' 100 epochs, for a GPU. With --data the first seed chooses "
        "learning rates on held-out images, and the other seeds give the results (with two seeds, "
        "or a given rate, all do). The networks that learn one task alone always run.",
        (*METHODS, *FRONTS),
        SEEDS,
        "the published files, as they are or with .gz, in FOLDER, FOLDER/mnist and FOLDER/fashion "
        "(their md5 is checked); default: scikit-learn's digits",
        chosen=RULES,
    )
    found.set_defaults(rules=None)
    # lines as they are: the names of the packages have hyphens
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    about = [textwrap.fill(text or "", 100) for text in (found.description, found.epilog)]
    found.description, found.epilog = about[0], f"{about[1]}\n\n{mnist.GET}"
    add, every = found.add_argument, [*SETTINGS, *OF_DATA]
    add("--set", choices=list(mnist.MIXTURES), default="mnist", help="of --data (default: mnist)")
    said = f"from {', '.join(every)} (default: the first and the last with --data, the first with "
    said += "--data and --quick, else all that there are); outside the first "
    said += f"{', '.join(RULES)} run"
    add("--settings", type=among(every), metavar="A,B,…", help=said)
    add("--epochs", type=at_least(1), metavar="N", help="other than the size's own number")
    add("--rate", type=_rate, metavar="R", help="one learning rate for all, none is chosen")
    said = "of the published files: finished runs that others made count, and new ones are added "
    said += "(docs/record/multimnist.json has those of the claims)"
    add("--runs", type=_runs, metavar="FILE", help=said)
    return found


def settings_of(
    size: str, data: Source | None, device: str, mixture: str = "mnist", epochs: int | None = None
) -> Settings:
    """Schedule of a size."""
    if data is None:
        own = epochs or {"quick": 1, "default": 8, "full": 40}[size]
        return Settings(None, own, 128, False, device)
    own = epochs or {"quick": 1, "default": 10, "full": 100}[size]
    return Settings(data, own, 256, True, device, mixture, 3_000 if size == "quick" else None)


def plan_of(
    size: str,
    settings: Settings,
    rules: Sequence[str] | None,
    seeds: tuple[int, ...],
    problems: Sequence[str] | None = None,
    rate: float | None = None,
) -> Plan:
    """Which runs a size has. The first seeds choose the rates, on validation pairs."""
    quick, data = size == "quick", settings.data is not None
    every = rules or ((*METHODS, *FRONTS) if data else RULES)
    methods = [name for name in every if name not in FRONTS]
    if problems is None:
        some = (BASE,) if quick else (BASE, TENTH)
        problems = (*SETTINGS, *OF_DATA) if size == "full" else some
        problems = problems if data else tuple(SETTINGS)
    rates = (2e-3, *RATES, 0.16) if size == "full" else RATES
    if data:
        rates = DATA_RATES[size]
    tuning = seeds[: 1 if data else TUNING[size]]
    variants = {name: VARIANTS.get(name, ("",))[: 1 if quick else None] for name in methods}
    chosen = rate is None or any(len(each) > 1 for each in variants.values())
    results = seeds[1:] if data and len(seeds) > 2 and chosen else seeds
    fronts = [x for x in every if x in FRONTS and "mean" in methods and BASE in problems]
    return Plan(
        {**dict.fromkeys(ALONE.values(), ("",)), **variants}, rates if rate is None else (rate,),
        tuning, results, tuple(problems), 0 if data else BEYOND,
        tuple((p, m) for p in problems for m in methods if p != BASE and m not in RULES),
        dict.fromkeys(fronts, PREFERENCES), "mean", results[:2],
    )  # fmt: skip


def _refuse(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with a sentence where arguments do not go together."""
    rules, settings = set(given.rules or ()), set(given.settings or ())
    if not given.data and (settings & {*OF_DATA} or rules & {*FRONTS} or given.set != "mnist"):
        parser.error(f"--set and {', '.join((*OF_DATA, *FRONTS))}: give the folder with --data")
    if given.runs and not given.data:
        parser.error("--runs: goes with the folder of the published files; give --data")
    if rules & {*FRONTS} and "mean" not in rules:
        parser.error("--rules: fronts run at the mean loss's rate; add mean")
    if settings and BASE not in settings and rules - {*RULES}:
        more = ", ".join(sorted(rules - {*RULES}))
        parser.error(f"--rules: {more} only run in {BASE}; add it to --settings")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    given = parser.parse_args(argv)
    _refuse(parser, given)
    if given.data:
        given.counts = DATA_SEEDS
    if given.settings and BASE in given.settings:  # the fronts are the first problem's
        given.settings = [BASE, *(name for name in given.settings if name != BASE)]
    size = command.size_of(given)
    if given.data and given.out is None:  # runs of two sets have the same names
        given.out = HERE / "out" / f"{size}-{given.set}"
    out = command.out_of(given, parser)

    def body() -> None:
        files, held = None, "overlaid digits of scikit-learn"
        if given.data:
            files = Files(given.data, mnist.files(given.data, given.set))
            held, warnings = mnist.checked(given.data, given.set)
            if given.runs is not None and "not the published" in held:
                raise DataError(f"--runs: expected the published files, got {held}")
            for warning in warnings:
                print(f"warning: {warning}", file=sys.stderr)
            print(f"{given.data}: {held}", flush=True)
        source = files and files.source
        settings = settings_of(size, source, str(given.device), given.set, given.epochs)
        parts = split(settings, 0)  # fails now rather than in a worker
        seeds = command.seeds_of(given)
        plan = plan_of(size, settings, given.rules, seeds, given.settings, given.rate)
        own = sources_of(HERE)
        store = Store(out / "cells", own, settings, files=files)
        if given.runs is not None:
            assert files is not None
            store = Recorded(given.runs, out / "cells", own, settings, files)
        # on a CPU a lane of whole data sets takes longer than a run alone
        by = (lambda cell: cell) if settings.data and settings.device == "cpu" else alike
        run = functools.partial(together, settings)
        found = conduct_together(plan, run, by, store, given.workers)
        counts = [f"{len(part.labels):,}" for part in parts]
        described: dict[str, Any] = settings._asdict() | {
            "images": f"{held} ({counts[0]} pairs to learn from, {counts[1]} that choose rates, "
            f"{counts[2]} to test on)",
            "optimizer": "SGD with momentum .9, the rate .85 times as large after every tenth of "
            "them"
            if settings.papers
            else "Adam, the rate falling to 0 along a cosine",
            "torch": torch.__version__,
            "workers": given.workers,
        }
        if isinstance(store, Recorded):
            described["runs"] = store.said()
        text = table(found, plan, described)
        numbers = numbers_of(found, plan, described)
        report(out, numbers, text, figures(found))

    return command.finish(body, out)


if __name__ == "__main__":
    sys.exit(main())
