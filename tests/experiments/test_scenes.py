"""experiments/scenes: renderer, loaders, metrics, networks, runs and the command."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torch.func import functional_call

import mtlfunc as mf
from common.cells import Cell, state_of
from common.files import DataError, Source
from experiments.scenes import __main__ as command
from experiments.scenes import data, metrics, published, render, report, segnet, train
from tests.support.scenes import write_folder

# ---- the renderer --------------------------------------------------------------------------------


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


# ---- folders -------------------------------------------------------------------------------------


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


def whole(name: str, array: np.ndarray):
    """Puts other numbers into one file."""
    return lambda root: np.save(root / name, array)


def altered(name: str, change):
    """Puts what `change` makes of the file's array into it."""
    return lambda root: np.save(root / name, change(np.load(root / name)))


def rewritten(change):
    """Other bytes for the second training image's labels."""
    file = Path("train", "label", "1.npy")
    return lambda root: (root / file).write_bytes(change((root / file).read_bytes()))


def fewer(root: Path) -> None:
    for each in (root / "train").glob("*/2.npy"):
        each.unlink()


def packed(root: Path) -> None:
    with (root / "train" / "label" / "1.npy").open("wb") as file:
        np.savez(file, seen=np.zeros(3))


BAD = {
    "missing file": lambda root: (root / "train" / "depth" / "1.npy").unlink(),
    "missing folder": lambda root: (root / "val" / "normal").rename(root / "val" / "gone"),
    "no labels": lambda root: (root / "train" / "label").rename(root / "train" / "labels"),
    "two names of labels": lambda root: (root / "val" / "label").rename(root / "val" / "label_7"),
    "other layout": lambda root: (root / "train").rename(root / "training"),
    "two images": fewer,
    "another size": whole("train/image/1.npy", np.zeros((32, 32, 3))),
    "test of another size": whole("val/depth/0.npy", np.zeros((64, 64, 1))),
    "class 13": whole("train/label/1.npy", np.full((32, 64), 13)),
    "half a class": whole("train/label/1.npy", np.full((32, 64), 0.5)),
    "text": whole("train/label/1.npy", np.full((32, 64), "sofa")),
    "nan": whole("train/depth/1.npy", np.full((32, 64, 1), np.nan)),
    "behind the camera": whole("val/depth/0.npy", np.full((32, 64), -2.0)),
    "bytes for pixels": whole("train/image/2.npy", np.full((32, 64, 3), 255, np.uint8)),
    "long normals": altered("val/normal/0.npy", lambda x: 100 * x),
    "short normals": altered("val/normal/0.npy", lambda x: 0.01 * x),
    "no array": rewritten(lambda held: b"nothing"),
    "no archive": rewritten(lambda held: b"PK\x03\x04 and no more"),
    "broken header": rewritten(lambda held: held.replace(b"(32, 64)", b"((32, 64")),
    "cut short": rewritten(lambda held: held[:-100]),
    "an archive": packed,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused(name, tmp_path):
    write_folder(tmp_path, data.NYUV2)
    assert data.check(tmp_path) == (32, 64)
    BAD[name](tmp_path)
    with pytest.raises(DataError):
        data.check(tmp_path)


def test_what_is_not_known_is_not_measured(tmp_path):
    """A batch without known depths is left out; a split without any is refused by name."""
    known, nothing = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    scores = metrics.Scores(13)
    for truth in (known, nothing):
        blank = torch.zeros(2, 3, 4, 4)
        seen = render.Views(blank, torch.zeros(2, 4, 4, dtype=torch.int64), truth, blank)
        scores.add({metrics.DEPTH: known * 1.5}, seen)
    assert scores.result() == {"absolute error": 0.5, "relative error": 0.5}
    write_folder(tmp_path, data.NYUV2)
    for file in (tmp_path / "val" / "depth").iterdir():
        np.save(file, np.zeros((32, 64)))
    settings = train.Settings(Source(str(tmp_path), ""), 1, 4, 0, 1, True, "cpu")
    cell = Cell("", train.ALONE[metrics.DEPTH], "", 1e-3, 0)
    run = train.Run(settings, cell)
    with pytest.raises(DataError, match=r"no pixel is known, .* no absolute error, relative error"):
        run.scores(run.data.test)


# ---- augmentation --------------------------------------------------------------------------------


# ---- networks, runs and the command --------------------------------------------------------------


def narrow(classes: int, tasks: Sequence[str]) -> segnet.SegNetMTAN:
    """SegNet-MTAN with few channels."""
    return segnet.SegNetMTAN(classes, tasks, (2, 3, 3, 4, 4))


def narrow_alone(classes: int, task: str) -> segnet.SegNet:
    """SegNet with few channels."""
    return segnet.SegNet(classes, task, (2, 3, 3, 4, 4))


def test_networks_have_the_published_numbers_of_parameters():
    """CAGrad's code divides by those of its SegNet for 13 classes; MTAN's are counted by hand."""

    def count(net: torch.nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    # of a task less the classes: 64 x 65 of the last layer stand for 1 x 65
    assert count(segnet.SegNet(13, metrics.SEGMENT)) == 24_981_069
    assert count(segnet.SegNet(13, metrics.NORMAL)) == 24_981_069 - 10 * 65
    assert count(segnet.SegNet(7, metrics.DEPTH)) == 24_981_069 - 12 * 65
    widths = segnet.WIDTHS

    def conv(into: int, out: int, size: int) -> int:  # its bias, and batch norm's two
        return out * (into * size**2 + 3)

    lower, after = (64, *widths[:-1]), (*widths[1:], 512)
    between = sum(conv(a, b, 3) for a, b in zip(widths, after, strict=True))
    between += sum(conv(a, b, 3) for a, b in zip(widths, lower, strict=True))
    down = sum(conv(w if i == 0 else 2 * w, w, 1) + conv(w, w, 1) for i, w in enumerate(widths))
    up = sum(conv(w + v, v, 1) + conv(v, v, 1) for w, v in zip(widths, lower, strict=True))
    predictions = 3 * (64 * 64 * 9 + 64) + 65 * (13 + 1 + 3)
    plain = 24_981_069 - (64 * 64 * 9 + 64) - 65 * 13
    expected = plain + between + 3 * (down + up) + predictions
    assert count(segnet.SegNetMTAN(13, metrics.TASKS)) == expected == 44_229_073


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


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """SegNet-MTAN with few channels."""
    monkeypatch.setattr(train, "SegNetMTAN", narrow)
    monkeypatch.setattr(train, "SegNet", narrow_alone)
    train.data_of.cache_clear()


def test_batch_norm_follows_torchs_own_loop(thin, tmp_path):
    """Mean loss, two epochs: parameters and running statistics of a stock PyTorch loop."""
    write_folder(tmp_path, data.CITYSCAPES, label="label_7", counts=(4, 1))
    settings = train.Settings(Source(str(tmp_path), ""), 2, 0, 1, 1, False, "cpu")
    run = train.Run(settings, Cell("", "mean", "", 0.01, 0))
    net = train.network(settings, data.CITYSCAPES, data.CITYSCAPES.tasks, 0).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for epoch in range(2):
        run.advance()
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5**epoch
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(4, generator=generator).tolist()
        seen = data.augment(run.data.train.take(order), generator)
        optimizer.zero_grad()
        torch.stack(list(metrics.losses(net(seen.image), seen).values())).mean().backward()
        optimizer.step()
    seen, kept = run.data.test.take([0]), dict(net.named_buffers())
    for name, value in run.lane.buffers.items():
        torch.testing.assert_close(value, kept[name], rtol=1e-3, atol=1e-4)
    after = functional_call(net.eval(), run.lane[:2], (seen.image,))
    for task, value in net(seen.image).items():
        torch.testing.assert_close(after[task], value, rtol=1e-2, atol=1e-3)


def test_a_long_run_goes_on_after_its_last_epoch(thin, tmp_path):
    write_folder(tmp_path / "nyu", data.NYUV2)
    settings = train.Settings(Source(str(tmp_path / "nyu"), ""), 3, 0, 2, 2, False, "cpu")
    cell = Cell("", "gradnorm", "", 1e-3, 4)
    whole = train.perform(settings, tmp_path / "a", cell)
    run = train.Run(settings, cell)
    run.advance()
    run.advance()
    (tmp_path / "b").mkdir()
    run.keep(state_of(tmp_path / "b", cell))
    rest = train.perform(settings, tmp_path / "b", cell)
    assert {**rest, "step_ms": 0} == {**whole, "step_ms": 0}
    # until the numbers are kept
    assert list((tmp_path / "b").iterdir()) == [state_of(tmp_path / "b", cell)]


def test_command_on_folders(thin, tmp_path):
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


def literal(
    outputs: metrics.Outputs, views: render.Views
) -> tuple[list[tuple[float, float]], list[float]]:
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
    cosine = np.cos(np.radians(angles)).mean()
    for task, value in zip(
        metrics.TASKS, (np.mean(entropy), np.mean(errors, 0)[0], 1 - cosine), strict=True
    ):
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
    values, published_delta = ROWS[name]
    base = published.PUBLISHED["NYUv2"].base
    assert metrics.flat(dict(zip(base, values, strict=True)), base) == pytest.approx(
        published_delta, abs=0.015
    )


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
