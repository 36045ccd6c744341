"""A grid against nested Python loops, in any chunks, interrupted and resumed; its refusals."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xarray
from torch.func import grad, vmap

import mtlfunc as mf
from mtlfunc.core.files import write_whole
from mtlfunc.studies import _grid
from mtlfunc.studies._grid import Unfinished, grid
from tests.support.loops import rollout

DOUBLE = torch.float64
RADII = torch.tensor([0.2, 0.4, 0.8], dtype=DOUBLE)
AXES = {"seed": torch.arange(4), "c": RADII}


def losses_of(params, batch):
    x = params["x"]
    return torch.stack([(x[0] - 1) ** 2 + x[1] ** 2, 3 * (x[0] + 1) ** 2 + (x[1] - 1) ** 2])


def train(seed, c):
    """CAGrad from a random start: key, solver, optimizer and rollout, inside one vmap."""
    step = mf.descend(losses_of, mf.cagrad(c), mf.jacobian(), mf.adam(0.05))
    state = step.init({"x": mf.random.normal(mf.random.key(seed), (2,), DOUBLE)}, (), key=seed)
    state, info = rollout(step, state, [()] * 6)
    return {"losses": info.losses, "final": state.params["x"]}


def slope(seed, c):
    """A hypergradient: d(mean of the last losses)/dc, through the training run."""
    return grad(lambda c: train(seed, c)["losses"][-1].mean())(c)


def loop(f, axes):
    seeds, radii = axes["seed"], axes["c"]
    return [[f(seed, c) for c in radii] for seed in seeds]


@pytest.mark.parametrize("points_at_once", [None, 1, 5, 100])
def test_grid_equals_nested_loops(points_at_once):
    found = grid(train, AXES, points_at_once=points_at_once, dims={"losses": ("step", "task")})
    expected = loop(train, AXES)
    assert found["losses"].dims == ("seed", "c", "step", "task")
    assert found["final"].dims == ("seed", "c", "final_dim_0")
    assert found["seed"].values.tolist() == [0, 1, 2, 3]
    assert found["c"].values.tolist() == RADII.tolist()
    for name in ("losses", "final"):
        whole = torch.stack([torch.stack([run[name] for run in row]) for row in expected])
        np.testing.assert_allclose(found[name].values, whole.numpy(), rtol=1e-9)
        assert found[name].dtype == np.float64
    np.testing.assert_array_equal(
        found["losses"].sel(seed=2, c=0.4).values, found["losses"].values[2, 1]
    )


def test_grid_of_hypergradients_equals_differences():
    axes = {"seed": torch.arange(2), "c": torch.tensor([0.3, 0.6], dtype=DOUBLE)}
    found = grid(slope, axes, points_at_once=3)["value"].values
    np.testing.assert_allclose(found, torch.tensor(loop(slope, axes)).numpy(), rtol=1e-9)
    h = 1e-6
    for (i, seed), (j, c) in product(enumerate(axes["seed"]), enumerate(axes["c"])):
        high, low = (train(seed, c + s)["losses"][-1].mean() for s in (h, -h))
        assert found[i, j] == pytest.approx(float((high - low) / (2 * h)), rel=1e-5, abs=1e-9)


def test_grid_loops_over_rules_between_vmapped_axes():
    """Looped axes stay where the caller put them; a rule is handed over as it is."""
    G = torch.tensor([[1.0, -0.5], [-0.5, 4.0]], dtype=DOUBLE)
    rules = {"mean": mf.mean(), "mgda": mf.mgda()}

    def weights(scale, rule, power, shift):
        assert isinstance(rule, mf.Rule)
        assert isinstance(power, int)
        return mf.weights(rule, G * scale**power) + shift

    scales, shifts = torch.arange(1, 4, dtype=DOUBLE), torch.arange(2, dtype=DOUBLE)
    axes = {"scale": scales, "rule": rules, "power": [1, 2], "shift": shifts}
    for count in (None, 4, 1):
        found = grid(weights, axes, points_at_once=count, dims={"value": ("task",)})["value"]
        assert found.dims == ("scale", "rule", "power", "shift", "task")
        assert found["rule"].values.tolist() == ["mean", "mgda"]
        for i, name, power, shift in product(range(3), rules, (1, 2), shifts):
            expected = weights(scales[i], rules[name], power, shift)
            one = found.sel(rule=name, power=power, shift=float(shift)).values[i]
            np.testing.assert_allclose(one, expected.numpy(), rtol=1e-9)


def test_grid_looped_axes_alone_take_what_cannot_be_vmapped():
    axes = {"a": [1.0, 2.0], "b": {"x": torch.tensor(3.0)}}
    found = grid(lambda a, b: torch.tensor(a if a > 1 else a * b.item()), axes)
    assert found["value"].values.tolist() == [[3.0], [2.0]]
    assert found["b"].values.tolist() == ["x"]
    kept, many = torch.zeros(1), [*range(50)]
    with ThreadPoolExecutor(2) as pool:  # whose next job writes into the same tensor
        found = grid(lambda k: kept.fill_(k), {"k": many}, executor=pool)
    assert found["value"].values.ravel().tolist() == many


class Outer(NamedTuple):
    inner: dict
    flag: torch.Tensor
    none: tuple


def test_grid_outputs_nested_of_every_kind():
    def f(k):
        return Outer(
            {"half": k.to(torch.bfloat16) / 2, "whole": 2 * k, "complex": (k * -1j).conj()},
            k > 1,
            (),
        )

    found = grid(f, {"k": torch.arange(3)})
    assert {*found.data_vars} == {"flag", "inner.complex", "inner.half", "inner.whole"}
    assert found["inner.whole"].dtype == np.int64
    assert found["inner.whole"].values.tolist() == [0, 2, 4]
    assert found["inner.half"].values.tolist() == [0.0, 0.5, 1.0]
    assert found["flag"].values.tolist() == [False, False, True]
    assert found["inner.complex"].values.tolist() == [0, 1j, 2j]
    step = mf.descend(losses_of, mf.mean(), mf.jacobian(), mf.sgd(0.1))

    def one(seed):
        state = step.init({"x": mf.random.normal(mf.random.key(seed), (2,))}, ())
        return step.update(state, ())[1]

    # Info, whose aux is ()
    assert grid(one, {"seed": torch.arange(2)})["gramian"].shape == (2, 2, 2)


def test_grid_leaves_no_graph_behind():
    w = torch.ones(2, requires_grad=True)
    found = grid(lambda k: w * k, {"k": torch.arange(2)})
    assert found["value"].values.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_grid_coordinates_are_what_was_typed():
    # 4096 in float16 is 4.1e3 in its shortest decimals
    typed = torch.tensor([0.1, 0.4, 1e-3, 4096.0])
    for axis in (typed, typed.half(), (-1j * typed).conj().imag):
        assert grid(lambda c: c, {"c": axis})["c"].values.tolist() == [0.1, 0.4, 1e-3, 4096.0]
    assert grid(lambda c: c, {"c": torch.tensor([1e11])})["c"].values.tolist() == [1e11]


def test_grid_shows_progress_and_is_silent_inside(capsys):
    grid(train, {"seed": torch.arange(2), "c": RADII[:1]}, points_at_once=2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "grid:" in shown.err


class Counted:
    """f that counts its calls, and that Ctrl-C (or an error) hits in one of them."""

    def __init__(self, f, at=None, error=KeyboardInterrupt):
        self.f, self.at, self.error, self.calls = f, at, error, 0

    def __call__(self, **point):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.f(**point)


def test_grid_interrupted_hands_over_what_is_finished(tmp_path):
    with pytest.raises(Unfinished, match="after 8 of 12 points") as caught:
        grid(Counted(train, at=3), AXES, points_at_once=4)
    found, whole = caught.value.dataset, grid(train, AXES)
    flat = found["losses"].values.reshape(12, 6, 2)
    np.testing.assert_allclose(flat[:8], whole["losses"].values.reshape(12, 6, 2)[:8], rtol=1e-9)
    assert np.isnan(flat[8:]).all()
    with pytest.raises(Unfinished) as early:
        grid(Counted(train, at=1), AXES)
    assert dict(early.value.dataset.sizes) == {"seed": 4, "c": 3}

    def last_is_interrupted(k):
        if k == 2:
            raise KeyboardInterrupt
        return torch.tensor(k)

    axes = {"k": [0.0, 1.0, 2.0]}
    with ThreadPoolExecutor(2) as pool, pytest.raises(Unfinished, match=r"after [12] of 3"):
        grid(last_is_interrupted, axes, points_at_once=1, executor=pool, path=tmp_path)
    with ThreadPoolExecutor(2) as pool, pytest.raises(RuntimeError, match="turn never comes"):
        grid(lambda k: grid(train, AXES, executor=pool), axes, executor=pool)
    turned = Counted(lambda k: {"whole": k, "turned": (k + 2) * 1j}, at=2)
    with pytest.raises(Unfinished) as numbers:
        grid(turned, {"k": torch.arange(3)}, points_at_once=1)
    for name, first in (("whole", 0.0), ("turned", 2j)):
        np.testing.assert_array_equal(numbers.value.dataset[name].values, [first, np.nan, np.nan])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_grid_resumes_only_what_is_missing(tmp_path, error):
    path = tmp_path / "sweep"
    with pytest.raises((Unfinished, ZeroDivisionError)):
        grid(Counted(train, at=3, error=error), AXES, points_at_once=4, path=path)
    assert len(list(path.glob("points-*.npz"))) == 2
    second = Counted(train)
    found = grid(second, AXES, points_at_once=3, path=path)  # another chunk size, 4 points left
    assert second.calls == 2
    xarray.testing.assert_allclose(found, grid(train, AXES), rtol=1e-9)
    game = lambda seed: {"points": (seed + 1) % 3, "axes": seed * 10.0}  # noqa: E731
    games = [grid(game, {"seed": torch.arange(3)}, path=tmp_path / "game") for _ in range(2)]
    assert games[0].equals(games[1])
    third = Counted(train)
    assert grid(third, AXES, path=str(path)).equals(found)
    assert third.calls == 0
    assert not [file for file in path.iterdir() if file.name.startswith(".")]


def test_grid_writes_whole_files_or_none(tmp_path, monkeypatch):
    """A write that breaks off halfway leaves no file of that name, or the old one."""

    def breaks(file):
        file.write(b"half")
        raise KeyboardInterrupt

    write_whole(tmp_path / "a", lambda file: file.write(b"old"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", breaks)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"old")]
    path, kept = tmp_path / "sweep", [np.savez]

    def savez(file, **arrays):
        kept.pop()(file, **arrays) if kept else breaks(file)

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(Unfinished, match="after 4 of 12"):
        grid(train, AXES, points_at_once=4, path=path)
    monkeypatch.undo()
    axes, first = sorted(file.name for file in path.iterdir())
    assert axes == "axes.json"
    assert first.startswith("points-000000000-000000003-4-")
    xarray.testing.assert_allclose(grid(train, AXES, path=path), grid(train, AXES), rtol=1e-9)


def test_grid_goes_on_with_more_values_of_an_axis(tmp_path):
    """Each in the order of its own call; one with fewer values is refused."""
    some = [AXES | {"c": RADII[[2, 0]]}, AXES, AXES | {"seed": torch.tensor([7, 0, 1, 2, 3])}]
    with pytest.raises(Unfinished):
        grid(Counted(train, at=4), some[0], points_at_once=1, path=tmp_path)
    for axes, calls in zip(some[1:], (12 - 3, 3), strict=True):
        counted = Counted(train)
        found = grid(counted, axes, points_at_once=1, path=tmp_path)
        assert counted.calls == calls
        xarray.testing.assert_allclose(found, grid(train, axes), rtol=1e-9)
    with pytest.raises(ValueError, match=r"axes-2\.json says other axes.*; pass these and more"):
        grid(train, some[0], path=tmp_path)
    assert grid(Counted(train, at=1), some[2], path=tmp_path).sizes["seed"] == 5


@pytest.mark.parametrize("sooner", [torch.arange(10, 14), torch.arange(2)])
def test_grids_that_begin_at_once_do_not_mix(sooner, tmp_path, monkeypatch):
    """The folder is whose header came first; the other one is refused, or adds its values."""

    def square(axis, folder=tmp_path / "both"):
        return grid(lambda a: a**2, {"a": axis}, path=folder)["value"].values.tolist()

    def late(*content, **options):
        monkeypatch.setattr(_grid, "write_whole", write_whole)
        square(sooner)
        write_whole(*content, **options)

    monkeypatch.setattr(_grid, "write_whole", late)
    if len(sooner) == 2:
        assert square(torch.arange(4)) == [0, 1, 4, 9]
        return
    with pytest.raises(ValueError, match=r"axes\.json says other axes"):
        square(torch.arange(4))
    file = next(tmp_path.rglob("points-*"))
    file.rename(tmp_path / file.name)
    with pytest.raises(ValueError, match=rf"{file.name} is broken or alien"):
        square(torch.arange(4), tmp_path)


@pytest.mark.parametrize(
    ("seconds", "files"),
    [
        (lambda points: 2.0 * points, [2, *[4] * 13, 10]),  # each costs the same
        (lambda points: 100.0, [2, 4, 8, 16, 32, 2]),  # many are as cheap as few
        (lambda points: 60.0 * max(4, points), [2, 4, *[8] * 7, 2]),  # the first warms up
        (lambda points: 0.1 * points, [2, 62]),  # all is soon done
    ],
)
def test_chunks_of_a_kept_grid_are_as_large_as_is_cheap(seconds, files, tmp_path, monkeypatch):
    now, answers = [0.0], _grid._Chunk.answers

    def timed(chunk, f):
        now[0] += seconds(len(chunk.flat))
        return answers(chunk, f)

    monkeypatch.setattr(_grid, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(_grid._Chunk, "answers", timed)
    grid(lambda a: a, {"a": torch.arange(64)}, path=tmp_path)
    assert [len(np.load(x)["points"]) for x in sorted(tmp_path.glob("points-*"))] == files


def test_forks_without_the_threads_of_their_parent_are_refused(monkeypatch):
    """They would wait for them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    with pytest.raises(RuntimeError, match="forks of this process"):
        grid(torch.neg, {"input": torch.arange(2)}, executor=pool)


