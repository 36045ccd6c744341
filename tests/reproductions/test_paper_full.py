"""What all of the reproductions take and say: runs are taken over, and make tables."""

import json

import pytest

from docs import record, results
from paper_repro import full
from paper_repro.__main__ import configuration_of, reproductions
from paper_repro.claims import DECISIONS, LEDGER, ROWS
from paper_repro.report.findings import Settings
from paper_repro.report.results import _blank

QUICK = "gradnorm.definitions"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The run's file and the one that is kept, in a folder of their own."""
    monkeypatch.setattr(full, "RUN", tmp_path / "runs.json")
    monkeypatch.setattr(full, "KEPT", tmp_path / "kept.json")
    return tmp_path


def answer(seconds: float, day: str = "2026-01-01") -> full.Answer:
    return full.Answer(seconds, day, "a machine", {}, {})


RUN = {"key": "", "claims": [], "figures": [], "seconds": 6.0}


def test_a_run_is_taken_over(files, capsys) -> None:
    names = list(reproductions())
    full.keep({names[0]: answer(1.0), QUICK: answer(2.0)})
    full.RUN.write_text(json.dumps({QUICK: RUN}))
    full.main([])
    kept = full.read()
    assert kept[names[0]] == answer(1.0)
    assert kept[QUICK].seconds == 6.0
    assert kept[QUICK].day != "2026-01-01"
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == names
    assert sum("not run" in line for line in printed) == len(names) - 2
    # what the file held before keeps its day
    full.keep({QUICK: answer(6.0)})
    full.main([])
    assert full.read() == {QUICK: answer(6.0)}
    full.KEPT.write_text("{")
    with pytest.raises(SystemExit, match="cannot be read"):
        full.main([])


def test_the_table_has_every_question(files) -> None:
    names = list(reproductions())
    kept = {names[0]: answer(7200.0), names[1]: answer(180.0, "2026-01-02")}
    full.keep(kept | dict.fromkeys(names[3:], answer(6.0)))
    block = results.full_block()
    rows = [line for line in block.splitlines() if line.startswith("| ")]
    assert rows[1:3] == [
        f"| `{names[0]}` | 120.0 | 2026-01-01 |",
        f"| `{names[1]}` | 3.0 | 2026-01-02 |",
    ]
    rest = len(names) - 3
    assert rows[3:] == [f"| {rest} others, each below a minute | {rest / 10:.1f} | 2026-01-01 |"]
    assert f"Not run: `{names[2]}`." in " ".join(block.split())
    full.keep(kept | dict.fromkeys(names[3:], answer(6.0)) | {names[2]: answer(6.0, "2026-01-03")})
    assert "| 2026-01-01 to 2026-01-03 |" in results.full_block()
    assert "Not run" not in results.full_block()


def test_every_question_has_run() -> None:
    kept = full.read()
    missing = [name for name in reproductions() if name not in kept]
    assert list(kept) == [name for name in reproductions() if name in kept]
    said = " ".join(results.full_block().split())
    assert all(f"`{name}`" in said.partition("Not run: ")[2] for name in missing)
    assert len(missing) < 6
    verdicts = {name for found in kept.values() for name in found.verdicts}
    assert verdicts <= {row.id for row in ROWS if row.module}
    assert len(verdicts) > 100  # a decision may ask for what the last run did not count


def test_the_record_says_which_runs_differ(files, monkeypatch) -> None:
    monkeypatch.setattr(record, "NAMES", ("default", "full"))
    verdicts = {"GN-14": "holds only when", "GN-03": "holds"}
    full.keep({QUICK: answer(6.0)._replace(verdicts=verdicts)})
    found = record.claims()["GN-14"]
    assert found["verdict"] == "holds only when"
    assert found["runs"] == "hangs on the size: the default run says holds"
    assert record.claims()["GN-03"]["runs"] == ""


def test_kept_numbers_are_judged_by_the_decisions_of_today(files) -> None:
    numbers = {condition.name: 2 * condition.bound for condition in DECISIONS["GN-03"].conditions}
    full.keep(
        {QUICK: answer(6.0)._replace(verdicts={"GN-03": "holds"}, numbers={"GN-03": numbers})}
    )
    wanted = DECISIONS["GN-03"].verdict(numbers)
    assert full.read()[QUICK].verdicts == {"GN-03": wanted}
    assert wanted != "holds"


@pytest.mark.parametrize(
    "changes", [{}, {"seeds": 2}, {"full": False}, {"draw": 1}, {"shrink": 0.5}]
)
def test_a_run_of_other_settings_is_no_run(changes, files) -> None:
    settings = Settings(full=True)._replace(**changes)
    decision = DECISIONS["GN-03"]
    numbers = {condition.name: condition.bound / 2 for condition in decision.conditions}
    numbers["smallest change of the weights in a step"] = 1.0
    found = {"measured": numbers, "configuration": configuration_of(settings)}
    rows = [_blank(LEDGER["GN-03"]) | found, _blank(LEDGER["GN-21"])]
    full.RUN.write_text(json.dumps({QUICK: RUN}))
    full.RUN.with_name("claims.json").write_text(json.dumps(rows))
    taken = full.finished()
    assert list(taken) == ([] if changes else [QUICK])
    assert changes or taken[QUICK].verdicts == {"GN-03": "holds"}
