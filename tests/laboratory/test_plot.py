"""The data in the artists of pictures, against formulas and independent arithmetic."""

import io
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.func import vmap

import mtlfunc as mf
from mtlfunc import plot
from mtlfunc.plot._common import format_short
from tests.support.loops import rollout
from tests.support.plots import axes, labels, rows

mpl.use("Agg")
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
    expected = [[1, np.nan, cosine], [np.nan] * 3, [cosine, np.nan, 1]]
    np.testing.assert_allclose(np.ma.filled(shown, np.nan), expected, atol=1e-12)
    written = ["1.00", "1.00", *2 * [f"{cosine:.2f}".replace("-", "−")]]
    assert sorted(text.get_text() for text in panel.texts) == sorted(written)
    assert not plot.heatmap(torch.eye(11), axes()).texts
    assert [*map(format_short, (184.2, 1.2e7, -3.4e-5))] == ["180", "1.2e7", "−3.4e−5"]


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
    def losses(p, batch):
        return {"near": (p["x"] - 1) ** 2, "far": 4 * (p["x"] + 1) ** 2}

    step = mf.descend(losses, mf.mgda(), mf.jacobian(), mf.sgd(0.01))
    _, info = rollout(step, step.init({"x": torch.tensor(3.0)}, None), [None] * 3)
    panel = plot.weights(info, axes())
    assert not panel.collections  # one run has no band
    for task, line in enumerate(panel.get_lines()):
        np.testing.assert_allclose(np.asarray(line.get_ydata()), info.weights[:, task])
    assert labels(panel) == ["near", "far"]
    assert labels(plot.weights(info, axes(), names=["a", "b"])) == ["a", "b"]
    assert all(float(tick).is_integer() for tick in panel.get_xticks())


def test_weights_of_thirty_tasks_at_one_step():
    """A line of one step has no ink without marks, nor room beside thirty names inside."""
    panel = plot.weights(torch.ones(1, 30), axes())
    assert all(line.get_marker() not in ("", "None") for line in panel.get_lines())
    legend = panel.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= panel.get_window_extent().x1
    assert len(labels(panel)) == 30
    figure = Figure(figsize=(3.25, 2.4), layout="constrained")
    with mpl.rc_context({"font.size": 8}):
        panel = plot.weights(rows(0, 4, 40, 30), figure.add_subplot())
        figure.savefig(io.BytesIO())
    assert labels(panel) == [f"task {i}" for i in range(1, 31, 3)]
    assert panel.get_window_extent().width > 0.5 * figure.bbox.width
    assert panel.get_legend().get_window_extent().y0 >= 0  # pyright: ignore


def test_smoothed_weights_are_means_of_the_steps_before():
    record = rows(3, 5, 7, 2)
    for task, line in enumerate(plot.weights(record, axes(), smooth=3).get_lines()):
        means = [record[:, max(0, i - 2) : i + 1, task].mean() for i in range(7)]
        np.testing.assert_allclose(np.asarray(line.get_ydata()), means)


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
    plot.front(points + 1, panel, reference=[4.0, 4.0])  # two of its best are not below it
    assert labels(panel)[1] == "non-dominated, HV = 1.000"
    edge = np.asarray(panel.collections[1].get_paths()[0].vertices)
    assert [*edge.min(0), *edge.max(0)] == [3, 3, 4, 4]
    best, _, _, other, _ = panel.get_lines()  # and one reference
    assert best.get_color() != other.get_color()


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
    problems = vmap(mf.solvers.min_norm)(jacobian @ jacobian.mT)
    answers = [vmap(mf.solvers.frank_wolfe(k))(problems) for k in (2, 8)]
    gaps = torch.stack([answer.gap for answer in answers])  # [budget, problem]
    stacked = mf.types.Solution(*(torch.stack(parts) for parts in zip(*answers, strict=True)))
    for curve in (answers, stacked, ([2, 8], gaps)):
        panel = plot.gap({"solver": curve}, axes(), band=1.0)
        middle = np.asarray(panel.get_lines()[0].get_ydata())
        np.testing.assert_allclose(middle, gaps.median(1).values)
        edge = np.asarray(panel.collections[0].get_paths()[0].vertices)
        for step, row in zip((2, 8), gaps, strict=True):
            ends = edge[edge[:, 0] == step, 1]
            assert (ends.min(), ends.max()) == pytest.approx((float(row.min()), float(row.max())))


def test_gap_of_zero_is_drawn_hollow_below_all_others():
    panel = plot.gap({"a": ([1, 2, 4], [1e-2, 0.0, 0.0]), "b": ([1, 2], [1e-3, 1e-5])}, axes())
    line, hollow, _ = panel.get_lines()
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [1e-2, 1e-6, 1e-6])
    np.testing.assert_allclose(np.asarray(hollow.get_xydata()), [[2, 1e-6], [4, 1e-6]])
    assert hollow.get_markerfacecolor() == "white"


