"""How long all of the reproductions take: a line through two shares, and what was run whole."""

import json

import pytest

from docs import results
from experiments.benchmarks import full
from paper_repro.__main__ import configuration_of, reproductions
from paper_repro.claims import LEDGER
from paper_repro.report.findings import Settings
from paper_repro.report.results import _blank

QUICK = "gradnorm.definitions"


def test_a_line_through_two_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {share: 3.0 + 200.0 * share for share in full.SHARES}

    class Here:
        """In place of a process of its own."""

        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, function: object, job: full.Job) -> "Here":
            assert (function, job.question) == (full.seconds_of, QUICK)
            self.share = job.share
            return self

        def result(self) -> float:
            return spent[self.share]

    monkeypatch.setattr(full, "ProcessPoolExecutor", Here)
    assert list(full.estimated([QUICK])) == [(QUICK, pytest.approx(203.0))]
    # a question that no share makes longer costs what it cost
    spent.update(dict.fromkeys(spent, 5.0))
    assert next(full.estimated([QUICK])) == (QUICK, 5.0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The run's file and that of the times, in a folder of their own."""
    monkeypatch.setattr(full, "RUN", tmp_path / "runs.json")
    monkeypatch.setattr(full, "TIMES", tmp_path / "times.json")
    return tmp_path


def time_of(seconds: float, *, run: bool = False) -> full.Time:
    return full.Time(seconds, run, "2026-01-01", "a machine")


RUN = {"key": "", "claims": [], "figures": [], "seconds": 6.0}


def test_what_is_measured_is_kept(files, monkeypatch, capsys) -> None:
    names = list(reproductions())
    full.keep({name: time_of(1.0) for name in names if name != QUICK})
    seconds = full.seconds_of(full.Job(QUICK, full.SHARES[0]))
    assert 0 < seconds < 120
    monkeypatch.setattr(full, "estimated", lambda names: [(name, seconds) for name in names])
    full.main([])
    times = full.read_times()
    assert times[QUICK].seconds == round(seconds, 1)
    assert not times[QUICK].run
    assert times[names[0]] == time_of(1.0)  # none but what was missing
    assert f"{QUICK:<28}" in capsys.readouterr().out
    # a run here stands for an estimate, and is taken over even where one asks for another question
    full.RUN.write_text(json.dumps({QUICK: RUN}))
    full.main(["--only", names[0]])
    times = full.read_times()
    assert times[names[1]] == time_of(1.0)
    assert (times[QUICK].seconds, times[QUICK].run) == (6.0, True)
    assert times[names[0]].seconds == round(seconds, 1)
    with pytest.raises(SystemExit):
        full.main(["--only", "nothing"])
    assert "no reproduction named nothing" in capsys.readouterr().err
    full.TIMES.write_text("{")
    with pytest.raises(SystemExit, match="cannot be read"):
        full.main([])


def test_the_table_tells_runs_from_estimates(files) -> None:
    names = list(reproductions())
    times = {names[0]: time_of(7200.0), names[1]: time_of(180.0, run=True)}
    full.keep(times)
    with pytest.raises(SystemExit, match="questions lack a time"):
        results.full_block()
    times |= dict.fromkeys(names[2:], time_of(6.0, run=True))
    full.keep(times)
    block = results.full_block()
    rows = [line for line in block.splitlines() if line.startswith("| ")]
    assert rows[1] == f"| `{names[0]}` | 120.0 | estimated 2026-01-01 |"
    assert rows[2] == f"| `{names[1]}` | 3.0 | run 2026-01-01 |"
    assert rows[3:] == [
        f"| {len(names) - 2} others, each below a minute | {(len(names) - 2) / 10:.1f} | run |"
    ]
    assert f"{len(names) - 1} of {len(names)} were run" in " ".join(block.split())
    full.keep(times | {names[2]: time_of(6.0)})  # what is short may be estimated, too
    assert "| estimated or run |" in results.full_block()


def test_no_line_tells_what_grows_with_the_square(files, capsys) -> None:
    (square,) = full.SQUARE
    with pytest.raises(SystemExit):
        full.main(["--only", square])
    assert "told by a run alone" in capsys.readouterr().err
    times = {name: time_of(6.0) for name in reproductions() if name != square}
    full.keep(times)
    assert f"Not timed: `{square}`." in " ".join(results.full_block().split())
    full.keep(times | {square: time_of(600.0, run=True)})
    assert f"| `{square}` | 10.0 | run" in results.full_block()


def test_a_run_of_another_version_is_named(files) -> None:
    full.RUN.write_text(json.dumps({QUICK: {"key": "", "claims": [], "figures": []}}))
    with pytest.raises(SystemExit, match=r"another version.*move them away"):
        full.finished()


def test_the_times_that_are_kept_can_be_read() -> None:
    """And make the table of docs/benchmarks.md."""
    assert full.read_times().keys() <= reproductions().keys()
    full.described()


@pytest.mark.parametrize(
    "changes", [{}, {"seeds": 2}, {"full": False}, {"draw": 1}, {"shrink": 0.5}]
)
def test_a_run_of_other_settings_is_no_run(changes, files) -> None:
    settings = Settings(full=True)._replace(**changes)
    found = {"verdict": "holds", "configuration": configuration_of(settings)}
    rows = [_blank(LEDGER["GN-03"]) | found, _blank(LEDGER["GN-21"])]
    full.RUN.write_text(json.dumps({QUICK: RUN}))
    full.RUN.with_name("claims.json").write_text(json.dumps(rows))
    assert list(full.finished()) == ([] if changes else [QUICK])
