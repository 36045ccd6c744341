"""Folders of data: finished runs are of the files' contents, and what cannot be read is said."""

import os
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.auxiliary import __main__ as auxiliary
from experiments.auxiliary import data as cifar
from experiments.auxiliary import train as auxiliary_train
from experiments.common import cells, files, progress, study
from experiments.common.files import DataError
from experiments.multimnist import __main__ as multimnist
from experiments.multimnist import mnist
from experiments.multimnist import train as multimnist_train
from experiments.scenes import __main__ as scenes
from experiments.scenes import data as dense

# ---- folders of the three readers ----------------------------------------------------------------


def write_mnist(folder: Path, images: int = 520) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", images), ("t10k", 8)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


def write_idx(path: Path, held: np.ndarray) -> None:
    lengths = np.array(held.shape, ">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, held.ndim]) + lengths + held.tobytes())


def write_cifar(folder: Path, each: int = 20) -> None:
    draw = np.random.default_rng(0)
    for name in (*cifar.TRAIN, cifar.TEST):
        write_batch(folder / name, draw.integers(0, 256, (each, 3072), dtype=np.uint8), 0)


def write_batch(path: Path, pixels: np.ndarray, shift: int) -> None:
    labels = [(i + shift) % 10 for i in range(len(pixels))]
    path.write_bytes(pickle.dumps({"data": pixels, "labels": labels}))


def write_scenes(folder: Path, label: str = "label", normals: bool = True) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("image", label, "depth", *(["normal"] if normals else [])):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            normal = draw.standard_normal((32, 64, 3))
            held = {
                "image": draw.random((32, 64, 3)),
                label: draw.integers(-1, 7, (32, 64)),
                "depth": 0.5 + draw.random((32, 64, 1)),
                "normal": normal / np.linalg.norm(normal, axis=-1, keepdims=True),
            }
            for kind, array in held.items():
                if (folder / split / kind).is_dir():
                    np.save(folder / split / kind / f"{i}.npy", array)


def other_mnist(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte", (np.arange(520, dtype=np.uint8) + 1) % 10)


def other_cifar(folder: Path) -> None:
    held = pickle.loads((folder / "data_batch_2").read_bytes())
    write_batch(folder / "data_batch_2", held["data"], 1)


def other_depth(folder: Path) -> None:
    file = folder / "val" / "depth" / "1.npy"
    np.save(file, 100 * np.load(file))


def other_normals(folder: Path) -> None:
    file = folder / "train" / "normal" / "2.npy"
    np.save(file, -np.load(file))


def exchanged(folder: Path) -> None:
    """Two files change names; together they hold what they held."""
    one, two = (folder / "train" / "label" / f"{i}.npy" for i in (0, 1))
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)


WRITERS = {multimnist: write_mnist, auxiliary: write_cifar, scenes: write_scenes}


class Stopped(Exception):
    """The study got as far as its first run."""


@pytest.mark.parametrize(
    ("command", "change"),
    [
        (multimnist, other_mnist),
        (auxiliary, other_cifar),
        (scenes, other_depth),
        (scenes, other_normals),
        (scenes, exchanged),
    ],
    ids=lambda x: x.__name__.split(".")[-2] if hasattr(x, "main") else x.__name__,
)
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
            read.append(
                auxiliary_train._data(seen[-1][1], "20 labels", 0).validation_labels.tolist()
            )
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


def test_data_that_change_while_a_study_runs_are_refused(tmp_path):
    """Before the next run is kept, since nobody knows what it has read."""
    write_mnist(tmp_path, 20)
    held = files.Files(tmp_path, mnist.files(tmp_path))
    store = cells.Store(tmp_path / "cells", [], held.source, files=held)
    plan = study.Plan({"one": ("",)}, (0.1,), (), (0, 1, 2))

    def perform(cell: cells.Cell) -> study.Numbers:
        if cell.seed == 1:
            write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(8, np.uint8))
            os.utime(tmp_path / "t10k-labels-idx1-ubyte", ns=(0, 0))
        return {"score": 0.0}

    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte has changed while the study ran"):
        study.conduct(plan, perform, store)
    assert [path.name for path in (tmp_path / "cells").rglob("*.json")] == ["rate 0.1 seed 0.json"]


