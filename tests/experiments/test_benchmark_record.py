"""Records of the benchmarks: no row under other settings, no traceback for what means nothing."""

import pytest
import torch

from docs import results
from experiments.benchmarks import (
    gramian,
    record,
    rules,
    solvers,
    solvers_peers,
    solvers_report,
    steps,
)
from experiments.benchmarks.families import gramians


def test_a_row_is_reused_only_under_the_same_settings(tmp_path):
    def kept(seconds: float) -> record.Record:
        return record.Record(tmp_path / "r.json", ("case",), record.settings(seconds=seconds))

    kept(1.0).keep({"case": "a", "time": 1.0}, {"case": "b", "time": 2.0})
    assert kept(1.0).missing([("a",), ("b",), ("c",)]) == [("c",)]
    assert kept(2.0).missing([("a",), ("b",), ("c",)]) == [("a",), ("b",), ("c",)]
    kept(2.0).keep({"case": "a", "time": 3.0})
    rows = record.read(tmp_path / "r.json")
    assert [(row["case"], row["time"], row["settings"]["seconds"]) for row in rows] == [
        ("b", 2.0, 1.0),
        ("a", 3.0, 2.0),
    ]
    assert [len(some) for _, some in record.groups(rows)] == [1, 1]
    kept(2.0).write_tables(tmp_path / "r.md", lambda rows, line: f"{line}: {rows[0]['time']}\n")
    assert record.load_of([{"load": 2.0, "day": "2026-01-02"}]).endswith(", 2026-01-02")
    assert record.load_of([]) == "load unknown"
    first, second = (tmp_path / "r.md").read_text().splitlines()[::2]
    assert "seconds 1.0, load" in first
    assert first.endswith(": 2.0")
    assert "seconds 2.0, load" in second
    assert second.endswith(": 3.0")
    with pytest.raises(SystemExit, match="2 different settings"):
        record.only(tmp_path / "r.json")


@pytest.mark.parametrize("other", ["threads", "torch", "sources", "processor"])
def test_machine_versions_and_sources_are_settings(tmp_path, other):
    chosen = record.settings(seconds=1.0)
    record.Record(tmp_path / "r.json", ("case",), chosen).keep({"case": "a"})
    later = record.Record(tmp_path / "r.json", ("case",), chosen | {other: "another"})
    assert later.missing([("a",)]) == [("a",)]


@pytest.mark.parametrize(
    "content",
    ['{"machine": "x", "rows": []}', '{"version": 999, "rows": []}', '{"version": 2, "ro'],
)
def test_files_of_another_version_are_refused_and_stay(tmp_path, content):
    (tmp_path / "rules.json").write_text(content)
    with pytest.raises(SystemExit):
        rules.main(["--out", str(tmp_path)])
    assert (tmp_path / "rules.json").read_text() == content


QUICK = ["--kinds", "min_norm", "--tasks", "2", "--batches", "1", "--instances", "1"]


def test_a_case_with_some_methods_does_not_stand_for_all_of_them(tmp_path):
    common = ["--cases", "own-inputs", "--tasks", "2", "--batch", "2", "--seconds", "0.001"]
    common += ["--devices", "cpu", "--out", str(tmp_path)]
    gramian.main([*common, "--methods", "loop"])
    gramian.main([*common, "--methods", "loop", "vmap(vjp)"])
    rows = record.read(tmp_path / "gramian.json")
    assert {row["method"] for row in rows} == {"mean gradient", "loop", "vmap(vjp)"}
    assert len(record.groups(rows)) == 1


# the certificate says how far
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("kind", solvers_peers.KINDS[:3])
@pytest.mark.parametrize("name", ["cvxpy (DPP, 1e-8)", "cvxpy (DPP, 1e-12)"])
def test_parametrised_programs_agree_with_the_exact_solver(kind, name):
    """Warm from problem to problem, and to as many digits as the tolerance of the objective gives.

    The gap of a min-norm answer bounds ‖d - d*‖², and what is compared is d over the longest
    gradient.
    """
    batch = gramians("gaussian", 5, 4, 0)
    weigh = solvers_peers.SOLVERS[name].make(kind)
    exact = solvers_peers.SOLVERS["active_set"].make(kind)
    for g in [*batch, 1e8 * batch[0]]:
        apart = weigh(g) - exact(g)
        off = float((apart @ g @ apart).clamp_min(0) / g.diagonal().amax())
        assert off < (1e-6 if name.endswith("1e-8)") else 1e-9)


def test_accuracy_stands_beside_every_time(tmp_path):
    peers = ["active_set", "cvxpy (DPP, 1e-8)", "quadprog", "TorchJD (defaults)"]
    arguments = [*QUICK, "--seconds", "0.01", "--solvers", *peers, "--out", str(tmp_path)]
    solvers.main(arguments)
    _, rows = record.only(tmp_path / "solvers.json")
    worst = {row["solver"]: solvers_report.worst(row, "gap") for row in rows}
    assert worst["active_set"] < 1e-14
    assert worst["cvxpy (DPP, 1e-8)"] < 1e-3
    table = results.solver_table(rows)
    assert "cvxpy, 1e-8" in table
    assert "TorchJD, defaults" in table
    (line,) = [line for line in table.splitlines() if line.startswith("| min-norm (MGDA) | 2 |")]
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    assert cells[1] == cells[3] == "–"  # not measured
    assert all("(" in cells[i] for i in (0, 2, 4))
    # quadprog gives up on singular Gramians, and that is said
    assert next(row for row in rows if row["solver"] == "quadprog")["families"]["duplicates"] == {
        "solved": 0,
        "failed": 1,
        "zero": 0,
    }


def test_weights_that_are_not_finite_count_as_failures():
    def nowhere(g: torch.Tensor) -> torch.Tensor:
        return torch.full_like(g[0], float("nan"))

    problems = {"gaussian": gramians("gaussian", 3, 2, 0)}
    for batched in (True, False):
        found = solvers.audit(nowhere, "min_norm", batched, problems, 1.0)
        assert found == {"gaussian": {"solved": 0, "failed": 2, "zero": 0}}


@pytest.mark.parametrize("network", ["mlp", "pinn"])
def test_contenders_of_a_step_leave_one_direction(network):
    torch.manual_seed(0)
    net, x = steps.CASES[network].make()
    calls = steps.contenders(net, x)
    del calls["plain"], calls[steps.ALONE]  # of other directions
    found = {}
    for name, call in calls.items():
        call()
        grads = [leaf.grad for leaf in net.trunk.parameters() if leaf.grad is not None]
        found[name] = torch.cat([grad.flatten() for grad in grads])
    scale = found["loop"].norm()
    assert scale > 0
    for name, direction in found.items():
        # Frank-Wolfe stops where a step moves the weights by less than 1e-5
        off = 1e-2 if name == "LibMTL-style" else 1e-4
        assert (direction - found["loop"]).norm() <= off * scale, name


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_the_shortest_loop_leaves_the_same_gradient_everywhere(network):
    torch.manual_seed(0)
    net, x = steps.CASES[network].make()
    calls = steps.contenders(net, x)
    found = {}
    for name in ("shortest loop", "mf.Balancer"):
        calls[name]()
        found[name] = [leaf.grad.clone() for leaf in net.parameters() if leaf.grad is not None]
    assert len(found["mf.Balancer"]) == len(list(net.parameters()))
    torch.testing.assert_close(found["shortest loop"], found["mf.Balancer"])
