"""Cosines over time: what is drawn are means and quantiles of cosines computed from gradients."""

from itertools import combinations, pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

import mtlfunc as mf
from mtlfunc.core.random import normal
from mtlfunc.plot import cosines_over_time
from tests.support.loops import rollout

mpl.use("Agg")


def axes() -> Axes:
    return Figure(layout="constrained").add_subplot()


def rows(seed: int, *shape: int) -> torch.Tensor:
    return normal(torch.tensor(seed), shape, torch.float64)


def cosine(rows: torch.Tensor, i: int, j: int) -> np.ndarray:
    """Of rows [*, task, param], by unit vectors."""
    unit = (rows / rows.norm(dim=-1, keepdim=True)).numpy()
    return (unit[..., i, :] * unit[..., j, :]).sum(-1)


def mesh(panel: Axes) -> np.ma.MaskedArray:
    found = panel.collections[0].get_array()
    assert found is not None
    return np.ma.masked_array(found)


def test_lines_of_three_tasks():
    jacobian = rows(0, 12, 3, 4)
    steps = torch.arange(12) * 10
    panel = cosines_over_time(jacobian @ jacobian.mT, axes(), steps=steps, cells=4, band=1.0)
    lines = [line for line in panel.get_lines() if len(np.asarray(line.get_xdata())) == 4]
    for (i, j), line, area in zip(combinations(range(3), 2), lines, panel.collections, strict=True):
        known = cosine(jacobian, i, j)
        share = 100 * (known < 0).mean()
        assert line.get_label() == f"task {i + 1} – task {j + 1}  {share:.0f} %"
        np.testing.assert_allclose(np.asarray(line.get_xdata()), [10, 40, 70, 100])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), known.reshape(4, 3).mean(1))
        heights = np.asarray(area.get_paths()[0].vertices)
        for cell, x in enumerate((10, 40, 70, 100)):
            ends = heights[heights[:, 0] == x, 1]
            group = known[3 * cell : 3 * cell + 3]
            assert (ends.min(), ends.max()) == pytest.approx((group.min(), group.max()))


def test_lines_have_gaps_where_a_gradient_is_zero():
    jacobian = rows(1, 5, 2, 3)
    jacobian[2, 1] = 0
    line = cosines_over_time(jacobian @ jacobian.mT, axes()).get_lines()[-1]
    np.testing.assert_array_equal(np.isnan(np.asarray(line.get_ydata())), np.arange(5) == 2)
    never = torch.zeros(3, 2, 2)
    assert cosines_over_time(never, axes()).get_lines()[-1].get_label() == "task 1 – task 2  –"


@pytest.mark.parametrize(("tasks", "count", "cells"), [(4, 7, 50), (6, 10, 3), (10, 40, 8)])
def test_strips_are_means_over_cells_and_seeds(tasks, count, cells):
    jacobian = rows(tasks, 3, count, tasks, 5)
    jacobian[:, :2, 0] = 0  # an absent task
    panel = cosines_over_time(jacobian @ jacobian.mT, axes(), cells=cells)
    shown = mesh(panel)
    cells = min(cells, count)
    bounds = [k * count // cells for k in range(cells + 1)]
    for row, (i, j) in enumerate(combinations(range(tasks), 2)):
        known = cosine(jacobian, i, j)
        for cell in range(cells):
            group = known[:, bounds[cell] : bounds[cell + 1]]
            group = group[~np.isnan(group)]
            if group.size:
                assert shown[row, cell] == pytest.approx(group.mean())
            else:
                assert np.ma.getmaskarray(shown)[row, cell]
        share = 100 * (known < 0).sum() / (~np.isnan(known)).sum()
        text = panel.get_yticklabels()[row].get_text()
        assert text.startswith(f"task {i + 1} – task {j + 1}  ")
        assert float(text.split()[-2]) == pytest.approx(share, abs=0.5 + 1e-9)
    low, high = panel.collections[0].get_clim()
    assert high is not None
    assert low == -high
    assert np.abs(shown).max() <= high <= 1


def test_cells_stand_where_their_steps_are():
    jacobian = rows(2, 4, 4, 5)
    panel = cosines_over_time(jacobian @ jacobian.mT, axes(), steps=[0, 1, 10, 100])
    corners = panel.collections[0].get_coordinates()[0, :, 0]  # pyright: ignore
    np.testing.assert_allclose(corners, [0, 1, 10, 100, 190])


def test_labels_of_ten_tasks_do_not_overlap():
    jacobian = rows(3, 5, 10, 6)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    panel = cosines_over_time(jacobian @ jacobian.mT, figure.add_subplot())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [label.get_window_extent() for label in panel.get_yticklabels()]
    assert len(boxes) == 45
    heights = [box.y0 + box.height / 2 for box in boxes]
    apart = -np.diff(heights).max()
    # pixels of the letters' own height, without the spare of a line
    assert apart >= 0.8 * min(box.height for box in boxes)


def test_record_of_a_rollout_brings_its_names():
    def losses(params, batch):
        return {"near": (params["x"] - 1) ** 2, "far": 4 * (params["x"] + 1) ** 2}

    step = mf.descend(losses, mf.mgda(), mf.jacobian(), mf.sgd(0.01))
    _, info = rollout(step, step.init({"x": torch.tensor(0.0)}, None), [None] * 6)
    line = cosines_over_time(info, axes()).get_lines()[-1]
    assert line.get_label() == "near – far  100 %"
    np.testing.assert_allclose(np.asarray(line.get_ydata()), -1)


def test_options_reach_the_artists():
    jacobian = rows(4, 6, 4, 5)
    gramians = jacobian @ jacobian.mT
    assert cosines_over_time(gramians, axes(), vmax=1).collections[0].get_clim() == (-1, 1)
    norm = SymLogNorm(0.1, vmin=-1, vmax=1)
    assert cosines_over_time(gramians, axes(), norm=norm).collections[0].norm is norm
    two = cosines_over_time(gramians[:, :2, :2], axes(), linewidth=4)
    assert two.get_lines()[-1].get_linewidth() == 4


def test_what_it_refuses():
    gramians = torch.eye(3).expand(4, 3, 3)
    for bad in (torch.eye(3), gramians[..., :2], gramians[:, :1, :1]):
        with pytest.raises(ValueError, match="record: expected"):
            cosines_over_time(bad, axes())
    with pytest.raises(ValueError, match="NaN"):
        cosines_over_time(gramians * float("nan"), axes())
    with pytest.raises(ValueError, match="steps: expected increasing"):
        cosines_over_time(gramians, axes(), steps=[0, 1, 1, 2])
    with pytest.raises(ValueError, match="cells >= 1"):
        cosines_over_time(gramians, axes(), cells=0)
    step = mf.balance(lambda p, b: p["x"] * torch.ones(2), mf.mean(), mf.losses_only())
    params = {"x": torch.tensor(1.0)}
    info = step.update(params, (), step.init(params, ()))[2]
    with pytest.raises(ValueError, match="no Gramian was measured"):
        cosines_over_time(info, axes())


def test_titles_of_many_pairs_do_not_overlap():
    jacobian = rows(0, 5, 13, 4)
    panel = cosines_over_time(jacobian @ jacobian.mT, axes())
    canvas = FigureCanvasAgg(panel.figure)  # pyright: ignore[reportArgumentType]
    canvas.draw()
    boxes = [label.get_window_extent() for label in panel.get_yticklabels()]
    ordered = sorted((box.y0, box.y1) for box in boxes)
    assert len(ordered) == 78
    assert all(low[1] <= high[0] for low, high in pairwise(ordered))
