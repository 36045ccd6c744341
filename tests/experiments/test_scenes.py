"""experiments/scenes: renderer, metrics, loaders, networks, runs and the command."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import mtlfunc as mf
from common.cells import Cell, state_of
from common.files import DataError, Source
from experiments.scenes import __main__ as command
from experiments.scenes import data, metrics, render, report, segnet, small, train
from tests.support.scenes import write_folder

# ---- the renderer --------------------------------------------------------------------------------


def empty(**changes: torch.Tensor) -> render.Rooms:
    """One room in double precision, seen straight ahead, its objects behind the camera."""
    drawn = render.rooms(mf.random.key(3), 1)
    still = {
        name: leaf.double() if leaf.is_floating_point() else leaf
        for name, leaf in drawn._asdict().items()
    }
    still["turn"] = torch.zeros(1, 2, dtype=torch.float64)
    still["centres"] = torch.tensor([0.0, 0.0, -5.0], dtype=torch.float64).expand(1, 4, 3).clone()
    return render.Rooms(**(still | changes))


def test_depths_and_normals_of_planes_are_closed_forms():
    walls = torch.tensor([[1.5, 2.0, 4.0, 1.4, 1.1]], dtype=torch.float64)
    rays = render.pixels()
    seen = render.cast(empty(walls=walls), rays)
    u, v = rays.unbind(-1)
    left, right, back, floor, ceiling = walls[0]
    # the nearest of u·z = -left, u·z = right, z = back, v·z = floor, v·z = -ceiling
    bounds = torch.stack([-left / u, right / u, back.expand(len(u)), floor / v, -ceiling / v])
    depth, side = bounds.where(bounds > 0, math.inf).min(0)
    torch.testing.assert_close(seen.depth[0], depth)
    inward = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, -1, 0], [0, 1, 0]]).double()
    torch.testing.assert_close(seen.normal[0], inward[side])
    assert set(seen.label[0][side == 3].tolist()) == {render.FLOOR}
    assert set(seen.label[0][side == 4].tolist()) == {render.CEILING}
    assert set(seen.label[0][side < 3].tolist()) <= {render.WALL, render.WINDOW, render.PICTURE}


def test_a_pitched_camera_sees_the_floor_as_in_closed_form():
    """Looking down by θ, the ray (0, v, 1) meets a floor h below at z = h / (v cos θ + sin θ)."""
    pitch, height = 0.3, 1.4
    room = empty(turn=torch.tensor([[0.0, pitch]], dtype=torch.float64))
    room = room._replace(walls=torch.tensor([[9.0, 9.0, 90.0, height, 9.0]]).double())
    v = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    seen = render.cast(room, torch.stack([torch.zeros_like(v), v], -1))
    torch.testing.assert_close(
        seen.depth[0], height / (v * math.cos(pitch) + math.sin(pitch)), rtol=1e-6, atol=0
    )
    normal = torch.tensor([0.0, -math.cos(pitch), -math.sin(pitch)]).double().expand(8, 3)
    torch.testing.assert_close(seen.normal[0], normal, rtol=0, atol=1e-7)


def test_a_sphere_is_a_sphere():
    centre, radius = torch.tensor([0.2, -0.1, 2.5]).double(), 0.5
    room = empty()
    room.centres[0, 0], room.sizes[0, 0] = centre, radius
    rays = render.pixels(60, 90)
    seen = render.cast(room, rays)
    hit = seen.label[0] >= render.SPHERE
    points = seen.depth[0][hit, None] * torch.cat([rays, torch.ones(len(rays), 1)], -1)[hit]
    torch.testing.assert_close((points - centre).norm(dim=-1), torch.full_like(points[:, 0], 0.5))
    torch.testing.assert_close(seen.normal[0][hit], (points - centre) / radius)
    # the silhouette: the ray's distance from the centre is below the radius
    unit = torch.cat([rays, torch.ones(len(rays), 1)], -1)
    unit = unit / unit.norm(dim=-1, keepdim=True)
    inside = torch.linalg.cross(unit, centre.expand_as(unit)).norm(dim=-1) < radius
    assert torch.equal(hit, inside)
    # straight at the centre the depth along the ray is distance less radius
    ahead = render.cast(room, (centre[:2] / centre[2])[None])
    along = ahead.depth[0] * (centre / centre[2]).norm()
    torch.testing.assert_close(along, (centre.norm() - radius)[None])


def test_a_box_is_a_box():
    """In its own frame a met point's largest coordinate, in half extents, is 1."""
    room = empty()
    room.centres[0, 2], room.yaw[0, 2] = torch.tensor([0.1, 0.3, 2.2]).double(), 0.6
    room.sizes[0, 2] = torch.tensor([0.4, 0.3, 0.5]).double()
    rays = render.pixels(60, 90)
    seen = render.cast(room, rays)
    hit = seen.label[0] >= render.BOX
    assert hit.sum() > 100
    points = seen.depth[0][hit, None] * torch.cat([rays, torch.ones(len(rays), 1)], -1)[hit]
    cos, sin = math.cos(0.6), math.sin(0.6)
    away = points - room.centres[0, 2]
    own = torch.stack(
        [cos * away[:, 0] - sin * away[:, 2], away[:, 1], sin * away[:, 0] + cos * away[:, 2]], -1
    )
    share = own.abs() / room.sizes[0, 2]
    torch.testing.assert_close(share.amax(-1), torch.ones_like(share[:, 0]))


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


