"""What the pictures show is what was computed: the data in their artists, against formulas and
independent arithmetic.
"""

import io
import itertools
import subprocess
import sys
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc import plot
from mtlfunc.analysis.pareto import Front
from mtlfunc.core.random import normal
from mtlfunc.plot._common import RISES, short
from mtlfunc.plot._geometry import cone_faces, hull

mpl.use("Agg")
from matplotlib import pyplot as plt

RULES = {
    "mean": mf.mean(),
    "mgda": mf.mgda(),
    "pcgrad": mf.pcgrad(),
    "cagrad": mf.cagrad(0.4),
    "gradnorm": mf.gradnorm(0.12),
}
# Jᵀ(0.2, 0.4, 0.4) = 0
STATIONARY = torch.tensor([[2.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=torch.float64)
SQRT3 = 3**0.5


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def axes() -> Axes:
    return Figure(layout="constrained").add_subplot()


def rows(seed: int, *shape: int) -> Tensor:
    return normal(torch.tensor(seed), shape, torch.float64)


def meshed(panel: Axes) -> np.ndarray:
    (mesh,) = (c for c in panel.collections if isinstance(c, QuadMesh))
    values = mesh.get_array()
    assert values is not None
    return np.ma.filled(values, np.nan)


def cells(
    angles: int = 90, ratios: int = 81, limits: tuple[float, float] = (0.01, 100.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Angles in radians and ratios `[ratio, angle]` of the portrait's cells, counted from the other
    end.
    """
    phi = np.pi * (np.arange(angles) + 0.5) / angles
    share = (np.arange(ratios) + 0.5) / ratios
    ratio = limits[0] ** (1 - share) * limits[1] ** share
    phi, ratio = np.meshgrid(phi, ratio)
    return phi, ratio


def contours(panel: Axes, *, filled: bool) -> list[ContourSet]:
    return [c for c in panel.collections if isinstance(c, ContourSet) and c.filled is filled]


def marked(panel: Axes, points: np.ndarray) -> np.ndarray:
    """Which points lie in the hatched region."""
    inside = np.zeros(len(points), dtype=bool)
    for region in contours(panel, filled=True):
        for path in region.get_paths():
            for polygon in path.to_polygons():
                inside ^= Outline(polygon).contains_points(points)  # even-odd: holes
    return inside


def labels(panel: Axes) -> list[str]:
    legend = panel.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


# ---- portrait ----


def test_portrait_of_the_mean_is_its_formula():
    direction, length, first, second = (meshed(panel) for panel in plot.portrait(mf.mean()))
    phi, r = cells()
    mean = np.sqrt(1 + r**2 + 2 * r * np.cos(phi))  # 2‖g₀‖ for ‖g₁‖ = 1
    np.testing.assert_allclose(length, 1, rtol=1e-10)
    np.testing.assert_allclose(first, (1 + r * np.cos(phi)) / mean, atol=1e-10)
    np.testing.assert_allclose(second, (r + np.cos(phi)) / mean, atol=1e-10)
    np.testing.assert_allclose(
        direction, np.arctan2(r * np.sin(phi), 1 + r * np.cos(phi)) / phi, atol=1e-10
    )


def test_portrait_of_mgda_is_the_shortest_combination():
    _, length, first, second = (meshed(panel) for panel in plot.portrait(mf.mgda(), cells=(40, 21)))
    phi, r = cells(40, 21)
    mean = 0.5 * np.sqrt(1 + r**2 + 2 * r * np.cos(phi))
    inside = np.cos(phi) < np.minimum(r, 1 / r)
    shortest = np.where(
        inside, r * np.sin(phi) / np.sqrt(1 + r**2 - 2 * r * np.cos(phi)), np.minimum(r, 1)
    )
    np.testing.assert_allclose(length, shortest / mean, rtol=1e-9)
    # g_t·d = ‖d‖² for both inside the face, for the shorter one elsewhere.
    np.testing.assert_allclose(first[inside], (shortest**2 / mean)[inside], rtol=1e-7)
    np.testing.assert_allclose(second[inside], (shortest**2 / mean / r)[inside], rtol=1e-7)


def test_portrait_of_pcgrad_has_rates_of_one_minus_squared_cosine():
    first, second = (
        meshed(panel) for panel in plot.portrait(mf.pcgrad(), ("rate 1", "rate 2"), cells=(40, 21))
    )
    phi, r = cells(40, 21)
    mean = np.sqrt(1 + r**2 + 2 * r * np.cos(phi))
    conflict = np.cos(phi) < 0
    np.testing.assert_allclose(first[conflict], (np.sin(phi) ** 2 / mean)[conflict], rtol=1e-9)
    np.testing.assert_allclose(second[conflict], (np.sin(phi) ** 2 * r / mean)[conflict], rtol=1e-9)


@pytest.mark.parametrize("name", list(RULES))
def test_portrait_equals_single_calls(name):
    phi, r = cells(7, 5)
    _, length, _, second = (
        meshed(panel) for panel in plot.portrait(RULES[name], cells=(7, 5), key=3)
    )
    for i, j in ((0, 0), (2, 5), (4, 3)):
        jacobian = torch.tensor(
            [[1.0, 0.0], [r[i, j] * np.cos(phi[i, j]), r[i, j] * np.sin(phi[i, j])]],
            dtype=torch.float64,
        )
        d = mf.aggregate(RULES[name], jacobian, torch.ones(2, dtype=torch.float64), key=3)
        mean = jacobian.mean(0).norm()
        assert length[i, j] == pytest.approx(float(d.norm() / mean), rel=1e-9)
        assert second[i, j] == pytest.approx(
            float(jacobian[1] @ d / jacobian[1].norm() / mean), rel=1e-8, abs=1e-10
        )


def test_portrait_hatches_where_the_mean_raises_a_loss():
    direction, _, first, second = plot.portrait(mf.mean())
    phi, r = cells()
    raises = {first: 1 + r * np.cos(phi) < 0, second: r + np.cos(phi) < 0}
    raises[direction] = raises[first] | raises[second]
    for panel, expected in raises.items():
        # Cells at the rim of the grid are the region's own corners.
        inner = (slice(1, -1), slice(1, -1))
        at = np.stack([np.rad2deg(phi[inner]), r[inner]], -1).reshape(-1, 2)
        np.testing.assert_array_equal(marked(panel, at), expected[inner].ravel())
        (line,) = contours(panel, filled=False)
        assert list(line.levels) == [RISES]
    # The line itself: ‖g₂‖/‖g₁‖ = -1/cos φ, to a cell's width.
    (line,) = contours(first, filled=False)
    vertices = np.concatenate([path.vertices for path in line.get_paths()])
    assert np.abs(vertices[:, 1] * np.cos(np.deg2rad(vertices[:, 0])) + 1).max() < 0.06


@pytest.mark.parametrize("rule", [mf.mgda(), mf.pcgrad(), mf.cagrad(1.0)])
def test_portrait_hatches_nothing_for_rules_that_raise_no_loss(rule):
    for panel in plot.portrait(rule, cells=(40, 21)):
        assert not contours(panel, filled=True)
        assert not contours(panel, filled=False)


def test_portrait_of_cagrad_raises_a_loss_below_the_threshold_of_its_theory():
    first, second = (
        meshed(panel)
        for panel in plot.portrait(mf.cagrad(0.4), ("rate 1", "rate 2"), cells=(40, 21))
    )
    phi, r = (torch.from_numpy(x.ravel()) for x in cells(40, 21))
    jacobian = torch.stack(
        [
            torch.stack([torch.ones_like(r), torch.zeros_like(r)], -1),
            r[:, None] * torch.stack([phi.cos(), phi.sin()], -1),
        ],
        1,
    )
    threshold = vmap(lambda g: mf.theory.cagrad_threshold(g))(jacobian @ jacobian.mT).numpy()
    apart = np.abs(threshold - 0.4) > 1e-6
    np.testing.assert_array_equal(
        (np.minimum(first, second).ravel() < RISES)[apart], (threshold > 0.4)[apart]
    )


def test_portrait_of_gradnorm_settles_at_equal_lengths():
    limits = (0.25, 4.0)
    fresh, settled = (
        # angles up to 90°
        meshed(
            plot.portrait(
                mf.gradnorm(0.0), ("direction",), ratios=limits, cells=(10, 9), steps=steps
            )[0]
        )[:, :5]
        for steps in (1, 150)
    )
    assert np.abs(fresh - 0.5).max() > 0.2
    # Weights ∝ 1/‖g_t‖ make d the bisector; they move by 0.025 a step around 2/(1 + 4) and 2/(1 +
    # 1/4).
    assert np.abs(settled - 0.5).max() < 0.025


def test_portrait_takes_functions_and_rules_that_cannot_be_vmapped():
    calls = []

    def batched(gramian: Tensor) -> Tensor:
        return torch.softmax(-gramian.diagonal().log(), -1)

    def branching(gramian: Tensor) -> Tensor:
        calls.append(float(gramian[0, 0]))
        return torch.softmax(-gramian.diagonal().log(), -1)

    first, second = (
        meshed(plot.portrait(f, ("length",), cells=(6, 5))[0]) for f in (batched, branching)
    )
    np.testing.assert_allclose(first, second, rtol=1e-12)
    assert len(calls) == 30


def test_portrait_passes_losses_and_key():
    by_loss = plot.portrait(
        lambda gramian, losses: losses / losses.sum(), ("rate 1",), cells=(6, 5), losses=[1.0, 3.0]
    )
    static = plot.portrait(mf.mean(torch.tensor([0.25, 0.75])), ("rate 1",), cells=(6, 5))
    np.testing.assert_allclose(meshed(by_loss[0]), meshed(static[0]), rtol=1e-12)

    def draw(losses: Tensor, key: Tensor) -> Tensor:
        return torch.softmax(normal(key, (2,), torch.float64), -1)

    rule = mf.Rule(draw, lambda geometry, state: (state, state))
    share = mf.weights(rule, torch.eye(2, dtype=torch.float64), key=5)
    drawn = plot.portrait(rule, ("rate 2",), cells=(6, 5), key=5)
    np.testing.assert_allclose(
        meshed(drawn[0]),
        meshed(plot.portrait(mf.mean(share), ("rate 2",), cells=(6, 5))[0]),
        rtol=1e-12,
    )


def test_portrait_leaves_cells_grey_where_weights_are_not_finite():
    def rule(gramian: Tensor) -> Tensor:
        return (gramian[0, 1] * torch.ones(2, dtype=gramian.dtype)).sqrt()  # NaN in conflict

    with pytest.warns(
        UserWarning, match=r"NaN or infinite weights at 15 of 30 points, first at 105°"
    ):
        (panel,) = plot.portrait(rule, ("length",), cells=(6, 5))
    np.testing.assert_array_equal(np.isnan(meshed(panel)), cells(6, 5)[0] > np.pi / 2)
    assert panel.get_facecolor() == to_rgba("0.75")


def test_portrait_has_no_direction_where_d_is_zero():
    (panel,) = plot.portrait(
        lambda gramian: torch.zeros_like(gramian[0]), ("direction",), cells=(4, 3)
    )
    assert np.isnan(meshed(panel)).all()


# ---- simplex ----


def corners(weights: np.ndarray) -> np.ndarray:
    return np.stack([weights[..., 1] + weights[..., 2] / 2, SQRT3 / 2 * weights[..., 2]], -1)


def shares(points: np.ndarray) -> np.ndarray:
    """Weights `[n, 3]` at points of the triangle."""
    third = points[:, 1] * 2 / SQRT3
    second = points[:, 0] - third / 2
    return np.stack([1 - second - third, second, third], -1)


def mapped(panel: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[n, 3]` and colour values of the map."""
    mesh = panel.collections[0]
    # matplotlib has no public way to it
    triangles = mesh._triangulation  # pyright: ignore[reportAttributeAccessIssue]
    values = mesh.get_array()
    assert values is not None
    return shares(np.stack([triangles.x, triangles.y], -1)), np.asarray(values)


def spot(panel: Axes, label: str) -> np.ndarray:
    (line,) = (line for line in panel.get_lines() if str(line.get_label()).startswith(label))
    return shares(np.asarray(line.get_xydata()))[0]


def test_simplex_map_is_the_worst_cosine_and_the_length():
    jacobian = rows(1, 3, 5).numpy()
    weights, worst = mapped(plot.simplex(jacobian @ jacobian.T, ax=axes(), resolution=20))
    d = weights @ jacobian
    cosines = d @ jacobian.T / np.linalg.norm(d, axis=1)[:, None] / np.linalg.norm(jacobian, axis=1)
    assert len(weights) == 21 * 22 // 2
    np.testing.assert_allclose(worst, cosines.min(1), atol=1e-10)
    _, length = mapped(
        plot.simplex(jacobian @ jacobian.T, ax=axes(), value="length", resolution=20)
    )
    np.testing.assert_allclose(
        length, np.linalg.norm(d, axis=1) / np.linalg.norm(jacobian, axis=1).max(), atol=1e-10
    )


def test_simplex_hatches_where_a_loss_rises():
    jacobian = np.array([[2.0, 0.0, 0.5], [-0.6, 1.5, 0.0], [-0.5, -0.6, 0.8]])
    panel = plot.simplex(jacobian @ jacobian.T, ax=axes(), resolution=30)
    weights, worst = mapped(panel)
    inner = (weights > 1e-9).all(1) & (np.abs(worst) > 1e-9)
    raises = (weights @ jacobian @ jacobian.T).min(1) < 0
    assert 0 < raises[inner].sum() < inner.sum()
    np.testing.assert_array_equal(marked(panel, corners(weights[inner])), raises[inner])


def test_simplex_marks_rules_and_the_shortest_combination():
    gramian = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    panel = plot.simplex(
        gramian,
        {"mean": mf.mean(), "cagrad": mf.cagrad(0.4), "negative": lambda g: g[0] - 0.25},
        axes(),
        names=["a", "b", "c"],
    )
    np.testing.assert_allclose(spot(panel, "min-norm"), np.array([4, 2, 1]) / 7, atol=1e-12)
    np.testing.assert_allclose(spot(panel, "mean"), np.full(3, 1 / 3), atol=1e-12)
    weights = mf.weights(mf.cagrad(0.4), gramian).numpy()
    np.testing.assert_allclose(spot(panel, "cagrad"), weights / weights.sum(), atol=1e-12)
    # outside the triangle
    np.testing.assert_allclose(spot(panel, "negative"), [3, -1, -1], atol=1e-12)
    assert {"a", "b", "c"} <= {text.get_text() for text in panel.texts}
    assert labels(panel)[0].endswith(f"= {(4 / 7) ** 0.5:.3g}")  # ‖d‖² = 1/(1 + 1/2 + 1/4)


def test_simplex_says_that_a_point_is_pareto_stationary():
    panel = plot.simplex(STATIONARY @ STATIONARY.mT, ax=axes())
    np.testing.assert_allclose(spot(panel, "min-norm"), [0.2, 0.4, 0.4], atol=1e-7)
    assert labels(panel)[0].endswith("Pareto stationary")
    weights, worst = mapped(panel)
    assert (worst[np.abs(weights - [0.2, 0.4, 0.4]).max(1) > 1e-9] < 0).all()


def test_simplex_draws_categories_and_functions():
    gramian = rows(2, 3, 4)
    gramian = gramian @ gramian.mT
    panel = plot.simplex(gramian, ax=axes(), value=lambda w: (gramian @ w).argmin(), resolution=10)
    collection = panel.collections[0]
    middles = np.stack([np.asarray(path.vertices)[:3].mean(0) for path in collection.get_paths()])
    expected = (shares(middles) @ gramian.numpy()).argmin(1)
    values = collection.get_array()
    assert values is not None
    np.testing.assert_array_equal(np.asarray(values), expected)
    assert len(middles) == 100
    weights, entropy = mapped(
        plot.simplex(
            gramian, ax=axes(), value=lambda w: -torch.special.xlogy(w, w).sum(), resolution=10
        )
    )
    positive = np.clip(weights, 1e-300, None)
    np.testing.assert_allclose(entropy, -(positive * np.log(positive)).sum(1), atol=1e-9)


def test_simplex_takes_a_zero_gradient():
    gramian = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    panel = plot.simplex(gramian, {"mgda": mf.mgda()}, axes())
    assert labels(panel)[0].endswith("Pareto stationary")
    assert not contours(panel, filled=True)  # nothing conflicts
    np.testing.assert_array_equal(mapped(plot.simplex(torch.zeros(3, 3), ax=axes()))[1], 0)


# ---- cone ----


@pytest.mark.parametrize(
    ("count", "seed"), [(1, 0), (2, 1), (2, 2), (3, 3), (3, 4), (4, 5), (5, 11)]
)
def test_cone_holds_exactly_the_directions_that_raise_no_loss(count, seed):
    jacobian = rows(seed, count, 2).numpy()
    panel = plot.cone(jacobian, ax=axes())
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    points = np.stack(
        np.meshgrid(np.linspace(left, right, 41)[1:-1], np.linspace(bottom, top, 37)[1:-1]), -1
    ).reshape(-1, 2)
    cone = [patch for patch in panel.patches if patch.get_label() == "no loss rises"]
    inside = np.zeros(len(points), dtype=bool)
    if cone:
        corners = cone[0].get_xy()  # pyright: ignore[reportAttributeAccessIssue]
        inside = Outline(corners).contains_points(points)
    np.testing.assert_array_equal(inside, (points @ jacobian.T > 0).all(1))


def test_cone_of_a_pareto_stationary_point_is_empty():
    panel = plot.cone(STATIONARY, {"mgda": mf.mgda(), "mean": mf.mean()}, axes())
    assert labels(panel) == ["convex hull", "mgda", r"mean (${\uparrow}$ task 2, task 3)"]


def test_cone_draws_gradients_hull_and_directions():
    jacobian = torch.tensor([[2.0, 0.3], [-0.9, 0.8], [0.4, 1.6], [0.3, 0.9]], dtype=torch.float64)
    panel = plot.cone(jacobian, RULES, axes(), names=list("abcd"))
    quiver = panel.collections[-1]
    arrows = np.stack([quiver.U, quiver.V], -1)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(arrows, jacobian)
    for line, (name, rule) in zip(panel.get_lines(), RULES.items(), strict=True):
        d = mf.aggregate(rule, jacobian, torch.ones(4, dtype=torch.float64))
        np.testing.assert_allclose(np.asarray(line.get_xydata()), [[0, 0], d.tolist()], atol=1e-12)
        raised = [
            task for task, rate in zip("abcd", (jacobian @ d).tolist(), strict=True) if rate < 0
        ]
        assert line.get_label() == (
            rf"{name} (${{\uparrow}}$ {', '.join(raised)})" if raised else name
        )
    hull = next(patch for patch in panel.patches if patch.get_label() == "convex hull")
    outline = hull.get_xy()  # pyright: ignore[reportAttributeAccessIssue]
    corner = {tuple(point) for point in outline.round(9).tolist()}
    assert corner == {(2.0, 0.3), (-0.9, 0.8), (0.4, 1.6)}  # the fourth is inside


def facets(points: np.ndarray) -> set[frozenset[int]]:
    """All sets of dim points `[n, dim]` with the others on one side, by trying them."""
    count, dim = points.shape
    found = set()
    for chosen in itertools.combinations(range(count), dim):
        edges = points[list(chosen[1:])] - points[chosen[0]]
        normal = np.array([-edges[0, 1], edges[0, 0]]) if dim == 2 else np.cross(*edges)
        height = np.delete((points - points[chosen[0]]) @ normal, chosen)
        if (height > 0).all() or (height < 0).all():
            found.add(frozenset(chosen))
    return found


@pytest.mark.parametrize(
    ("count", "dim", "seed"), [(3, 2, 4), (4, 2, 0), (7, 2, 1), (4, 3, 7), (5, 3, 2), (8, 3, 3)]
)
@pytest.mark.parametrize("thin", [1.0, 1e-7])
def test_cone_hull_has_all_points_on_one_side(count, dim, seed, thin):
    points = rows(seed, count, dim).numpy() * np.array([1.0, *[thin] * (dim - 1)])
    index = {tuple(point): i for i, point in enumerate(points.tolist())}
    polygons = [[index[tuple(corner)] for corner in face.tolist()] for face in hull(points)]
    if dim == 2:
        (order,) = polygons
        polygons = list(zip(order, order[1:] + order[:1], strict=True))
    assert {frozenset(corners) for corners in polygons} == facets(points)


@pytest.mark.parametrize("dim", [2, 3])
def test_cone_hull_of_flat_points(dim):
    ends = np.array([[0.0, 1.0, -1.0], [2.0, 3.0, 1.0]])[:, :dim]
    line = np.stack([ends[0], ends.mean(0), ends[1]])
    (segment,) = hull(line)
    assert sorted(map(tuple, segment)) == sorted(map(tuple, ends))
    (point,) = hull(np.tile(ends[0], (3, 1)))
    assert point.tolist() == [ends[0].tolist()]
    (point,) = hull(np.zeros((2, dim)))
    assert point.tolist() == [[0.0] * dim]
    if dim == 3:  # a rectangle and its middle, in a slanted plane
        plane = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        square = np.array([[0, 0], [1, 0], [0.5, 0.5], [1, 1], [0, 1]]) @ plane
        (face,) = hull(square)
        assert {tuple(x) for x in face.tolist()} == {tuple(x) for x in np.delete(square, 2, 0)}
        sides = np.linalg.norm(face - np.roll(face, 1, 0), axis=1)
        np.testing.assert_allclose(sorted(sides), [1, 1, 2**0.5, 2**0.5])  # not √3, a diagonal


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 1), (3, 2), (3, 5), (4, 6)])
def test_cone_faces_in_three_dimensions_bound_the_cone(count, seed):
    jacobian = rows(seed, count, 3).numpy()
    low, high = np.full(3, -3.0), np.full(3, 3.0)
    faces = cone_faces(jacobian, low, high)
    for face in faces:
        heights = face @ jacobian.T
        assert heights.min() > -1e-7
        assert np.abs(heights).max(0).min() < 1e-7  # in one task's plane
        assert (face >= low - 1e-9).all()
        assert (face <= high + 1e-9).all()
    # As many faces as tasks whose half-space is not implied by the others, by sampling the
    # directions in its plane.
    free = 0
    for i in range(count):
        circle = np.linalg.svd(jacobian[i : i + 1])[2][1:].T @ np.stack(
            [np.cos(np.linspace(0, 7, 4000)), np.sin(np.linspace(0, 7, 4000))]
        )
        free += bool((np.delete(jacobian, i, 0) @ circle > 1e-3).all(0).any())
    assert len(faces) == free


def test_cone_of_orthogonal_gradients_is_the_octant():
    faces = cone_faces(np.eye(3), np.full(3, -9.0), np.full(3, 9.0))
    assert len(faces) == 3
    for face in faces:
        # The plane across (1, 1, 1) at distance 1 from the origin: corners at √3 on two axes.
        corner = {tuple(point) for point in (np.abs(face) / SQRT3).round(6).tolist()}
        assert len(corner) == 3
        assert corner < {(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}


def test_cone_in_three_dimensions_draws_directions():
    jacobian = rows(2, 3, 3)
    panel = plot.cone(jacobian, {"mgda": mf.mgda()})
    assert panel.name == "3d"
    (line,) = panel.get_lines()
    tip = np.stack(line.get_data_3d(), -1)[1]  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(tip, mf.aggregate(mf.mgda(), jacobian), atol=1e-12)
    panel.figure.savefig(io.BytesIO())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "gradients",
    [
        torch.zeros(2, 2),
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 3.0]]),
    ],
)
def test_cone_draws_degenerate_gradients(gradients):
    panel = plot.cone(gradients, {"mean": mf.mean()})
    panel.figure.savefig(io.BytesIO())  # pyright: ignore[reportAttributeAccessIssue]


