"""Reproductions side by side: findings as in one process, whatever ends a worker or the run."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch

from common.locks import hold_lock
from paper_repro.__main__ import reproduce
from paper_repro.report import parts
from paper_repro.report.cache import key, versions
from paper_repro.report.display import caught
from paper_repro.report.findings import Settings
from paper_repro.report.parts import Store, kept, read
from paper_repro.report.workers import deaf
from tests.support import ROOT

TINY = Settings(seeds=2, shrink=0.0001)
QUESTION = '''"""What does {name} find?"""
import os, signal, sys, time
from pathlib import Path
import torch
from tqdm import tqdm
from matplotlib.figure import Figure as Canvas
from paper_repro.report.findings import Claim, Figure
from paper_repro.report.parts import kept
HERE = Path(__file__).parent

@kept
def long(number, settings):
    with (HERE / "calls").open("a") as file:
        file.write(f"{{number}}\\n")
    return torch.arange(number), {{"seeds": settings.seeds}}

def claim(identifier, value):
    return Claim(identifier, "holds", {{"value": float(value)}}, "here")

def figure(name):
    canvas = Canvas(figsize=(1, 1))
    canvas.add_subplot().plot([0, 1])
    return Figure(name, f"caption of {{name}}", canvas)

def run(settings):
    yield claim("{claim}", long(5, settings)[0].sum())
{body}
'''


class Made:
    """Questions in files that workers can import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def question(self, name: str, claim: str, *body: str) -> ModuleType:
        lines = "\n".join(f"    {line}" for line in body)
        text = QUESTION.format(name=name, claim=claim, body=lines)
        (self.folder / f"{name}.py").write_text(text)
        invalidate_caches()
        sys.modules.pop(name, None)
        return import_module(name)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def made(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Made:
    """A folder of questions; their names must differ from those of other tests."""
    folder = tmp_path_factory.mktemp("questions")
    monkeypatch.syspath_prepend(str(folder))
    mpl.use("Agg")
    return Made(folder)


def claims_in(folder: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads((folder / "claims.json").read_text()) if c["configuration"]]


def left_in(folder: Path) -> dict[str, Any]:
    """What a run leaves, without what tells one run from another."""
    runs = json.loads((folder / "runs.json").read_text())
    assert all(run.pop("seconds") >= 0 for run in runs.values())
    return {
        "claims": claims_in(folder),
        "runs": runs,
        "figures": {path.name: path.read_bytes() for path in folder.glob("*.png")},
    }


def until(condition: Any) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


# ---- side by side ----


def test_workers_find_what_one_process_finds(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And say so in whole lines; what a worker dies of is named, and the others come to an end."""
    bar = "for _ in tqdm(range(3), desc='steps', leave=False): pass"
    modules = {
        "a": made.question("question_a", "PC-01", bar, "yield figure('one')", "print('a word')"),
        "b": made.question("question_b", "GN-01", "yield claim('GN-02', torch.get_num_threads())"),
        "c": made.question("question_c", "SU-01", "print('careful', file=sys.stderr)"),
    }
    assert reproduce(modules, list(modules), TINY, tmp_path / "one") == 0
    assert made.calls() == ["5"] * 3  # each has a source of its own
    capsys.readouterr()
    assert reproduce(modules, list(modules), TINY, tmp_path / "two", workers=2) == 0
    one, two = left_in(tmp_path / "one"), left_in(tmp_path / "two")
    assert one == two
    assert two["figures"].keys() == {"a-one.png"}
    assert [c["measured"]["value"] for c in two["claims"] if c["id"] == "GN-02"] == [1.0]
    shown = capsys.readouterr()
    assert "\r" not in shown.out + shown.err
    said = {"[a] PC-01 holds", "[a] figure one", "[a] a word", "[b] GN-02 holds", "[c] careful"}
    assert said <= set(shown.out.splitlines())
    assert not (tmp_path / "two" / ".parts").exists()
    assert sorted(p.suffix for p in (tmp_path / "two").iterdir()) == sorted(
        [".png", ".svg", ".json", ".json", ".html"]
    )

    dying = made.question("question_dying", "PC-02", "os.kill(os.getpid(), signal.SIGKILL)")
    raising = made.question("question_raising", "PC-03", "raise ZeroDivisionError('for a reason')")
    unknown = made.question("question_unknown", "PC-99")
    modules |= {"dying": dying, "raising": raising, "unknown": unknown}
    order = ["dying", "raising", "unknown", "a", "b"]
    assert reproduce(modules, order, TINY, tmp_path / "two", workers=2, fresh=True) == 1
    shown = capsys.readouterr()
    assert "dying failed: its process ended by signal 9" in shown.err
    assert "raising failed: ZeroDivisionError: for a reason" in shown.err
    assert "unknown failed: unknown: there is no claim PC-99" in shown.err
    left = left_in(tmp_path / "two")
    assert set(left["runs"]) == {"a", "b", "c"}
    assert {"PC-02", "PC-03"} < {c["id"] for c in left["claims"]}


def test_sigterm_is_a_clean_stop(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of workers and of one process: what was found is reported, and the rest goes on later."""
    me, before = os.getpid(), signal.getsignal(signal.SIGTERM)
    stop = f"if not (HERE / 'on').exists(): os.kill({me}, signal.SIGTERM); time.sleep(100)"
    modules = {
        "done": made.question("question_done", "PC-01"),
        "long": made.question(
            "question_long", "GN-01", "while not (HERE / 'go').exists(): time.sleep(0.01)", stop
        ),
        "never": made.question("question_never", "SU-01"),
    }
    (made.folder / "go").touch()
    for workers in (1, 2):
        out = tmp_path / str(workers)
        (made.folder / "on").unlink(missing_ok=True)
        (made.folder / "calls").unlink(missing_ok=True)
        names = ["done", "long"] if workers == 1 else ["long", "done"]
        if workers == 2:
            (made.folder / "go").unlink()
            modules["done"] = made.question("question_done", "PC-01", "(HERE / 'go').touch()")
        assert reproduce(modules, [*names, "never"][: workers + 1], TINY, out, workers=workers) == (
            143
        )
        assert signal.getsignal(signal.SIGTERM) is before
        said = capsys.readouterr().err
        assert "long, after 1 claims and 0 figures of it" in said
        assert "the same command goes on from there" in said
        assert {"PC-01", "GN-01"} <= {c["id"] for c in claims_in(out)}
        assert "GN-01" in (out / "report.html").read_text()
        if (out / "runs.json").exists():
            assert "long" not in left_in(out)["runs"]
        (made.folder / "on").touch()
        count = made.calls().count("5")
        assert reproduce(modules, [*names, "never"], TINY, out, workers=workers) == 0
        assert set(left_in(out)["runs"]) == {"done", "long", "never"}
        # the long computation of the interrupted question was kept
        assert made.calls().count("5") - count <= 2
        assert not (out / ".parts").exists()


def test_parts_wait_for_their_own_question_and_settings(made: Made, tmp_path: Path) -> None:
    """What an interrupted run left, another question or other settings do not take away."""
    stop = "if not (HERE / 'on').exists(): raise KeyboardInterrupt"
    modules = {
        "mine": made.question("question_mine", "PC-01", stop),
        "yours": made.question("question_yours", "GN-01", stop),
    }

    def left() -> list[str]:
        """The questions that have begun, and those that did what is kept."""
        files = sorted((tmp_path / ".parts").iterdir())
        return [p.name[:-25] if p.name.startswith("begun") else read(p).question for p in files]

    begun = ["begun-mine", "begun-yours"]
    for name in modules:
        assert reproduce(modules, [name], TINY, tmp_path) == 130
    assert sorted(left()) == [*begun, "mine", "yours"]
    assert reproduce(modules, ["yours"], TINY, tmp_path, fresh=True) == 130
    assert left() == [*begun, "mine"]  # in this process, its memory has the other
    (made.folder / "on").touch()
    for name in modules:
        assert reproduce(modules, [name], TINY._replace(seeds=3), tmp_path) == 0
    assert left() == [*begun, "mine"]  # nor do those runs leave anything
    assert reproduce(modules, list(modules), TINY, tmp_path) == 0
    assert not (tmp_path / ".parts").exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["question", "claims", "page"])
def test_a_full_disk_is_a_sentence(
    workers: int,
    place: str,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And no traceback, wherever it is noticed; what is whole stays."""
    full = "raise OSError(28, 'No space left on device', 'a file')"
    name = f"{place}_{workers}"
    modules = {
        "first": made.question(f"question_first_{name}", "PC-01"),
        "second": made.question(
            f"question_second_{name}",
            "GN-01",
            full if place == "question" else "yield claim('GN-02', 1)",
        ),
    }
    assert reproduce(modules, ["first"], TINY, tmp_path) == 0
    there = claims_in(tmp_path)

    def write(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    if place == "claims":
        monkeypatch.setattr("paper_repro.report.results.write_whole", write)
    elif place == "page":
        monkeypatch.setattr("paper_repro.__main__.write_whole", write)
    capsys.readouterr()
    assert reproduce(modules, list(modules), TINY, tmp_path, workers=workers, fresh=True) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert re.search(
        rf"stopped: .*No space left on device.* stays in {tmp_path}, and the same command",
        shown.err,
    )
    assert {c["id"] for c in there} <= {c["id"] for c in claims_in(tmp_path)}


RUN = """
import sys
from importlib import import_module
from pathlib import Path
from paper_repro.__main__ import reproduce
from paper_repro.report.findings import Settings
folder, out = map(Path, sys.argv[1:])
if __name__ == "__main__":
    sys.path.insert(0, str(folder))
    modules = {name: import_module(f"question_{name}") for name in ("x", "y", "z")}
    sys.exit(reproduce(modules, list(modules), Settings(seeds=2, shrink=0.0001), out, workers=2))
"""


def test_a_killed_run_takes_its_workers_along_and_resumes(made: Made, tmp_path: Path) -> None:
    wait = "if not (HERE / 'on').exists(): (HERE / str(os.getpid())).touch(); time.sleep(1000)"
    modules = {
        "x": made.question("question_x", "PC-01", "yield figure('one')"),
        "y": made.question("question_y", "GN-01", wait, "yield claim('GN-02', 3)"),
        "z": made.question("question_z", "SU-01", wait, "yield figure('two')"),
    }
    (made.folder / "run.py").write_text(RUN)
    out = tmp_path / "out"
    command = [sys.executable, str(made.folder / "run.py"), str(made.folder), str(out)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{made.folder}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        until(lambda: len([p for p in made.folder.iterdir() if p.name.isdigit()]) == 2)
        process.kill()
    for worker in [int(p.name) for p in made.folder.iterdir() if p.name.isdigit()]:
        until(lambda worker=worker: not Path(f"/proc/{worker}").exists())
    assert len(made.calls()) == 3
    (made.folder / "on").touch()
    assert reproduce(modules, list(modules), TINY, out) == 0
    assert len(made.calls()) == 3
    assert reproduce(modules, list(modules), TINY, tmp_path / "whole") == 0
    assert left_in(out) == left_in(tmp_path / "whole")


def test_more_than_one_ctrl_c_is_one(made: Made, tmp_path: Path) -> None:
    """Of a terminal, which sends it to the workers, too: the page is written, and nothing else
    said.
    """
    bar = "for _ in tqdm(range(3), desc='steps', leave=False): pass"
    wait = "(HERE / str(os.getpid())).touch(); time.sleep(1000)"
    for name, claim in {"x": "PC-01", "y": "GN-01", "z": "SU-01"}.items():
        made.question(f"question_{name}", claim, bar, wait)
    (made.folder / "run.py").write_text(RUN)
    command = [sys.executable, str(made.folder / "run.py"), str(made.folder), str(tmp_path)]
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{made.folder}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        until(lambda: len([p for p in made.folder.iterdir() if p.name.isdigit()]) == 2)
        page = tmp_path / "report.html"
        while not page.exists() and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert page.exists()
    lines = [line for line in said.strip().splitlines() if "; at work: " not in line]
    assert len(lines) == 2
    assert lines[0].startswith("interrupted in x, after 1 claims")


def test_a_process_is_deaf_before_it_has_imported_anything() -> None:
    before = signal.getsignal(signal.SIGINT)
    asks = [sys.executable, "-c", "import signal; print(int(signal.getsignal(signal.SIGINT)))"]
    with deaf():
        found = subprocess.run(asks, capture_output=True, text=True, check=True)
    assert int(found.stdout) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before


# ---- what is kept ----


@kept
def squares(x: torch.Tensor, names: dict[str, float], settings: Settings, *, sign: int) -> Any:
    CALLS.append(sign)
    return {"x": sign * x**2, "names": names, "array": np.ones(3)}


CALLS: list[int] = []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Store, "folder", tmp_path)
    CALLS.clear()
    squares.memory.clear()
    return tmp_path


def test_parts_are_kept_under_all_their_arguments(store: Path) -> None:
    x = torch.arange(3.0)
    found = squares(x, {"a": 1.0}, TINY, sign=-1)
    assert squares(x, {"a": 1.0}, TINY, sign=-1) is found
    squares.memory.clear()
    again = squares(x, {"a": 1.0}, TINY, sign=-1)
    assert torch.equal(again["x"], found["x"])
    assert CALLS == [-1]
    squares(x + 1, {"a": 1.0}, TINY, sign=1)
    squares(x.double(), {"a": 1.0}, TINY, sign=2)
    squares(x[:, None], {"a": 1.0}, TINY, sign=3)
    squares(x, {"b": 1.0}, TINY, sign=-1)
    squares(x, {"a": 1.0}, TINY._replace(seeds=3), sign=-1)
    assert CALLS == [-1, 1, 2, 3, -1, -1]
    with pytest.raises(TypeError, match="takes no function"):
        squares(x, {"a": max.__call__ and (lambda: 0)}, TINY, sign=1)  # pyright: ignore


def test_a_question_that_goes_on_counts_what_its_parts_took(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what another question computed for it, nor what this run did."""
    x, clock = torch.arange(3.0), iter([5.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(parts, "spent", lambda: next(clock))
    monkeypatch.setattr(Store, "earlier", {})
    for question, sign in (("a", 1), ("b", 2), ("a", 1)):
        monkeypatch.setattr(Store, "question", question)
        squares(x, {}, TINY, sign=sign)
    assert sum(Store.earlier.values()) == 0
    squares.memory.clear()  # another run, in which b, which needs all of it, comes first
    for question, seconds in (("b", 1), ("a", 7)):
        monkeypatch.setattr(Store, "question", question)
        monkeypatch.setattr(Store, "earlier", {})
        for sign in (1, 2, 1):
            squares(x, {}, TINY, sign=sign)
        assert sum(Store.earlier.values()) == seconds


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damaged_parts_are_computed_again(
    damage: bytes | None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.arange(3.0)
    found = squares(x, {}, TINY, sign=1)
    (path,) = store.iterdir()
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(bytes(raw) if damage is None else damage)
    squares.memory.clear()
    assert torch.equal(squares(x, {}, TINY, sign=1)["x"], found["x"])
    assert CALLS == [1, 1]
    assert "is damaged" in capsys.readouterr().out


def test_another_process_is_waited_for_after_all_else(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several parts the one that another process is at comes last, and is not computed twice."""
    x, waits = torch.arange(3.0), []
    first = squares(x, {}, TINY, sign=1)
    (path,) = store.iterdir()
    content = path.read_bytes()
    path.unlink()
    squares.memory.clear()
    CALLS.clear()

    def other_finishes(_: float) -> None:
        path.write_bytes(content)
        lock.__exit__(None, None, None)

    lock = hold_lock(path.with_suffix(".lock"))
    lock.__enter__()
    monkeypatch.setattr(Store, "waits", staticmethod(waits.append))
    monkeypatch.setattr(
        parts,
        "time",
        type("time", (), {"sleep": staticmethod(lambda s: other_finishes(s))}),
    )
    calls = {sign: (lambda sign=sign: squares.now(x, {}, TINY, sign=sign)) for sign in (1, 2, 3)}
    found = squares.together({str(sign): call for sign, call in calls.items()})
    assert list(found) == ["1", "2", "3"]
    assert torch.equal(found["1"]["x"], first["x"])
    assert sorted(CALLS) == [2, 3]
    assert True in waits
    assert waits[-1] is False


def test_key_knows_the_libraries(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module = made.question("question_key", "PC-01")
    first = key(module, TINY)
    found = versions()
    for name in ("torch", "numpy", "scipy", "clarabel", "cvxpy", "numba"):
        assert any(re.fullmatch(rf"{name} \d.*", version) for version in found), name
    for i in range(len(found)):
        other = (*found[:i], "another 1.0", *found[i + 1 :])
        monkeypatch.setattr("paper_repro.report.cache.versions", lambda other=other: other)
        assert key(module, TINY) != first


# ---- what is shown ----


def test_bars_and_words_are_told_apart() -> None:
    from tqdm import tqdm

    lines: list[str] = []
    bars: list[str] = []
    with caught(lines.append, bars.append):
        for i in tqdm(range(4), desc="outer", leave=False):
            for _ in tqdm(range(2), desc="inner", leave=False):
                pass
            if i == 2:
                print("plain")
                print("noticed", file=sys.stderr)
                tqdm.write("written")
    assert lines == ["plain", "noticed", "written"]
    assert all(re.fullmatch(r"(outer|inner): \d+%", bar) for bar in bars)


def test_a_reader_that_is_gone_ends_nothing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        modules = {"deaf": made.question("question_deaf", "PC-01", "print('a word')")}
        assert reproduce(modules, ["deaf"], TINY, tmp_path) == 0
    assert (tmp_path / "report.html").exists()
