"""experiments/published: the three readers, networks, metrics, runs and the command."""

import csv
import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

import mtlfunc as mf
from common.problems import molecules
from experiments.published import __main__ as command
from experiments.published import celeba, cifar100, qm9, train


def test_celeba_is_read_as_it_is(tmp_path):
    celeba.make(tmp_path)
    parts = celeba.read(tmp_path, 0)
    assert [len(part) for part in parts] == [32, 8, 8]
    batch, rows = parts.validation.take([3, 0]), (tmp_path / celeba.LABELS).read_text().splitlines()
    for row, i in enumerate((35, 32)):
        image = Image.open(tmp_path / celeba.IMAGES / f"{i + 1:06}.jpg")
        small = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)) / 255
        assert np.allclose(batch.inputs[row], small.transpose(2, 0, 1), atol=1e-6)
        assert batch.targets[row].tolist() == [float(x == "1") for x in rows[2 + i].split()[1:]]
        assert (batch.inputs[row].mean() > 0.5) == batch.targets[row, 0]  # as they were made
    assert len(celeba.files(tmp_path)) == 48 + 2


def test_f1_and_losses_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 40, generator=generator)
    labels = (torch.rand(50, 40, generator=generator) < 0.3).float()
    labels[:, 7], logits[:, 7] = 0, -1  # nothing to find, nothing found
    sums = celeba.tally(logits[:20], labels[:20]) + celeba.tally(logits[20:], labels[20:])
    found = celeba.measured(sums)
    for j in range(40):
        said = logits[:, j] > 0
        expected = f1_score(labels[:, j], said) if said.any() or labels[:, j].any() else 0.0
        assert float(found[j]) == pytest.approx(expected)
    chances = logits.sigmoid()
    for j, loss in enumerate(celeba.losses(logits, labels)):
        expected = F.binary_cross_entropy(chances[:, j], labels[:, j])
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_a_superclass_is_a_task_of_five_classes(tmp_path):
    cifar100.make(tmp_path)
    parts = cifar100.read(tmp_path, 3)
    assert [len(part) for part in parts] == [18, 2, 10]
    held = pickle.loads((tmp_path / cifar100.INNER / "train").read_bytes())
    known = {x.tobytes(): fine for x, fine in zip(held[b"data"], held[b"fine_labels"], strict=True)}
    batch, every = parts.train.take([5, 0, 17]), list[bytes]()
    assert batch.inputs.shape == (60, 3, 32, 32)
    raw = batch.inputs * parts.train.deviation[:, None, None] + parts.train.mean[:, None, None]
    fine = torch.tensor([known[x.numpy().tobytes()] for x in raw.round().to(torch.uint8)])
    assert torch.equal(batch.targets.task, fine % 20)  # the superclass that it was made of
    assert torch.equal(batch.targets.label, fine // 20)
    # every training image is learnt from or chooses the epoch, no image does both
    for part in parts[:2]:
        every += [x.numpy().tobytes() for x in part.pixels.flatten(0, 1)]
    assert sorted(every) == sorted(known)
    other = cifar100.read(tmp_path, 4)
    assert not torch.equal(other.validation.pixels, parts.validation.pixels)
    assert torch.equal(other.test.pixels, parts.test.pixels)
    mine = cifar100.only(batch, 7)
    assert {*mine.targets.task.tolist(), len(mine.inputs)} == {7, 3}


def test_an_image_counts_for_its_own_task_alone():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 20, 5, generator=generator)
    targets = cifar100.Targets(
        torch.tensor([0, 3, 3, 3, 19, 19, 0, 5, 5]), torch.randint(5, (9,), generator=generator)
    )
    losses, sums = cifar100.losses(logits, targets), cifar100.tally(logits, targets)
    found = cifar100.CIFAR100.measured(sums)
    for task in range(20):
        own = [i for i in range(9) if int(targets.task[i]) == task]
        if not own:
            assert float(losses[task]) == float(found[task]) == float(sums[task, 1]) == 0
            continue
        each = [-float(logits[i, task].log_softmax(0)[int(targets.label[i])]) for i in own]
        assert float(losses[task]) == pytest.approx(sum(each) / len(own), rel=1e-5)
        right = accuracy_score(targets.label[own], logits[own, task].argmax(1))
        assert float(found[task]) == pytest.approx(right)