@pytest.fixture
def begun(tmp_path):
    axes = {"a": torch.arange(3), "b": [1, 2]}
    grid(lambda a, b: a * b, axes, points_at_once=2, path=tmp_path / "sweep")
    return tmp_path / "sweep"


A, B = torch.arange(3), [1, 2]
MORE = [(torch.arange(2), B), (A, [1, 3]), (A.float(), B), ([0, 1, 2], B), (A, [1.0, 2.0])]


@pytest.mark.parametrize("axes", [*({"a": a, "b": b} for a, b in MORE), {"b": B, "a": A}, {"a": A}])
def test_grid_refuses_the_folder_of_other_axes(begun, axes):
    with pytest.raises(ValueError, match=r"path: .*axes\.json says other axes"):
        grid(lambda **point: point["a"], axes, path=begun)


@pytest.mark.parametrize(
    "other",
    [lambda a, b: (a * b).double(), lambda a, b: {"other": a * b}, lambda a, b: (a * b)[None]],
)
def test_grid_refuses_the_folder_of_another_function(begun, other):
    next(iter(begun.glob("points-*"))).unlink()
    with pytest.raises(ValueError, match=r"f at \(a=\d, b=\d\).* every point must give"):
        grid(other, {"a": A, "b": B}, path=begun)


