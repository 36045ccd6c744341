"""The benchmark of a device, its logic in small on the CPU: kills lose nothing."""

import json
import sys
import time

import pytest
import torch

import mtlfunc as mf
from experiments.benchmarks import gpu, gpu_cases, gpu_graphs, gpu_report, measuring, record


@pytest.fixture
def kept(tmp_path):
    chosen = record.settings(device="cpu", tiny=True)
    return record.Record(tmp_path / "gpu.json", ("part", "case"), chosen)


@pytest.fixture
def captures(monkeypatch):
    """On a CPU a captured step is the step itself."""
    if not hasattr(mf, "capture"):
        monkeypatch.setattr(mf, "capture", lambda step: step, raising=False)


@pytest.mark.parametrize("name", [name for name in gpu.PARTS if name != "tests"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's attention, batched
def test_a_part_measures_all_of_its_cases(name, kept, tmp_path, captures):
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
        assert [row["target"] for case, row in resnet.items() if case.endswith("memory")] == [0.35]
        assert [row["target"] for case, row in resnet.items() if case.endswith("time")] == [1.0]

    if name == "steps":
        assert sum("mf.Balancer / shortest loop" in case for case in cases) == 2
        assert any(case.endswith(": captured") for case in cases)
    if name == "capture":
        assert {"mean", "mgda", "pcgrad", "gradnorm"} <= cases.keys()
        assert cases["configurations not captured, or not equal to eager"]["value"] == 0
    if name == "weightings":
        llama = [row for case, row in cases.items() if "Llama" in case and row["target"]]
        assert [row["target"] for row in llama] == [2.3, 2.3, 1.5]


def test_a_captured_step_that_gives_something_else_does_not_count(monkeypatch, kept):
    def stale(step):  # as a graph would that keeps its first batch
        first = []

        def update(state, batch):
            first.append(batch)
            return step.update(state, first[0])

        return step._replace(update=update)

    monkeypatch.setattr(mf, "capture", stale, raising=False)
    rows = {row["case"]: row for row in gpu_graphs.capture("cpu", True)}
    assert rows["mgda"]["value"] is None
    assert rows["mgda"]["note"].startswith("failed: differs from eager after batch 2")
    assert rows["configurations not captured, or not equal to eager"]["value"] == 4


def test_a_call_that_fails_leaves_those_it_is_compared_with():
    def broken():
        raise MemoryError("too much\nand more")

    x = torch.ones(1000)
    calls = {"plain": lambda: x.exp(), "twice": lambda: x.exp().exp().flatten(), "broken": broken}
    done = gpu_cases.take(calls, "cpu", 0.01)
    rows = {row["case"]: row for row in gpu_cases.ratios("here", done, targets={"broken": 2.0})}
    assert rows["here: broken"]["note"] == "failed: MemoryError: too much"
    assert rows["here: broken"]["target"] == 2.0
    one, two = done["plain"], done["twice"]
    assert isinstance(one, gpu_cases.Taken)
    assert isinstance(two, gpu_cases.Taken)
    assert rows["here: twice"]["value"] == two.seconds / one.seconds
    assert (one.operators, two.operators) == (1, 2)  # a view does not count
    assert (one.memory, two.memory) == (4000, 8000)
    assert list(gpu_cases.over("here", done, "twice", "broken", (1.0, 1.0))) == []
    memory = list(gpu_cases.over("here", done, "twice", "plain", (1.0, 1.0)))[1]
    assert memory["value"] == 2.0


def test_calls_take_turns():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    found = measuring.in_turns(calls, 0.0, least=3)
    turns = [seen[at : at + 2] for at in range(0, len(seen), 2)]
    assert [sorted(turn) for turn in turns] == [["a", "b"]] * 3
    assert ["a", "b"] in turns  # none always runs after the same one
    assert ["b", "a"] in turns
    assert [len(times) for times in found.values()] == [3, 3]


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
    shares = [seconds / 120 for _, seconds in first]
    assert shares[0] == pytest.approx(gpu.PARTS["tests"].share, rel=0.01)
    assert shares[-1] == pytest.approx(1, rel=0.1)  # what others leave goes to those that follow
    table = (tmp_path / "gpu.md").read_text()
    assert "| toy | something | 2 | µs |" in table
    assert "stopped after its 9 s" in table
    assert table in capsys.readouterr().out
    said["times"] = "finished"
    assert [name for name, _ in run(monkeypatch, tmp_path, said)] == ["times"]
    assert run(monkeypatch, tmp_path, said) == []
    assert len(run(monkeypatch, tmp_path, said, "--again")) == len(gpu.PARTS)


@pytest.mark.slow
def test_the_device_tests_are_found_and_run():
    (row,) = gpu.device_tests("cpu", True)
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
    new = device_row("net: loop", 4.0, "2026-02-02", memory=3 * 2**30, launches=1200, target=3.0)
    run = written(tmp_path / "gpu.json", [new])
    gpu_report.take_over(run, kept)
    rows = record.read(kept)
    title, table = gpu_report.tables(rows)
    assert title.startswith("*Steps")
    first, second = "X, 2026-01-01, torch 9", "X, 2026-02-02, torch 9"
    assert table.splitlines() == [
        "| case | plain | loop | taken |",
        "|---|---|---|---|",
        f"| net | 2 | 4 (1,200, 3 GiB) | {first}; {second} |",
    ]
    assert gpu_report.missed(rows) == ["net: loop: 4 plain steps, at most 3"]


def test_what_no_device_measured_is_not_kept(tmp_path):
    rows = [device_row("net: plain", 2.0, "2026-01-01")]
    rows[0]["settings"]["device"] = "cpu"
    run = written(tmp_path / "gpu.json", rows)
    with pytest.raises(SystemExit, match="no rows of a CUDA device"):
        gpu_report.take_over(run, tmp_path / "kept.json")
    assert not (tmp_path / "kept.json").exists()


def test_the_page_has_every_part_and_what_is_kept_is_of_a_device():
    assert gpu_report.TITLES.keys() == gpu.PARTS.keys()
    rows = record.read(gpu_report.KEPT)
    assert rows
    assert all(row["settings"]["device"] == "cuda" for row in rows)
    text = "\n".join(gpu_report.tables(rows))
    assert all(gpu_report.taken(row) in text for row in rows)
