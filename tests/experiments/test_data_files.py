"""Folders of data: finished runs are of the files' contents, and what cannot be read is said."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import cells, files, study
from common.files import DataError
from experiments.auxiliary import __main__ as auxiliary
from experiments.auxiliary import data as cifar
from experiments.auxiliary import train as auxiliary_train
from experiments.multimnist import __main__ as multimnist
from experiments.multimnist import mnist
from experiments.multimnist import train as multimnist_train
from experiments.scenes import __main__ as scenes
from experiments.scenes import data as dense
from tests.support.idx import idx_bytes, write_mnist
from tests.support.scenes import write_folder


def write_cifar(folder: Path, each: int = 20) -> None:
    draw = np.random.default_rng(0)
    for name in (*cifar.TRAIN, cifar.TEST):
        write_batch(folder / name, draw.integers(0, 256, (each, 3072), dtype=np.uint8), 0)


def write_batch(path: Path, pixels: np.ndarray, shift: int) -> None:
    labels = [(i + shift) % 10 for i in range(len(pixels))]
    path.write_bytes(pickle.dumps({"data": pixels, "labels": labels}))


def write_scenes(folder: Path) -> None:
    write_folder(folder, dense.NYUV2)


def write_pairs(folder: Path) -> None:
    write_mnist(folder, (520, 8))


def other_mnist(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes((np.arange(520, dtype=np.uint8) + 1) % 10))


def other_cifar(folder: Path) -> None:
    held = pickle.loads((folder / "data_batch_2").read_bytes())
    write_batch(folder / "data_batch_2", held["data"], 1)


def other_depth(folder: Path) -> None:
    file = folder / "val" / "depth" / "1.npy"
    np.save(file, 100 * np.load(file))


def exchanged(folder: Path) -> None:
    """Two files change names; together they hold what they held."""
    one, two = (folder / "train" / "label" / f"{i}.npy" for i in (0, 1))
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)


WRITERS = {multimnist: write_pairs, auxiliary: write_cifar, scenes: write_scenes}


class Stopped(Exception):
    """The study got as far as its first run."""


@pytest.mark.parametrize(
    ("command", "change"),
    [
        (multimnist, other_mnist), (auxiliary, other_cifar),
        (scenes, other_depth), (scenes, exchanged),
    ],
    ids=lambda x: x.__name__.split(".")[-2] if hasattr(x, "main") else x.__name__,
)  # fmt: skip
def test_finished_runs_are_of_what_the_files_held(command, change, tmp_path, monkeypatch):
    """Their key and unfinished ones' settings follow the bytes, whatever sizes and times say."""
    monkeypatch.setattr(cifar, "CIFAR10", cifar.CIFAR10._replace(validation=20))
    monkeypatch.setattr(auxiliary_train, "CIFAR10", cifar.CIFAR10._replace(labels=(20, 30)))
    (tmp_path / "data").mkdir()
    WRITERS[command](tmp_path / "data")
    times = {path: path.stat() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    seen, read = [], []

    def stop(plan, perform, *rest):
        store = next(x for x in rest if isinstance(x, cells.Store))
        seen.append((store.key, perform.args[0]))
        if command is multimnist:
            read.append(multimnist_train.split(seen[-1][1], 0).train.labels[:4].tolist())
        if command is auxiliary:
            data = auxiliary_train._data(seen[-1][1], "20 labels", 0)
            read.append(data.validation_labels.tolist())
        raise Stopped

    monkeypatch.setattr(command, "conduct", stop, raising=False)
    monkeypatch.setattr(command, "conduct_together", stop)

    def run() -> tuple[str, Any]:
        with pytest.raises(Stopped):
            command.main(["--data", str(tmp_path / "data"), "--quick", "--out", str(tmp_path)])
        return seen[-1]

    first = run()
    for path in times:
        os.utime(path)  # other times, the same bytes
    assert run() == first
    change(tmp_path / "data")
    for path, stat in times.items():
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    key, settings = run()
    assert key != first[0]
    cell, state = cells.Cell("", "mean", "", 0.1, 0), tmp_path / "state.pt"
    cells.keep_state(state, first[1], cell, {"step": 7})
    assert cells.kept_state(state, first[1], cell, "cpu") == {"step": 7}
    assert cells.kept_state(state, settings, cell, "cpu") == {}
    if command is not scenes:  # which reads its files as they are needed
        assert read[-1] != read[0]  # in one process, too
        assert read[1] == read[0]
    else:
        assert {*dense.files(tmp_path / "data")} == {*times}


def test_data_that_change_while_a_study_runs_are_refused(tmp_path):
    """Before the next run is kept, since nobody knows what it has read."""
    write_mnist(tmp_path)
    held = files.Files(tmp_path, mnist.files(tmp_path))
    store = cells.Store(tmp_path / "cells", [], held.source, files=held)
    plan = study.Plan({"one": ("",)}, (0.1,), (), (0, 1, 2))

    def perform(cell: cells.Cell) -> study.Numbers:
        if cell.seed == 1:
            (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(8, np.uint8)))
            os.utime(tmp_path / "t10k-labels-idx1-ubyte", ns=(0, 0))
        return {"score": 0.0}

    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte has changed while the study ran"):
        study.conduct(plan, perform, store)
    assert [path.name for path in (tmp_path / "cells").rglob("*.json")] == ["rate 0.1 seed 0.json"]
