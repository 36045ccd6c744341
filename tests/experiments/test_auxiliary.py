"""experiments/auxiliary: views, losses, division, CIFAR-10's files, networks, runs, the command."""

import copy
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from common.cells import Cell, state_of
from common.files import DataError, Source
from experiments.auxiliary import __main__ as command
from experiments.auxiliary import data, networks, tasks, train

LOOK = tasks.Look(1, False)
EVERY = tasks.tasks(8, 1, LOOK)


# ---- views ---------------------------------------------------------------------------------------


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


# ---- data ----------------------------------------------------------------------------------------


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


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "held",
    [
        Harmful(),
        {"data": Harmful(), "labels": [1]},
        np.float64(1),
        np.random.default_rng(0),
        b"not a pickle",
        [1, 2],
        {"data": PIXELS, "fine_labels": [1, 2]},
        {"data": PIXELS[:, :784], "labels": [1, 2]},
        {"data": PIXELS.astype(float), "labels": [1, 2]},
        {"data": PIXELS, "labels": [1]},
        {"data": PIXELS, "labels": [1, 10]},
        {"data": PIXELS, "labels": [1, -1]},
    ],
    ids=lambda held: str(type(held)),
)
def test_a_bad_file_is_refused_and_runs_nothing(tmp_path, monkeypatch, held):
    write_cifar(tmp_path, 10, inner=False)
    bad, ran = held if isinstance(held, bytes) else pickle.dumps(held, 2), []
    monkeypatch.setattr(os, "system", ran.append)
    (tmp_path / "data_batch_2").write_bytes(bad)
    with pytest.raises(DataError, match="data_batch_2"):
        data.read(tmp_path)
    assert not ran


# ---- networks ------------------------------------------------------------------------------------


def test_the_wide_network_is_wrn_28_2():
    trunk = networks.Wide()
    net = networks.Net(trunk, 128, {"class": 10})
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    # 25 of 3 x 3 and three of 1 x 1 around them: 28 layers with the linear one, which it counts
    assert sorted(m.kernel_size[0] for m in convolutions) == [1] * 3 + [3] * 25
    weights, width = 9 * 3 * 16, 16
    for out in (32, 64, 128):
        weights += width * out + 9 * width * out + 7 * 9 * out * out  # the path around, 8 of 3 x 3
        width = out
    norms = 2 * sum(m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert sum(p.numel() for p in net.parameters()) == weights + norms + 1290
    sizes = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    assert net(torch.zeros(2, 3, 32, 32), "class").shape == (2, 10)
    assert set(sizes) == {32, 16, 8}
    with pytest.raises(ValueError, match="expected 6n"):
        networks.Wide(26)


# ---- runs ----------------------------------------------------------------------------------------


SHORT = train.Settings(None, tasks.CHOSEN, 3, 8, 0, 0, "cpu")


def test_main_alone_learns_as_one_task_of_a_stock_loop():
    """Labels, first weights and batches are those of the seed; Adam is torch's."""
    cell = Cell("100 labels", train.ALONE, "", 1e-2, 2)
    (numbers,) = train.together(SHORT, (cell,))
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


def test_batch_norm_follows_the_main_task_alone(folder, tmp_path):
    """Mean loss: parameters and running statistics of a stock PyTorch loop."""
    run = train.Run(folder, Cell("20 labels", "mean", "", 1e-2, 1))
    net = train.network(folder, 1).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(2):
        run.advance()
        batch = train.draw(run.data, train._key(run.key, step), run.program.learnt, folder)
        losses = []
        for name, task in run.program.learnt.items():
            # another network's statistics take what the auxiliary batches would move
            own = net if name == "class" else copy.deepcopy(net)
            images, said = batch[name]
            outputs = functional_call(own, dict(net.named_parameters()), (images, task.head))
            losses.append(task.loss(outputs, said))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    for name, value in net.named_buffers():
        if "running" in name:
            torch.testing.assert_close(run.lane.buffers[name], value, rtol=1e-3, atol=1e-4)
    images, labels = run.data.test, run.data.test_labels
    answers = net.eval()(data.values(images, data.CIFAR10), "class").argmax(1)
    right = (answers == labels).double().mean().item()
    assert run.accuracy(images, labels) == pytest.approx(right, abs=1.5 / len(labels))


def test_a_long_run_goes_on_where_it_was(folder, tmp_path):
    cell = Cell("20 labels", "gradnorm", "", 1e-3, 4)
    assert [train.rate_at(folder, i / 4) for i in range(4)] == [1.0] * 4
    assert train.rate_at(folder, 0.8) == 0.2
    whole = train.alone(folder, tmp_path / "a", cell)
    run = train.Run(folder, cell)
    run.advance()
    run.advance()
    (tmp_path / "b").mkdir()
    kept = state_of(tmp_path / "b", cell)
    run.keep(kept)
    again = train.Run(folder, cell)
    again.resume(kept)
    assert again.done == 2
    assert [leaf.shape for leaf in again.seen[0]] == [(2, len(again.program.learnt))] * 3
    rest = train.alone(folder, tmp_path / "b", cell)
    assert {**rest, "step_ms": 0} == {**whole, "step_ms": 0}


# ---- the report and the command ------------------------------------------------------------------


def test_command_on_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "settings_of", lambda *rest: folder._replace(steps=2))
    monkeypatch.setattr(command, "WIDE_RATES", (1e-3,))
    call = ["--seeds", "2", "--workers", "1", "--quick", "--rules", "mean"]
    call += ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "cifar")]
    assert command.main(call) == 0
    (tmp_path / "cifar" / data.INNER / "test_batch").write_bytes(b"nothing")
    data._all.cache_clear()
    assert command.main(call) == 2
