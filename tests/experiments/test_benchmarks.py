"""The benchmarks in small: commands, records, right answers on both sides, the one of a device."""

import json
from importlib import import_module

import pytest
import torch

from experiments.benchmarks import (
    gpu,
    gpu_cases,
    gpu_report,
    gramian,
    record,
    runner,
    solvers,
    steps,
    weightings,
    weights,
)
from experiments.benchmarks.families import gramians
from experiments.benchmarks.networks import LAPLACIANS, problem

COMMANDS = {
    "gramian": "--cases decoders",
    "memory": "--cases resnet-2",
    "solvers": "--kinds min_norm --tasks 2 --batches 1 --solvers active_set",
    "steps": "--networks mlp pinn",
    "weightings": "--networks convolutions --tasks 2",
    "weights": "--tasks 2 3",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_and_measures_nothing_twice(name, tmp_path, capsys):
    main = import_module(f"experiments.benchmarks.{name}").main
    timed = [] if name == "memory" else ["--seconds", "0.001"]
    call = [*COMMANDS[name].split(), "--out", str(tmp_path), *timed]
    main(call)
    path = tmp_path / f"{name}.json"
    kept = path.read_bytes()
    assert record.only(path)[1]
    assert (tmp_path / f"{name}.md").read_text() in capsys.readouterr().out
    main(call)
    assert path.read_bytes() == kept
    if timed:
        main([*call[:-1], "0.002"])
        assert {row["settings"]["seconds"] for row in record.read(path)} == {0.002}


def test_ctrl_c_loses_the_cell_at_work_alone(tmp_path):
    done = []

    def measure(given, cell):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell)
        return [{"value": 2.0}]

    def go_on():
        axes = {"cell": runner.Axis("cells", ["a", "b", "c"])}
        return runner.command("toy", "A benchmark.", axes, measure)(["--out", str(tmp_path)])

    assert [row["cell"] for row in go_on()] == ["a", "b"]
    done.clear()
    assert [row["cell"] for row in go_on()] == ["a", "b", "c"]
    assert done == ["c"]
    assert "| c | 2 |" in (tmp_path / "toy.md").read_text()


def test_a_row_is_reused_only_under_the_same_settings(tmp_path):
    def kept(seconds: float) -> record.Record:
        return record.Record(tmp_path / "r.json", ("case",), record.settings(seconds=seconds))

    kept(1.0).keep({"case": "a", "time": 1.0}, {"case": "b", "time": 2.0})
    assert kept(1.0).missing([("a",), ("b",), ("c",)]) == [("c",)]
    assert kept(2.0).missing([("a",), ("b",)]) == [("a",), ("b",)]
    kept(2.0).keep({"case": "a", "time": 3.0})
    rows = record.read(tmp_path / "r.json")
    assert [(row["case"], row["time"]) for row in rows] == [("b", 2.0), ("a", 3.0)]
    assert [len(some) for _, some in record.groups(rows)] == [1, 1]
    with pytest.raises(SystemExit, match="2 different settings"):
        record.only(tmp_path / "r.json")
    one, other = kept(2.0), kept(2.0)  # two commands
    for who, case in ((one, "c"), (other, "d"), (kept(3.0), "c"), (kept(4.0), "a"), (one, "e")):
        who.keep({"case": case, "time": 4.0})
    found = [(row["case"], row["settings"]["seconds"]) for row in record.read(tmp_path / "r.json")]
    assert sorted(found) == [("a", 4.0), ("b", 1.0), ("c", 2.0), ("d", 2.0), ("e", 2.0)]


@pytest.mark.parametrize(
    "content",
    ['{"machine": "x", "rows": []}', '{"version": 999, "rows": []}', '{"version": 2, "ro'],
)
def test_files_of_another_version_are_refused_and_stay(tmp_path, content):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(SystemExit):
        weights.main(["--out", str(tmp_path)])
    assert (tmp_path / "weights.json").read_text() == content


def test_accuracy_is_measured_with_every_time(tmp_path):
    call = ["--kinds", "min_norm", "--tasks", "2", "--batches", "1"]
    call += ["--seconds", "0.01", "--out", str(tmp_path), "--solvers"]
    solvers.main([*call, "active_set", "TorchJD (defaults)"])
    _, rows = record.only(tmp_path / "solvers.json")
    worst = {row["solver"]: row["gap"] for row in rows}
    assert worst["active_set"] < 1e-14
    assert worst["TorchJD (defaults)"] < 1e-3
    times, answers = solvers.one_by_one(torch.linalg.cholesky, torch.zeros(1, 2, 2), 1.0)
    assert times == []  # it gives up on singular Gramians
    g, w = gramians("gaussian", 2, 1, 2).repeat(3, 1, 1), torch.zeros(2)
    found = solvers.audit("min_norm", g, [*answers, w, w / 0])
    assert [found[key] for key in ("solved", "failed", "zero")] == [1, 2, 1]


