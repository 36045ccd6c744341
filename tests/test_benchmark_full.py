"""How long all of the reproductions take: a line through two shares, and what was run whole."""

import json

import pytest

from docs import results
from experiments.benchmarks import full, record
from paper_repro.__main__ import reproductions

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
    (row,) = full.estimated([QUICK])
    assert row["seconds"] == pytest.approx(203.0)
    assert row["spent"] == list(spent.values())
    # a question that no share makes longer costs what it cost
    spent.update(dict.fromkeys(spent, 5.0))
    assert next(full.estimated([QUICK]))["seconds"] == 5.0


def test_what_is_measured_is_kept(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(full, "RUN", tmp_path / "runs.json")
    seconds = full.seconds_of(full.Job(QUICK, full.SHARES[0]))
    assert 0 < seconds < 120
    rows = [{"question": QUICK, "seconds": seconds}]
    monkeypatch.setattr(full, "estimated", lambda names: iter(rows if names == [QUICK] else ()))
    arguments = ["--only", QUICK, "--out", str(tmp_path)]
    full.main(arguments)
    _, (row,) = record.only(tmp_path / "full.json")
    assert (row["question"], row["seconds"]) == (QUICK, seconds)
    assert QUICK in capsys.readouterr().out
    monkeypatch.setattr(full, "estimated", lambda names: names and pytest.fail("measured again"))
    full.main(arguments)
    with pytest.raises(SystemExit):
        full.main(["--only", "nothing", "--out", str(tmp_path)])
    assert "no reproduction named nothing" in capsys.readouterr().err


def test_the_table_tells_runs_from_estimates(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(full, "RUN", tmp_path / "runs.json")
    names = list(reproductions())
    kept = record.Record(tmp_path / "full.json", ("question",), record.settings(shares=[0.1, 0.2]))
    kept.keep({"question": names[0], "seconds": 7200.0}, {"question": names[1], "seconds": 60.0})
    with pytest.raises(SystemExit, match="questions lack a time"):
        results.full_block()
    run = {"key": "", "claims": [], "figures": [], "seconds": 6.0}
    runs = dict.fromkeys(names[2:], run) | {names[1]: run | {"seconds": 180.0}}
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    block = results.full_block()
    rows = [line for line in block.splitlines() if line.startswith("| ")]
    assert rows[1] == f"| `{names[0]}` | 120.0 | estimated |"
    assert rows[2] == f"| `{names[1]}` | 3.0 | run |"  # what was run stands for what was estimated
    assert rows[3:] == [
        f"| {len(names) - 2} others, each below a minute | {(len(names) - 2) / 10:.1f} | run |"
    ]
    assert f"{len(names) - 1} of {len(names)} were run" in " ".join(block.split())
    # what is short may be estimated, too, and all of it may have been run
    del runs[names[2]]
    kept.keep({"question": names[2], "seconds": 6.0})
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert "| estimated or run |" in results.full_block()
    (tmp_path / "full.json").unlink()
    (tmp_path / "runs.json").write_text(json.dumps(dict.fromkeys(names, run)))
    assert f"{len(names)} of {len(names)} were run" in " ".join(results.full_block().split())


def test_no_line_tells_what_grows_with_the_square(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(full, "RUN", tmp_path / "runs.json")
    (square,) = full.SQUARE
    with pytest.raises(SystemExit):
        full.main(["--only", square, "--out", str(tmp_path)])
    assert "told by a run alone" in capsys.readouterr().err
    run = {"key": "", "claims": [], "figures": [], "seconds": 6.0}
    runs = dict.fromkeys([name for name in reproductions() if name != square], run)
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    kept = record.Record(tmp_path / "full.json", ("question",), record.settings(shares=[0.1, 0.2]))
    kept.keep({"question": square, "seconds": 60.0})
    text = " ".join(results.full_block().split())
    assert f"Not timed: `{square}`." in text
    assert f"| `{square}`" not in text


def test_a_run_of_another_version_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(full, "RUN", tmp_path / "runs.json")
    full.RUN.write_text(json.dumps({QUICK: {"key": "", "claims": [], "figures": []}}))
    with pytest.raises(SystemExit, match=r"another version.*move it away"):
        full.finished()