# ---- heatmap ----


def test_heatmap_shows_the_matrix_centred_on_zero():
    jacobian = rows(0, 3, 4)
    gramian = jacobian @ jacobian.mT
    panel = plot.heatmap(gramian, axes(), names=["a", "b", "c"])
    (image,) = panel.get_images()
    np.testing.assert_allclose(np.asarray(image.get_array()), gramian)
    low, high = image.get_clim()
    assert high == pytest.approx(float(gramian.abs().max()))
    assert low == -high
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["a", "b", "c"]
    shown = {
        (text.get_position()[1], text.get_position()[0]): float(text.get_text().replace("−", "-"))
        for text in panel.texts
    }
    for (i, j), number in shown.items():
        assert number == pytest.approx(float(gramian[int(i), int(j)]), rel=0.051)  # two digits
    assert len(shown) == 9


def test_heatmap_of_cosines():
    jacobian = rows(0, 3, 4)
    jacobian[1] = 0
    panel = plot.heatmap(jacobian @ jacobian.mT, axes(), cosine=True)
    shown = panel.get_images()[0].get_array()
    assert shown is not None
    cosine = float(jacobian[0] @ jacobian[2] / jacobian[0].norm() / jacobian[2].norm())
    np.testing.assert_allclose(
        np.ma.filled(shown, np.nan),
        [[1, np.nan, cosine], [np.nan] * 3, [cosine, np.nan, 1]],
        atol=1e-12,
    )
    assert sorted(text.get_text() for text in panel.texts) == sorted(
        ["1.00", "1.00", *2 * [f"{cosine:.2f}".replace("-", "−")]]
    )
    assert not plot.heatmap(torch.eye(11), axes()).texts


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (184.2, "180"),
        (-0.0512, "−0.051"),
        (6.0, "6"),
        (1.2e7, "1.2e7"),
        (-3.4e-5, "−3.4e−5"),
        (1e-12, "1.0e−12"),
    ],
)
def test_heatmap_numbers_are_short(number, text):
    assert short(number) == text