@pytest.mark.parametrize("network", ["mlp", "pinn"])
def test_contenders_of_a_step_leave_one_direction(network):
    torch.manual_seed(0)
    net, x = steps.CASES[network].make()
    found = {}
    for name, call in steps.contenders(net, x).items():
        call()
        leaves = [(n, leaf.grad) for n, leaf in net.named_parameters()]  # heads, too
        found[name] = {n: grad.clone() for n, grad in leaves if grad is not None}
    assert len(found.pop("plain")) == len(list(net.parameters()))  # of another direction
    torch.testing.assert_close(found["shortest loop"], found["mf.Balancer"])
    trunk = [name for name in found["mf.Balancer"] if name.startswith("trunk.")]
    directions = {k: torch.cat([x[n].flatten() for n in trunk]) for k, x in found.items()}
    shortest = directions["shortest loop"]
    assert shortest.norm() > 0
    for name, direction in directions.items():
        # Frank-Wolfe stops where a step moves the weights by less than 1e-5
        off = 1e-2 if name == "LibMTL-style" else 1e-4
        assert (direction - shortest).norm() <= off * shortest.norm(), name


@pytest.mark.parametrize("network", ["mlp", "gpt"])
def test_contenders_of_weightings_agree(network):
    torch.manual_seed(0)
    net, x = weightings.CASES[network].make()
    found = {}
    for way, call in weightings.contenders(net, x[:8], 3).items():
        if way not in ("plain", "TorchJD"):  # whose gradient is a copy's
            call()
            grads = [leaf.grad.flatten() for leaf in net.parameters() if leaf.grad is not None]
            found[way] = torch.cat(grads)
    wanted = found.pop("K passes")
    assert set(found) == {"mf.Balancer", "mf.balance"}
    for way, grad in found.items():
        # float32 sums of a thousand terms in another order
        slack = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(grad, wanted, rtol=0, atol=slack, msg=way)


def test_contenders_of_weights_agree():
    ways = weights.contenders()
    assert set(ways) == {"mf.weights", "TorchJD", "solver alone"}
    found = [torch.stack([way(g).float() for g in weights.gramians(2)]) for way in ways.values()]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["mlp-sample", "mlp-task", "decoders"])
def test_the_reference_is_the_gramian_of_autograds_rows(family):
    task = problem(family, 2, 3, 8).to("cpu", torch.float64)
    truth = gramian.loop(task)()
    torch.testing.assert_close(gramian.vmap_vjp(task)(), truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", LAPLACIANS)
def test_residuals_are_the_same_by_every_way_and_their_gramian_is_of_rows(way):
    jets = problem("jets-128-sample", 1, 4, 0).to("cpu", torch.float64)
    task = problem(f"{way}-128-sample", 1, 4, 0).to("cpu", torch.float64)
    torch.testing.assert_close(task.module(task.batch), jets.module(jets.batch))
    truth = gramian.loop(jets)()
    for engine in ("auto", "rows"):
        found = gramian.ours(task, engine)()
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12 * float(truth.max()))


@pytest.mark.parametrize("name", [name for name in gpu.PARTS if name != "tests"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's attention, batched
def test_a_part_measures_all_of_its_cases(name, tmp_path):
    call = ["--device", "cpu", "--tiny", "--parts", name, "--out", str(tmp_path)]
    rows = gpu.main(["--inside", *call])
    assert rows
    assert all(row["value"] is not None for row in rows), rows
    cases = {row["case"]: row for row in rows}
    if name == "kernel":
        assert len(rows) == 3 * 2
        assert all(row["value"] <= row["target"] for row in rows)
    if name == "capture":
        assert cases[gpu_cases.UNEQUAL]["value"] == 0
        assert cases[gpu_cases.UNEQUAL]["note"] == "of 4"
    if name == "weightings":  # all is measured, so the command has nothing to do
        assert gpu.main(call) == rows


@pytest.mark.slow
def test_the_device_tests_are_found_and_run():
    (row,) = gpu_cases.device_tests(gpu_cases.On("cpu", True))["tests that fail"]()
    assert row["value"] == 0, row
    assert row["note"].startswith("of 3, 0 skipped")


def device_row(case, value, day, part="steps", **about):
    chosen = {"device": "cuda", "tiny": False, "GPU": "NVIDIA X", "torch": "9"}
    found = gpu_cases.found(case, value, "plain steps", target=about.pop("target", None))
    return found | {"part": part, "day": day, "settings": chosen, "load": None} | about


def written(path, rows):
    path.write_text(json.dumps({"version": record.VERSION, "rows": rows}))
    return path


def test_a_newer_run_replaces_what_it_measured_and_leaves_the_rest(tmp_path):
    old = [device_row(case, 2.0, "2026-01-01") for case in ("net: plain", "net: loop")]
    kept = written(tmp_path / "kept.json", old)
    new = device_row("net: loop", 4.0, "2026-02-02", memory=3 * 2**30, target=3.0)
    gpu_report.take_over(written(tmp_path / "gpu.json", [new]), kept)
    rows = record.read(kept)
    title, table = gpu_report.tables(rows)
    assert title.startswith("*Steps")
    first, second = "X, 2026-01-01, torch 9", "X, 2026-02-02, torch 9"
    assert table.splitlines() == [
        "| case | plain | loop | taken |",
        "|---|---|---|---|",
        f"| net | 2 | 4 (3 GiB) | {first}; {second} |",
    ]
    assert gpu_report.missed(rows) == ["net: loop: 4 plain steps, at most 3"]


def test_the_page_has_every_part_and_what_is_kept_is_of_a_device():
    assert gpu_report.TITLES.keys() == gpu.PARTS.keys()
    rows = record.read(gpu_report.KEPT)
    assert rows
    assert all(row["settings"]["device"] == "cuda" for row in rows)
    text = "\n".join(gpu_report.tables(rows))
    assert all(gpu_report.taken(row) in text for row in rows)
