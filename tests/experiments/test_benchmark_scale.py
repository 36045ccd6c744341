"""The benchmark of growth: right answers, units that take turns, what is too long left out."""

import argparse

import pytest
import torch

from docs import results
from experiments.benchmarks import measuring, record, scale, scale_report

PEERS = ("cvxpy", "TorchJD")


def test_every_kind_of_curve_is_measured_kept_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "STEPS", 2)
    arguments = ["--curves", "mgda", "parameters", "samples", "lanes", "--sizes", "2", "4"]
    arguments += ["--seconds", "0.001", "--out", str(tmp_path)]
    scale.main(arguments)
    _, rows = record.only(tmp_path / "scale.json")
    cells = {(row["curve"], row["size"]) for row in rows}
    assert cells == {(c, n) for c in ("mgda", "parameters", "samples", "lanes") for n in (2, 4)}
    for row in rows:
        if row["way"] not in PEERS:
            assert row["seconds"] > 0
            assert "left out" not in row
        if row["way"].startswith(("ours", "by hand")):
            # float32 against float64: 2⁻²⁴ an operation, some hundreds in a row; 13 digits of a gap
            assert row["error"] < (1e-13 if row["curve"] == "mgda" else 1e-4), row
    times = scale_report.units(rows)
    assert all(times[*cell, "unit"] == 1 for cell in cells)
    text = (tmp_path / "scale.md").read_text()
    assert text.count("\n| ") == 1 + len(cells)
    assert "Worst errors. MGDA's problem: ours" in text
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    assert "| MGDA's problem | 4 |" in results.scale_block()
    monkeypatch.setattr(scale, "measure", lambda *_: pytest.fail("measured again"))
    scale.main(arguments)


def test_what_would_take_too_long_is_left_out_from_there_on():
    def row(size: int, seconds: float | None) -> record.Row:
        return {"curve": "lanes", "size": size, "way": "ours", "seconds": seconds, "problems": 2}

    def wait(*rows: record.Row) -> float:
        return scale.expected([row(1, 9.0) | {"way": "by hand"}, *rows], "lanes", "ours", 64)

    assert wait() == wait(row(4, 1.0)) == wait(row(4, 1.0), row(64, 5.0)) == 0
    assert wait(row(4, 1.0), row(16, 3.0)) == 18  # 2 · 3 · (3 / 1)
    assert wait(row(4, 1.0), row(16, None)) == float("inf")


def test_slow_calls_are_timed_once_and_quick_ones_in_turns(monkeypatch):
    clock, calls = [0.0], []

    def taking(name: str, seconds: float):
        def call() -> None:
            calls.append(name)
            clock[0] += seconds

        return call

    monkeypatch.setitem(measuring.CLOCKS, "cpu", lambda: clock[0])
    given = argparse.Namespace(clock="cpu", seconds=1.0, longest=10.0)
    ways = {name: taking(name, t) for name, t in (("slow", 3.0), ("middle", 1.0), ("unit", 0.01))}
    times = scale.take_turns(ways, given)
    assert {way: len(taken) for way, taken in times.items()} == {"slow": 1, "middle": 3, "unit": 7}
    assert calls.count("slow") == 1
    torch.testing.assert_close([sum(t) / len(t) for t in times.values()], [3.0, 1.0, 0.01])
