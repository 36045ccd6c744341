"""experiments/multimnist on a folder of files: stopped, resumed, taken elsewhere."""

# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# pyright: reportIndexIssue=false

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.multimnist import __main__ as command
from experiments.multimnist import mnist, train
from tests.support.idx import write_mnist


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small folder, and a study of it with one setting, two rates, three seeds and a front."""
    write_mnist(tmp_path / "mnist", (24, 8), zipped=True)
    train._read.cache_clear()
    short = command.settings_of

    def settings_of(*given):
        return short(*given)._replace(epochs=1, batch=8)

    def plan_of(size, settings, rules, seeds, *rest):
        plan = PLAN(size, settings, ("mean", "static search", "epo"), seeds, *rest)
        few = {"static search": plan.methods["static search"][:2]}
        return plan._replace(methods=plan.methods | few, fronts={"epo": plan.fronts["epo"][:2]})

    monkeypatch.setattr(command, "settings_of", settings_of)
    monkeypatch.setattr(command, "plan_of", plan_of)
    monkeypatch.setattr(command, "DATA_RATES", {"default": (3e-3, 1e-2)})
    return tmp_path


PLAN = command.plan_of
RUNS = 2 * 2 + 2 + 4 + 2 * (2 + 1 + 1) + 2 * 2
"""Alone, mean and static search at two rates; two seeds of each; two points of a front."""


def call(folder: Path, *more: str) -> list[str]:
    given = ["--data", str(folder), "--settings", train.BASE, "--seeds", "3", "--workers", "1"]
    return [*given, "--out", str(folder / "out"), *more]


def test_command_on_a_folder(folder, capsys):
    assert command.main(call(folder)) == 0
    shown = capsys.readouterr()
    assert "On MNIST, not the published files (20 pairs to learn from, 4 that" in shown.out
    assert len(shown.err.split("read as it is")) == 5
    assert "Sener & Koltun 2018, Table 3" in shown.out
    kept = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    points = [
        [np.mean([run["loss"][t] for run in runs]) for t in train.TASKS]
        for runs in kept["fronts"]["epo"].values()
    ]
    assert len(points) == 2
    assert len(list((folder / "out" / "cells").rglob("*.json"))) == RUNS
    assert kept["plan"]["tuning"] == [0]
    assert [len(m["runs"]) for m in kept["problems"][train.BASE].values()] == [2] * 4
    (folder / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    train._read.cache_clear()
    assert command.main(call(folder)) == 2
    assert "looked for t10k-labels-idx1-ubyte" in capsys.readouterr().err


def results(folder: Path) -> dict:
    """What a study found, without times."""
    text = (folder / "results.json").read_text(encoding="utf-8")
    return json.loads(
        text, object_hook=lambda x: {k: v for k, v in x.items() if "step_ms" not in k}
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 1)],
    ids=["Ctrl-C", "full disk"],
)
def test_what_stops_a_study_in_any_phase_loses_no_finished_run(
    folder, error, status, monkeypatch, capsys
):
    """While data are read, in each kind of run, in the report; each time it goes on from there."""
    undisturbed = call(folder, "--out", str(folder / "other"))
    assert command.main(undisturbed) == 0
    # runs that are done when it stops: none, some that choose rates, some results, all but a point
    phases = [("checked", 0), ("together", 0), ("together", 5), ("together", 13)]
    phases += [("together", RUNS - 1), ("table", RUNS), ("write_report", RUNS)]
    stamps: dict[Path, int] = {}
    for name, done in phases:
        where = mnist if name == "checked" else command
        real, left = getattr(where, name), [done - len(stamps)]

        def failing(*given, real=real, left=left, name=name):
            left[0] -= 1
            if name != "together" or left[0] < 0:
                raise error
            return real(*given)

        with monkeypatch.context() as patched:
            patched.setattr(where, name, failing)
            assert command.main(call(folder)) == status
        assert f"{done} finished runs are kept" in capsys.readouterr().err
        files = (folder / "out" / "cells").rglob("*.json")
        now = {path: path.stat().st_mtime_ns for path in files}
        assert stamps.items() <= now.items()
        assert len(now) == done
        stamps = now
    assert command.main(call(folder)) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert results(folder / "out") == results(folder / "other")


def test_runs_go_from_machine_to_machine_in_a_file(folder, monkeypatch, capsys):
    """Into another folder, under another version of the code, which the table says."""
    kept = folder / "runs.json"
    more = ["--runs", str(kept)]
    assert command.main(call(folder, *more)) == 2
    assert "--runs: expected the published files, got MNIST, not" in capsys.readouterr().err
    assert not kept.exists()
    monkeypatch.setattr(mnist, "checked", lambda *_: ("MNIST, the published files", []))
    with monkeypatch.context() as patched:  # Ctrl-C after five
        real, left = command.together, [5]

        def failing(*given):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*given)

        patched.setattr(command, "together", failing)
        assert command.main(call(folder, *more)) == 130
    assert len(kept.read_text().splitlines()) == 5 + 4
    monkeypatch.setattr("common.cells.digest", lambda *_: "another version")
    assert command.main(call(folder, *more, "--out", str(folder / "other"))) == 0
    assert "- 5 runs are of runs.json, made by other versions" in capsys.readouterr().out
    assert len(list((folder / "other" / "cells").rglob("*.json"))) == RUNS - 5
    monkeypatch.setattr(command, "together", lambda *_: pytest.fail("all were there"))
    assert command.main(call(folder, *more, "--out", str(folder / "third"))) == 0
    assert results(folder / "third") == results(folder / "other")


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"a": {"b": {}}}', '{"a": 1}'])
def test_a_file_of_something_else_is_not_taken_for_runs(folder, text, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "checked", lambda *_: ("MNIST, the published files", []))
    kept = folder / "runs.json"
    kept.write_text(text)
    assert command.main(call(folder, "--runs", str(kept))) == 2
    assert "runs.json holds something else than runs of this study" in capsys.readouterr().err
    assert kept.read_text() == text
    with pytest.raises(SystemExit):
        command.main(["--runs", str(kept)])
    assert "--runs: goes with the folder of the published files" in capsys.readouterr().err