# ---- weights ----


def test_weights_are_means_and_quantiles_over_seeds():
    record = torch.softmax(rows(0, 9, 5, 3), -1)
    panel = plot.weights(record, axes(), steps=[0, 10, 20, 30, 40], band=0.5, linewidth=3)
    assert [line.get_label() for line in panel.get_lines()] == ["task 1", "task 2", "task 3"]
    for task, (line, fill) in enumerate(zip(panel.get_lines(), panel.collections, strict=True)):
        np.testing.assert_allclose(
            np.asarray(line.get_xydata()),
            np.stack([np.arange(0, 50, 10), record[..., task].mean(0)], -1),
        )
        assert line.get_linewidth() == 3
        edge = np.asarray(fill.get_paths()[0].vertices)
        for step in range(5):
            ends = edge[edge[:, 0] == 10 * step, 1]
            # of nine numbers the quartiles are the third and the seventh
            ordered = record[:, step, task].sort().values
            assert (ends.min(), ends.max()) == pytest.approx((float(ordered[2]), float(ordered[6])))


def test_weights_of_a_rollout():
    step = mf.descend(
        lambda p, batch: torch.stack([(p["x"] - 1) ** 2, 4 * (p["x"] + 1) ** 2]),
        mf.mgda(),
        mf.sgd(0.01),
        mf.jacobian(),
    )
    _, info = mf.rollout(step, step.init({"x": torch.tensor(3.0)}, None), [None] * 6)
    panel = plot.weights(info, axes(), names=["near", "far"])
    assert not panel.collections  # one run has no band
    for task, line in enumerate(panel.get_lines()):
        np.testing.assert_allclose(np.asarray(line.get_ydata()), info.weights[:, task])
    assert labels(panel) == ["near", "far"]