NAN = float("nan")
ONES, EYE, MEAN = torch.ones(2), torch.eye(3), mf.mean()
STEP = mf.Info(ONES, ONES, ONES, ONES, (), {})
GROUPS = STEP._replace(losses=torch.zeros(5, 3), weights=torch.full((5, 2, 3), 0.5))

BAD = {
    "portrait panel": (lambda ax: plot.portrait(MEAN, ("speed",)), "show: expected"),
    "portrait axes": (lambda ax: plot.portrait(MEAN, ax=ax, cells=(3, 3)), "ax:"),
    "portrait ratios": (lambda ax: plot.portrait(MEAN, ratios=(1.0, 0.1)), "ratios: expected"),
    "portrait cell": (lambda ax: plot.portrait(MEAN, cells=cast(Any, 4)), "cells: expec"),
    "portrait cells": (lambda ax: plot.portrait(MEAN, cells=(1, 5)), "cells: expected"),
    "portrait steps": (lambda ax: plot.portrait(MEAN, steps=0), "steps: expected"),
    "weights of groups": (lambda ax: plot.weights(GROUPS, ax), r"2 groups .* record\.weights\["),
    "steps that are not stacked": (lambda ax: plot.weights(cast(Any, [STEP, STEP]), ax), "record:"),
    "portrait losses": (lambda ax: plot.portrait(MEAN, losses=[1.0, 2.0, 3.0]), "losses:"),
    "portrait weights": (lambda ax: plot.portrait(lambda g: g.sum(), ("length",)), "rule:"),
    "portrait type": (
        lambda ax: plot.portrait(MEAN._replace(update=cast(Any, lambda g, s: ([0.5, 0.5], s)))),
        "rule:",
    ),
    "simplex shape": (lambda ax: plot.simplex(torch.eye(4), ax=ax), "gramian:"),
    "simplex NaN": (lambda ax: plot.simplex(torch.full((3, 3), NAN), ax=ax), "gramian:"),
    "simplex value": (lambda ax: plot.simplex(EYE, ax=ax, value="best"), "value="),
    "simplex values": (lambda ax: plot.simplex(EYE, ax=ax, value=lambda w: w), "value:"),
    "simplex NaN value": (
        lambda ax: plot.simplex(EYE, ax=ax, value=lambda w: w[0].log() * w[1]),
        "value:",
    ),
    "simplex sum": (lambda ax: plot.simplex(EYE, {"odd": lambda g: -g[0]}, ax), r"rules\['odd'\]:"),
    "simplex names": (lambda ax: plot.simplex(EYE, ax=ax, names=["a"]), "names:"),
    "simplex resolution": (lambda ax: plot.simplex(EYE, ax=ax, resolution=1), "resolution:"),
    "heatmap square": (lambda ax: plot.heatmap(torch.ones(2, 3), ax), "gramian:"),
    "heatmap names": (lambda ax: plot.heatmap(torch.eye(2), ax, names="ab"), "names:"),
    "weights shape": (lambda ax: plot.weights(torch.ones(3), ax), "record:"),
    "weights NaN": (lambda ax: plot.weights(torch.tensor([[1.0, 1.0], [NAN, 1.0]]), ax), "record:"),
    "weights steps": (lambda ax: plot.weights(torch.ones(3, 2), ax, steps=[1, 2]), "steps:"),
    "weights smooth": (lambda ax: plot.weights(torch.ones(3, 2), ax, smooth=0), "smooth: expected"),
    "weights band": (lambda ax: plot.weights(torch.ones(3, 2), ax, band=0.0), "band: expected"),
    "front shape": (lambda ax: plot.front(torch.ones(4, 5), ax), "points:"),
    "front true": (lambda ax: plot.front(torch.ones(4, 2), ax, true=torch.ones(4, 3)), "true:"),
    "front NaN": (lambda ax: plot.front([[1.0, NAN]], ax), "points: NaN"),
    "front axes": (lambda ax: plot.front(torch.ones(4, 3), ax), "ax:"),
    "gap none": (lambda ax: plot.gap({}, ax), "curves: expected a dict of .* got none"),
    "gap shape": (lambda ax: plot.gap({"a": ([1, 2], [0.1])}, ax), r"x of curves\['a'\]: expected"),
    "gap negative": (lambda ax: plot.gap({"a": ([1], [-0.1])}, ax), r"curves\['a'\]:"),
    "gap x": (lambda ax: plot.gap({"a": ([0], [0.1])}, ax), r"curves\['a'\]:"),
    "gap entry": (lambda ax: plot.gap({"a": []}, ax), r"curves\['a'\]:"),
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
    assert GOOD[name](None) in plt.gcf().axes
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


@pytest.mark.parametrize("row", [[0.1, 0.1], [0.1e-9, 0.7e-9], [0.0, 0.0]])
def test_a_simplex_of_one_gradient_three_times(row):
    """Its length is the same everywhere up to rounding, and has no levels."""
    rows = torch.tensor([row] * 3, dtype=torch.float64)
    assert mf.plot.simplex(rows @ rows.T, ax=Figure().add_subplot(), resolution=8).texts