def test_grid_names_broken_files(begun):
    axes = {"a": torch.arange(3), "b": [1, 2]}
    file = sorted(begun.glob("points-*"))[1]
    whole = file.read_bytes()
    broken_files, one = [whole[:-40], b"", b"not a zip"], np.zeros(1, dtype=np.int64)
    others: Any = [{"points": np.array(x), "f.value": one} for x in ([99], [0.5])]
    for arrays in (*others, {"x": np.zeros(2)}):
        np.savez(begun / "other.npz", **arrays)  # pyright: ignore[reportArgumentType]
        broken_files.append((begun / "other.npz").read_bytes())
    for broken in broken_files:
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"path: .*{file.name} .*delete it"):
            grid(lambda a, b: a * b, axes, path=begun)
    with pytest.raises(ValueError, match=rf"path: .*{file.name} is a file"):
        grid(lambda a, b: a * b, axes, path=file)
    file.unlink()
    found = grid(lambda a, b: a * b, axes, path=begun)
    assert found["value"].values.tolist() == [[0, 0], [1, 2], [2, 4]]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        *((x, ValueError, "at least one value") for x in (torch.zeros(0), [], {})),
        *((torch.tensor(x), TypeError, r"expected a real tensor.*n\]") for x in (1.0, [1j], [[0]])),
        *((x, ValueError, "finite") for x in (torch.tensor([1.0, float("nan")]), [float("inf")])),
        *((x, ValueError, "each once") for x in (torch.tensor([3, 1, 3]), ["a", "b", "a"])),
        *((x, TypeError, "all strings or all numbers; pass") for x in (["a", 1], [mf.mean()])),
        ("abc", TypeError, "got str"), (np.arange(3), TypeError, "got ndarray"),
        (iter([1, 2]), TypeError, "got list_iterator"), (3, TypeError, "got int"),
    ],
)  # fmt: skip
def test_grid_refuses_axes(values, error, message):
    with pytest.raises(error, match=rf"axes\['k'\].*{message}"):
        grid(lambda k: torch.tensor(0.0), {"k": values})


