"""experiments/scenes: renderer, loaders, metrics, networks, runs and the command."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

import mtlfunc as mf
from common.cells import Cell
from common.files import Source
from experiments.scenes import __main__ as command
from experiments.scenes import data, metrics, published, render, report, segnet, train
from tests.support.scenes import write_folder


def test_normals_are_unit_face_the_camera_and_are_those_of_the_depths():
    """Equal to the cross product of finite differences of the points, where a face goes on."""
    drawn = render.rooms(mf.random.key(5), 4)
    rooms = render.Rooms(*(leaf.double() if leaf.is_floating_point() else leaf for leaf in drawn))
    rays, step = render.pixels(24, 36), 1e-6

    def points(moved: torch.Tensor) -> tuple[render.Surfaces, torch.Tensor]:
        seen = render.cast(rooms, moved)
        along = torch.cat([moved, torch.ones_like(moved[:, :1])], -1)
        return seen, seen.depth[..., None] * along

    seen, here = points(rays)
    found = []
    for way in ([step, 0.0], [0.0, step]):
        move = torch.tensor(way, dtype=torch.float64)
        ahead, behind = points(rays + move), points(rays - move)
        found.append((ahead, behind, (ahead[1] - behind[1]) / (2 * step)))
    cross = torch.linalg.cross(found[1][2], found[0][2])
    cross = cross / cross.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(seen.normal.norm(dim=-1), torch.ones_like(seen.depth))
    assert ((seen.normal * here).sum(-1) < 0).all()
    # at an edge between two faces the normals of the neighbours differ, and a difference means none
    smooth = torch.ones_like(seen.depth, dtype=torch.bool)
    for ahead, behind, _ in found:
        for other, _ in (ahead, behind):
            smooth &= (other.normal - seen.normal).norm(dim=-1) < 0.01
        smooth &= (ahead[1] - behind[1]).norm(dim=-1) < 0.01
    assert smooth.double().mean() > 0.97
    torch.testing.assert_close(cross[smooth], seen.normal[smooth], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("benchmark", "label"),
    [(data.NYUV2, "label"), (data.CITYSCAPES, "label_7"), (data.CITYSCAPES, "label")],
)
def test_folders_are_read_as_they_are(benchmark, label, tmp_path):
    write_folder(tmp_path, benchmark, label=label)
    assert data.find(tmp_path) is benchmark
    # a depth without its last axis is read as well
    flat = tmp_path / "train" / "depth" / "2.npy"
    np.save(flat, np.load(flat)[..., 0])
    parts = data.read(tmp_path, benchmark)
    assert list(map(len, parts)) == [3, 2]
    views = parts[0].take([2, 0])
    for row, number in enumerate((2, 0)):
        held = {x.parent.name: np.load(x) for x in (tmp_path / "train").glob(f"*/{number}.npy")}
        assert np.array_equal(views.image[row].movedim(0, -1), held["image"])
        assert np.array_equal(views.depth[row].flatten(), held["depth"].flatten())
        assert np.array_equal(views.label[row], held[label])
        if benchmark is data.NYUV2:
            np.testing.assert_allclose(views.normal[row].movedim(0, -1), held["normal"], rtol=1e-6)


def test_networks_have_the_published_numbers_of_parameters():
    """CAGrad's code divides by those of its SegNet for 13 classes."""

    def count(net: torch.nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    # of a task less the classes: 64 x 65 of the last layer stand for 1 x 65
    assert count(segnet.SegNet(13, metrics.SEGMENT)) == 24_981_069
    assert count(segnet.SegNet(13, metrics.NORMAL)) == 24_981_069 - 10 * 65
    assert count(segnet.SegNet(7, metrics.DEPTH)) == 24_981_069 - 12 * 65
    assert count(segnet.SegNetMTAN(13, metrics.TASKS)) == 44_229_073


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> train.Settings:
    """Rooms, few of them."""
    few = train.ROOMS._replace(counts=(16, 8))
    for module in (train, report):
        monkeypatch.setattr(module, "ROOMS", few)
    monkeypatch.setattr(train, "VALIDATION", 8)
    train.data_of.cache_clear()
    return train.Settings(None, 1, 8, 0, 1, True, "cpu")


@pytest.mark.parametrize("name", [*train.RULES, *train.ALONE.values()])
def test_every_rule_runs(name, tiny, tmp_path):
    cell = Cell("", name, "1:4:1" if name == train.STATIC else "", 1e-3, 0)
    numbers = train.perform(tiny, tmp_path, cell)
    assert all(map(math.isfinite, numbers["test"].values()))
    # in one program with a run that fails, which the others do not feel
    first, failed = train.together(tiny, tmp_path, [cell, cell._replace(rate=1e30)])
    for key in ("weights", "losses", "test", "validation"):
        assert first[key] == pytest.approx(numbers[key], rel=1e-4), key
    assert math.isnan(failed["score"])


def test_command_on_folders(tmp_path, monkeypatch):
    for name in ("SegNetMTAN", "SegNet"):
        monkeypatch.setattr(train, name, partial(getattr(segnet, name), widths=(2, 3, 3, 4, 4)))
    train.data_of.cache_clear()
    write_folder(tmp_path / "city", data.CITYSCAPES, counts=(11, 2), label="label_7")
    call = ["--data", str(tmp_path / "city"), "--seeds", "2", "--workers", "1", "--quick"]
    assert command.main([*call, "--rules", "mean", "--out", str(tmp_path / "out")]) == 0
    source = Source(str(tmp_path / "city"), "")
    settings = command.settings_of("full", source, "cpu")
    assert settings == train.Settings(source, 200, 0, 100, 10, False, "cpu")
    assert command.plan_of(settings, ["mean"], (0, 1, 2)).rates == (1e-4,)


@pytest.fixture
def guesses() -> tuple[metrics.Outputs, render.Views]:
    """Random predictions for two images with unknown pixels; of 6 classes one is in neither."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, 7, generator=generator)
    logits[:, 3] = -50
    label = torch.randint(-1, 6, (2, 5, 7), generator=generator)
    label[label == 3] = -1
    depth = torch.rand(2, 1, 5, 7, generator=generator) * 4
    depth[depth < 0.8] = 0
    normal = metrics.unit(torch.randn(2, 3, 5, 7, generator=generator))
    normal[:, :, 2] = 0
    outputs = {
        metrics.SEGMENT: logits,
        metrics.DEPTH: torch.rand(2, 1, 5, 7, generator=generator) * 4,
        metrics.NORMAL: torch.randn(2, 3, 5, 7, generator=generator) + 2 * normal,
    }
    return outputs, render.Views(torch.rand(2, 3, 5, 7, generator=generator), label, depth, normal)


def test_segmentation_scores_are_scikit_learns(guesses):
    outputs, views = guesses
    predicted, known = outputs[metrics.SEGMENT].argmax(1), views.label >= 0
    truth, guess = views.label[known].numpy(), predicted[known].numpy()
    counts = metrics.confusion(predicted, views.label, 6)
    assert np.array_equal(counts.numpy(), confusion_matrix(truth, guess, labels=range(6)))
    scores = metrics.segmentation_scores(counts)
    present = sorted(set(truth) | set(guess))
    assert len(present) == 5
    expected = jaccard_score(truth, guess, labels=present, average="macro")
    assert scores["mIoU"] == pytest.approx(expected)
    assert scores["pixel accuracy"] == pytest.approx(accuracy_score(truth, guess))


def literal(outputs, views) -> tuple[list[tuple[float, float]], list[float]]:
    """Of every known pixel: the depth's error, absolute and relative; the normal's angle."""
    errors, angles = [], []
    for i, row, column in np.ndindex(2, 5, 7):
        here = (i, slice(None), row, column)
        if (true := float(views.depth[here])) != 0:
            apart = abs(float(outputs[metrics.DEPTH][here]) - true)
            errors.append((apart, apart / true))
        wanted = views.normal[here].double().numpy()
        if wanted.any():
            given = outputs[metrics.NORMAL][here].double().numpy()
            cosine = given @ wanted / np.linalg.norm(given)
            angles.append(math.degrees(math.acos(max(-1, min(1, cosine)))))
    return errors, angles


def check(found: dict[str, float], errors: list[tuple[float, float]], angles: list[float]) -> None:
    assert list(found) == list(metrics.METRICS)
    absolute, relative = np.mean(errors, 0)
    expected = {"absolute error": absolute, "relative error": relative}
    expected |= {"mean angle": np.mean(angles), "median angle": np.median(angles)}
    expected |= {f"within {d:g}°": np.mean(np.array(angles) < d) for d in (11.25, 22.5, 30)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_losses_and_errors_are_their_literal_loops(guesses):
    outputs, views = guesses
    entropy = []
    for i, row, column in np.ndindex(2, 5, 7):
        if (label := int(views.label[i, row, column])) >= 0:
            scores = outputs[metrics.SEGMENT][i, :, row, column].double()
            entropy.append(math.log(float(scores.exp().sum())) - float(scores[label]))
    errors, angles = literal(outputs, views)
    found = metrics.losses(outputs, views)
    assert list(found) == list(metrics.TASKS)
    expected = np.mean(entropy), np.mean(errors, 0)[0], 1 - np.cos(np.radians(angles)).mean()
    for task, value in zip(metrics.TASKS, expected, strict=True):
        assert found[task].item() == pytest.approx(value, rel=1e-5)
    scores = metrics.Scores(6)
    scores.add(outputs, views)
    check(scores.result(), errors, angles)


# Rows of table 3 of Liu et al. 2021 and the Δm that stands beside them.
ROWS = {
    "MGDA": ((0.3047, 0.5990, 0.6070, 0.2555, 24.88, 19.45, 0.2918, 0.5688, 0.6936), 1.38),
    "PCGrad": ((0.3806, 0.6464, 0.5550, 0.2325, 27.41, 22.80, 0.2386, 0.4983, 0.6314), 3.97),
    "GradDrop": ((0.3939, 0.6512, 0.5455, 0.2279, 27.48, 22.96, 0.2338, 0.4944, 0.6287), 3.58),
    "CAGrad": ((0.3979, 0.6549, 0.5486, 0.2250, 26.31, 21.58, 0.2561, 0.5236, 0.6558), 0.20),
}


@pytest.mark.parametrize("name", ROWS)
def test_flat_delta_is_the_published_one(name):
    (values, expected), base = ROWS[name], published.PUBLISHED["NYUv2"].base
    found = metrics.flat(dict(zip(base, values, strict=True)), base)
    assert found == pytest.approx(expected, abs=0.015)


def test_pixels_of_all_batches_count_alike_where_libmtl_averages(guesses):
    """Two images with different numbers of known pixels: one loop over all of them."""
    outputs, views = guesses
    depth = views.depth.clone()
    depth[0, :, :3] = 0
    views = views._replace(depth=depth)
    scores = metrics.Scores(6)
    for i in range(2):
        one = {task: value[i : i + 1] for task, value in outputs.items()}
        scores.add(one, render.Views(*(leaf[i : i + 1] for leaf in views)))
    found, apart = scores.pooled(), scores.result()
    check(found, *literal(outputs, views))
    assert found["mIoU"] == apart["mIoU"]
    assert found["absolute error"] != pytest.approx(apart["absolute error"], rel=1e-3)
