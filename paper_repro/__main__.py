"""`python -m paper_repro`: re-run the papers' experiments and check their claims."""

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

from mtlfunc.core.files import write_whole

from .claims import LEDGER
from .report.cache import key
from .report.figures import STYLE
from .report.findings import QUICK, Figure, Finding, Settings
from .report.page import page, table
from .report.results import Refused, Results, reserved
from .report.where import places

HERE = Path(__file__).parent


def reproductions() -> dict[str, ModuleType]:
    """Every module of a paper's folder that has `run(settings)`, by its name paper.question."""
    names = sorted(
        f"{folder.name}.{found.name}"
        for folder in HERE.iterdir()
        if (folder / "__init__.py").exists()
        for found in pkgutil.iter_modules([str(folder)])
    )
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "run")}


def title(module: ModuleType) -> str:
    """A reproduction's question: the first line of its docstring."""
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def listed(name: str, module: ModuleType) -> str:
    """A line of --list: name, question, and the claims that it decides."""
    ids = ", ".join(row.id for row in LEDGER.values() if row.module == name)
    return f"{name:<26}{title(module)} {ids}"


def selected(words: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Modules by name, by how the name begins, or by a claim that they decide.

    Raises:
        ValueError: where a word is neither, or a claim that no reproduction decides.
    """
    found: list[str] = []
    for word in words:
        row = LEDGER.get(word.upper())
        if row is not None and row.module not in modules:
            raise ValueError(f"--only: no reproduction decides {row.id} ({row.kind})")
        if word in modules:
            matching = [word]
        elif row is not None:
            matching = [row.module]
        else:
            matching = [name for name in modules if name.startswith(word)]
        if not matching:
            raise ValueError(
                f"--only: no reproduction named {word}; there are: {', '.join(modules)}; "
                "a beginning of these names or a claim's id will do, too"
            )
        found += matching
    return list(dict.fromkeys(found))


def where(identifier: str, modules: dict[str, ModuleType]) -> str:
    """The lines that decide a claim. Raises ValueError where none do."""
    row = LEDGER.get(identifier.upper())
    if row is None:
        raise ValueError(f"--where: there is no claim {identifier}; ids are like GN-21")
    if row.module not in modules:
        raise ValueError(f"--where: no reproduction decides {row.id} ({row.kind})")
    return str(places(modules[row.module])[row.id])


def reproduce(
    modules: dict[str, ModuleType],
    only: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    fresh: bool = False,
) -> int:
    """Run the chosen modules; what one found is in place before the next one starts.

    Args:
        modules: all that there are, by name.
        only: names of those to run, in this order.
        settings: how much to compute.
        out: the folder of the results.
        fresh: whether to run again what has not changed.

    Returns:
        The exit status: 0, or 130 after an interruption.

    Raises:
        Refused: before anything runs, where `out` cannot be used.
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
    titles = {name: title(module) for name, module in modules.items()}
    # before any runs: a source may be edited meanwhile
    keys = {name: key(modules[name], settings) for name in only}
    done: list[str] = []
    found: list[Finding] = []
    with reserved(out):
        results = Results(out, configuration, titles)
        try:
            for name in tqdm(only, desc="papers", disable=len(only) < 2):
                found = []
                if not fresh and results.kept(name, keys[name]):
                    tqdm.write(
                        f"[{name}] same code and settings as when it last ran: results kept "
                        "(--fresh runs it again)"
                    )
                else:
                    run_one(name, modules[name], settings, results, keys[name], found)
                done.append(name)
        except KeyboardInterrupt:
            where = f"in {only[len(done)]}, {described(found)}" if len(done) < len(only) else ""
            print(
                f"\ninterrupted {where or 'at the end'}; finished before: "
                f"{', '.join(done) or 'none'}. All of that is in {out};\n"
                "the same command goes on from there",
                file=sys.stderr,
            )
            return 130
        finally:
            write_whole(out / "report.html", page(results, titles))
    print(f"\n{table(results, only)}\n\n{out / 'report.html'}")
    return 0


def run_one(
    name: str,
    module: ModuleType,
    settings: Settings,
    results: Results,
    key: str,
    found: list[Finding],
) -> None:
    """Run a module; its findings are put in place, and into `found`, one by one."""
    start = time.perf_counter()
    results.start(name)
    with style.context(STYLE):
        for finding in module.run(settings):
            results.add(name, finding)
            found.append(finding)
            if isinstance(finding, Figure):
                tqdm.write(f"[{name}] figure {finding.name}")
            else:
                tqdm.write(f"[{name}] {finding.id} {finding.verdict}")
    results.finish(name, key, found)
    tqdm.write(f"[{name}] finished in {time.perf_counter() - start:.0f} s")


def described(found: list[Finding]) -> str:
    """What an interrupted module had found."""
    figures = sum(isinstance(finding, Figure) for finding in found)
    return f"after {len(found) - figures} claims and {figures} figures of it"


def parser_of(modules: Sequence[str]) -> argparse.ArgumentParser:
    """The command line."""
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
    parser.add_argument(
        "--where", metavar="ID", help="print the lines that decide a claim, as GN-21, and exit"
    )
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
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    """How much the command line says to compute. Raises ValueError for what cannot be."""
    settings = QUICK if options.quick else Settings(full=options.full)
    if options.seeds is not None:
        if options.seeds < 2:
            raise ValueError(
                f"--seeds: {options.seeds} is too few; every interval is over seeds, so at least "
                "2 are needed"
            )
        settings = settings._replace(seeds=options.seeds)
    try:
        settings = settings._replace(device=torch.device(options.device))
        torch.zeros(1, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: {options.device!r} cannot be used here: {reason}") from error
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    mpl.use("Agg")
    modules = reproductions()
    parser = parser_of(list(modules))
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(map(listed, modules, modules.values())))
        return 0
    try:
        if options.where:
            print(where(options.where, modules))
            return 0
        only = selected(options.only or list(modules), list(modules))
        settings = settings_of(options)
    except ValueError as error:
        parser.error(str(error))
    default = "quick" if options.quick else "full" if options.full else ""
    try:
        out = options.out or HERE / "out" / default
        return reproduce(modules, only, settings, out, fresh=options.fresh)
    except Refused as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
