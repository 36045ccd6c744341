"""experiments/multimnist: MNIST's files, composition, LeNet, runs, a study stopped and resumed."""

# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# pyright: reportIndexIssue=false

import gzip
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
from common.problems import digits as data
from common.study import Found
from experiments.multimnist import __main__ as command
from experiments.multimnist import mnist, report, train
from tests.support.idx import idx_bytes, write_mnist
from tests.support.oracles import rows_of


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inner", mnist.SETS["mnist"].places)
def test_official_files_are_read_as_they_are(tmp_path, zipped, inner):
    held = mnist.read(write_mnist(tmp_path, zipped=zipped, inner=inner))
    for seed, (part, count) in enumerate((("train", 24), ("t10k", 8))):
        generator = np.random.default_rng(seed)
        images, labels = held[part]
        assert np.array_equal(images, generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        assert np.array_equal(labels, generator.integers(0, 10, count, dtype=np.uint8))


def test_pairs_are_their_literal_loop():
    """On 36 x 36 the left digit at [0:28], the right at [6:34]; then Pillow's nearest pixel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 28, 28), dtype=torch.uint8, generator=generator)
    own = images, torch.arange(7)
    canvases, both = mnist.pairs(own, own, mf.random.key(4))
    assert sorted(both[:, 1].tolist()) == list(range(7))
    for i, (left, right) in enumerate(both.tolist()):
        assert left == i
        canvas = np.zeros((36, 36), np.uint8)
        canvas[:28, :28] = images[left].numpy()
        canvas[6:34, 6:34] = np.maximum(canvas[6:34, 6:34], images[right].numpy())
        small = Image.fromarray(canvas).resize((28, 28), Image.Resampling.NEAREST)
        assert np.array_equal(canvases[i], np.asarray(small))
    # of two sets of different sizes: the smaller number of pairs, left ones in their order
    _, two = mnist.pairs(own, (images[:3], torch.arange(7, 10)), mf.random.key(4))
    assert two[:, 0].tolist() == [0, 1, 2]
    assert sorted(two[:, 1].tolist()) == [7, 8, 9]


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("train-images-idx3-ubyte", None),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(24), mtime=0)[:-9]),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.full(8, 11, np.uint8))),
    ],
)
def test_a_bad_folder_names_the_file(tmp_path, name, held):
    write_mnist(tmp_path)
    (tmp_path / name.removesuffix(".gz")).unlink()
    if held is not None:
        (tmp_path / name).write_bytes(held)
    with pytest.raises(DataError, match=name):
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
    assert mnist.SETS["mnist"].md5[0] in warning


def test_the_lenet_is_the_official_one(tmp_path):
    """Numbers of parameters of MultiLeNetR and MultiLeNetO, and their forward pass written out."""
    settings = SHORT._replace(data=Source(str(tmp_path), ""))
    net = train.network(settings, train.SETTINGS[train.BASE], 0)
    trunk = (10 * 25 + 10) + (20 * 10 * 25 + 20) + (320 * 50 + 50)
    assert sum(p.numel() for p in net.parameters()) == trunk + 2 * (50 * 51 + 10 * 51)
    p = dict(net.named_parameters())
    images, key = torch.randn(5, 1, 28, 28), mf.random.key(9)

    def layer(way, x, name):
        return way(x, p[f"{name}.weight"], p[f"{name}.bias"])

    for masked in (True, False):
        keys = list(train.masks(net, key).values())
        x = F.relu(F.max_pool2d(layer(F.conv2d, images, "trunk.first.0.0"), 2))
        x = layer(F.conv2d, x, "trunk.first.0.3")
        if masked:
            x = x * (mf.random.uniform(keys[0], (20,)) < 0.5)[None, :, None, None]
        x = F.relu(F.max_pool2d(x, 2)).reshape(-1, 320)
        x = F.relu(layer(F.linear, x, "trunk.second"))
        outputs = torch.func.functional_call(net.train(masked), train.masks(net, key), (images,))
        for task, ours in enumerate(outputs):
            h = F.relu(layer(F.linear, x, f"heads.{task}.hidden"))
            if masked:
                h = h * (mf.random.uniform(keys[1 + task], (5, 50)) < 0.5)
            torch.testing.assert_close(ours, layer(F.linear, h, f"heads.{task}.out"))


SHORT = train.Settings(None, 1, 1024, False, "cpu")


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


@pytest.mark.parametrize("name", ["left alone", *train.METHODS, *train.FRONTS])
def test_a_run_that_diverges_is_reported_as_such(name):
    settings = SHORT._replace(papers=True)
    (bad,) = train.together(settings, [Cell(train.BASE, name, "", 1e30, 0)])
    every = (bad["score"], *(x for part in ("test", "train", "loss") for x in bad[part].values()))
    assert all(map(math.isnan, every))


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
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]).double()
    losses = torch.tensor([0.5, 2]).double()
    one, other = rows / (losses * rows.norm(dim=1))[:, None]
    shares = torch.linspace(0, 1, 10_001).double()[:, None]
    best = float(shares[(shares * one + (1 - shares) * other).norm(dim=1).argmin()])
    found = mf.weights(train.official_mgda(), rows @ rows.mT, losses=losses)
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
    each = [F.cross_entropy(head(z), pairs.labels[:, i]) for i, head in enumerate(net.heads)]
    rows = rows_of(each, [z])
    torch.testing.assert_close(info.gramian, rows @ rows.mT)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small folder, and a study of it with one setting, two rates, three seeds and a front."""
    write_mnist(tmp_path / "mnist", (24, 8), zipped=True)
    train._read.cache_clear()
    short = command.settings_of

    def settings_of(*given):
        return short(*given)._replace(epochs=1, batch=8)

    def plan_of(size, settings, rules, seeds, *rest):
        plan = PLAN(size, settings, ("mean", "static search", "epo"), seeds, *rest)
        few = {"static search": plan.methods["static search"][:2]}
        return plan._replace(methods=plan.methods | few, fronts={"epo": plan.fronts["epo"][:2]})

    monkeypatch.setattr(command, "settings_of", settings_of)
    monkeypatch.setattr(command, "plan_of", plan_of)
    monkeypatch.setattr(command, "DATA_RATES", {"default": (3e-3, 1e-2)})
    return tmp_path


PLAN = command.plan_of
RUNS = 2 * 2 + 2 + 4 + 2 * (2 + 1 + 1) + 2 * 2
"""Alone, mean and static search at two rates; two seeds of each; two points of a front."""


def call(folder: Path, *more: str) -> list[str]:
    given = ["--data", str(folder), "--settings", train.BASE, "--seeds", "3", "--workers", "1"]
    return [*given, "--out", str(folder / "out"), *more]


def results(folder: Path) -> dict:
    """What a study found, without times."""
    text = (folder / "results.json").read_text(encoding="utf-8")
    timeless = lambda x: {k: v for k, v in x.items() if "step_ms" not in k}  # noqa: E731
    return json.loads(text, object_hook=timeless)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--runs", "."], ". is not a file that can be read"),
        (["--rate", "0.10000001"], "expected six digits at most"),  # the file would name it 0.1
    ],
)
def test_what_no_file_of_runs_can_hold_is_refused(tmp_path, capsys, given, said):
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path), *given])
    assert said in capsys.readouterr().err


