"""`python -m paper_repro`: re-run the papers' experiments and check their claims."""

import argparse
import functools
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # started without streams: their numbers would be the next files
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open to the end)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the imports, which take seconds, without a word
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

if __name__ == "__main__" and not {"figure", "compare", "--list", "-h", "--help"} & {*sys.argv}:
    print("the questions are read, which takes some seconds", file=sys.stderr, flush=True)

import matplotlib as mpl
import torch

from common.arguments import at_least, device, workers
from common.device import shown
from common.files import DataError
from common.machine import cores
from common.progress import duration, say
from common.remaining import Remaining
from common.signals import Terminated, terminable, unbroken
from mtlfunc.core.files import write_whole

from .claims import HERE, LEDGER, papers, reproductions
from .report.cache import key
from .report.commands import Catalogue, command
from .report.compare import compare
from .report.display import Display
from .report.findings import QUICK, Settings
from .report.options import meant
from .report.page import page, title
from .report.parts import drop
from .report.remaining import expected, in_order, pace_of
from .report.results import PAGE, PARTS, Refused, Results, reserved
from .report.summary import table
from .report.workers import Question, Run, owner


def selected(words: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Modules by name, by how the name begins, or by a claim that they decide, in any case. Raises
    ValueError where a word is none of these.
    """
    found: list[str] = []
    for given in words:
        word, row = given.lower(), LEDGER.get(given.upper())
        if word in modules:
            matching = [word]
        elif row is not None and row.module:
            matching = [row.module]
        else:
            matching = [name for name in modules if word and name.startswith(word)]
        if not matching and row is not None:
            raise ValueError(f"--only: no reproduction decides {row.id}: {row.needs or row.kind}")
        if not matching:
            raise ValueError(
                f"--only: no reproduction is named {given!r} or decides it; "
                f"{meant(word, [*modules, *LEDGER])}a beginning of a name will do, too; --list has "
                "all names"
            )
        found += matching
    return list(dict.fromkeys(found))


def reproduce(
    modules: dict[str, ModuleType],
    only: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    fresh: bool = False,
    workers: int | str = 1,
) -> int:
    """Run the chosen modules (`only`); what one found is in place as soon as it is found. `fresh`
    also runs what has not changed; one worker is this process, in the order of `only`.

    Returns the exit status: 0, 1 where a question failed or nothing more could be written, 130
    after Ctrl-C and 143 after SIGTERM. Raises Refused, before anything runs, where `out` cannot be
    used.
    """
    # before any runs: a source may be edited meanwhile
    keys = {name: key(module, settings) for name, module in modules.items()}
    questions = [Question(name, modules[name].__name__, keys[name]) for name in only]
    again = "the same command without --fresh" if fresh else "the same command"
    try:
        with terminable(), reserved(out):
            results = Results(out, configuration_of(settings), modules)
            run = Run(results, Display(len(only)), settings, out / PARTS)
            for notice in results.notices:
                run.display.line(notice)
            if fresh:
                drop(run.parts, (f"{name}-" for name in only))
            try:
                try:
                    complete(run, questions, fresh=fresh, workers=workers)
                finally:
                    with unbroken():
                        write_whole(out / PAGE, page(results, modules, keys))
            except KeyboardInterrupt as stop:
                where = ", ".join(run.display.work) or "nothing"
                said = f"interrupted in {where}; what was found is in {out}, and {again}"
                say(f"\n{said} goes on from there", sys.stderr)
                return 143 if isinstance(stop, Terminated) else 130
    except OSError as error:
        say(
            f"\nstopped: {error}; what is whole stays in {out}, and {again} goes on from there",
            sys.stderr,
        )
        return 1
    run.display.line(f"\n{table(results, only)}\n\n{out / PAGE}")
    for name, text in run.failed.items():
        say(f"{name} failed: {text}", sys.stderr)
    return 1 if run.failed else 0


def _everywhere(*call: Any) -> list[Any]:
    from common.cluster import everywhere  # an extra

    return everywhere(*call)


def complete(run: Run, questions: Sequence[Question], *, fresh: bool, workers: int | str) -> None:
    """Run those whose results are not kept, as `reproduce` says."""
    left = [q for q in questions if fresh or not run.results.kept(q.name, q.key)]
    for question in questions:
        if question not in left:
            run.skip(question.name)
    names = [question.name for question in left]
    far = workers if isinstance(workers, str) and left else ""
    count = len(_everywhere(far, os.getpid)) if far else workers if isinstance(workers, int) else 1
    order = names if workers == 1 else in_order(names)
    left.sort(key=lambda question: order.index(question.name))
    seconds = expected(order, run.settings)
    run.display.remaining = Remaining(seconds, count, pace_of(run.settings) if left else 1.0)
    if left and (total := run.display.remaining.now({})) is not None:
        what = f"{len(left)} questions" if len(left) > 1 else "1 question"
        what += f", {count} side by side" if (count := min(count, len(left))) > 1 else ""
        run.display.line(f"{what}: about {duration(total)}")
    run.perform(left, workers)
    if not run.failed:
        owners = [owner(name, run.settings) for name in run.done]
        drop(run.parts, owners)
        if far:
            _everywhere(far, drop, run.parts.absolute(), owners)


def configuration_of(settings: Settings) -> dict[str, str]:
    """What the page says of a run."""
    configuration = {
        "seeds": str(settings.seeds),
        "sizes": "the papers' own" if settings.full else "reduced",
        "device": shown(settings.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if settings.shrink != 1:
        configuration["budget"] = f"{settings.shrink:g} of the usual steps and draws"
    if settings.draw:
        configuration["draw"] = str(settings.draw)
    return configuration


EPILOG = (
    "`python -m paper_repro figure --list` names the figures that take options; `compare RECORD "
    "RUN` says which verdicts moved. Ctrl-C and SIGTERM keep what is finished (exit status 130 and "
    "143; 1 on a full disk), and the same command goes on from there. Results of code and settings "
    "that have not changed since are kept, as are those of papers that are not run."
)


def parser_of() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_repro",
        description="Re-run the papers' experiments and check their claims: five to twelve minutes "
        "on two cores. Writes figures (PNG, SVG), claims.json and report.html, and prints a table.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="run these alone: a name, its beginning or a claim's id; repeatable",
    )
    flag = functools.partial(parser.add_argument, action="store_true")
    flag("--list", help="list the questions and exit")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help=f"first verdicts: {QUICK.seeds} seeds, {QUICK.shrink:g} of the steps and draws",
    )
    size.add_argument(
        "--full", action="store_true", help="the papers' own sizes and budgets as well (hours)"
    )
    parser.add_argument(
        "--seeds",
        type=at_least(2),
        metavar="N",
        help=f"seeds of every experiment, at least 2 (default: {Settings().seeds})",
    )
    parser.add_argument(
        "--draw",
        type=at_least(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="other random numbers for the whole run; verdicts that change with N hang on the draw "
        "(default: 0)",
    )
    parser.add_argument(
        "--device",
        type=device,
        default="cpu",
        help="a torch device for the sweeps; timings always run on the CPU (default: cpu)",
    )
    parser.add_argument(
        *("--workers", "--scheduler"),
        type=workers,
        metavar="N or ADDRESS",
        help="questions side by side, each in a process with one thread (default: as many as this "
        f"process may use cores, here {cores()}; 1 on another device than the CPU); or tcp://HOST:"
        "PORT of a Dask scheduler",
    )
    flag("--fresh", help="run again even what has not changed")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results go (default: paper_repro/out; --quick and --full write to quick "
        "and full in it, a device or draw to cuda or draw-N in these)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        with terminable():
            return perform(arguments)
    except KeyboardInterrupt as stop:  # before anything ran, or when all had been written
        say("\ninterrupted", sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except DataError as error:
        say(f"\nstopped: {error}", sys.stderr)
        return 1


def perform(arguments: Sequence[str] | None) -> int:
    """What the command line says; returns the exit status."""
    mpl.use("Agg")
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["figure"]:
        return command(words[1:], Catalogue(__package__ or "paper_repro", papers()))
    if words[:1] == ["compare"]:
        return compare(words[1:])
    parser, modules = parser_of(), reproductions()
    options = parser.parse_args(words)
    try:
        only = selected(options.only or list(modules), list(modules))
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for name in only:  # with its question, and the claims that it decides
            ids = ", ".join(row.id for row in LEDGER.values() if row.module == name)
            say(f"{name:<26}{title(modules[name])} {ids}", sys.stdout)
        return 0
    usual = QUICK if options.quick else Settings(full=options.full)
    seeds = options.seeds or usual.seeds
    settings = usual._replace(seeds=seeds, draw=options.draw, device=options.device)
    sizes = ("quick" * options.quick, "full" * options.full)
    try:
        anew = f"draw-{options.draw}" if options.draw else ""
        there = "" if settings.device.type == "cpu" else settings.device.type
        out = options.out or HERE.joinpath("out", *sizes, there, anew)
        workers = options.workers or (cores() if settings.device.type == "cpu" else 1)
        return reproduce(modules, only, settings, out, fresh=options.fresh, workers=workers)
    except Refused as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
