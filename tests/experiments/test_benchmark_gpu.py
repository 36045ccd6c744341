"""The benchmark of a device, its logic in small on the CPU: kills lose nothing."""

import sys
import time

import pytest
import torch

from experiments.benchmarks import gpu, record


@pytest.fixture
def kept(tmp_path):
    chosen = record.settings(device="cpu", tiny=True)
    return record.Record(tmp_path / "gpu.json", ("part", "case"), chosen)


@pytest.mark.parametrize("name", [name for name in gpu.PARTS if name != "tests"])
def test_a_part_measures_all_of_its_cases(name, kept, tmp_path):
    gpu.run_part(name, "cpu", True, kept)
    rows = record.read(tmp_path / "gpu.json")
    assert all(row["value"] is not None for row in rows), rows
    cases = {row["case"]: row for row in rows}
    assert cases["peak memory"]["value"] > 0
    if name == "kernel":
        assert len(rows) == 3 * 2 + 1
        assert all(row["value"] <= row["target"] for row in rows if "gap" in row["case"])
    if name == "times":
        assert {"min_norm, T = 8, batch 8", "cagrad, T = 8, batch 1"} <= cases.keys()
    if name == "gramian":
        names = ("ours, auto", "TorchJD autojac", "TorchJD autogram", "time", "peak memory")
        case = "MLP 3×512, 4 samples"
        assert {f"{case}: {name}" for name in names} <= cases.keys()
        resnet = {case: row for case, row in cases.items() if case.startswith("ResNet")}
        assert [row["target"] for case, row in resnet.items() if case.endswith("memory")] == [0.5]
        assert [row["target"] for case, row in resnet.items() if case.endswith("time")] == [0.4]


def test_the_targets_are_among_the_first_cells_that_are_timed(monkeypatch):
    seen = []

    def no_time(kind, tasks, batch, device, seconds):
        seen.append((kind, tasks, batch))
        return iter(())

    monkeypatch.setattr(gpu, "_time", no_time)
    assert list(gpu.times("cuda", False)) == []
    assert {gpu._name(*cell) for cell in seen[:2]} == gpu.TARGETS.keys()
    assert {(t, b) for kind, t, b in seen if kind == "min_norm"} >= {(2, 65536), (128, 1)}
    assert len(set(seen)) == len(seen)
    assert all(b * t**2 <= 2**28 for _, t, b in seen)  # two gigabytes of Gramians


def test_a_case_that_fails_leaves_the_others(monkeypatch, kept):
    def broken(kind, tasks, each, device):
        if tasks == 2:
            raise RuntimeError("no such instruction\nand more")
        yield gpu.found(f"{kind}, T = {tasks}", 1.0, "")

    monkeypatch.setattr(gpu, "_gaps", broken)
    gpu.run_part("kernel", "cpu", True, kept)
    failed = [row for row in kept.rows if gpu._failed(row)]
    assert {row["note"] for row in failed} == {"failed: RuntimeError: no such instruction"}
    assert len(failed) == 3
    assert len(kept.rows) == 3 + 3 + 1


def test_what_was_measured_before_a_crash_is_kept(monkeypatch, kept, tmp_path):
    def crashes(device, tiny):
        yield gpu.found("first", 1.0, "s")
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.PARTS, "toy", gpu.PARTS["toy"]._replace(run=crashes))
    with pytest.raises(KeyboardInterrupt):
        gpu.run_part("toy", "cpu", True, kept)
    assert [row["case"] for row in record.read(tmp_path / "gpu.json")] == ["first"]


def test_a_process_ends_with_its_time_and_says_how():
    assert gpu.within([sys.executable, "-c", ""], 60) == "finished"
    failing = "import sys; print('a line'); sys.exit('it is broken')"
    said = gpu.within([sys.executable, "-c", failing], 60)
    assert said == "failed with status 1: it is broken"
    start = time.monotonic()
    sleeps = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    child = f"import subprocess, sys; subprocess.run({sleeps})"
    assert gpu.within([sys.executable, "-c", child], 1.0) == "stopped after its 1 s"
    assert time.monotonic() - start < 30


def run(monkeypatch, folder, said, *arguments):
    """The command with parts that take no time; the parts that it ran."""
    ran = []

    def within(command, seconds):
        name = command[command.index("--inside") + 1]
        ran.append((name, seconds))
        chosen = record.settings(device="cpu", tiny=True)
        found = gpu.found("something", 2.0, "µs", target=1.0)
        record.Record(folder / "gpu.json", ("part", "case"), chosen).keep({"part": name} | found)
        return said[name]

    monkeypatch.setattr(gpu, "within", within)
    gpu.main(["--device", "cpu", "--tiny", "--out", str(folder), *arguments])
    return ran


def test_the_command_goes_on_with_what_has_not_finished(monkeypatch, tmp_path, capsys):
    said = dict.fromkeys(gpu.PARTS, "finished") | {"times": "stopped after its 9 s"}
    first = run(monkeypatch, tmp_path, said, "--minutes", "2")
    assert [name for name, _ in first] == list(gpu.PARTS)
    assert sum(seconds for _, seconds in first) == pytest.approx(120)
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("| part | case |") == 1
    assert "| toy | something | 2 µs |  | 1 | missed |" in table
    assert "stopped after its 9 s" in table
    assert table in capsys.readouterr().out
    said["times"] = "finished"
    assert [name for name, _ in run(monkeypatch, tmp_path, said)] == ["times"]
    assert run(monkeypatch, tmp_path, said) == []
    assert len(run(monkeypatch, tmp_path, said, "--again")) == len(gpu.PARTS)


def test_without_a_device_it_says_what_it_would_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "no CUDA device" in shown
    assert all(f"  {name}" in shown for name in gpu.PARTS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "gpu.json").write_text('{"rows": []}')
    with pytest.raises(SystemExit, match="older version"):
        gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)])


@pytest.mark.slow
def test_the_device_tests_are_found_and_run():
    (row,) = gpu.device_tests("cpu", True)
    assert row["value"] == 0, row
    assert row["note"].startswith("of 3, 0 skipped")