def test_views_are_a_function_of_the_key():
    first, again = render.views(mf.random.key(1), 40), render.views(mf.random.key(1), 40)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image, render.views(mf.random.key(2), 40).image)
    assert set(first.label.unique().tolist()) == set(range(len(render.CLASSES)))
    assert first.depth.min() > 0.3
    assert first.depth.max() < 10
    assert first.image.shape == (40, 3, render.HEIGHT, render.WIDTH)


# ---- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "label"),
    [(data.NYUV2, "label"), (data.CITYSCAPES, "label_7"), (data.CITYSCAPES, "label")],
)
def test_folders_are_read_as_they_are(benchmark, label, tmp_path):
    write_folder(tmp_path, benchmark, label=label)
    assert data.find(tmp_path) is benchmark
    train_split, test_split = data.read(tmp_path, benchmark)
    assert (len(train_split), len(test_split)) == (3, 2)
    views = train_split.take([2, 0])
    for i, number in enumerate((2, 0)):
        for kind, leaf in (("image", views.image[i]), ("depth", views.depth[i])):
            array = np.load(tmp_path / "train" / kind / f"{number}.npy")
            assert np.array_equal(leaf.movedim(0, -1).numpy(), array)
        array = np.load(tmp_path / "train" / label / f"{number}.npy")
        assert np.array_equal(views.label[i].numpy(), array)
    if benchmark is data.NYUV2:
        array = np.load(tmp_path / "train" / "normal" / "0.npy")
        np.testing.assert_allclose(views.normal[1].movedim(0, -1).numpy(), array, rtol=1e-6)
    # a depth without its last axis is read, too
    flat = np.load(tmp_path / "train" / "depth" / "1.npy")[..., 0]
    np.save(tmp_path / "train" / "depth" / "1.npy", flat)
    assert np.array_equal(train_split.take([1]).depth[0, 0].numpy(), flat)


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


def test_a_flip_mirrors_the_geometry():
    views = render.views(mf.random.key(0), 2)
    turned = data.flip(views)
    assert torch.equal(turned.image[..., 0], views.image[..., -1])
    assert torch.equal(turned.normal[:, 0, :, 3], -views.normal[:, 0, :, -4])
    assert torch.equal(turned.normal[:, 1:, :, 3], views.normal[:, 1:, :, -4])
    assert all(torch.equal(a, b) for a, b in zip(data.flip(turned), views, strict=True))


def test_a_crop_is_its_literal_loop():
    views = render.views(mf.random.key(0), 2)
    same = data.crop(views, 1.0, 0.3, 0.9)
    torch.testing.assert_close(tuple(same), tuple(views), rtol=0, atol=1e-6)
    scale, (height, width) = 1.5, views.label.shape[-2:]
    tall, wide = int(height / scale), int(width / scale)
    near = data.crop(views, scale, 0.999, 0.0)  # the lower left corner
    for row, column in ((0, 0), (7, 13), (height - 1, width - 1)):
        from_row = height - tall + int(row * tall / height)
        from_column = int(column * wide / width)
        assert torch.equal(near.label[:, row, column], views.label[:, from_row, from_column])
        depth = views.depth[:, 0, from_row, from_column] / scale
        torch.testing.assert_close(near.depth[:, 0, row, column], depth)
    # bilinear, with corners aligned: the window's corner pixels stay as they are
    corner = views.image[:, :, height - tall, 0]
    torch.testing.assert_close(near.image[:, :, 0, 0], corner)


# ---- networks, runs and the command --------------------------------------------------------------


def narrow(classes: int, tasks: Sequence[str]) -> segnet.SegNetMTAN:
    """SegNet-MTAN with few channels."""
    return segnet.SegNetMTAN(classes, tasks, (2, 3, 3, 4, 4))


def narrow_alone(classes: int, task: str) -> segnet.SegNet:
    """SegNet with few channels."""
    return segnet.SegNet(classes, task, (2, 3, 3, 4, 4))


@pytest.mark.parametrize("kind", [small.Small, narrow])
def test_networks_have_heads_for_their_tasks_alone(kind):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for tasks in (metrics.TASKS, (metrics.DEPTH,)):
        net = kind(13, tasks)
        outputs = net(image)
        assert list(outputs) == list(tasks)
        shapes = {metrics.SEGMENT: 13, metrics.DEPTH: 1, metrics.NORMAL: 3}
        for task, output in outputs.items():
            assert output.shape == (2, shapes[task], 32, 32)
            task_loss = output.square().sum()
            found = torch.autograd.grad(
                task_loss, list(net.parameters()), allow_unused=True, retain_graph=True
            )
            used = {
                name
                for (name, _), g in zip(net.named_parameters(), found, strict=True)
                if g is not None
            }
            assert {n for n in used if n.startswith("heads.")} == {
                n for n, _ in net.named_parameters() if n.startswith(f"heads.{task}.")
            }
            assert {n for n, _ in net.named_parameters() if n.startswith("trunk.")} <= used


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