@pytest.mark.parametrize("record", [torch.ones(1, 2), rows(4, 5, 1, 2)])
def test_weights_of_one_step_are_seen(record):
    """A mark a task, and over seeds a bar each: a line or an area of one step has no ink."""
    figure = Figure(figsize=(2, 2))
    panel = plot.weights(record, figure.add_subplot())
    assert all(line.get_marker() not in ("", "None") for line in panel.get_lines())
    for task, line in enumerate(panel.get_lines()):
        assert line.get_ydata() == pytest.approx([float(record[..., task].mean())])
    ends = [
        bar.get_segments()[0][:, 1].tolist()  # pyright: ignore[reportAttributeAccessIssue]
        for bar in panel.collections
    ]
    if record.ndim == 3:
        assert ends == [
            pytest.approx(np.quantile(record[:, 0, task], [0.1, 0.9])) for task in range(2)
        ]
    legend = panel.get_legend()
    assert legend is not None
    legend.remove()
    panel.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert (np.asarray(canvas.buffer_rgba())[..., :3] < 200).any(-1).sum() > 20


# ---- front ----


def test_front_highlights_what_no_point_dominates():
    points = torch.tensor([[1.0, 3.0], [2.0, 2.0], [2.5, 2.5], [3.0, 1.0], [3.0, 1.5], [2.0, 4.0]])
    panel = plot.front(points, axes(), reference=[4.0, 4.0], label="mgda")
    best, rest, mark = panel.get_lines()
    assert np.asarray(best.get_xydata()).tolist() == [[1, 3], [2, 2], [3, 1]]
    assert best.get_drawstyle() == "steps-post"
    assert np.asarray(rest.get_xydata()).tolist() == [[2.5, 2.5], [3, 1.5], [2, 4]]
    assert np.asarray(mark.get_xydata()).tolist() == [[4, 4]]
    assert labels(panel) == ["mgda, HV = 6.000"]  # 3·1 + 2·1 + 1·1
    edge = np.asarray(panel.collections[0].get_paths()[0].vertices)
    x, y = edge.T
    assert abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2 == pytest.approx(6.0)  # the shaded area


