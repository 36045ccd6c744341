"""How long `python -m paper_repro --full` takes, a question at a time.

    python -m experiments.benchmarks.full

A question that came to its end in paper_repro/out/full left its processor time there. The others
are estimated from their first percents: they run with two shares of their steps and draws, and what
these cost is continued along a line. What several questions share counts for the first of them.
An estimate is rough: a run of few steps is measured at every one of them, which makes it too high,
and few draws cost little more than fewer, which makes it too low. Writes full.json.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from experiments.arguments import folder
from experiments.benchmarks.record import Record, Row, describe, only, settings
from experiments.common.pool import follow_parent
from paper_repro.__main__ import reproductions, selected
from paper_repro.report.findings import Settings
from paper_repro.report.results import Unreadable, read_runs

SHARES = (0.01, 0.02)
RUN = Path(__file__).parents[2] / "paper_repro" / "out" / "full" / "runs.json"
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


def seconds_of(job: Job) -> float:
    """Processor time of a question in this process, its compilers' included."""
    torch.set_num_threads(1)
    module = import_module(f"paper_repro.{job.question}")
    begin = sum(os.times()[:4])
    for _ in module.run(Settings(full=True, shrink=job.share)):
        pass
    return sum(os.times()[:4]) - begin


def spent(questions: Sequence[str], share: float) -> Iterator[float]:
    """Processor time of each, all in one process."""
    with ProcessPoolExecutor(1, get_context("spawn"), follow_parent) as apart:
        for name in tqdm(questions, desc=f"{share:.1%} of every question"):
            yield apart.submit(seconds_of, Job(name, share)).result()


def estimated(questions: Sequence[str]) -> Iterator[Row]:
    """Rows: what the shares cost, and all of it."""
    first, second = SHARES
    few = list(spent(questions, first))
    for name, less, more in zip(questions, few, spent(questions, second), strict=True):
        slope = max(more - less, 0.0) / (second - first)
        whole = more + slope * (1 - second)
        yield {"question": name, "spent": [less, more], "seconds": whole}


def finished() -> dict[str, float]:
    """Processor seconds of the questions that a run with `--full` has answered.

    Raises:
        SystemExit: where the run's file is damaged, or of another version.
    """
    try:
        return {name: run["seconds"] for name, run in read_runs(RUN, reproductions()).items()}
    except Unreadable as error:
        raise SystemExit(
            f"{RUN} {error}; move it away, and all of its questions are estimated"
        ) from error


def described(path: Path) -> tuple[str, str]:
    """A sentence on how the times were taken, and their table as Markdown, longest first."""
    done, every = finished(), len(reproductions())
    # where all were run nothing is estimated, and there may be no file
    chosen, rows = only(path) if len(done) < every else (settings(shares=list(SHARES)), [])
    times = {
        row["question"]: row["seconds"] for row in rows if row["question"] not in SQUARE
    } | done
    missing = [name for name in reproductions() if name not in times]
    if not set(missing) <= set(SQUARE):
        raise SystemExit(f"{len(missing)} questions lack a time: run this command first")
    shares = " and ".join(f"{share:.1%}" for share in chosen["shares"])
    line = f"""**All of it**: minutes of processor time that `python -m paper_repro --full` takes a
        question ({describe(chosen)}). {len(done)} of {every} were run to their end, one thread
        each; the others are estimated, roughly, from {shares} of their steps and draws.
        What several questions share counts for the first of them alone."""
    if missing:
        line += f" Not timed: {', '.join(f'`{name}`' for name in missing)}."
    lines = [
        f"| `{name}` | {spent / 60:,.1f} | {'run' if name in done else 'estimated'} |"
        for name, spent in sorted(times.items(), key=lambda item: -item[1])
        if spent >= LONG
    ]
    rest = {name: spent for name, spent in times.items() if spent < LONG}
    if rest:
        how = " or ".join(sorted({"run" if name in done else "estimated" for name in rest}))
        minutes = sum(rest.values()) / 60
        lines.append(f"| {len(rest)} others, each below a minute | {minutes:,.1f} | {how} |")
    return line, "\n".join(["| question | minutes | how |", "|---|---|---|", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Estimate how long the questions that --full has not answered yet take."
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="a question, the beginning of some, or a claim; may be repeated (default: those that "
        "no run with --full has answered)",
    )
    parser.add_argument("--out", type=folder, default=Path(__file__).parent / "out")
    options = parser.parse_args(arguments)
    names = list(reproductions())
    try:
        chosen = selected(options.only or names, names)
    except ValueError as error:
        parser.error(str(error))
    chosen = [name for name in chosen if name not in SQUARE]
    if not options.only:
        chosen = [name for name in chosen if name not in finished()]
    elif not chosen:
        parser.error(f"--only: the time of {', '.join(SQUARE)} is told by a run alone")
    record = Record(options.out / "full.json", ("question",), settings(shares=list(SHARES)))
    for row in estimated([name for (name,) in record.missing([(name,) for name in chosen])]):
        record.keep(row)
    for row in record.here():
        print(f"{row['question']:<28}{row['seconds'] / 60:8.1f} min")


if __name__ == "__main__":
    main()
