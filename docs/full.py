"""How long `python -m paper_repro --full` takes and what it says, a question at a time.

What several questions share counts for whichever computed it. All of it takes hours and seldom
comes from one run, so paper_repro/full.json keeps what was found, each with its day; a later run
stands for an earlier one. A verdict is what today's decision says of those numbers, and there is
none where they lack one that it asks for.
"""

import datetime
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from common.machine import processor
from mtlfunc.core.files import write_whole
from paper_repro.__main__ import configuration_of, reproductions
from paper_repro.claims import DECISIONS
from paper_repro.report.compare import SIZE
from paper_repro.report.findings import Settings
from paper_repro.report.results import Unreadable, read_claims, read_runs

KEPT = Path(__file__).parent.parent / "paper_repro" / "full.json"
RUN = KEPT.parent / "out" / "full" / "runs.json"
LONG = 60.0
"""Seconds from which a question has a line of its own in the table."""


class Answer(NamedTuple):
    """What a question takes, and what it says."""

    seconds: float  # of processor time
    day: str
    machine: str
    numbers: dict[str, dict[str, float]]  # by claim


def read() -> dict[str, Answer]:
    """What is known."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    return {name: Answer(**answer) for name, answer in kept.items()}


def decided(numbers: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """What today's decisions say of claims, of each whose numbers are enough."""
    found = {}
    for name, measured in numbers.items():
        with suppress(LookupError):
            found[name] = DECISIONS[name].verdict(measured)
    return found


def keep(answers: dict[str, Answer]) -> None:
    """Write what is known, without questions that there are no more."""
    found = {name: answers[name]._asdict() for name in reproductions() if name in answers}
    write_whole(KEPT, json.dumps(found, indent=1) + "\n")


def here() -> str:
    """The machine of this process."""
    return f"{processor()}, torch {torch.__version__}"


def take_over() -> None:
    """Keep what a run with `--full`, and with nothing else, has answered in paper_repro/out/full.

    Raises:
        SystemExit: where the run's files are damaged, or of another version.
    """
    names, usual = list(reproductions()), configuration_of(Settings(full=True))
    try:
        runs, rows = read_runs(RUN, names), read_claims(RUN.with_name("claims.json"), names)
        rows = [row for row in rows if row["configuration"]]
    except Unreadable as error:
        raise SystemExit(f"{RUN} or claims.json beside it {error}; move them away") from error
    others = {
        row["module"]
        for row in rows
        if any(row["configuration"].get(name) != usual.get(name) for name in SIZE)
    }
    answers = read()
    for name in runs.keys() - others:
        seconds = round(runs[name]["seconds"], 1)
        numbers = {row["id"]: row["measured"] for row in rows if row["module"] == name}
        known = answers.get(name)
        # the file's day is that of its last question: what it held before keeps its own
        if known is None or (known.seconds, known.numbers) != (seconds, numbers):
            day = datetime.date.fromtimestamp(RUN.stat().st_mtime).isoformat()
            answers[name] = Answer(seconds, day, here(), numbers)
    keep(answers)


def described() -> tuple[str, str]:
    """A sentence on how the times were taken, and their table as Markdown, longest first."""
    answers = read()
    missing = [name for name in reproductions() if name not in answers]
    machines = "; ".join(sorted({answer.machine for answer in answers.values()}))
    line = f"""**All of it**: minutes of processor time that `python -m paper_repro --full` takes a
        question ({machines}), one thread each.
        What several questions share counts for whichever computed it."""
    if missing:
        line += f" Not run: {', '.join(f'`{name}`' for name in missing)}."
    lines = [
        f"| `{name}` | {answer.seconds / 60:,.1f} | {answer.day} |"
        for name, answer in sorted(answers.items(), key=lambda item: -item[1].seconds)
        if answer.seconds >= LONG
    ]
    rest = [answer for answer in answers.values() if answer.seconds < LONG]
    if rest:
        minutes = sum(answer.seconds for answer in rest) / 60
        days = sorted({answer.day for answer in rest})
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(f"| {len(rest)} others, each below a minute | {minutes:,.1f} | {span} |")
    return line, "\n".join(["| question | minutes | run |", "|---|---|---|", *lines])
