"""experiments/auxiliary: losses of views, CIFAR-10's files, a run, the command."""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.cells import Cell
from common.files import DataError, Source
from experiments.auxiliary import __main__ as command
from experiments.auxiliary import data, networks, tasks, train

LOOK = tasks.Look(1, False)
EVERY = tasks.tasks(8, 1, LOOK)


def test_losses_of_views_are_their_literal_loops():
    outputs = torch.randn(10, 6, dtype=torch.float64)
    nothing = torch.zeros(())
    unit = (outputs / outputs.norm(dim=1, keepdim=True)).numpy()
    one, other = unit[:5], unit[5:]
    triplets = [
        max(0.0, 0.5 + ((one[i] - other[i]) ** 2).sum() - ((one[i] - other[i - 1]) ** 2).sum())
        for i in range(5)
    ]
    found = EVERY["exemplar"].loss(outputs, nothing)
    assert found.item() == pytest.approx(np.mean(triplets))
    contrast = []
    for i in range(10):
        scores = {j: math.exp(unit[i] @ unit[j] / 0.5) for j in range(10) if j != i}
        contrast.append(-math.log(scores[(i + 5) % 10] / sum(scores.values())))
    found = EVERY["contrast"].loss(outputs, nothing)
    assert found.item() == pytest.approx(np.mean(contrast))
    agreement = []
    for first, second in zip(outputs[:5].numpy(), outputs[5:].numpy(), strict=True):
        held = np.exp(first / 0.5) / np.exp(first / 0.5).sum()
        agreement.append(-(held * np.log(np.exp(second) / np.exp(second).sum())).sum())
    outputs.requires_grad_(True)
    found = EVERY["consistency"].loss(outputs, nothing)
    assert found.item() == pytest.approx(np.mean(agreement))
    (gradient,) = torch.autograd.grad(found, outputs)
    assert not gradient[:5].any()  # what the first view says is held


def python2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The official files' bytes: a pickle of protocol 2 by Python 2, whose text is bytes."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        size = bytes([len(value)]) if short else len(value).to_bytes(4, "little")
        return (b"U" if short else b"T") + size + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    array += b"\x87R(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array += kind + b"\x89" + text(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def write_cifar(folder: Path, each: int = 40, inner: bool = True) -> Path:
    """Random photographs in the official layout; labels in turn, so that classes are balanced."""
    place = folder / data.INNER if inner else folder
    place.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate((*data.TRAIN, data.TEST)):
        pixels = np.random.default_rng(i).integers(0, 256, (each, 3072), dtype=np.uint8)
        (place / name).write_bytes(python2(pixels, [j % 10 for j in range(each)]))
    (place / "batches.meta").write_bytes(b"")
    return folder


@pytest.mark.parametrize("inner", [True, False])
def test_official_files_are_read_as_they_are(tmp_path, inner):
    write_cifar(tmp_path, 30, inner)
    (images, labels), (tested, test_labels) = data.read(tmp_path)
    assert images.shape == (150, 3, 32, 32)
    assert tested.shape == (30, 3, 32, 32)
    assert labels.tolist() == [j % 10 for _ in range(5) for j in range(30)]
    assert test_labels.tolist() == [j % 10 for j in range(30)]
    pixels = np.random.default_rng(3).integers(0, 256, (30, 3072), dtype=np.uint8)
    # red, green, blue, each row by row
    assert int(images[90 + 4, 1, 2, 5]) == int(pixels[4, 1024 + 2 * 32 + 5])
    values = data.values(images, data.CIFAR10)
    assert values[0, 0, 0, 0].item() == pytest.approx(int(images[0, 0, 0, 0]) / 127.5 - 1)


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("held", [Harmful(), {"data": Harmful(), "labels": [1]}, [1, 2]])
def test_a_bad_file_is_refused_and_runs_nothing(tmp_path, monkeypatch, held):
    write_cifar(tmp_path, 10, inner=False)
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(held, 2))
    with pytest.raises(DataError, match="data_batch_2"):
        data.read(tmp_path)
    assert not ran


SHORT = train.Settings(None, tasks.CHOSEN, 3, 8, 0, 0, "cpu")


def test_main_alone_learns_as_one_task_of_a_stock_loop():
    """Labels, first weights and batches are those of the seed; Adam is torch's."""
    (numbers,) = train.together(SHORT, (Cell("100 labels", train.ALONE, "", 1e-2, 2),))
    net, parts, losses = train.network(SHORT, 2), data.divide(None, 100, 2), []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 3)) / 2
        key = train._key(torch.tensor(2), step)
        batch = train.draw(parts, key, train.tasks_of(SHORT, train.ALONE), SHORT)
        images, labels = batch["class"]
        loss = F.cross_entropy(net(images, "class"), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert numbers["losses"]["class"] == pytest.approx(losses[-1], rel=1e-4)
    answers = net(data.values(parts.test, data.DIGITS), "class").argmax(1)
    right = (answers == parts.test_labels).double().mean().item()
    assert numbers["test"] == pytest.approx(right, abs=1.5 / 600)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> train.Settings:
    """CIFAR-10 in small, and WRN-10-1 with four channels."""
    monkeypatch.setattr(train, "Wide", lambda: networks.Wide(10, 1, 4))
    monkeypatch.setattr(data, "CIFAR10", data.CIFAR10._replace(validation=20))
    monkeypatch.setattr(train, "CIFAR10", data.CIFAR10._replace(labels=(20, 30)))
    write_cifar(tmp_path / "cifar", 20)
    train._divided.cache_clear()
    data._all.cache_clear()
    whole = Source(str((tmp_path / "cifar").resolve()), "")
    return train.Settings(whole, ("rotation", "consistency"), 4, 3, 0.8, 2, "cpu")


def test_command_on_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "settings_of", lambda *rest: folder._replace(steps=2))
    monkeypatch.setattr(command, "WIDE_RATES", (1e-3,))
    call = ["--seeds", "2", "--workers", "1", "--quick", "--rules", "mean"]
    call += ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "cifar")]
    assert command.main(call) == 0
    (tmp_path / "cifar" / data.INNER / "test_batch").write_bytes(b"nothing")
    data._all.cache_clear()
    assert command.main(call) == 2
