"""The benchmark of the Gramians runs, keeps what it measured, and measures right Gramians."""

import json

import pytest
import torch

from experiments.benchmarks import gramian, gramian_ways
from experiments.benchmarks.networks import LAPLACIANS, problem


def test_one_small_case_writes_table_record_and_figure(tmp_path):
    arguments = ["--cases", "own-inputs", "--tasks", "2", "--batch", "3", "--seconds", "0.001"]
    arguments += ["--devices", "cpu", "--out", str(tmp_path)]
    arguments += ["--methods", "loop", "TorchJD autogram", "ours, auto"]
    gramian.main(arguments)
    rows = json.loads((tmp_path / "gramian.json").read_text())["rows"]
    methods = {(row["quantity"], row["method"]): row for row in rows}
    assert {
        ("gradient", "mean gradient"),
        ("gramian", "loop"),
        ("gramian", "TorchJD autogram"),
        ("step", "ours, auto"),
    } <= methods.keys()
    for (quantity, _), row in methods.items():
        assert "failed" not in row
        assert 0 < row["fastest"] <= row["median"]
        assert row["memory"] > 0
        if quantity != "gradient":
            assert row["error"] < 1e-5
    assert all(row["error64"] < 1e-12 for row in rows if row["method"].startswith("ours"))
    table = (tmp_path / "gramian.md").read_text()
    assert "| TorchJD autogram |" in table

    before = (tmp_path / "gramian.json").stat().st_mtime_ns
    gramian.main(arguments)  # goes on where it was: there is nothing left
    assert (tmp_path / "gramian.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("family", ["mlp-sample", "transformer-task", "decoders"])
def test_the_reference_is_the_gramian_of_autograds_rows(family):
    task = problem(family, 2, 3, 8).to("cpu", torch.float64)
    truth, _ = gramian.reference(task)
    torch.testing.assert_close(
        gramian_ways.vmap_vjp(task)()
        if family != "transformer-task"
        else gramian_ways.loop(task)(),
        truth,
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("way", LAPLACIANS)
def test_residuals_are_the_same_by_every_way_and_their_gramian_is_of_rows(way):
    jets = problem("jets-128-sample", 1, 4, 0).to("cpu", torch.float64)
    task = problem(f"{way}-128-sample", 1, 4, 0).to("cpu", torch.float64)
    torch.testing.assert_close(task.module(task.batch), jets.module(jets.batch))
    truth, _ = gramian.reference(jets)
    for engine in ("auto", "rows"):
        found = gramian_ways.ours(task, engine)()
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12 * float(truth.max()))
    assert gramian.cases(gramian._parser().parse_args(["--cases", f"{way}-256-sample"]))[0][:3] == (
        *(f"{way}-256-sample", 1, 256),
    )


def test_bars_compare_with_the_fastest_of_the_peers():
    case = {
        "family": "resnet18",
        "case": "ResNet-18",
        "tasks": 4,
        "batch": 8,
        "device": "cpu",
        "quantity": "gramian",
        "memory": 1,
    }
    rows = [
        case | {"method": name, "median": t, "fastest": t}
        for name, t in (("loop", 3.0), ("vmap(vjp)", 2.0), ("ours, auto", 2.5))
    ]
    (bar,) = gramian.against_bars(rows)
    assert bar["against"] == "vmap(vjp)"
    assert bar["fastest"] == pytest.approx(1.25)