def test_front_ignores_what_lies_beyond_the_reference():
    panel = plot.front([[1.0, 1.0], [0.5, 9.0], [9.0, 0.5]], axes(), reference=[2.0, 3.0])
    assert labels(panel) == ["non-dominated, HV = 2.000"]
    edge = np.asarray(panel.collections[0].get_paths()[0].vertices)
    assert edge.min(0).tolist() == [1, 1]
    assert edge.max(0).tolist() == [2, 3]
    assert labels(plot.front([[5.0, 5.0]], axes(), reference=[2.0, 3.0])) == [
        "non-dominated, HV = 0.000"
    ]


def test_front_compares_on_the_same_axes():
    panel = axes()
    for i in range(3):
        plot.front(rows(i, 8, 2), panel, label=f"rule {i}", reference=[5.0, 5.0])
    drawn = [line for line in panel.get_lines() if str(line.get_label()).startswith("rule")]
    assert (
        len({line.get_color() for line in drawn})
        == len({str(line.get_marker()) for line in drawn})
        == 3
    )
    assert sum(line.get_label() == "_reference" for line in panel.get_lines()) == 1


def test_front_in_three_dimensions():
    points = rows(3, 40, 3).numpy()
    panel = plot.front(points, true=points[:5], names=["a", "b", "c"])
    known, best, _ = (
        np.stack(line.get_data_3d(), -1)  # pyright: ignore[reportAttributeAccessIssue]
        for line in panel.get_lines()
    )
    dominated = [any((q <= p).all() and (q < p).any() for q in points) for p in points]
    np.testing.assert_allclose(known, points[:5])
    assert {tuple(p) for p in best} == {
        tuple(p) for p, worse in zip(points, dominated, strict=True) if not worse
    }
    assert panel.get_zlabel() == "c"  # pyright: ignore[reportAttributeAccessIssue]
    panel.figure.savefig(io.BytesIO())  # pyright: ignore[reportAttributeAccessIssue]


