"""Sets of losses against brute force: pairs of points, unit cells, inclusion and exclusion; fronts
against closed forms.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

import mtlfunc as mf
from mtlfunc.studies import pareto
from mtlfunc.studies._grid import grid
from tests.support.loops import rollout

DOUBLE = torch.float64


@st.composite
def integer_points(draw, most_tasks=4, high=5):
    """Few points on a small lattice, so that ties and duplicates are common."""
    tasks = draw(st.integers(1, most_tasks))
    rows = draw(
        st.lists(
            st.lists(st.integers(0, high), min_size=tasks, max_size=tasks), min_size=1, max_size=7
        )
    )
    return torch.tensor(rows, dtype=DOUBLE)


def dominates(p, q):
    return bool((p <= q).all() and (p < q).any())


# --- non-dominated points -----------------------------------------------------------------------


@given(integer_points())
def test_non_dominated_equals_pairs(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.non_dominated(points).tolist() == expected


def test_non_dominated_many_gaussian_points():
    """Beyond the sizes at which the library changes its algorithm."""
    generator = np.random.default_rng(0)
    for tasks in (2, 3, 4, 6):
        points = torch.from_numpy(generator.standard_normal((300, tasks)))
        worse = (points[:, None] >= points).all(-1) & (points[:, None] > points).any(-1)
        assert torch.equal(pareto.non_dominated(points), ~worse.any(1))


def test_non_dominated_keeps_duplicates_and_drops_weakly_dominated():
    points = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0], [-0.0, 1.0]])
    assert pareto.non_dominated(points).tolist() == [True, True, False, True, True]


# --- hypervolume --------------------------------------------------------------------------------


@given(integer_points())
def test_hypervolume_counts_unit_cells(points):
    """Of integer points below an integer reference: the unit cells that some point dominates."""
    corner = 4
    cells = itertools.product(range(corner), repeat=points.shape[1])
    expected = sum(
        any(bool((point <= torch.tensor(cell)).all()) for point in points) for cell in cells
    )
    assert (
        float(
            pareto.hypervolume(points, torch.full((points.shape[1],), float(corner), dtype=DOUBLE))
        )
        == expected
    )


def staircase(points, reference):
    """The 2-D hypervolume, by a sweep along the first loss."""
    total, floor = 0.0, reference[1]
    for x, y in sorted(points.tolist()):
        if x < reference[0] and y < floor:
            total += (reference[0] - x) * (floor - y)
            floor = y
    return total


def inclusion_exclusion(points, reference):
    """Σ over non-empty sets S of points (-1)^(|S|+1) Π_t max(r_t - max_{p∈S} p_t, 0)."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(range(len(points)), size):
            edges = reference - points[list(chosen)].max(0)
            total += (-1) ** (size + 1) * np.prod(np.maximum(edges, 0))
    return total


@pytest.mark.parametrize(("tasks", "count"), [(2, 9), (3, 9), (4, 8), (5, 7)])
def test_hypervolume_equals_inclusion_exclusion(tasks, count):
    for seed in range(5):
        points = np.random.default_rng(seed).standard_normal((count, tasks))
        reference = np.full(tasks, 0.7)  # some points lie outside
        found = float(pareto.hypervolume(torch.from_numpy(points), torch.from_numpy(reference)))
        assert found == pytest.approx(inclusion_exclusion(points, reference), rel=1e-11)
        if tasks == 2:
            assert found == pytest.approx(staircase(points, reference), rel=1e-12)


def test_hypervolume_properties():
    points = torch.from_numpy(np.random.default_rng(1).random((12, 3)))
    reference = torch.full((3,), 1.1, dtype=DOUBLE)
    whole = pareto.hypervolume(points, reference)
    torch.testing.assert_close(
        pareto.hypervolume(points[pareto.non_dominated(points)], reference),
        whole,
        rtol=1e-12,
        atol=0,
    )
    torch.testing.assert_close(
        pareto.hypervolume(points.flip(0), reference), whole, rtol=1e-12, atol=0
    )
    scale = torch.tensor([1e-3, 1.0, 1e5], dtype=DOUBLE)
    torch.testing.assert_close(
        pareto.hypervolume(scale * points - 3, scale * reference - 3),
        scale.prod() * whole,
        rtol=1e-9,
        atol=0,
    )
    assert pareto.hypervolume(points + 2, reference) == 0
    assert pareto.hypervolume(torch.cat([points, points[:1] - 0.01]), reference) > whole
    assert pareto.hypervolume(points.float(), reference.float()).dtype == DOUBLE


# --- transforms and errors ----------------------------------------------------------------------

SETS = {
    "hypervolume": (pareto.hypervolume, torch.full((3,), 1.5, dtype=DOUBLE)),
}


