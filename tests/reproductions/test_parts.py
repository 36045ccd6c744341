"""Long computations that are kept."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.locks import hold_lock
from paper_repro.__main__ import reproduce
from paper_repro.report import parts
from paper_repro.report.findings import Settings
from paper_repro.report.parts import Store, kept
from tests.support.reproductions import TINY, Made, made

__all__ = ["made"]


@kept
def squares(x: torch.Tensor, names: dict[str, float], settings: Settings, *, sign: int) -> Any:
    CALLS.append(sign)
    return {"x": sign * x**2, "names": names, "array": np.ones(3)}


CALLS: list[int] = []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Store, "folder", tmp_path)
    monkeypatch.setattr(Store, "owner", "")  # which another test's questions leave
    CALLS.clear()
    squares.memory.clear()
    return tmp_path


def test_parts_are_kept_under_all_their_arguments(store: Path, monkeypatch) -> None:
    x = torch.arange(3.0)
    found = squares(x, {"a": 1.0}, TINY, sign=-1)
    assert squares(x, {"a": 1.0}, TINY, sign=-1) is found
    squares.memory.clear()
    assert torch.equal(squares(x, {"a": 1.0}, TINY, sign=-1)["x"], found["x"])
    assert CALLS == [-1]
    squares(x + 1, {"a": 1.0}, TINY, sign=1)
    squares(x.double(), {"a": 1.0}, TINY, sign=2)
    squares(x[:, None], {"a": 1.0}, TINY, sign=3)
    squares(x, {"b": 1.0}, TINY, sign=-1)
    squares(x, {"a": 1.0}, TINY._replace(seeds=3), sign=-1)
    monkeypatch.setattr(Store, "draw", 1)
    squares(x, {"a": 1.0}, TINY, sign=-1)
    assert CALLS == [-1, 1, 2, 3, -1, -1, -1]
    assert parts._texts([["a"], "b"]) != parts._texts([["a", "b"]])
    with pytest.raises(TypeError, match="takes no function"):
        squares(x, {"a": lambda: 0}, TINY, sign=1)  # pyright: ignore


def test_a_question_that_goes_on_counts_what_its_parts_took(store, monkeypatch):
    """And not what another question computed for it, nor what this run did."""
    x, clock = torch.arange(3.0), iter([5.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(parts, "spent", lambda: next(clock))
    monkeypatch.setattr(Store, "earlier", {})
    for question, sign in (("a", 1), ("b", 2), ("a", 1)):
        monkeypatch.setattr(Store, "owner", question)
        squares(x, {}, TINY, sign=sign)
    assert sum(Store.earlier.values()) == 0
    squares.memory.clear()  # another run, in which b, which needs all of it, comes first
    for question, seconds in (("b", 1), ("a", 7)):
        monkeypatch.setattr(Store, "owner", question)
        monkeypatch.setattr(Store, "earlier", {})
        for sign in (1, 2, 1):
            squares(x, {}, TINY, sign=sign)
        assert sum(Store.earlier.values()) == seconds


def test_damaged_parts_are_computed_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.arange(3.0)
    found = squares(x, {}, TINY, sign=1)
    (path,) = store.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]):
        path.write_bytes(damaged)
        squares.memory.clear()
        assert torch.equal(squares(x, {}, TINY, sign=1)["x"], found["x"])
        assert "is damaged" in capsys.readouterr().out
    assert CALLS == [1, 1, 1]


def test_another_process_is_waited_for_after_all_else(store, monkeypatch):
    """Of several parts the one that another process is at comes last, and is not computed twice."""
    x = torch.arange(3.0)
    first = squares(x, {}, TINY, sign=1)
    (path,) = store.iterdir()
    content = path.read_bytes()
    path.unlink()
    squares.memory.clear()
    CALLS.clear()

    def other_finishes(_: float) -> None:
        path.write_bytes(content)
        lock.__exit__(None, None, None)

    lock = hold_lock(store / f"{path.name.removeprefix('-')}.lock")
    lock.__enter__()
    clock = type("time", (), {"sleep": staticmethod(other_finishes)})
    monkeypatch.setattr(parts, "time", clock)
    calls = {sign: partial(squares.now, x, {}, TINY, sign=sign) for sign in (1, 2, 3)}
    found = squares.together(calls)
    assert list(found) == [1, 2, 3]
    assert torch.equal(found[1]["x"], first["x"])
    assert sorted(CALLS) == [2, 3]


def test_parts_wait_for_their_own_question_and_settings(made: Made, tmp_path: Path) -> None:
    """What an interrupted run left, another question or other settings do not take away."""
    stop = "if not (HERE / 'on').exists(): raise KeyboardInterrupt"
    modules = {
        "mine": made.question("question_part", "PC-01", stop),
        "yours": made.question("question_part_2", "GN-01", stop),
    }

    def left() -> list[str]:
        """The questions that did what is kept."""
        return sorted(path.name.split("-")[0] for path in (tmp_path / ".parts").iterdir())

    for name in modules:
        assert reproduce(modules, [name], TINY, tmp_path) == 130
    assert left() == ["mine", "yours"]
    assert reproduce(modules, ["yours"], TINY, tmp_path, fresh=True) == 130
    assert left() == ["mine"]  # in this process, its memory has the other
    (made.folder / "on").touch()
    for name in modules:
        assert reproduce(modules, [name], TINY._replace(seeds=3), tmp_path) == 0
    assert left() == ["mine"]  # nor do those runs leave anything
    assert reproduce(modules, list(modules), TINY, tmp_path) == 0
    assert not (tmp_path / ".parts").exists()
