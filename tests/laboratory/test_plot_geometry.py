"""Portraits and simplices show the directions that were computed."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.contour import ContourSet
from matplotlib.path import Path as Outline
from torch import Tensor

import mtlfunc as mf
from mtlfunc import plot
from mtlfunc.core.random import normal
from mtlfunc.plot._common import RISES
from tests.support.plots import axes, labels, rows

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


def meshed(panel: Axes) -> np.ndarray:
    (mesh,) = (c for c in panel.collections if isinstance(c, QuadMesh))
    values = mesh.get_array()
    assert values is not None
    return np.ma.filled(values, np.nan)


def cells(
    angles: int = 90, ratios: int = 81, limits: tuple[float, float] = (0.01, 100.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Angles and ratios `[ratio, angle]` of a portrait's cells, counted from the other end."""
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


def test_portrait_of_the_mean_is_its_formula():
    direction, length, first, second = (meshed(panel) for panel in plot.portrait(mf.mean()))
    phi, r = cells()
    mean = np.sqrt(1 + r**2 + 2 * r * np.cos(phi))  # 2‖g₀‖ for ‖g₁‖ = 1
    np.testing.assert_allclose(length, 1, rtol=1e-10)
    np.testing.assert_allclose(first, (1 + r * np.cos(phi)) / mean, atol=1e-10)
    np.testing.assert_allclose(second, (r + np.cos(phi)) / mean, atol=1e-10)
    angle = np.arctan2(r * np.sin(phi), 1 + r * np.cos(phi))
    np.testing.assert_allclose(direction, angle / phi, atol=1e-10)


@pytest.mark.parametrize("name", list(RULES))
def test_portrait_equals_single_calls(name):
    phi, r = cells(7, 5)
    _, length, _, second = map(meshed, plot.portrait(RULES[name], cells=(7, 5), key=3))
    for at in ((0, 0), (2, 5), (4, 3)):
        other = [r[at] * np.cos(phi[at]), r[at] * np.sin(phi[at])]
        jacobian = torch.tensor([[1.0, 0.0], other], dtype=torch.float64)
        d = mf.aggregate(RULES[name], jacobian, torch.ones(2, dtype=torch.float64), key=3)
        mean, rate = jacobian.mean(0).norm(), jacobian[1] @ d / jacobian[1].norm()
        assert length[at] == pytest.approx(float(d.norm() / mean), rel=1e-9)
        assert second[at] == pytest.approx(float(rate / mean), rel=1e-8, abs=1e-10)


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


def test_portrait_takes_functions_and_rules_that_cannot_be_vmapped():
    calls = []

    def batched(gramian: Tensor) -> Tensor:
        return torch.softmax(-gramian.diagonal().log(), -1)

    def branching(gramian: Tensor) -> Tensor:
        calls.append(float(gramian[0, 0]))
        return torch.softmax(-gramian.diagonal().log(), -1)

    np.testing.assert_allclose(small(batched, "length"), small(branching, "length"), rtol=1e-12)
    assert len(calls) == 30


def small(rule, show, **options):
    return meshed(plot.portrait(rule, (show,), cells=(6, 5), **options)[0])


def test_portrait_passes_losses_and_key():
    static = small(mf.mean(preference=torch.tensor([0.25, 0.75])), "rate 1")
    found = small(lambda gramian, losses: losses / losses.sum(), "rate 1", losses=[1.0, 3.0])
    np.testing.assert_allclose(found, static, rtol=1e-12)

    def draw(losses: Tensor, key: Tensor) -> Tensor:
        return torch.softmax(normal(key, (2,), torch.float64), -1)

    rule = mf.Rule(draw, lambda geometry, state: (state, state), frozenset())
    share = mf.weights(rule, torch.eye(2, dtype=torch.float64), key=5)
    expected = small(mf.mean(preference=share), "rate 2")
    np.testing.assert_allclose(small(rule, "rate 2", key=5), expected, rtol=1e-12)