@pytest.mark.parametrize(
    "out",
    [1.0, None, "text", {}, (), {"a": 1.0}, {"a": {"b": None}}, np.zeros(2), [RADII], (RADII,) * 2],
)
@pytest.mark.parametrize("points_at_once", [None, 1])
def test_grid_refuses_outputs_that_are_no_tensors(out, points_at_once):
    with pytest.raises(TypeError, match="f:"):
        grid(lambda k: out, {"k": torch.arange(2)}, points_at_once=points_at_once)


def test_grid_refuses_names_and_shapes_that_clash():
    axes = {"k": torch.arange(2)}
    f = lambda k: {"x": torch.zeros(3), "y": torch.zeros(2, 3)}  # noqa: E731
    for dims, message in (
        ({"z": ("a",)}, r"dims: f returns \['x', 'y'\]; axes are called \['k'\]"),
        ({"x": ("a", "b")}, r"dims\['x'\]: expected 1 new"),
        *(({"x": (name,)}, r"dims\['x'\]: expected 1 new") for name in "ky"),
        ({"y": ("a", "a")}, r"dims\['y'\]: expected 2 new"),
        ({"x": ("a",), "y": ("a", "b")}, r"dims\['y'\]: \[\('a', 2, 3\)\].*; use two names"),
    ):
        counted = Counted(f, at=2)  # refused at the first chunk
        with pytest.raises(ValueError, match=message):
            grid(counted, axes, points_at_once=1, dims=dims)
    assert grid(f, axes, dims={"x": "a", "y": ["b", "a"]})["y"].dims == ("k", "b", "a")
    with pytest.raises(ValueError, match=r"f returns \['k'\]; axes are called \['k'\]"):
        grid(lambda k: {"k": k}, axes)
    with pytest.raises(ValueError, match=r"f at \(n=2\).*found .*\(2,\).* but .*\(1,\).* before"):
        grid(lambda n: torch.zeros(n), {"n": [1, 2]})