# ---- what cannot be read -------------------------------------------------------------------------


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (as_folder, "is a folder; expected a file"),
        (dangling, r"is a link to .*gone, which is not there; mend the link"),
        pytest.param(
            pipe,
            "is neither a file nor a folder",
            marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here"),
        ),
    ],
)
@pytest.mark.parametrize("command", WRITERS, ids=lambda command: command.__name__.split(".")[-2])
def test_files_that_are_none_are_named(command, spoil, said, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    WRITERS[command](tmp_path / "data")
    name = {multimnist: "train-labels-idx1-ubyte", auxiliary: "data_batch_3"}
    path = tmp_path / "data" / name.get(command, Path("val", "depth", "1.npy"))
    spoil(path)
    call = ["--data", str(tmp_path / "data"), "--quick", "--out", str(tmp_path / "out")]
    watch = threading.Timer(60, os._exit, (1,))  # a pipe that is opened waits for ever
    watch.start()
    status = command.main(call)
    watch.cancel()
    assert status == 2
    shown = capsys.readouterr().err
    assert path.name in shown
    assert re.search(said, shown)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (13, r"1\.npy: may not be read by this user; give the right to \(chmod u\+r\)"),
        (5, r"1\.npy: cannot be read \(Input/output error\); copy it anew"),
    ],
)
def test_what_the_system_says_of_a_file_is_put_in_words(number, said, tmp_path, monkeypatch):
    write_scenes(tmp_path)
    real = np.load

    def failing(file):
        if file.name.endswith("1.npy"):
            raise OSError(number, os.strerror(number), file.name)
        return real(file)

    monkeypatch.setattr(np, "load", failing)
    with pytest.raises(DataError, match=said):
        dense.check(tmp_path)


def packed(folder: Path) -> None:
    with (folder / "val" / "label" / "1.npy").open("wb") as file:
        np.savez(file, seen=np.zeros(3))


def broken_archive(folder: Path) -> None:
    (folder / "val" / "label" / "1.npy").write_bytes(b"PK\x03\x04 and no more")


def broken_header(folder: Path) -> None:
    path = folder / "val" / "label" / "1.npy"
    path.write_bytes(path.read_bytes().replace(b"(32, 64)", b"((32, 64"))


def cut_short(folder: Path) -> None:
    path = folder / "val" / "label" / "1.npy"
    path.write_bytes(path.read_bytes()[:-100])


def padded(folder: Path) -> None:
    for path in sorted((folder / "train" / "depth").iterdir()):
        path.rename(path.with_name(f"00{path.name}"))


def bytes_for_pixels(folder: Path) -> None:
    np.save(folder / "train" / "image" / "2.npy", np.full((32, 64, 3), 255, np.uint8))


def long_normals(folder: Path) -> None:
    path = folder / "val" / "normal" / "0.npy"
    np.save(path, 100 * np.load(path))


def short_normals(folder: Path) -> None:
    path = folder / "val" / "normal" / "0.npy"
    np.save(path, 0.01 * np.load(path))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (packed, r"val.label.1\.npy: holds an \.npz archive of seen; expected one array"),
        (broken_archive, r"val.label.1\.npy: no array can be read from it"),
        (broken_header, r"val.label.1\.npy: no array can be read from it"),
        (cut_short, r"val.label.1\.npy: no array can be read from it"),
        (padded, r"depth.000\.npy: expected 0\.npy, a number without zeros in front"),
        (bytes_for_pixels, r"image.2\.npy: pixels from 255 to 255; expected 0 to 1"),
        (long_normals, r"normal.0\.npy: normals up to 100 long; expected length 1"),
        (short_normals, r"normal.0\.npy: normals up to 0\.01 long; expected length 1"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_bad_array_says_what_is_wrong(spoil, said, tmp_path):
    write_scenes(tmp_path)
    assert dense.check(tmp_path) == (32, 64)
    spoil(tmp_path)
    with pytest.raises(DataError, match=said):
        dense.check(tmp_path)


def test_one_kind_of_labels_for_both_parts(tmp_path):
    write_scenes(tmp_path, "label_7", normals=False)
    dense.check(tmp_path)
    (tmp_path / "val" / "label_7").rename(tmp_path / "val" / "label")
    with pytest.raises(DataError, match=r"train/label_7 and in val/label, .* one name for both"):
        dense.check(tmp_path)


# ---- progress ------------------------------------------------------------------------------------


def test_where_there_is_no_terminal_a_line_a_minute_says_what_is_left(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(2000, "mgda", "steps", done=500) as shown:
        for _ in range(100):
            now[0] += 1.5
            shown.update(5, note="success 0.50")
    assert capsys.readouterr().err.splitlines() == [
        "mgda: 700 of 2,000 steps after 1 min, about 6 min left; success 0.50",
        "mgda: 900 of 2,000 steps after 2 min, about 6 min left; success 0.50",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (29.0, "29 s"), (61.0, "1 min"), (3600.0, "1 h"), (7500.0, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert progress.duration(seconds) == said