def test_portrait_leaves_cells_grey_where_weights_are_not_finite():
    def rule(gramian: Tensor) -> Tensor:
        return (gramian[0, 1] * torch.ones(2, dtype=gramian.dtype)).sqrt()  # NaN in conflict

    said = "NaN or infinite weights at 15 of 30 points, first at 105°"
    with pytest.warns(UserWarning, match=said):
        (panel,) = plot.portrait(rule, ("length",), cells=(6, 5))
    np.testing.assert_array_equal(np.isnan(meshed(panel)), cells(6, 5)[0] > np.pi / 2)
    assert panel.get_facecolor() == to_rgba("0.75")


def test_portrait_has_no_direction_where_d_is_zero():
    assert np.isnan(small(lambda gramian: torch.zeros_like(gramian[0]), "direction")).all()


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
    panel = plot.simplex(jacobian @ jacobian.T, ax=axes(), value="length", resolution=20)
    length = np.linalg.norm(d, axis=1) / np.linalg.norm(jacobian, axis=1).max()
    np.testing.assert_allclose(mapped(panel)[1], length, atol=1e-10)
    best = lambda w: (torch.from_numpy(jacobian @ jacobian.T) @ w).argmin()  # noqa: E731
    drawn = plot.simplex(jacobian @ jacobian.T, ax=axes(), value=best, resolution=10).collections[0]
    middles = np.stack([np.asarray(path.vertices)[:3].mean(0) for path in drawn.get_paths()])
    expected = (shares(middles) @ jacobian @ jacobian.T).argmin(1)
    np.testing.assert_array_equal(np.asarray(drawn.get_array()), expected)


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
    rules = {"mean": mf.mean(), "cagrad": mf.cagrad(0.4), "negative": lambda g: g[0] - 0.25}
    panel = plot.simplex(gramian, rules, axes(), names=["a", "b", "c"])
    np.testing.assert_allclose(spot(panel, "min-norm"), np.array([4, 2, 1]) / 7, atol=1e-12)
    np.testing.assert_allclose(spot(panel, "mean"), np.full(3, 1 / 3), atol=1e-12)
    weights = mf.weights(mf.cagrad(0.4), gramian).numpy()
    np.testing.assert_allclose(spot(panel, "cagrad"), weights / weights.sum(), atol=1e-12)
    # outside the triangle
    np.testing.assert_allclose(spot(panel, "negative"), [3, -1, -1], atol=1e-12)
    assert {"a", "b", "c"} <= {text.get_text() for text in panel.texts}
    assert labels(panel)[0].endswith(f"= {(4 / 7) ** 0.5:.3g}")  # ‖d‖² = 1/(1 + 1/2 + 1/4)


def test_simplex_takes_no_rounding_for_a_length():
    """Three float32 gradients of two parameters, one of which is a combination of the others."""
    jacobian = rows(1, 3, 2).float()
    jacobian[2] = -(0.3 * jacobian[0] + 0.5 * jacobian[1]) / 0.2
    panel = plot.simplex(jacobian @ jacobian.T, {"mgda": mf.mgda()}, axes())
    np.testing.assert_allclose(spot(panel, "mgda"), [0.3, 0.5, 0.2], atol=1e-3)
    assert labels(panel)[0] == "min-norm point:\nPareto stationary"


def test_simplex_says_that_a_point_is_pareto_stationary():
    panel = plot.simplex(STATIONARY @ STATIONARY.mT, ax=axes())
    np.testing.assert_allclose(spot(panel, "min-norm"), [0.2, 0.4, 0.4], atol=1e-7)
    assert labels(panel)[0].endswith("Pareto stationary")
    weights, worst = mapped(panel)
    assert (worst[np.abs(weights - [0.2, 0.4, 0.4]).max(1) > 1e-9] < 0).all()


def test_simplex_takes_a_zero_gradient():
    gramian = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    panel = plot.simplex(gramian, {"mgda": mf.mgda()}, axes())
    assert labels(panel)[0].endswith("Pareto stationary")
    assert not contours(panel, filled=True)  # nothing conflicts
    np.testing.assert_array_equal(mapped(plot.simplex(torch.zeros(3, 3), ax=axes()))[1], 0)
