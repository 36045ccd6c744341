"""How long `python -m paper_repro --full` takes, a question at a time.

    python -m experiments.benchmarks.full

A question that came to its end in paper_repro/out/full left its processor time there, which is
taken over. One that never did is estimated from its first percents: it runs with two shares of its
steps and draws, and what these cost is continued along a line. What several questions share counts
for whichever computed it. An estimate is rough: a run of few steps is measured at every one of
them, which makes it too high, and few draws cost little more than fewer, which makes it too low.
All of it takes hours, so full_times.json beside this file keeps what was found, each with its day;
a run stands for an estimate, and a later one for an earlier one.
"""

import argparse
import datetime
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments.benchmarks.record import settings
from experiments.common.pool import prepare
from mtlfunc.core.files import write_whole
from paper_repro.__main__ import configuration_of, reproductions, selected
from paper_repro.report.findings import Settings
from paper_repro.report.parts import spent
from paper_repro.report.results import Unreadable, read_claims, read_runs

SHARES = (0.01, 0.02)
RUN = Path(__file__).parents[2] / "paper_repro" / "out" / "full" / "runs.json"
TIMES = Path(__file__).parent / "full_times.json"
SQUARE = ("mgda.random_encoders",)
"""Questions with both more draws and more steps: no line through small shares tells their time, and
they are not estimated.
"""
LONG = 60.0
"""Seconds from which a question has a line of its own in the table."""


class Job(NamedTuple):
    """A question at a share of `--full`."""

    question: str
    share: float


class Time(NamedTuple):
    """What a question takes."""

    seconds: float  # of processor time
    run: bool  # else estimated
    day: str
    machine: str


def seconds_of(job: Job) -> float:
    """Processor time of a question in this process, its compilers' included."""
    module = import_module(f"paper_repro.{job.question}")
    begin = spent()
    for _ in module.run(Settings(full=True, shrink=job.share)):
        pass
    return spent() - begin


def costs(questions: Sequence[str], share: float) -> Iterator[float]:
    """Processor time of each, all in one process."""
    with ProcessPoolExecutor(1, get_context("spawn"), prepare) as apart:
        for name in tqdm(questions, desc=f"{share:.1%} of every question"):
            yield apart.submit(seconds_of, Job(name, share)).result()


def estimated(questions: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Every question, and how long all of it takes."""
    first, second = SHARES
    few = list(costs(questions, first))
    for name, less, more in zip(questions, few, costs(questions, second), strict=True):
        slope = max(more - less, 0.0) / (second - first)
        yield name, more + slope * (1 - second)


def read_times() -> dict[str, Time]:
    """What is known; empty where there is no file.

    Raises:
        SystemExit: where the file is damaged.
    """
    try:
        kept = json.loads(TIMES.read_text(encoding="utf-8"))
        return {name: Time(**time) for name, time in kept.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"{TIMES} cannot be read ({error}): take it from the repository"
        ) from error


def keep(times: dict[str, Time]) -> None:
    """Write what is known, without questions that there are no more."""
    order = [name for name in reproductions() if name in times]
    text = json.dumps({name: times[name]._asdict() for name in order}, indent=1)
    write_whole(TIMES, text + "\n")


def here() -> str:
    """The machine of this process."""
    found = settings()
    return f"{found['processor']}, torch {found['torch']}"


def finished() -> dict[str, Time]:
    """Times of the questions that a run with `--full` has answered here, and with nothing else.

    Raises:
        SystemExit: where the run's files are damaged, or of another version.
    """
    names, usual = list(reproductions()), configuration_of(Settings(full=True))
    try:
        runs, rows = read_runs(RUN, names), read_claims(RUN.with_name("claims.json"), names)
    except Unreadable as error:
        raise SystemExit(f"{RUN} or claims.json beside it {error}; move them away") from error
    if not runs:
        return {}
    day = datetime.date.fromtimestamp(RUN.stat().st_mtime).isoformat()
    others = {
        row["module"]
        for row in rows
        if any(
            row["configuration"].get(name) != usual.get(name)
            for name in ("seeds", "sizes", "device", "budget", "draw")
        )
    }
    return {
        name: Time(round(run["seconds"], 1), True, day, here())
        for name, run in runs.items()
        if name not in others
    }


def described() -> tuple[str, str]:
    """A sentence on how the times were taken, and their table as Markdown, longest first."""
    times, every = read_times(), len(reproductions())
    missing = [name for name in reproductions() if name not in times]
    if not set(missing) <= set(SQUARE):
        raise SystemExit(f"{len(missing)} questions lack a time: run this command first")
    shares = " and ".join(f"{share:.1%}" for share in SHARES)
    line = f"""**All of it**: minutes of processor time that `python -m paper_repro --full` takes a
        question ({"; ".join(sorted({time.machine for time in times.values()}))}).
        {sum(time.run for time in times.values())} of {every} were run to their end, one thread
        each; the others are estimated, roughly, from {shares} of their steps and draws.
        What several questions share counts for whichever computed it."""
    if missing:
        line += f" Not timed: {', '.join(f'`{name}`' for name in missing)}."
    lines = [
        f"| `{name}` | {time.seconds / 60:,.1f} | {'run' if time.run else 'estimated'} {time.day} |"
        for name, time in sorted(times.items(), key=lambda item: -item[1].seconds)
        if time.seconds >= LONG
    ]
    rest = [time for time in times.values() if time.seconds < LONG]
    if rest:
        how = " or ".join(sorted({"run" if time.run else "estimated" for time in rest}))
        minutes = sum(time.seconds for time in rest) / 60
        lines.append(f"| {len(rest)} others, each below a minute | {minutes:,.1f} | {how} |")
    return line, "\n".join(["| question | minutes | how |", "|---|---|---|", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Take over the times of what --full has answered here, and estimate the rest."
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="estimate a question, the beginning of some, or a claim anew; may be repeated "
        "(default: those that have no time yet)",
    )
    options = parser.parse_args(arguments)
    names = list(reproductions())
    try:
        chosen = selected(options.only or names, names)
    except ValueError as error:
        parser.error(str(error))
    times, day, machine = read_times(), datetime.date.today().isoformat(), here()
    for name, time in finished().items():
        known = times.get(name)
        # the file's day is that of its last question: what it held before keeps its own
        if known is None or not known.run or known.seconds != time.seconds:
            times[name] = time
    keep(times)
    chosen = [name for name in chosen if name not in SQUARE]
    if not options.only:
        chosen = [name for name in chosen if name not in times]
    elif not chosen:
        parser.error(f"--only: the time of {', '.join(SQUARE)} is told by a run alone")
    for name, seconds in estimated(chosen):
        times[name] = Time(round(seconds, 1), False, day, machine)
        keep(times)
    for name, time in times.items():
        how = "run" if time.run else "estimated"
        print(f"{name:<28}{time.seconds / 60:8.1f} min, {how} {time.day}")


if __name__ == "__main__":
    main()