def test_every_set_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """Two sets' runs have the same names, and what another set left is not read but replaced."""
    seen = []
    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setattr(command.command, "finish", lambda body, out: seen.append(out) or 0)
    for kind in mnist.MIXTURES:
        assert command.main(["--data", str(tmp_path), "--set", kind]) == 0
    assert len({*seen}) == len(mnist.MIXTURES)


def test_a_seed_that_chooses_nothing_is_a_result():
    settings = train.Settings(Source("folder", ""), 1, 8, True, "cpu")
    for rules, seeds in ((["mgda"], (1, 2, 3)), (["cagrad"], (2, 3))):
        assert command.plan_of("default", settings, rules, (1, 2, 3), None, 0.1).seeds == seeds


def test_runs_go_from_machine_to_machine_in_a_file(folder, monkeypatch, capsys):
    """Into another folder, under another version of the code, which the table says."""
    kept = folder / "runs.json"
    more = ["--runs", str(kept)]
    assert command.main(call(folder, *more)) == 2
    assert "--runs: expected the published files, got MNIST, not" in capsys.readouterr().err
    assert not kept.exists()
    monkeypatch.setattr(mnist, "checked", lambda *_: ("MNIST, the published files", []))
    with monkeypatch.context() as patched:  # Ctrl-C after five
        real, left = command.together, [5]

        def failing(*given):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*given)

        patched.setattr(command, "together", failing)
        assert command.main(call(folder, *more)) == 130
    assert len(kept.read_text().splitlines()) == 5 + 4
    monkeypatch.setattr("common.cells.key", lambda *_: "another version")
    assert command.main(call(folder, *more, "--out", str(folder / "other"))) == 0
    assert "- 5 runs are of runs.json, made by other versions" in capsys.readouterr().out
    assert len(list((folder / "other" / "cells").rglob("*.json"))) == RUNS - 5
    before = results(folder / "other")
    monkeypatch.setattr(command, "together", lambda *_: pytest.fail("all were there"))
    assert command.main(call(folder, *more, "--out", str(folder / "third"))) == 0
    assert results(folder / "third") == before


def test_pairs_are_made_of_their_sources():
    source = data.digits(dtype=torch.float64)
    parts, used = data.splits(source, torch.tensor(5)), []
    for part in parts:
        left, right = part.sources.unbind(-1)
        used.append({*left.tolist()})
        assert {*right.tolist()} <= used[-1]
        assert torch.equal(part.labels, source.labels[part.sources])
        wide = [F.pad(source.images[left], (0, 2, 0, 2)), F.pad(source.images[right], (2, 0, 2, 0))]
        assert torch.equal(part.canvases.reshape(-1, 10, 10), torch.maximum(*wide))
    assert sum(map(len, used)) == len(set().union(*used)) == len(source.labels)  # disjoint