def test_front_leaves_out_runs_that_diverged():
    losses = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [2.0, 1.0]])
    panel = plot.front(Front(torch.eye(3), losses, torch.tensor([True, False, True]), ()), axes())
    assert np.asarray(panel.get_lines()[0].get_xydata()).tolist() == [[1, 2], [2, 1]]


# ---- gap ----


def test_gap_draws_certified_gaps_of_solvers():
    jacobian = rows(0, 6, 9)
    problem = mf.solvers.min_norm(jacobian @ jacobian.mT)
    budgets = (1, 2, 4, 8, 16)
    runs = {
        name: [mf.solvers.frank_wolfe(k, name)(problem) for k in budgets]
        for name in ("line-search", "pairwise")
    }
    panel = plot.gap(runs, axes())
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    for line, (name, answers) in zip(panel.get_lines(), runs.items(), strict=True):
        assert line.get_label() == name
        expected = []
        for answer in answers:
            w, g = answer.dual, problem.gramian
            expected.append(float(w @ g @ w - (g @ w).min()))
        np.testing.assert_allclose(np.asarray(line.get_ydata()), expected, rtol=1e-6)
        assert np.asarray(line.get_xdata()).tolist() == list(budgets)


def test_gap_over_problems_is_the_median_and_a_band():
    jacobian = rows(0, 5, 4, 7)
    answers = [
        vmap(lambda g, k=k: mf.solvers.frank_wolfe(k)(mf.solvers.min_norm(g)))(
            jacobian @ jacobian.mT
        )
        for k in (2, 8)
    ]
    gaps = torch.stack([answer.gap for answer in answers])  # [budget, problem]
    stacked = mf.Solution(*(torch.stack(parts) for parts in zip(*answers, strict=True)))
    for curve in (answers, stacked, ([2, 8], gaps)):
        panel = plot.gap({"solver": curve}, axes(), band=1.0)
        np.testing.assert_allclose(
            np.asarray(panel.get_lines()[0].get_ydata()), gaps.median(1).values
        )
        edge = np.asarray(panel.collections[0].get_paths()[0].vertices)
        for step, row in zip((2, 8), gaps, strict=True):
            ends = edge[edge[:, 0] == step, 1]
            assert (ends.min(), ends.max()) == pytest.approx((float(row.min()), float(row.max())))