def test_errors_are_in_published_units(tmp_path):
    qm9.make(tmp_path)
    parts, outputs, sums = qm9.read(tmp_path, 0, tmp_path), torch.randn(6, 11), torch.zeros(())
    for index in ([0, 1, 2], [3, 4, 5]):
        sums = sums + qm9.tally(outputs[index], parts.test.take(index).targets)
    found, chosen = qm9.QM9.measured(sums), parts.test.chosen.tolist()
    files = [path.read_text(encoding="utf-8").splitlines() for path in molecules.files(tmp_path)]
    raw = [[*csv.DictReader(file)][i] for file in files[:3] for i in range(20)]
    for j, (name, column) in enumerate(molecules.COLUMNS.items()):
        unit, apart = 27211.386 if column.endswith("_au") else 1, []
        for i, n in enumerate(chosen):
            kinds, energies = raw[n]["Elements"], molecules.APART.get(name, [0, 0])
            own = sum(kinds.count(x) * e for x, e in zip("HC", energies, strict=False))
            value = parts.test.mean[j] + outputs[i, j] * parts.test.std[j]
            apart.append(abs(float(value) - unit * (float(raw[n][column]) - own)))
        assert float(found[j]) == pytest.approx(sum(apart) / 6, rel=1e-4)
    seen, places = parts.test.take([2, 0]).inputs, json.loads(raw[chosen[2]]["XYZ_Ang"])
    assert seen.real[0].sum() == len(places)
    assert float(seen.pairs[0, 1, 2, 4]) == pytest.approx(math.dist(places[1], places[2]))
    assert seen.atoms[0, 0].tolist() == [0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0]
    base: dict[str, float] = dict(zip(qm9.NAMES, qm9.BASE, strict=True))
    values: dict[str, float] = dict(zip(qm9.NAMES, found.tolist(), strict=True))
    delta = mf.diagnostics.delta_m(values, base, dict.fromkeys(base, False))
    assert qm9.score(found.tolist()) == pytest.approx(-delta)


def test_networks_have_the_published_sizes():
    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    widths = ((3, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512))
    convolutions = sum(9 * a * b + 2 * b for a, b in widths)
    assert count(celeba.Network()) == convolutions + 2 * (512 * 512 + 1024) + 40 * 513
    vgg = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    layers = sum(9 * a * b + 3 * b for a, b in zip([3, *vgg], vgg, strict=False))
    assert count(cifar100.Network()) == layers + 20 * 5 * 513
    message = 6 * 128 + 129 * 64**2 + 64 * 64 + 64  # NNConv: its network, its root, its bias
    recurrent = 3 * 64 * (64 + 64 + 2) + 4 * 64 * (128 + 64 + 2)
    assert count(qm9.Network()) == 12 * 64 + message + recurrent + 129 * 64 + 11 * 65


def test_command_on_files_of_ones_own(tmp_path):
    """With networks alone; targets of twice the size, in the same place, have twice the errors."""
    call = ["qm9", "--quick", "--data", str(tmp_path / "data"), "--rules", "mean"]
    call += ["--workers", "1", "--out", str(tmp_path / "out")]
    found = []
    for factor, more in ((1, ["--alone"]), (2, [])):
        qm9.make(tmp_path / "data", factor)
        assert command.main([*call, *more]) == 0
        found.append(json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8")))
    assert list(found[0]["methods"]) == [*train.alone(qm9.QM9), "mean"]
    assert found[0]["methods"]["mean"]["summary"]["delta_m"]
    one, two = (x["methods"]["mean"]["runs"][0]["test"]["mu"] for x in found)
    assert two == pytest.approx(2 * one, rel=1e-3)
    assert command.main([*call, "--epochs", "2", "--samples", "3", "--narrower", "1"]) == 0
    other = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert len(other["methods"]["mean"]["runs"][0]["curve"]) == other["settings"]["epochs"] == 2
    assert other["settings"]["parameters"] > found[0]["settings"]["parameters"]
    assert "(3 samples to learn from, " in other["settings"]["samples"]
