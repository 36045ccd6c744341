"""`python -m paper_repro`: re-run the papers' experiments, check their claims, write figures and a report."""

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
from tqdm import tqdm

from ._findings import Figure, Finding, Settings
from ._report import Report

HERE = Path(__file__).parent


def reproductions() -> dict[str, ModuleType]:
    """Every module of this package without a leading underscore; each has a one-line docstring and `run(settings)`."""
    names = sorted(found.name for found in pkgutil.iter_modules([str(HERE)]) if not found.name.startswith("_"))
    return {name: importlib.import_module(f"{__package__}.{name}") for name in names}


def title(module: ModuleType) -> str:
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def reproduce(modules: dict[str, ModuleType], only: Sequence[str], settings: Settings, out: Path) -> int:
    """Run the chosen modules; every finished figure and claim is in place before the next one starts. Returns the exit status."""
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
    done: list[Finding] = []
    try:
        for name in tqdm(only, desc="papers", disable=len(only) < 2):
            start = time.perf_counter()
            found: list[Finding] = []
            for finding in modules[name].run(settings):
                report.add(name, finding)
                found.append(finding)
                done.append(finding)
                line = f"figure {finding.name}" if isinstance(finding, Figure) else f"{finding.id} {finding.verdict}"
                tqdm.write(f"[{name}] {line}")
            report.finish(name, found)
            tqdm.write(f"[{name}] finished in {time.perf_counter() - start:.0f} s")
    except KeyboardInterrupt:
        figures = sum(isinstance(finding, Figure) for finding in done)
        print(f"\ninterrupted: {len(done) - figures} claims and {figures} figures of this run are in place in {out}", file=sys.stderr)
        return 130
    print(f"\n{report.table()}\n\n{out / 'report.html'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    mpl.use("Agg")
    modules = reproductions()
    parser = argparse.ArgumentParser(
        prog="python -m paper_repro",
        description="Re-run the papers' experiments and check their claims. Writes figures (PNG), claims.json and report.html, and prints a table.",
        epilog="The default run takes two to three minutes on two cores. Ctrl-C keeps what is finished. Claims of papers that are not run again stay in --out.",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help=f"run this one alone; repeatable. One of: {', '.join(modules)}")
    parser.add_argument("--list", action="store_true", help="list the reproductions and exit")
    parser.add_argument("--seeds", type=int, default=16, metavar="N", help="seeds of every experiment, at least 2 (default: 16)")
    parser.add_argument("--full", action="store_true", help="the papers' own sizes and budgets as well (hours on a CPU)")
    parser.add_argument("--device", default="cpu", help="a torch device (default: cpu)")
    parser.add_argument("--out", type=Path, default=HERE / "out", metavar="DIR", help="where results go (default: paper_repro/out)")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:<12}{title(module)}" for name, module in modules.items()))
        return 0
    only = list(dict.fromkeys(options.only or modules))
    unknown = [name for name in only if name not in modules]
    if unknown:
        parser.error(f"--only: no reproduction named {', '.join(unknown)}; there are: {', '.join(modules)}")
    if options.seeds < 2:
        parser.error(f"--seeds: {options.seeds} is too few; every interval is over seeds, so at least 2 are needed")
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device: {options.device!r} cannot be used here: {str(error).splitlines()[0]}")
    return reproduce(modules, only, Settings(options.seeds, options.full, device), options.out)


if __name__ == "__main__":
    sys.exit(main())
