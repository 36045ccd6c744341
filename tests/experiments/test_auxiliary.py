"""experiments/auxiliary: views, losses, division, CIFAR-10's files, networks, runs, the command."""

import copy
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, vmap

import mtlfunc as mf
from common.cells import Cell, state_of
from common.files import DataError, Source
from common.intervals import estimate
from experiments.auxiliary import __main__ as command
from experiments.auxiliary import data, networks, report, search, tasks, train

LOOK = tasks.Look(1, False)
EVERY = tasks.tasks(8, 1, LOOK)
KEY = mf.random.key(3)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Twenty digits."""
    return data.values(data.divide(None, 50, 0).labelled[:20], data.DIGITS)


# ---- views ---------------------------------------------------------------------------------------


def test_windows_are_their_literal_loop(images):
    corner = torch.randint(0, 4, (2, len(images)))
    found = tasks.window(images, corner, (5, 4))
    for i, (row, column) in enumerate(corner.T.tolist()):
        assert torch.equal(found[i], images[i, :, row : row + 5, column : column + 4])


@pytest.mark.parametrize("mirror", [False, True])
def test_standard_views_are_shifts(images, mirror):
    found = tasks.standard(images, KEY, tasks.Look(1, mirror))
    padded, seen = F.pad(images, (1, 1, 1, 1)), set()
    for i, view in enumerate(found):
        every = {
            (r, c, turned): padded[i, :, r : r + 8, c : c + 8].flip([-1] if turned else [])
            for r in range(3)
            for c in range(3)
            for turned in range(1 + mirror)
        }
        seen |= {move for move, whole in every.items() if torch.equal(whole, view)}
    assert len(seen) > 6
    assert {turned for *_, turned in seen} == set(range(1 + mirror))


@pytest.mark.parametrize("mirror", [False, True])
def test_a_warp_is_affine_and_within_its_ranges(mirror):
    """Pictures of their own coordinates, whose bilinear interpolation is exact."""
    side, count, look = 32, 20, tasks.Look(2, mirror)
    along = (2 * torch.arange(side) + 1) / side - 1
    ramps = torch.stack([along.expand(side, -1), along[:, None].expand(-1, side)])
    found = tasks.warped(ramps.expand(count, -1, -1, -1) + 10, KEY, look) - 10
    here = torch.cat([ramps, torch.ones(1, side, side)])[:, 12:20, 12:20].flatten(1)
    reached = []
    for view in found[:, :, 12:20, 12:20].flatten(2):
        matrix = torch.linalg.lstsq(here.T, view.T).solution.T
        torch.testing.assert_close(matrix @ here, view, rtol=0, atol=1e-4)
        (a, b, right), (c, d, down) = matrix.tolist()
        # a move of m pixels is one of 2m/side
        assert max(abs(right), abs(down)) < 2 * look.reach / side + 1e-4
        angle = math.atan2(c, a) if a > 0 else math.atan2(-c, -a)
        assert abs(angle) < 0.4 + 1e-3
        for stretched in (math.hypot(a, c), d / math.cos(angle)):
            assert 0.8 - 1e-3 < stretched < 1.2 + 1e-3
        assert abs(b + math.sin(angle)) < 0.3 + 1e-3
        reached.append(a > 0)
    assert set(reached) == ({True, False} if mirror else {True})


def test_what_was_done_is_what_is_to_be_said(images):
    grid = images[:, 0].numpy()
    views, turns = EVERY["rotation"].views(images, KEY)
    pieces, orders = EVERY["jigsaw"].views(images, KEY)
    partial, hidden = EVERY["hidden"].views(images, KEY)
    placed, places = EVERY["place"].views(images, KEY)
    for i, image in enumerate(grid):
        assert np.array_equal(views[i, 0], np.rot90(image, int(turns[i])))
        quarters = [image[r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
        order = tasks.ORDERS[int(orders[i])]
        for place, (r, c) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            assert np.array_equal(pieces[i, 0, r : r + 4, c : c + 4], quarters[order[place]])
            part = partial[i, 0, r : r + 4, c : c + 4].numpy()
            assert np.array_equal(part, quarters[place]) or not part.any()
        whole = partial[i, 0].numpy()
        assert whole.sum() + hidden[i].sum() == pytest.approx(image.sum(), rel=1e-5)
        row, column = divmod(int(places[i]), 3)
        moved = np.pad(image, 1)[row : row + 8, column : column + 8]
        assert np.array_equal(placed[i, 0], moved)
    assert set(turns.tolist()) == set(range(4))


def test_colours_of_noise_are_told_apart_by_their_neighbours():
    still = torch.zeros(300, 1, 8, 8)
    noise, colour = EVERY["noise"].views(still, KEY)
    for which, likeness in enumerate((0.0, 0.5, -0.5)):
        own = noise[colour == which]
        assert own.std().item() == pytest.approx(0.6, rel=0.05)
        product = (own * own.roll(1, -1)).mean() / own.square().mean()
        assert product.item() == pytest.approx(likeness, abs=0.05)


@pytest.mark.parametrize("name", EVERY)
def test_views_are_a_function_of_the_key_and_vmap(images, name):
    task, keys = EVERY[name], torch.stack([mf.random.key(s) for s in (1, 2)])
    together = vmap(lambda key: task.views(images, key))(keys)
    for i, key in enumerate(keys):
        views, said = task.views(images, key)
        torch.testing.assert_close(together[0][i], views)
        torch.testing.assert_close(together[1][i], said)
    assert not torch.equal(together[0][0], together[0][1])


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


def test_divisions_are_disjoint_and_labels_balanced():
    parts = [data.divide(None, count, 7) for count in data.DIGITS.labels]
    for count, part in zip(data.DIGITS.labels, parts, strict=True):
        assert part.labels.bincount(minlength=10).tolist() == [count // 10] * 10
        lengths = (len(part.unlabelled), len(part.validation), len(part.test))
        assert lengths == (1797 - 800, 200, 600)
        # the same test and validation images whatever the number of labels
        assert torch.equal(part.test, parts[0].test)
        assert torch.equal(part.validation, parts[0].validation)
        whole = torch.cat([part.unlabelled, part.validation, part.test]).flatten(1).tolist()
        pixels, _ = data._all(None)[0]
        assert sorted(whole) == sorted(pixels.flatten(1).tolist())
        known = {tuple(image) for image in part.unlabelled.flatten(1).tolist()}
        assert {tuple(image) for image in part.labelled.flatten(1).tolist()} <= known
    # the fewer are among the more
    fewer, more = ({tuple(x) for x in p.labelled.flatten(1).tolist()} for p in parts[:2])
    assert fewer <= more
    assert not torch.equal(data.divide(None, 50, 8).test, parts[0].test)


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


def test_the_small_trunk_is_made_of_convolutions(images):
    net = networks.Small()
    first = net.first.weight.reshape(8, 1, 3, 3)
    x = F.relu(F.conv2d(images, first, net.first.bias, padding=1))
    # a window's inputs are ordered by row, column, channel
    second = net.second.weight.reshape(16, 2, 2, 8).movedim(-1, 1)
    x = F.conv2d(x, second, net.second.bias, stride=2).flatten(2).mT.flatten(1)
    expected = F.relu(net.last(F.relu(net.norm(x))))
    torch.testing.assert_close(net(images), expected)


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


@pytest.mark.parametrize("name", [train.ALONE, *train.RULES])
def test_a_program_is_its_runs_one_by_one(name, tmp_path):
    """Adam's first step is ± the rate whatever a gradient's size, so that rounding reaches the
    weights only where a gradient is about 0; three steps later losses agree far better than 1e-4.
    """
    cells = tuple(Cell("50 labels", name, "", rate, s) for rate in (1e-3, 3e-3) for s in (0, 4))
    together = train.together(SHORT, cells)
    for cell in cells[3:]:
        found = together[cells.index(cell)]
        numbers = train.alone(SHORT, tmp_path, cell)
        for part in ("losses", "weights", "course"):
            for task, value in numbers[part].items():
                assert found[part][task] == pytest.approx(value, rel=1e-4, abs=1e-4), (part, task)
        # one image of the tested ones may lie on the border between two classes
        assert found["test"] == pytest.approx(numbers["test"], abs=1.5 / 600)
    assert len({numbers["losses"]["class"] for numbers in together}) == 4
    assert list(together[0]["weights"]) == ["class", *(tasks.CHOSEN if name != train.ALONE else ())]
    assert sum(together[0]["weights"].values()) == pytest.approx(1)


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


def test_a_diverged_run_is_reported_as_such():
    cells = tuple(Cell("50 labels", "mean", "", rate, 0) for rate in (1e-3, 1e30))
    good, bad = train.together(SHORT, cells)
    assert math.isfinite(good["score"])
    assert math.isnan(bad["score"])
    assert math.isnan(bad["test"])


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


def row(mean: float, above: list[float] | None, weight: float = 0.25) -> report.Row:
    weights = {t: estimate([weight, weight + 1e-9]) for t in ("class", *tasks.CHOSEN)}
    return report.Row(
        estimate([50.0, 51.0]),
        estimate([mean, mean + 0.1]),
        None if above is None else estimate(above),
        weights,
        None,
        1.0,
    )


def test_verdicts_follow_the_intervals():
    wins, loses, unclear = [3.0, 3.1] * 4, [-3.0, -3.1] * 4, [-1.0, 1.0] * 4
    low, high, same = row(-5.0, wins, 0.03), row(2.0, wins), row(0.0, None)
    for rivals, said in (
        ([wins, wins], "holds"),
        ([wins, unclear], "inconclusive"),
        ([wins, loses], "does not hold"),
        ([unclear, loses], "does not hold"),
    ):
        few = {str(i): {"cagrad": same, "mean": row(0, r)} for i, r in enumerate(rivals)}
        names = (train.ALONE, *train.RULES)
        every = {str(i): dict.fromkeys(names, row(0, r)) for i, r in enumerate(rivals)}
        every = {problem: of | {"cagrad": same} for problem, of in every.items()}
        assert report.highest(every) == said
        # not all rivals were there
        assert report.highest(few) == said.replace("holds", "inconclusive")
    assert report.highest({"50": {"cagrad": same}}) == ""
    assert report.neglected({"50": {"mgda": low}, "100": {"mgda": low}}) == "holds"
    assert report.neglected({"50": {"mgda": low}, "100": {"mgda": high}}) == "does not hold"
    assert report.neglected({"50": {"mgda": row(-5.0, wins)}}) == "inconclusive"
    assert report.neglected({"50": {"mgda": row(-5.0, wins, 0.5)}}) == "does not hold"
    assert report.neglected({"50": {"mean": same}}) == ""


def test_command_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "settings_of", lambda *rest: SHORT)
    monkeypatch.setattr(train, "DIGITS", data.DIGITS._replace(labels=(50, 100)))
    monkeypatch.setattr(command, "RATES", (1e-2,))
    arguments = ["--quick", "--rules", "cagrad,mean", "--workers", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(kept["problems"]) == ["50 labels", "100 labels"]
    for methods in kept["problems"].values():
        assert list(methods) == [train.ALONE, "cagrad", "mean"]
        test = {n: [100 * r["test"] for r in m["runs"]] for n, m in methods.items()}
        for name, theirs in (("cagrad", "mean"), (train.ALONE, "mean")):
            difference = np.subtract(test[name], test[theirs])
            expected = estimate(difference.tolist(), 2)
            found = methods[name]["summary"]["against_mean"]
            assert found == pytest.approx(expected._asdict())
        above = methods["mean"]["summary"]["cagrad_above"]["mean"]
        assert above == pytest.approx(np.mean(np.subtract(test["cagrad"], test["mean"])))
        assert methods["cagrad"]["summary"]["cagrad_above"] is None
    assert "nan" not in shown


def test_search_takes_each_set_by_itself(tmp_path, monkeypatch, capsys):
    """Its runs are those of the mean loss with these auxiliary tasks alone."""
    monkeypatch.setattr(command, "settings_of", lambda *rest: SHORT)
    monkeypatch.setattr(search, "SETS", (("noise",), ("crops", "rotation")))
    monkeypatch.setattr(command, "RATES", (1e-2,))
    arguments = ["--search", "--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"| {name} " in shown for name in (train.ALONE, "noise", "crops, rotation"))
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    seeds = tuple(Cell("50 labels", "mean", "", 1e-2, seed) for seed in range(2))
    alone = [100 * run["test"] for run in kept["runs"][train.ALONE]]
    for chosen in search.SETS:
        name = ", ".join(chosen)
        wanted = train.together(SHORT._replace(auxiliaries=chosen), seeds)
        got = kept["runs"][name]
        assert [run["test"] for run in got] == [run["test"] for run in wanted]
        gain = [100 * run["test"] - a for run, a in zip(got, alone, strict=True)]
        assert kept["gains"][name] == pytest.approx(estimate(gain, 2)._asdict())


def test_command_on_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "settings_of", lambda *rest: folder._replace(steps=2))
    monkeypatch.setattr(command, "WIDE_RATES", (1e-3,))
    call = ["--seeds", "2", "--workers", "1", "--quick", "--rules", "mean"]
    call += ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "cifar")]
    assert command.main(call) == 0
    (tmp_path / "cifar" / data.INNER / "test_batch").write_bytes(b"nothing")
    data._all.cache_clear()
    assert command.main(call) == 2