def test_a_segnet_alone_is_its_forward_pass_written_out():
    net = segnet.SegNet(13, metrics.NORMAL, (2, 3, 3, 4, 4)).eval()
    image = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    x, places = image, []
    for first, last in zip(net.trunk.encode_first, net.trunk.encode_last, strict=True):
        x, where = F.max_pool2d(last(first(x)), 2, return_indices=True)
        places.append(where)
    for i in (4, 3, 2, 1, 0):
        x = net.trunk.decode_last[i](
            net.trunk.decode_first[i](F.max_unpool2d(x, places[i], [2, 2]))
        )
    expected = net.heads[metrics.NORMAL](x)
    assert expected.shape == (2, 3, 64, 32)
    torch.testing.assert_close(net(image)[metrics.NORMAL], expected)
    assert list(net(image)) == [metrics.NORMAL]


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
    tasks = [t for t in metrics.TASKS if name not in train.ALONE.values() or t in name]
    assert list(numbers["test"]) == list(metrics.metrics_of(tasks))
    assert all(map(math.isfinite, numbers["test"].values()))
    assert numbers["score"] == pytest.approx(train.score(numbers["validation"]))
    # in one program with another seed, and with a run that fails, which the others do not feel
    others = [cell._replace(seed=1), cell._replace(rate=1e30)]
    first, _, failed = train.together(tiny, tmp_path, [cell, *others])
    for key in ("weights", "losses", "test", "validation"):
        assert first[key] == pytest.approx(numbers[key], rel=1e-4), key
    assert math.isnan(failed["score"])
    if name == "pcgrad":
        again = train.perform(tiny, tmp_path, cell)
        assert {**again, "step_ms": 0} == {**numbers, "step_ms": 0}
    if name == train.STATIC:
        assert list(numbers["weights"].values()) == pytest.approx([1 / 6, 4 / 6, 1 / 6])


def test_the_trunk_starts_alike_whatever_the_tasks(tiny):
    nets = [train.network(tiny, train.ROOMS, tasks, 3) for tasks in (metrics.TASKS, ("depth",))]
    ours, theirs = (dict(net.named_parameters()) for net in nets)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs if n.startswith("trunk."))


def test_a_diverged_run_is_reported_as_such(tiny, tmp_path):
    numbers = train.perform(tiny._replace(epochs=3), tmp_path, Cell("", "mean", "", 1e30, 0))
    assert all(map(math.isnan, numbers["test"].values()))
    assert math.isnan(numbers["score"])


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
        run.one_epoch()
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
    run.one_epoch()
    run.one_epoch()
    (tmp_path / "b").mkdir()
    run.keep(state_of(tmp_path / "b", cell))
    rest = train.perform(settings, tmp_path / "b", cell)
    assert {**rest, "step_ms": 0} == {**whole, "step_ms": 0}
    # until the numbers are kept
    assert list((tmp_path / "b").iterdir()) == [state_of(tmp_path / "b", cell)]


def test_command_on_rooms(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "settings_of", lambda *rest: tiny)
    monkeypatch.setattr(report, "_rooms", lambda fig: fig.subplots())
    arguments = ["--quick", "--rules", "cagrad,mean", "--workers", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(kept["methods"]) == [*train.ALONE.values(), "cagrad", "mean"]
    runs = {name: [r["test"] for r in m["runs"]] for name, m in kept["methods"].items()}
    base = [
        {k: v for alone in train.ALONE.values() for k, v in runs[alone][seed].items()}
        for seed in range(2)
    ]
    own = [metrics.flat(runs["cagrad"][seed], base[seed]) for seed in range(2)]
    mean = [metrics.flat(runs["mean"][seed], base[seed]) for seed in range(2)]
    summary = kept["methods"]["cagrad"]["summary"]
    assert summary["flat"]["mean"] == pytest.approx(np.mean(own))
    assert summary["against_mean"]["mean"] == pytest.approx(np.mean(np.subtract(own, mean)))


def test_command_on_folders(thin, tmp_path):
    write_folder(tmp_path / "city", data.CITYSCAPES, counts=(11, 2), label="label_7")
    call = ["--data", str(tmp_path / "city"), "--seeds", "2", "--workers", "1", "--quick"]
    assert command.main([*call, "--rules", "mean", "--out", str(tmp_path / "out")]) == 0
    source = Source(str(tmp_path / "city"), "")
    settings = command.settings_of("full", source, "cpu")
    assert settings == train.Settings(source, 200, 0, 100, 10, False, "cpu")
    assert command.plan_of(settings, ["mean"], (0, 1, 2)).rates == (1e-4,)
