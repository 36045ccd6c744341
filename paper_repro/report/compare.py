"""`python -m paper_repro compare RECORD RUN`: verdicts of a run that are not those on record."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.progress import say
from common.remaining import unit
from mtlfunc.core.files import write_whole

ABOUT = """Compares the verdicts of a run with those that were kept of one of its size, row by row;
numbers may differ in their last bits from one processor to another, and are shown, not compared."""
SIZE = ("seeds", "sizes", "device", "budget", "draw")
SHOWN = 3
"""Numbers of a row that are told: those that moved the most."""


def compare(words: Sequence[str]) -> int:
    """The command line; 0 where all verdicts agree, 1 where one differs, 2 without two runs."""
    parser = argparse.ArgumentParser(prog="python -m paper_repro compare", description=ABOUT)
    parser.add_argument("record", type=Path, help="what was kept")
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument(
        "--keep", action="store_true", help="put the run in the record's place; open rows stay so"
    )
    given = parser.parse_args(words)
    try:
        old = None if given.keep and not given.record.exists() else load(given.record)
        whole = isinstance(old, dict) and {"open", "size", "verdicts", "commit"} <= old.keys()
        if given.record.exists() and not whole:
            raise ValueError("it is no record of verdicts, as paper_repro/whole.json is")
        new = kept(given.run, old["open"] if old else {})
        if given.keep or old is None:
            write_whole(given.record, written(new))
            return 0
        if old["size"] != new["size"]:
            raise ValueError(f"the record is of {old['size']}, the run of {new['size']}")
        found = differences(old, new)
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"cannot compare {given.run} with {given.record}: {error}")
    if found:
        since = f"{old['commit']}..{new['commit']}"
        right = f"python -m paper_repro compare --keep {given.record} {given.run}"
        first = f"Verdicts that are not on record, of commits {since}:"
        say("\n".join([first, *found, f"If the new ones are right: {right}"]), sys.stdout)
    return 1 if found else 0


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def kept(run: Path, undecided: Mapping[str, str]) -> dict[str, Any]:
    """What a record holds of a run's folder: `undecided` are rows whose verdict may differ, and
    why. Raises ValueError for a run that decided nothing, or mixes sizes.
    """
    rows = [row for row in load(run / "claims.json") if row["configuration"]]
    sizes = [{name: x for name in SIZE if (x := row["configuration"].get(name))} for row in rows]
    if not sizes or any(size != sizes[0] for size in sizes):
        raise ValueError("expected claims of one run, all of one size")
    verdicts = {
        row["id"]: {
            "verdict": row["verdict"],
            "measured": {name: float(f"{x:.4g}") for name, x in row["measured"].items()},
        }
        for row in rows
    }
    runs = sorted(load(run / "runs.json").items())
    took = {x: {name: one[x] for name, one in runs if x in one} for x in ("seconds", "parts")}
    found = {"commit": head(), "size": sizes[0], "open": dict(undecided), "verdicts": verdicts}
    return found | took | {"unit": unit(time.process_time)}


def written(record: Mapping[str, Any]) -> str:
    """As JSON, with a line for each row."""
    lines = [f" {json.dumps(x)}: {json.dumps(y)}" for x, y in record.items() if x != "verdicts"]
    rows = record["verdicts"].items()
    body = ",\n".join(f"  {json.dumps(x)}: {json.dumps(y, ensure_ascii=False)}" for x, y in rows)
    return "{\n" + ",\n".join([*lines, f' "verdicts": {{\n{body}\n }}']) + "\n}\n"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for each row whose verdict is another one and that is not open."""
    found, none = [], {"verdict": "not run", "measured": {}}
    for name in sorted((old["verdicts"].keys() | new["verdicts"].keys()) - old["open"].keys()):
        was, now = (each["verdicts"].get(name, none) for each in (old, new))
        if was["verdict"] != now["verdict"]:
            moved = changed(was["measured"], now["measured"])
            found.append(f"{name}: {was['verdict']} on record, {now['verdict']} now{moved}")
    return found


def changed(was: Mapping[str, float], now: Mapping[str, float]) -> str:
    """The numbers that moved the most, each as it was and is."""

    def moved(name: str) -> float:
        return abs(now[name] - was[name]) / max(abs(now[name]), abs(was[name]), 1e-300)

    names = sorted(name for name in was.keys() & now.keys() if moved(name) > 1e-3)
    most = sorted(names, key=moved, reverse=True)[:SHOWN]
    shown = [f"{name} {was[name]:.4g} → {now[name]:.4g}" for name in most]
    return f" ({'; '.join(shown)})" if shown else ""


def head() -> str:
    """The commit that is checked out; "unknown" without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=8", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
