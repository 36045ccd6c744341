"""`python -m paper_repro`: re-run the papers' experiments, check their claims, write figures and a
report.
"""

import argparse
import importlib
import pkgutil
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import torch
from matplotlib import style
from tqdm import tqdm

from .claims import LEDGER
from .report.cache import key
from .report.figures import STYLE
from .report.findings import QUICK, Figure, Finding, Settings
from .report.page import Report

HERE = Path(__file__).parent


def reproductions() -> dict[str, ModuleType]:
    """Every module of this package without a leading underscore; each has a one-line docstring and
    `run(settings)`.
    """
    names = sorted(
        found.name for found in pkgutil.iter_modules([str(HERE)]) if not found.name.startswith("_")
    )
    return {name: importlib.import_module(f"{__package__}.{name}") for name in names}


def title(module: ModuleType) -> str:
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def selected(words: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Modules by name, by how the name begins, or by a claim that they decide. Raises ValueError."""
    found: list[str] = []
    for word in words:
        row = LEDGER.get(word.upper())
        if row is not None and row.module not in modules:
            raise ValueError(f"no reproduction decides {row.id} ({row.kind})")
        matching = (
            [word]
            if word in modules
            else [row.module]
            if row is not None
            else [name for name in modules if name.startswith(word)]
        )
        if not matching:
            raise ValueError(
                f"no reproduction named {word}; there are: {', '.join(modules)}; a beginning of "
                "these names or a claim's id will do, too"
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
) -> int:
    """Run the chosen modules; every finished figure and claim is in place before the next one
    starts. Returns the exit status.
    """
    configuration = {
        "seeds": str(settings.seeds),
        "sizes": "the papers' own" if settings.full else "reduced",
        "device": str(settings.device),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
    }
    if settings.shrink != 1:
        configuration["budget"] = f"{settings.shrink:g} of the usual steps and draws"
    report = Report(out, configuration, {name: title(module) for name, module in modules.items()})
    # before any runs: a source may be edited meanwhile
    keys = {name: key(modules[name], settings) for name in only}
    done: list[str] = []
    found: list[Finding] = []
    try:
        for name in tqdm(only, desc="papers", disable=len(only) < 2):
            start, found = time.perf_counter(), []
            if not fresh and report.kept(name, keys[name]):
                tqdm.write(
                    f"[{name}] same code and settings as when it last ran: results kept (--fresh "
                    "runs it again)"
                )
            else:
                report.start(name)
                with style.context(STYLE):
                    for finding in modules[name].run(settings):
                        report.add(name, finding)
                        found.append(finding)
                        tqdm.write(
                            f"[{name}] "
                            f"{f'figure {finding.name}' if isinstance(finding, Figure) else f'{finding.id} {finding.verdict}'}"
                        )
                report.finish(name, keys[name], found)
                tqdm.write(f"[{name}] finished in {time.perf_counter() - start:.0f} s")
            done.append(name)
    except KeyboardInterrupt:
        figures = sum(isinstance(finding, Figure) for finding in found)
        within = (
            f"in {only[len(done)]}, after {len(found) - figures} claims and {figures} figures of it"
            if len(done) < len(only)
            else "at the end"
        )
        print(
            f"\ninterrupted {within}; finished before: {', '.join(done) or 'none'}. All of that "
            f"is in {out};",
            file=sys.stderr,
        )
        print("the same command goes on from there", file=sys.stderr)
        return 130
    finally:
        report.write_page()
    print(f"\n{report.table(only)}\n\n{out / 'report.html'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    mpl.use("Agg")
    modules = reproductions()
    parser = argparse.ArgumentParser(
        prog="python -m paper_repro",
        description="Re-run the papers' experiments and check their claims. Writes figures "
        "(PNG), claims.json and report.html, and prints a table.",
        epilog="Ctrl-C keeps what is finished. Results of code and settings that have not "
        "changed since are kept, as are those of papers that are not run.",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="run these alone: a name, its beginning or a claim's id; repeatable. There are: "
        f"{', '.join(modules)}",
    )
    parser.add_argument("--list", action="store_true", help="list the reproductions and exit")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help=f"first verdicts: {QUICK.seeds} seeds, {QUICK.shrink:g} of the steps and draws",
    )
    size.add_argument(
        "--full",
        action="store_true",
        help="the papers' own sizes and budgets as well (hours on a CPU)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"seeds of every experiment, at least 2 (default: {Settings().seeds})",
    )
    parser.add_argument("--device", default="cpu", help="a torch device (default: cpu)")
    parser.add_argument("--fresh", action="store_true", help="run again even what has not changed")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results go (default: paper_repro/out; its folders quick and full for these "
        "sizes)",
    )
    options = parser.parse_args(arguments)
    if options.list:
        width = max(map(len, modules)) + 2
        print("\n".join(f"{name:<{width}}{title(module)}" for name, module in modules.items()))
        return 0
    try:
        only = selected(options.only or list(modules), list(modules))
    except ValueError as error:
        parser.error(f"--only: {error}")
    settings = QUICK if options.quick else Settings(full=options.full)
    if options.seeds is not None:
        if options.seeds < 2:
            parser.error(
                f"--seeds: {options.seeds} is too few; every interval is over seeds, so at least "
                "2 are needed"
            )
        settings = settings._replace(seeds=options.seeds)
    try:
        settings = settings._replace(device=torch.device(options.device))
        torch.zeros(1, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(
            f"--device: {options.device!r} cannot be used here: {str(error).splitlines()[0]}"
        )
    out = options.out or HERE / "out" / (
        "quick" if options.quick else "full" if options.full else ""
    )
    return reproduce(modules, only, settings, out, fresh=options.fresh)


if __name__ == "__main__":
    sys.exit(main())
