"""experiments/multimnist: MNIST's files, composition, architectures, runs and the command."""

# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# pyright: reportIndexIssue=false

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import mtlfunc as mf
from common.cells import Cell
from common.files import DataError, Source
from common.intervals import estimate
from common.study import Found
from experiments.multimnist import __main__ as command
from experiments.multimnist import architectures, mnist, report, train
from tests.support.idx import idx_bytes, write_mnist

# ---- files and composition -----------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inner", mnist.SETS["mnist"].places)
def test_official_files_are_read_as_they_are(tmp_path, zipped, inner):
    held = mnist.read(write_mnist(tmp_path, zipped=zipped, inner=inner))
    for seed, (part, count) in enumerate((("train", 24), ("t10k", 8))):
        generator = np.random.default_rng(seed)
        images, labels = held[part]
        expected = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        assert np.array_equal(images, expected)
        assert labels.tolist() == generator.integers(0, 10, count, dtype=np.uint8).tolist()


def test_pairs_are_their_literal_loop():
    """A canvas of 36 x 36, the left digit at [0:28], the right one at [6:34], the larger pixel;
    then Pillow's nearest pixel.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(7)
    canvases, both = mnist.pairs((images, labels), (images, labels), mf.random.key(4))
    assert sorted(both[:, 1].tolist()) == list(range(7))
    for i, (left, right) in enumerate(both.tolist()):
        assert left == i
        canvas = np.zeros((36, 36), np.uint8)
        for row in range(28):
            for column in range(28):
                canvas[row, column] = images[left, row, column]
        for row in range(28):
            for column in range(28):
                old = canvas[row + 6, column + 6]
                canvas[row + 6, column + 6] = max(int(old), int(images[right, row, column]))
        small = Image.fromarray(canvas).resize((28, 28), Image.Resampling.NEAREST)
        assert np.array_equal(canvases[i], np.asarray(small))
    again, other = (
        mnist.pairs((images, labels), (images, labels), mf.random.key(s))[1] for s in (4, 5)
    )
    assert torch.equal(again, both)
    assert not torch.equal(other, both)
    # of two sets of different sizes: the smaller number of pairs, left ones in their order
    mixed, two = mnist.pairs((images, labels), (images[:3], labels[:3] + 7), mf.random.key(4))
    assert two[:, 0].tolist() == [0, 1, 2]
    assert sorted(two[:, 1].tolist()) == [7, 8, 9]
    assert len(mixed) == 3


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        (
            "train-images-idx3-ubyte",
            None,
            r"looked for train-images-idx3-ubyte, .* not there",
        ),
        ("train-images-idx3-ubyte", b"abc", r"begins with 61 62 63; expected 00 00 08 03"),
        ("t10k-labels-idx1-ubyte", b"", r"begins with nothing; expected 00 00 08 01, .* 1 axis"),
        (
            "t10k-labels-idx1-ubyte",
            idx_bytes(np.zeros((8, 2, 2), np.uint8)),
            r"begins with 00 00 08 03; expected 00 00 08 01",
        ),
        (
            "train-images-idx3-ubyte",
            idx_bytes(np.zeros((24, 28, 28), np.uint8))[:-5],
            r"says that it holds 24 x 28 x 28 bytes, and has 18811",
        ),
        (
            "train-images-idx3-ubyte",
            idx_bytes(np.zeros((24, 32, 32), np.uint8)),
            r"images of 32 x 32 pixels; expected 28 x 28",
        ),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.zeros(9, np.uint8)), r"9 labels for 8 images"),
        (
            "t10k-labels-idx1-ubyte",
            idx_bytes(np.full(8, 11, np.uint8)),
            r"labels 11 outside the classes; expected 0 to 9",
        ),
    ],
)
def test_a_bad_folder_says_what_is_wrong(tmp_path, name, held, said):
    write_mnist(tmp_path)
    (tmp_path / name).unlink()
    if held is not None:
        (tmp_path / name).write_bytes(held)
    with pytest.raises(DataError, match=said):
        mnist.read(tmp_path)


def test_other_folders_and_broken_archives_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"not MNIST; looked for train-images-idx3-ubyte.* nothing"):
        mnist.read(tmp_path)
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    for broken in (path.read_bytes()[:-20], b"not gzip"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: cannot be unpacked"):
            mnist.read(tmp_path)


PUBLISHED = {"mnist": "MNIST, the published files", "fashion": "Fashion-MNIST, the published files"}


def known(folder: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """As if what a folder holds were the published files."""
    found = tuple(hashlib.md5((folder / name).read_bytes()).hexdigest() for name in mnist.NAMES)
    monkeypatch.setitem(mnist.SETS, which, mnist.SETS[which]._replace(md5=found))


def test_published_files_are_known_by_their_bytes(tmp_path, monkeypatch):
    for which, counts in (("mnist", (24, 8)), ("fashion", (30, 9))):
        known(write_mnist(tmp_path / which, counts), monkeypatch, which)
    for mixture, sets in mnist.MIXTURES.items():
        said, warnings = mnist.checked(tmp_path, mixture)
        assert said == "; ".join(PUBLISHED[which] for which in dict.fromkeys(sets))
        assert not warnings
    # gzipped or not, the bytes are the same
    write_mnist(tmp_path / "zipped", zipped=True)
    assert mnist.checked(tmp_path / "zipped", "mnist") == (PUBLISHED["mnist"], [])
    # other bytes: named with the md5 that was expected, and read
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)
    said, (warning,) = mnist.checked(tmp_path, "mnist")
    assert said == "MNIST, not the published files"
    assert str(path) in warning
    assert f"expected {mnist.SETS['mnist'].md5[0]}; read as it is" in warning
    assert len(mnist.read(tmp_path, "mnist")["train"][0]) == 24


def test_one_set_given_as_another_is_refused_with_a_cure_that_works(tmp_path, monkeypatch):
    known(write_mnist(tmp_path), monkeypatch, "mnist")
    with pytest.raises(DataError, match=r"is a file of MNIST; expected Fashion-MNIST") as caught:
        mnist.checked(tmp_path, "fashion")
    place = Path(str(caught.value).split("files in ")[-1])
    with pytest.raises(DataError, match="two sets of files; put them in"):
        mnist.checked(tmp_path, "mixed")
    known(write_mnist(place, (30, 9)), monkeypatch, "fashion")
    assert mnist.checked(tmp_path, "fashion") == (PUBLISHED["fashion"], [])
    assert mnist.checked(tmp_path, "mixed")[0] == "; ".join(PUBLISHED.values())
    assert mnist.checked(tmp_path, "mnist") == (PUBLISHED["mnist"], [])


# ---- architectures -------------------------------------------------------------------------------


def reached(net: torch.nn.Module, images: torch.Tensor) -> list[set[str]]:
    """Of each output, the parameters that it depends on."""
    found = []
    for output in net(images):
        grads = torch.autograd.grad(
            output.square().sum(), list(net.parameters()), allow_unused=True, retain_graph=True
        )
        names = [name for name, _ in net.named_parameters()]
        found.append({n for n, g in zip(names, grads, strict=True) if g is not None})
    return found


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
@pytest.mark.parametrize("lenet", [False, True])
def test_what_is_called_shared_is_shared(name, lenet):
    stage = architectures.lenet if lenet else architectures.dense(100, 8)
    head = architectures.official if lenet else architectures.linear
    net = architectures.ARCHITECTURES[name](stage, 6, head)
    images = torch.randn(3, 1, 28, 28) if lenet else torch.randn(3, 100)
    left, right = reached(net, images)
    every = {n for n, _ in net.named_parameters()}
    assert left & right == {n for n in every if n.startswith("trunk.")}
    assert left | right == every
    outputs = net(images)
    assert [out.shape for out in outputs] == [(3, 10), (3, 10)]
    assert not torch.equal(*outputs)


def test_a_condition_is_a_one_hot_input():
    """Adding a task's features equals a first layer on the image with the task's number."""
    net = architectures.TaskConditioned(architectures.dense(5, 4), 3)
    x = torch.randn(2, 5)
    first, trunk = dict(net.named_parameters()), net.trunk
    for task, output in enumerate(net(x)):
        weight = torch.cat(
            [first["trunk.first.1.weight"], *(first[f"heads.{t}.weight"] for t in (0, 1))], 1
        )
        told = torch.cat([x, F.one_hot(torch.full((2,), task), 2).float()], 1)
        h = F.relu(told @ weight.T + first["trunk.first.1.bias"])
        expected = trunk["head"](F.relu(trunk["second"](h)))
        torch.testing.assert_close(output, expected)


def test_stitches_mix_the_columns():
    """With the identity two networks of their own; with equal halves one average for both."""
    net = architectures.CrossStitch(architectures.dense(5, 4), 3)
    x = torch.randn(2, 5)
    columns, stitches = net.trunk.columns, list(net.trunk.stitches)
    with torch.no_grad():
        for stitch in stitches:
            stitch.copy_(torch.eye(2))
    for task, output in enumerate(net(x)):
        column = columns[task]
        assert isinstance(column, torch.nn.ModuleDict)
        own = F.relu(column["second"](F.relu(column["first"](x))))
        torch.testing.assert_close(output, net.heads[task](own))
    with torch.no_grad():
        stitches[1].fill_(0.5)
    left, right = net.trunk(x)
    torch.testing.assert_close(left, right)


def test_the_lenet_is_the_official_one(tmp_path):
    """Shapes of MultiLeNetR and MultiLeNetO, and their forward pass written out."""
    settings = SHORT._replace(data=Source(str(tmp_path), ""))
    net = train.network(settings, train.SETTINGS[train.BASE], 0)
    trunk = (10 * 25 + 10) + (20 * 10 * 25 + 20) + (320 * 50 + 50)
    assert sum(p.numel() for p in net.parameters()) == trunk + 2 * (50 * 51 + 10 * 51)
    p = dict(net.named_parameters())
    names = ("trunk.first.0.0", "trunk.first.0.3", "trunk.second")
    images, key = torch.randn(5, 1, 28, 28), mf.random.key(9)

    def literal(masked: bool) -> list[torch.Tensor]:
        keys = list(train.masks(net, key).values())
        (one, a), (two, b), (fc, c) = ((p[f"{n}.weight"], p[f"{n}.bias"]) for n in names)
        x = F.relu(F.max_pool2d(F.conv2d(images, one, a), 2))
        x = F.conv2d(x, two, b)
        if masked:
            x = x * (mf.random.uniform(keys[0], (20,)) < 0.5)[None, :, None, None]
        x = F.relu(F.linear(F.relu(F.max_pool2d(x, 2)).reshape(-1, 320), fc, c))
        outputs = []
        for task in range(2):
            layers = [(p[f"heads.{task}.{n}.weight"], p[f"heads.{task}.{n}.bias"]) for n in HEAD]
            h = F.relu(F.linear(x, *layers[0]))
            if masked:
                h = h * (mf.random.uniform(keys[1 + task], (5, 50)) < 0.5)
            outputs.append(F.linear(h, *layers[1]))
        return outputs

    for masked in (True, False):
        net.train(masked)
        outputs = torch.func.functional_call(net, train.masks(net, key), (images,))
        for ours, expected in zip(outputs, literal(masked), strict=True):
            torch.testing.assert_close(ours, expected)
    other = train.masks(net, mf.random.key(10))
    net.train()
    again = torch.func.functional_call(net, other, (images,))
    assert not torch.equal(again[0], literal(True)[0])


HEAD = ("hidden", "out")


@pytest.mark.parametrize("problem", ["hard sharing", "task-conditioned"])
def test_dropped_features_are_a_function_of_the_seed(problem, tmp_path):
    """Runs side by side and alone drop the same; a run is measured with nothing dropped."""
    write_mnist(tmp_path, (40, 8))
    train._read.cache_clear()
    settings = train.Settings(Source(str(tmp_path), ""), 2, 10, True, "cpu")
    cells = tuple(Cell(problem, "gradnorm", "", rate, s) for rate in (1e-3, 1e-2) for s in (0, 3))
    together = train.together(settings, cells)
    (alone,) = train.together(settings, cells[-1:])
    assert together[-1]["train"] == pytest.approx(alone["train"], abs=1 / 34)
    assert together[-1]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert train.together(settings, cells[-1:])[0]["train"] == alone["train"]


# ---- runs ----------------------------------------------------------------------------------------

SHORT = train.Settings(None, 1, 1024, False, "cpu")


@pytest.mark.parametrize("problem", train.SETTINGS)
def test_a_program_is_its_runs_one_by_one(problem):
    cells = tuple(Cell(problem, "gradnorm", "", rate, s) for rate in (2e-3, 6e-3) for s in (0, 3))
    together = train.together(SHORT, cells)
    (alone,) = train.together(SHORT, cells[-1:])
    for part in ("test", "train"):
        # a pair may lie on the border between two classes
        assert together[-1][part] == pytest.approx(alone[part], abs=3 / 1436)
    assert together[-1]["parameters"] == alone["parameters"]
    assert len({numbers["test"]["left"] for numbers in together}) > 1
    longer = train.SETTINGS[problem].longer
    assert alone["steps"] == longer * (4312 // 1024)


@pytest.mark.parametrize("name", train.METHODS)
def test_a_program_of_any_method_is_its_runs_one_by_one(name):
    variant = train.VARIANTS.get(name, ("",))[0]
    cells = [Cell(train.BASE, name, variant, rate, s) for rate in (2e-3, 6e-3) for s in (0, 3)]
    together = train.together(SHORT, cells)
    (alone,) = train.together(SHORT, cells[-1:])
    assert together[-1]["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    assert len({numbers["loss"]["left"] for numbers in together}) == 4


def test_networks_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (train.network(SHORT, train.SETTINGS[train.BASE], s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(mf.parameters(first)["trunk.second.weight"], again.trunk["second"].weight)
    assert not torch.equal(first.trunk["second"].weight, other.trunk["second"].weight)


def test_one_task_alone_learns_as_a_stock_loop():
    (numbers,) = train.together(SHORT, (Cell("hard sharing", "left alone", "", 1e-2, 2),))
    assert list(numbers["test"]) == ["left"]
    net = train.network(SHORT, train.SETTINGS["hard sharing"], 2)
    parts = train.split(SHORT, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    order = train._order(torch.tensor(2), 0, len(parts.train.labels))
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 4)) / 2
        index = order[1024 * step : 1024 * (step + 1)]
        loss = F.cross_entropy(net(parts.train.canvases[index])[0], parts.train.labels[index, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, part in (("test", parts.test), ("train", parts.train)):
        right = (net(part.canvases)[0].argmax(1) == part.labels[:, 0]).double().mean().item()
        assert numbers[name]["left"] == pytest.approx(right, abs=3 / len(part.labels))


def test_a_diverged_run_is_reported_as_such():
    cells = tuple(Cell("hard sharing", "mean", "", rate, 0) for rate in (1e-3, 1e30))
    good, bad = train.together(SHORT, cells)
    assert math.isfinite(good["score"])
    assert math.isnan(bad["score"])
    assert all(map(math.isnan, bad["test"].values()))


@pytest.mark.parametrize("name", ["left alone", *train.METHODS, *train.FRONTS])
def test_a_run_alone_that_diverges_is_reported_as_such(name):
    """Never an error, which would end the whole study."""
    settings = SHORT._replace(papers=True)
    (bad,) = train.together(settings, [Cell(train.BASE, name, "", 1e30, 0)])
    assert math.isnan(bad["score"])
    for part in ("test", "train", "loss"):
        assert all(map(math.isnan, bad[part].values()))
    (poor,) = train.together(settings, [Cell(train.BASE, name, "", 1e2, 0)])
    assert not poor["score"] > 0.5


def test_a_folder_is_divided_before_it_is_paired(tmp_path):
    write_mnist(tmp_path, (40, 8))
    settings = train.Settings(Source(str(tmp_path), ""), 1, 8, True, "cpu")
    train._read.cache_clear()
    parts = train.split(settings, 1)
    assert [len(part.labels) for part in parts] == [34, 6, 8]
    labels = mnist.read(tmp_path)["train"][1]
    assert torch.equal(parts.train.labels[:, 0], labels[:34])
    assert sorted(parts.validation.labels[:, 1].tolist()) == sorted(labels[34:].tolist())
    half = train.split(settings._replace(most=20), 1)
    assert [len(part.labels) for part in half] == [17, 3, 4]
    assert torch.equal(half.train.labels[:, 0], labels[:17])
    image = parts.test.canvases[3]
    expected = (image.double() / 255 - 0.1307) / 0.3081
    assert train.seen(image[None])[0, 0].numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert [round(train.rate_at(settings, s), 4) for s in (0.0, 0.1, 0.35)] == [1, 0.85, 0.6141]
    with pytest.raises(DataError, match=r"34 training images are left .* fewer than one batch"):
        train.split(settings._replace(batch=35), 1)


# ---- the report and the command ------------------------------------------------------------------


def test_command_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "settings_of", lambda *rest: SHORT)
    few = {name: train.SETTINGS[name] for name in (train.BASE, "twice as wide")}
    monkeypatch.setattr(command, "SETTINGS", few)
    monkeypatch.setattr(command, "RATES", (6e-3,))
    arguments = ["--quick", "--rules", "pcgrad,mean", "--workers", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(kept["problems"]) == list(few)
    for methods in kept["problems"].values():
        assert list(methods) == ["left alone", "right alone", "pcgrad", "mean"]
        test = {n: [r["test"] for r in m["runs"]] for n, m in methods.items()}
        gain = [
            50 * sum(test["pcgrad"][s][t] - test["mean"][s][t] for t in train.TASKS)
            for s in range(2)
        ]
        summary = methods["pcgrad"]["summary"]
        assert summary["against_mean"] == pytest.approx(estimate(gain)._asdict())
        loss = [
            50 * sum(1 - test["mean"][s][t] / test[f"{t} alone"][s][t] for t in train.TASKS)
            for s in range(2)
        ]
        assert methods["mean"]["summary"]["delta_m"]["mean"] == pytest.approx(np.mean(loss))
        train_of = [r["train"] for r in methods["mean"]["runs"]]
        gaps = [
            50 * sum(train_of[s][t] - test["mean"][s][t] for t in train.TASKS) for s in range(2)
        ]
        assert methods["mean"]["summary"]["gap"]["mean"] == pytest.approx(np.mean(gaps))
    assert "**Capacity** — one network twice as wide less two separate ones" in shown
    assert "nan" not in shown
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")}

    def never(*cells: object) -> None:
        raise AssertionError("all of it was kept")

    monkeypatch.setattr(command, "together", never)
    assert command.main(arguments) == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert (tmp_path / "multimnist.png").is_file()


def test_a_front_is_measured_with_what_is_finite():
    """Rectangles below the corner: of (1, 1.5) and (1.5, 1); one network diverged."""
    points = ((1.0, 1.5), (1.5, 1.0), (math.nan, math.nan), (3.0, 0.1))
    front = {f"{i}": [{"loss": {"left": x, "right": y}}] for i, (x, y) in enumerate(points)}
    volume = 1 * 0.5 + 0.5 * 0.5
    assert report.volumes(Found({}, {}, {"epo": front})) == {"epo": [pytest.approx(volume)]}


def test_every_method_learns(tmp_path):
    """On images that show their label, each method is right more often at what it learns."""
    labels = np.arange(60, dtype=np.uint8) % 10
    images = np.zeros((60, 28, 28), np.uint8)
    images[np.arange(60), 4 + 2 * labels] = 255
    for part in mnist.PARTS:
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(idx_bytes(array))
    train._read.cache_clear()
    settings = train.Settings(Source(str(tmp_path), ""), 60, 50, True, "cpu")
    plan = command.plan_of("default", settings, None, (0, 1, 2))
    variants = plan.methods | plan.fronts
    assert [*variants] == [*train.ALONE.values(), *train.METHODS, *train.FRONTS]
    for name, each in variants.items():
        cell = Cell(train.BASE, name, "", 0.1, 1)
        for variant in each[:1]:
            (after,) = train.together(settings, (cell._replace(variant=variant),))
            (before,) = train.together(settings._replace(epochs=1), (cell._replace(rate=1e-9),))
            assert sum(after["train"].values()) > sum(before["train"].values()) + 0.05, name
            assert all(map(math.isfinite, after["loss"].values())), name


def test_the_official_normalisation_is_its_loop():
    """Weights of the shortest combination of g_t/(L_t ‖g_t‖), on the gradients as they are."""
    rows, losses = (
        torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]).double(),
        torch.tensor([0.5, 2]),
    )
    unit = [row / (loss * row.norm()) for row, loss in zip(rows, losses.double(), strict=True)]
    best = min(
        (w / 10_000 for w in range(10_001)),
        key=lambda w: float((w * unit[0] + (1 - w) * unit[1]).norm()),
    )
    found = mf.weights(train.official_mgda(), rows @ rows.mT, losses=losses.double())
    assert found.tolist() == pytest.approx([best, 1 - best], abs=1e-4)


def test_the_bound_sees_the_representation(tmp_path):
    """`_representation`'s Gramian is that of the losses' gradients at what the heads read."""
    write_mnist(tmp_path, (24, 8))
    settings = train.Settings(Source(str(tmp_path), ""), 1, 8, True, "cpu")
    net = train.network(settings, train.SETTINGS[train.BASE], 3)
    train._read.cache_clear()
    pairs, key = train.split(settings, 0).train, mf.random.key(4)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def losses(params, batch):
        merged = params | train.masks(net, batch[1])
        outputs = torch.func.functional_call(net, merged, (train.seen(batch[0].canvases),))
        return tuple(F.cross_entropy(out, pairs.labels[:, i]) for i, out in enumerate(outputs))

    net.train()
    step = mf.balance(losses, mf.mgda(), train._representation(net))
    _, _, info = step.update(params, (pairs, key), step.init(params, (pairs, key)))
    torch.func.functional_call(net, train.masks(net, key), (train.seen(pairs.canvases),))
    for name, x in train.masks(net, key).items():
        net.get_buffer(name).copy_(x)
    z = net.trunk(train.seen(pairs.canvases)).detach().requires_grad_()
    rows = [
        torch.autograd.grad(F.cross_entropy(head(z), pairs.labels[:, i]), z)[0].flatten()
        for i, head in enumerate(net.heads)
    ]
    expected = torch.stack([torch.stack([a @ b for b in rows]) for a in rows])
    torch.testing.assert_close(info.gramian, expected)


def test_the_plan_of_data(tmp_path):
    settings = command.settings_of("default", Source(str(tmp_path), ""), "cpu", "mixed")
    assert (settings.epochs, settings.batch, settings.set) == (10, 256, "mixed")
    plan = command.plan_of("default", settings, None, tuple(range(6)))
    assert plan.problems == (train.BASE, train.TENTH)
    assert (plan.tuning, plan.seeds, plan.beyond) == ((0,), (1, 2, 3, 4, 5), 0)
    assert len(plan.rates) == 3
    assert len(plan.methods) == 2 + 14
    assert {m for p, m in plan.left_out} == {*train.METHODS} - {*train.RULES}
    assert plan.fronts == dict.fromkeys(train.FRONTS, train.PREFERENCES)
    every = command.plan_of("full", settings, None, tuple(range(6)))
    assert set(every.problems) == {*train.SETTINGS, *train.OF_DATA}
    one = command.plan_of("default", settings, ["mgda"], (3, 4), (train.BASE,), 0.02)
    assert (one.rates, one.tuning, one.seeds, one.fronts) == ((0.02,), (3,), (3, 4), {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rules", "epo,mean"], "give the folder with --data"),
        (["--settings", train.TENTH], "give the folder with --data"),
        (["--set", "fashion"], "give the folder with --data"),
        (["--settings", "cross-stitch", "--rules", "mgda,mean"], "mgda only run in hard sharing"),
        (["--data", ".", "--rules", "epo,mgda"], "add mean"),
        (["--set", "cifar"], "invalid choice"),
        (["--rate", "0"], "above 0"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(given, said, capsys):
    with pytest.raises(SystemExit):
        command.main(given)
    assert said in capsys.readouterr().err


def test_help_says_how_to_get_the_files(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(mnist.GET.split()) in shown
    assert "http" not in shown
    page = (Path(command.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert mnist.GET in page