@pytest.mark.parametrize("name", SETS)
def test_indicators_vmapped_equal_loop(name):
    f, other = SETS[name]
    points = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 3, 5, 3)))
    others = torch.stack([other, other + 0.1, other + 0.2])
    nested = vmap(vmap(f), (0, None))(points, others)
    expected = torch.tensor(
        [[float(f(points[i, j], others[j])) for j in range(3)] for i in range(2)], dtype=DOUBLE
    )
    torch.testing.assert_close(nested, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        vmap(f, (2, None))(points[0].movedim(0, 2), other),
        torch.stack([f(p, other) for p in points[0]]),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("name", SETS)
def test_indicators_refuse_derivatives_and_poison(name):
    f, other = SETS[name]
    points = torch.from_numpy(np.random.default_rng(3).random((4, 3)))
    with pytest.raises(RuntimeError, match="no derivative"):
        grad(lambda p: f(p, other))(points)
    with pytest.raises(RuntimeError, match="no derivative"):
        jvp(lambda p: f(p, other), (points,), (points,))
    with pytest.raises(RuntimeError, match="no derivative"):
        f(points.clone().requires_grad_(), other).backward()
    bad = points.clone()
    bad[1, 0] = float("nan")
    together = vmap(lambda p: f(p, other))(torch.stack([points, bad]))
    assert together[0] == f(points, other)
    assert together[1].isnan()


def test_non_dominated_under_transforms():
    points = torch.from_numpy(np.random.default_rng(4).integers(0, 4, (3, 6, 2)).astype(float))
    assert torch.equal(
        vmap(pareto.non_dominated)(points), torch.stack([pareto.non_dominated(p) for p in points])
    )
    points[1, 0, 0], points[2] = float("nan"), float("inf")
    mask = vmap(pareto.non_dominated)(points)
    assert not mask[1, 0]
    assert torch.equal(mask[1, 1:], pareto.non_dominated(points[1, 1:]))
    assert not mask[2].any()
    # A mask is a constant to derivatives: those of the points go by it.
    slope = grad(lambda p: p.where(pareto.non_dominated(p)[:, None], 0.0).sum())(points[0])
    assert torch.equal(slope, pareto.non_dominated(points[0])[:, None].expand(-1, 2).double())


@pytest.mark.parametrize(
    "f",
    [
        pareto.non_dominated,
        lambda p: pareto.hypervolume(p, torch.ones(2)),
    ],
)
def test_sets_refuse_what_is_no_set(f):
    with pytest.raises(
        ValueError,
        match=r"points: expected at least one point, \[point, task\], got shape \[0, 2\]",
    ):
        f(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"points: NaN or infinite entries in rows \[1\]"):
        f(torch.tensor([[0.0, 0.0], [float("inf"), 0.0]]))


def test_references_of_another_size():
    points = torch.zeros(2, 2)
    for reference in (torch.ones(3), torch.tensor([1.0, float("nan")])):
        # the tests' own shape check may speak first
        with pytest.raises(Exception, match="reference"):
            pareto.hypervolume(points, reference)


# --- preferences --------------------------------------------------------------------------------


@pytest.mark.parametrize(("divisions", "tasks"), [(1, 1), (4, 1), (1, 4), (4, 2), (5, 3), (3, 5)])
def test_preferences_are_the_simplex_lattice(divisions, tasks):
    expected = [
        k for k in itertools.product(range(divisions + 1), repeat=tasks) if sum(k) == divisions
    ]
    found = pareto.preferences(divisions, tasks, dtype=DOUBLE)
    assert found.shape == (math.comb(divisions + tasks - 1, tasks - 1), tasks)
    assert torch.equal(found, torch.tensor(expected, dtype=DOUBLE) / divisions)
    assert pareto.preferences(divisions, tasks).dtype == torch.get_default_dtype()


def test_preferences_errors():
    for divisions, tasks in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match=r"(divisions|tasks): .* >= 1, got 0"):
            pareto.preferences(divisions, tasks)


# --- fronts -------------------------------------------------------------------------------------

CENTRES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]], dtype=DOUBLE)


def losses_of(params, batch):
    return 0.5 * (params["x"] - CENTRES).square().sum(1)


def train(preference, seed: int | torch.Tensor = 0):
    """Gradient descent on the weighted sum from a random start; its minimiser is Σ w_t c_t."""
    x = mf.random.normal(mf.random.key(seed), (3,), DOUBLE)
    step = mf.descend(
        losses_of, mf.stateless(lambda gramian: preference), mf.jacobian(), mf.sgd(0.9)
    )
    state, _ = rollout(step, step.init({"x": x}, ()), [()] * 14)
    return losses_of(state.params, ()), state.params


