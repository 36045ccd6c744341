"""The command line that the studies share, and how they end."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.arguments import among, at_least, device, existing_folder, seeds, workers

from .files import FULL, DataError
from .jobs import Died
from .locks import InUse, hold_lock
from .signals import Terminated, terminable


def parser(
    name: str,
    description: str,
    rules: Sequence[str],
    defaults: Sequence[int],
    data: str = "",
    chosen: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """`--data --quick --full --rules --seeds --workers --device --out`, for one experiment.

    Args:
        name: of the experiment; results go to `experiments/<name>/out` by default.
        description: what it does, first in the help.
        rules: names to choose from.
        defaults: how many seeds `--quick` takes, the default, and `--full`.
        data: what the folder of `--data` holds; without it the argument is missing.
        chosen: the rules that run where none are named, without `--data`; all of them by default.
    """
    full = "longer, with more seeds: hours or days"
    full += " (with --data the papers' schedule and network)" if data else ""
    found = brief(name, description, defaults, kept="run", full=full)
    add = found.add_argument
    if data:
        add("--data", type=existing_folder, metavar="FOLDER", help=data)
    usual = f"{', '.join(chosen)}; with --data all" if chosen else "all"
    said = f"comma-separated, from {', '.join(rules)} (default: {usual})"
    add("--rules", type=among(rules), default=[*(chosen or rules)], metavar="A,B,…", help=said)
    add_workers(found, two())
    return found


def two() -> int:
    """Processes side by side by default: two, or one on one core."""
    return min(2, os.cpu_count() or 1)


def add_workers(found: argparse.ArgumentParser, usual: int | None) -> None:
    """`--workers N`, which is also `--scheduler ADDRESS`; without a `usual` one `two` or, on a
    device, one.
    """
    said = f"processes side by side, one thread each (default: {usual or two()})"
    said += ", on a device 1" * (usual is None)
    said += "; or tcp://HOST:PORT of a Dask scheduler, whose workers do it all"
    names, kind = ("--workers", "--scheduler"), "N or ADDRESS"
    found.add_argument(*names, type=workers, default=usual, metavar=kind, help=said)


def brief(
    name: str,
    description: str,
    counts: Sequence[int],
    steps: tuple[int, int] | None = None,
    *,
    least: int = 1,
    kept: str = "",
    devices: bool = True,
    full: str = "",
) -> argparse.ArgumentParser:
    """`--quick --seeds --steps --device --out`, of a study in one process.

    Args:
        name: of the experiment.
        description: what it does, first in the help.
        counts: how many seeds `--quick` takes, and the default.
        steps: likewise; without them the argument is missing.
        least: steps.
        kept: what a stop does not lose.
        devices: whether there is `--device`.
        full: the help of `--full`; without it the argument is missing.
    """
    found = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    if kept:
        found.epilog = (
            f"Every finished {kept} is kept: Ctrl-C, SIGTERM (exit status 130, 143) or a full disk "
            f"lose only the {kept} at work, and the same command goes on from there."
        )
    add, size = found.add_argument, found.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="at most a minute on two cores")
    said = "seeds 0 … N-1, or A … B-1; at least 2 (default: {1}; with --quick {0}"
    if full:
        size.add_argument("--full", action="store_true", help=full)
        said += ", with --full {2}"
    add("--seeds", type=seeds, metavar="N or A:B", help=said.format(*counts) + ")")
    if steps:
        said = "(default: {1}; with --quick {0})".format(*steps)
        add("--steps", type=at_least(least), help=said)
    if devices:
        add("--device", type=device, default="cpu", help="of torch, say cuda (default: cpu)")
    said = f"for tables, numbers, figures, finished runs (default: below experiments/{name}/out)"
    add("--out", type=Path, metavar="FOLDER", help=said)
    found.set_defaults(counts=tuple(counts), lengths=steps, name=name)
    return found


def settled(
    found: argparse.ArgumentParser, argv: Sequence[str] | None, here: Path
) -> argparse.Namespace:
    """The arguments of `brief` with their defaults; results go below `here`."""
    given = found.parse_args(argv)
    given.seeds = given.seeds or tuple(range(given.counts[not given.quick]))
    if given.lengths:
        given.steps = given.steps or given.lengths[not given.quick]
    given.out = usable(given.out or here / ("quick" if given.quick else "default"), found)
    return given


def size_of(given: argparse.Namespace) -> str:
    """`"quick"`, `"default"` or `"full"`."""
    return "quick" if given.quick else "full" if given.full else "default"


def seeds_of(given: argparse.Namespace) -> tuple[int, ...]:
    """The seeds that results are taken on."""
    count = given.counts[("quick", "default", "full").index(size_of(given))]
    return given.seeds or tuple(range(count))


def out_of(given: argparse.Namespace, found: argparse.ArgumentParser) -> Path:
    """Where results go, as in `usable`."""
    here = Path(__file__).parents[1] / "experiments" / given.name / "out"
    return usable(given.out or here / size_of(given), found)


def usable(out: Path, found: argparse.ArgumentParser) -> Path:
    """A folder of results; one that cannot be used fails now rather than after the first cell."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found.error(f"argument --out: {out} cannot be made a folder: {error.strerror}")
    if not os.access(out, os.W_OK):
        found.error(f"argument --out: nothing can be written into {out}")
    return out


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """A folder of results, made where it is missing, for this study alone, which SIGTERM ends as
    `terminable` says.

    Raises:
        DataError: where another study holds the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(out / ".lock"), terminable():
            yield
    except InUse as error:
        raise DataError(str(error)) from error


def finish(body: Callable[[], int | None], out: Path, again: str = "the same command") -> int:
    """Run a study to its end, or say why not and what is kept.

    Args:
        body: the study; its exit status, None is 0.
        out: its folder, whose `cells` holds one file a finished run.
        again: what goes on with them.

    Returns:
        the exit status: that of `body`; 130 after Ctrl-C; 143 after SIGTERM; 2 for data that cannot
        be read or a folder that another study holds; 1 for a full disk, a closed output or a worker
        that died. Other errors are raised.
    """

    def say(what: str, status: int) -> int:
        kept = sum(1 for _ in (out / "cells").rglob("*.json"))
        print(
            f"\n{what}; {kept} finished runs are kept in {out / 'cells'}, of all settings, and "
            f"{again} goes on from its own",
            file=sys.stderr,
        )
        return status

    try:
        with alone_in(out):
            return body() or 0
    except Terminated:
        return say("terminated", 143)
    except KeyboardInterrupt:
        return say("interrupted", 130)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (*FULL, errno.EPIPE):
            raise
        return say(f"stopped: {error.strerror}", 1)
    except Died as error:
        return say(f"stopped: a worker died ({error}); fewer workers may help", 1)
