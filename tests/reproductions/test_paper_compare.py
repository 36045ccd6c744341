"""`python -m paper_repro compare`: verdicts that are not on record are named; numbers are not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from paper_repro.__main__ import main

QUICK = {"seeds": "4", "sizes": "reduced", "device": "cpu", "budget": "0.2 of the usual steps"}


def row(name: str, verdict: str, number: float, size: dict[str, str] = QUICK) -> dict[str, Any]:
    where = {"torch": "2.13.0", **size}
    return {
        "id": name,
        "verdict": verdict,
        "measured": {"way": number, "steps": 20_000.0, "rate": float("nan")},
        "configuration": where,
    }


def put(path: Path, *rows: dict[str, Any]) -> str:
    left_out = row("PC-01", "not run", 0.0, {}) | {"configuration": {}}
    path.write_text(json.dumps([*rows, left_out]))
    return str(path)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    run = put(tmp_path / "first.json", row("CA-04", "holds", 0.0009), row("CA-24", "holds", 1.0))
    assert main(["compare", "--keep", str(path), run]) == 0
    return path


def test_a_verdict_that_moved_is_named_with_its_numbers_and_commits(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = put(tmp_path / "x", row("CA-04", "does not hold", 0.0313), row("CA-24", "holds", 1.0))
    assert main(["compare", str(record), moved]) == 1
    said = capsys.readouterr().out
    assert "CA-04: holds on record, does not hold now (way 0.0009 → 0.0313)" in said
    assert re.search(r"of commits \w+\.\.\w+:", said)
    assert "CA-24" not in said
    cure = re.search(r"python -m paper_repro (compare --keep .*)", said)
    assert cure
    assert main(cure.group(1).split()) == 0
    assert main(["compare", str(record), moved]) == 0


def test_last_bits_and_all_other_numbers_may_differ(record: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    rows = row("CA-04", "holds", 0.00090000001), row("CA-24", "holds", 1e9)
    put(folder / "claims.json", *rows)
    assert main(["compare", str(record), str(folder)]) == 0


def test_an_open_row_may_differ_and_stays_open(record: Path, tmp_path: Path) -> None:
    kept = json.loads(record.read_text())
    record.write_text(json.dumps(kept | {"open": {"CA-24": "a nudge of 1e-9 decides"}}))
    other = put(tmp_path / "x", row("CA-04", "holds", 0.0009), row("CA-24", "inconclusive", 2.0))
    assert main(["compare", str(record), other]) == 0
    assert main(["compare", "--keep", str(record), other]) == 0
    assert json.loads(record.read_text())["open"] == {"CA-24": "a nudge of 1e-9 decides"}


def test_a_row_that_is_missing_or_new_is_named(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = put(tmp_path / "x", row("CA-04", "holds", 0.0009), row("CA-06", "holds", 1.0))
    assert main(["compare", str(record), run]) == 1
    said = capsys.readouterr().out
    assert "CA-24: holds on record, not run now" in said
    assert "CA-06: not run on record, holds now" in said