@pytest.mark.parametrize("points_at_once", [None, 1, 4, 100])
def test_front_of_quadratics_closed_form(points_at_once):
    """Weighted sums with all w > 0 end on the Pareto set, w @ centres; on a simplex face, too,
    since the losses are strictly convex.
    """
    preferences = pareto.preferences(4, 3, dtype=DOUBLE)
    found = pareto.front(train, preferences, points_at_once=points_at_once)
    ends = preferences @ CENTRES
    torch.testing.assert_close(found.aux["x"], ends, rtol=1e-9, atol=1e-10)
    expected = torch.stack([losses_of({"x": x}, ()) for x in ends])
    torch.testing.assert_close(found.losses, expected, rtol=1e-9, atol=1e-10)
    assert found.non_dominated.all()
    assert torch.equal(found.preferences, preferences)


def test_front_equals_loop_and_marks_dominated_and_diverged():
    def run(preference):
        bad = preference[0] == 1.0
        return torch.where(
            bad,
            float("nan"),
            torch.stack([preference[0], preference[1].round() + preference[0] ** 2]),
        )

    preferences = pareto.preferences(5, 2, dtype=DOUBLE)
    found = pareto.front(run, preferences)
    loop = torch.stack([run(p) for p in preferences])
    torch.testing.assert_close(found.losses, loop, rtol=1e-9, atol=0, equal_nan=True)
    assert found.losses[-1].isnan().all()
    finite = loop[:-1]
    assert found.non_dominated.tolist() == [
        not any(dominates(q, p) for q in finite) for p in finite
    ] + [False]
    assert 0 < int(found.non_dominated.sum()) < len(finite)
    assert found.aux == ()
    assert not pareto.front(lambda p: p * float("inf"), preferences).non_dominated.any()


def test_front_by_a_grid_that_is_saved(tmp_path):
    """The recipe for long runs: a grid over the number of the preference."""
    preferences = pareto.preferences(3, 3, dtype=DOUBLE)
    saved = grid(
        lambda run: train(preferences[run])[0],
        {"run": torch.arange(len(preferences))},
        points_at_once=4,
        path=tmp_path / "front",
    )
    torch.testing.assert_close(
        torch.from_numpy(saved["value"].values),
        pareto.front(train, preferences).losses,
        rtol=1e-9,
        atol=1e-12,
    )


def test_front_vmapped_over_seeds_and_differentiated():
    preferences = pareto.preferences(3, 3, dtype=DOUBLE)
    seeds = torch.arange(3)
    together = vmap(lambda seed: pareto.front(lambda p: train(p, seed), preferences))(seeds)
    for i, seed in enumerate(seeds):
        alone = pareto.front(lambda p, seed=seed: train(p, seed), preferences)
        torch.testing.assert_close(together.losses[i], alone.losses, rtol=1e-9, atol=1e-12)
        assert torch.equal(together.non_dominated[i], alone.non_dominated)
    scale = torch.tensor(2.0, dtype=DOUBLE)
    slope = grad(lambda s: pareto.front(lambda p: s**2 * p, preferences).losses.sum())(scale)
    torch.testing.assert_close(slope, 4 * preferences.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "trick",
    [
        lambda p: p * p[0].item(),
        lambda p: p if p[0] > 0.5 else 2 * p,
        lambda p: torch.from_numpy(p.numpy()),
        lambda p: p + torch.rand(2),
        lambda p: p[p > 0],
    ],
    ids=["item", "branch", "numpy", "random", "boolean index"],
)
def test_front_of_what_cannot_be_vmapped(trick):
    preferences = pareto.preferences(3, 2)[1:3]
    with pytest.raises(
        RuntimeError, match="train: cannot be vmapped; pass points_at_once=1, a plain loop"
    ):
        pareto.front(trick, preferences)
    with torch.random.fork_rng():
        assert pareto.front(trick, preferences, points_at_once=1).losses.shape == (2, 2)


def test_front_errors():
    preferences = pareto.preferences(2, 2)
    for train, got in (
        (lambda p: p.sum(), r"torch.float32 of shape \[\]"),
        (lambda p: p > 0, "torch.bool"),
        (lambda p: 1.0, "float"),
        (lambda p: p[:0], r"\[0\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"train: expected floating losses \[objective\].*{got}"
        ):
            pareto.front(train, preferences)
    with pytest.raises(ValueError, match="preferences: expected entries >= 0 with a positive sum"):
        pareto.front(train, torch.tensor([[0.0, 0.0]]))
    with pytest.raises(ValueError, match="preferences: expected entries >= 0 with a positive sum"):
        pareto.front(train, torch.tensor([[2.0, -1.0]]))
    with pytest.raises(ValueError, match="preferences: expected at least one"):
        pareto.front(train, preferences[:0])
    with pytest.raises(
        ValueError, match="points_at_once: expected None or a whole number >= 1, got 0"
    ):
        pareto.front(train, preferences, points_at_once=0)
    with pytest.raises(ZeroDivisionError):  # the caller's own error, as it is
        pareto.front(lambda p: p / (1 // 0), preferences)