def test_gap_of_zero_is_drawn_hollow_below_all_others():
    panel = plot.gap(
        {"exact": ([1, 2, 4], [1e-2, 0.0, 0.0]), "other": ([1, 2], [1e-3, 1e-5])}, axes()
    )
    line, hollow, _ = panel.get_lines()
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [1e-2, 1e-6, 1e-6])
    np.testing.assert_allclose(np.asarray(hollow.get_xydata()), [[2, 1e-6], [4, 1e-6]])
    assert hollow.get_markerfacecolor() == "white"


# ---- all of them ----

NAN = float("nan")
BAD = {
    "portrait panel": (lambda ax: plot.portrait(mf.mean(), ("speed",)), "show: expected"),
    "portrait axes": (
        lambda ax: plot.portrait(mf.mean(), ax=ax, cells=(3, 3)),
        "ax: expected as many Axes as panels, 4, got 1",
    ),
    "portrait ratios": (lambda ax: plot.portrait(mf.mean(), ratios=(1.0, 0.1)), "ratios: expected"),
    "portrait cells": (lambda ax: plot.portrait(mf.mean(), cells=(1, 5)), "cells: expected"),
    "portrait steps": (lambda ax: plot.portrait(mf.mean(), steps=0), "steps: expected"),
    "portrait losses": (
        lambda ax: plot.portrait(mf.mean(), losses=[1.0, 2.0, 3.0]),
        r"losses: expected numbers of shape \[2\]",
    ),
    "portrait weights": (
        lambda ax: plot.portrait(lambda g: g.sum(), ("length",)),
        r"rule: expected weights of shape \[2\], one a task, got shape \[\]",
    ),
    "portrait type": (
        lambda ax: plot.portrait(
            mf.Rule(lambda losses, key: (), cast(Any, lambda geometry, state: ([0.5, 0.5], state))),
            ("length",),
        ),
        "rule: expected weights .* got list",
    ),
    "simplex shape": (
        lambda ax: plot.simplex(torch.eye(4), ax=ax),
        r"gramian: expected numbers of shape \[3, 3\], got shape \[4, 4\]",
    ),
    "simplex NaN": (
        lambda ax: plot.simplex(torch.full((3, 3), NAN), ax=ax),
        "gramian: NaN or infinite entries",
    ),
    "simplex value": (
        lambda ax: plot.simplex(torch.eye(3), ax=ax, value="best"),
        "value='best': expected",
    ),
    "simplex values": (
        lambda ax: plot.simplex(torch.eye(3), ax=ax, value=lambda w: w),
        "value: expected one number",
    ),
    "simplex value NaN": (
        lambda ax: plot.simplex(torch.eye(3), ax=ax, value=lambda w: w[0].log() * w[1]),
        "value: expected finite",
    ),
    "simplex sum": (
        lambda ax: plot.simplex(torch.eye(3), {"odd": lambda g: -g[0]}, ax),
        r"rules\['odd'\]: weights .* no positive sum",
    ),
    "simplex names": (
        lambda ax: plot.simplex(torch.eye(3), ax=ax, names=["a"]),
        "names: expected 3 strings",
    ),
    "simplex resolution": (
        lambda ax: plot.simplex(torch.eye(3), ax=ax, resolution=1),
        "resolution: expected",
    ),
    "cone shape": (
        lambda ax: plot.cone(torch.eye(4), ax=ax),
        r"gradients: expected numbers of shape \[n, 2 or 3\], got shape \[4, 4\]",
    ),
    "cone NaN": (
        lambda ax: plot.cone([[1.0, NAN]], ax=ax),
        r"gradients: NaN or infinite entries, the first at \[0, 1\]",
    ),
    "cone axes": (lambda ax: plot.cone(torch.eye(3), ax=ax), "ax: expected three-dimensional Axes"),
    "heatmap square": (
        lambda ax: plot.heatmap(torch.ones(2, 3), ax),
        "gramian: expected a square matrix",
    ),
    "heatmap names": (
        lambda ax: plot.heatmap(torch.eye(2), ax, names="ab"),
        "names: expected 2 strings",
    ),
    "weights shape": (
        lambda ax: plot.weights(torch.ones(3), ax),
        r"record: expected numbers of shape \[n, n\] or \[n, n, n\]",
    ),
    "weights NaN": (
        lambda ax: plot.weights(torch.tensor([[1.0, 1.0], [NAN, 1.0]]), ax),
        r"record: NaN .* the first at \[1, 0\]",
    ),
    "weights steps": (
        lambda ax: plot.weights(torch.ones(3, 2), ax, steps=[1, 2]),
        r"steps: expected numbers of shape \[3\]",
    ),
    "weights band": (lambda ax: plot.weights(torch.ones(3, 2), ax, band=0.0), "band: expected"),
    "front shape": (
        lambda ax: plot.front(torch.ones(4, 5), ax),
        r"points: expected numbers of shape \[n, 2 or 3\]",
    ),
    "front true": (
        lambda ax: plot.front(torch.ones(4, 2), ax, true=torch.ones(4, 3)),
        r"true: expected numbers of shape \[n, 2\]",
    ),
    "front NaN": (lambda ax: plot.front([[1.0, NAN]], ax), "points: NaN"),
    "front axes": (
        lambda ax: plot.front(torch.ones(4, 3), ax),
        "ax: expected three-dimensional Axes",
    ),
    "gap none": (lambda ax: plot.gap({}, ax), "curves: expected at least one"),
    "gap shape": (
        lambda ax: plot.gap({"a": ([1, 2], [0.1])}, ax),
        r"x of curves\['a'\]: expected numbers of shape",
    ),
    "gap negative": (
        lambda ax: plot.gap({"a": ([1], [-0.1])}, ax),
        r"curves\['a'\]: a logarithmic axis needs",
    ),
    "gap x": (
        lambda ax: plot.gap({"a": ([0], [0.1])}, ax),
        r"curves\['a'\]: a logarithmic axis needs x > 0",
    ),
    "gap entry": (
        lambda ax: plot.gap({"a": []}, ax),
        r"curves\['a'\]: expected a Solution, a list",
    ),
    "gap band": (lambda ax: plot.gap({"a": ([1], [0.1])}, ax, band=2.0), "band: expected"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_named(case):
    draw, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        draw(axes())
    assert not plt.get_fignums()  # no half-drawn figure is left behind


GOOD = {
    "portrait": lambda ax: plot.portrait(mf.mean(), ("rate 1",), ax, cells=(5, 4))[0],
    "simplex": lambda ax: plot.simplex(torch.eye(3), {"mgda": mf.mgda()}, ax, resolution=6),
    "cone": lambda ax: plot.cone(torch.eye(2), {"mgda": mf.mgda()}, ax),
    "heatmap": lambda ax: plot.heatmap(torch.eye(3), ax),
    "weights": lambda ax: plot.weights(torch.ones(4, 5, 2), ax),
    "front": lambda ax: plot.front(rows(0, 5, 2), ax, reference=[4.0, 4.0]),
    "gap": lambda ax: plot.gap({"a": ([1, 10, 100], [0.1, 1e-3, 0.0])}, ax),
}


@pytest.mark.parametrize("name", list(GOOD))
def test_given_axes_are_drawn_on_and_returned(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("plt.show was called"))
    before = dict(mpl.rcParams)
    panel = axes()
    assert GOOD[name](panel) is panel
    panel.figure.savefig(io.BytesIO())  # pyright: ignore[reportAttributeAccessIssue]
    assert not plt.get_fignums()
    made = GOOD[name](None)
    assert made in plt.gcf().axes
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", list(GOOD))
def test_texts_do_not_overlap_at_column_width(name):
    figure = Figure(figsize=(3.5, 2.8), layout="constrained")
    with mpl.rc_context({"font.size": 8}):
        panel = GOOD[name](figure.add_subplot())
        figure.savefig(io.BytesIO())
    texts = [panel.title, panel.xaxis.label, panel.yaxis.label]
    for axis, limits in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
        # others are not drawn
        texts += [
            tick.label1
            for tick in axis.get_major_ticks()
            if min(limits) <= tick.get_loc() <= max(limits)
        ]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and panel.axison]
    boxes += [text.get_window_extent() for text in panel.texts if name in ("simplex", "heatmap")]
    assert len(boxes) > 4
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_importing_plot_does_not_import_matplotlib():
    code = "import sys, mtlfunc.plot; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