def test_grid_explains_what_cannot_be_vmapped():
    with pytest.raises(RuntimeError, match="f:") as caught:
        grid(lambda k: k if k > 0 else -k, {"k": torch.arange(3)})
    assert caught.value.__notes__ == ["grid: at (k=0) …"]
    found = grid(lambda k: k if k > 1 else -k, {"k": torch.arange(3)}, points_at_once=1)
    assert found["value"].values.tolist() == [0, -1, 2]


def test_grid_names_the_point_of_an_error():
    axes = {"rule": {"fine": 1, "bad": 0}, "k": torch.arange(4)}
    with pytest.raises(ZeroDivisionError) as caught:
        grid(lambda rule, k: k / (1 // (k.ndim - rule)), axes, points_at_once=2)
    assert caught.value.__notes__ == ["grid: at (rule=bad, k=0) …"]


def test_grid_refuses_transforms_and_no_axes():
    with pytest.raises(RuntimeError, match=r"nest torch.func.vmap instead"):
        vmap(lambda x: grid(lambda k: k * x, {"k": torch.arange(2)}))(torch.ones(2))
    with pytest.raises(TypeError, match="axes, dims: expected dicts by name"):
        grid(train, {})


def test_an_error_of_files_in_f_is_its_own(tmp_path):
    def f(x):
        raise FileNotFoundError(2, "no data", "somewhere")

    with pytest.raises(FileNotFoundError, match="no data"):
        grid(f, {"x": torch.arange(2.0)}, path=tmp_path / "kept")


def test_two_values_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two values of one name"):
        mf.grid(lambda a: {"x": {"y": a}, "x.y": 2 * a}, {"a": torch.arange(2.0)})
