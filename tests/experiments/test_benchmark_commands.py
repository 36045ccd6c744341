"""Every benchmark's command in small: it keeps what it measures, and goes on where it was."""

import json
import sys
from importlib import import_module

import pytest

from experiments.benchmarks import record, runner, toy, visits

COMMANDS = {
    "gramian": "--cases own-inputs --tasks 2 --batch 2 --devices cpu --methods loop",
    "metric": "--batches 4",
    "routes": "--widths 8 --tasks 2",
    "rules": "--rules mgda gls gradnorm --tasks 3 --batch 1 9",
    "scale": "--curves mgda --sizes 2 4",
    "solvers": "--kinds min_norm --tasks 2 --batches 1 --instances 1 --solvers faces",
    "steps": "--networks mlp pinn",
    "weightings": "--networks convolutions --tasks 2",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_and_measures_nothing_twice(name, tmp_path, capsys):
    main = import_module(f"experiments.benchmarks.{name}").main
    call = [*COMMANDS[name].split(), "--seconds", "0.001", "--out", str(tmp_path)]
    main(call)
    path = tmp_path / f"{name}.json"
    kept = path.read_bytes()
    assert record.only(path)[1]
    assert (tmp_path / f"{name}.md").read_text() in capsys.readouterr().out
    main(call)
    assert path.read_bytes() == kept
    main([*call[:-4], "--seconds", "0.002", *call[-2:]])
    assert {row["settings"]["seconds"] for row in record.read(path)} == {0.002}


def test_ctrl_c_loses_the_cell_at_work_alone(tmp_path, capsys):
    given = runner.parser("A benchmark.").parse_args(["--out", str(tmp_path)])
    done = []

    def measure(cell):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell)
        return [{"cell": cell, "value": 2.0}]

    def go_on():
        kept = runner.record_of(given, "toy", ("cell",))
        return runner.run(given, kept, [("a",), ("b",), ("c",)], measure)

    assert [row["cell"] for row in go_on()] == ["a", "b"]
    assert "the next run goes on" in capsys.readouterr().out
    done.clear()
    assert [row["cell"] for row in go_on()] == ["a", "b", "c"]
    assert done == ["c"]
    assert json.loads((tmp_path / "toy.json").read_text())["version"] == record.VERSION
    assert "| c | 2 |" in (tmp_path / "toy.md").read_text()


def test_the_toy_is_told_beside_its_script(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(toy, "library_microseconds", lambda *_, **__: (1.0, 0.5))
    toy.main(["--script-steps", "1", "--unroll", "2", "--out", str(tmp_path)])
    rows = record.only(tmp_path / "toy.json")[1]
    assert {row["rule"] for row in rows} == set(toy.SCRIPT)
    said = capsys.readouterr().out
    assert all(toy.line(row) in said for row in rows)


def test_visits_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["visits"])
    visits.main()
    assert capsys.readouterr().out.count(" returns\n") == len(visits.FORMS)
