"""Maps of the toy: trajectories over the contours of the mean loss."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from common.problems.cagrad_toy import STARTS, at, minimum_of_mean, pareto_set

from .toy_runs import Run

SIGNS = (
    "Colour: steps taken, on a log scale; dots: starts; crosses: ends; green: Pareto set; star: "
    "minimum of the mean; contours: mean loss."
)
LEGEND = f"{SIGNS} The starts are those of the paper and (-8.5, -5) of its code."


def map_axis(axis: Axes, sign: float, best: np.ndarray, extent: float = 11.0) -> None:
    """Contours of the mean loss, the Pareto set in green, its minimum of the mean as a star."""
    side = torch.linspace(-extent, extent, 181, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    axis.contourf(
        side,
        side,
        at(grid, sign).mean(-1),
        levels=np.linspace(-16, 10, 14),
        cmap="Greys_r",
        vmin=-45,  # light: the trajectories are to be seen
        vmax=10,
        extend="both",
    )
    front = pareto_set(9)
    axis.plot(*front.T, color="C2", alpha=0.6, linewidth=7, solid_capstyle="round", zorder=2)
    axis.plot(*best, "*", color="white", markeredgecolor="black", markersize=13, zorder=6)
    axis.set(
        xlim=(-extent, extent),
        ylim=(-extent, extent),
        xlabel="x₁",
        ylabel="x₂",
        xticks=[-10, 0, 10],
        yticks=[-10, 0, 10],
        aspect="equal",
    )


def maps(panels: dict[str, tuple[Run, float]], sign: float, columns: int) -> Canvas:
    rows = -(-len(panels) // columns)
    canvas = Canvas(figsize=(3.4 * columns + 1, 3.5 * rows), layout="constrained")
    best, _ = minimum_of_mean()
    last = max(float(run.times[-1]) for run, _ in panels.values())
    axes = []
    for i, (title, (run, hyper)) in enumerate(panels.items()):
        axis = canvas.add_subplot(rows, columns, i + 1)
        lane_map(axis, run.times, run.of(STARTS, hyper, sign).cpu(), sign, best, last)
        axis.set_title(title)
        axes.append(axis)
    shaded(canvas, axes, last)
    return canvas


def colours(last: float) -> LogNorm:
    """Of steps taken: in the first hundredth all go the same way."""
    return LogNorm(max(last / 100, 0.5), max(last, 1.0))


def lane_map(
    axis: Axes, times: np.ndarray, points: Tensor, sign: float, best: np.ndarray, last: float
) -> None:
    """The ways `points[time, start]` over the contours; the map grows with starts off it."""
    map_axis(axis, sign, best, max(11.0, 1.1 * float(points[0].abs().max())))
    for start in range(points.shape[1]):
        axis.scatter(
            *points[:, start].T,
            c=np.maximum(times, 1),
            cmap="plasma",
            norm=colours(last),
            s=3,
            zorder=3,
            linewidths=0,
            rasterized=True,
        )
    axis.plot(*points[0].T, "o", color="black", markersize=5, zorder=5)
    axis.plot(*points[-1].T, "X", color="white", markeredgecolor="black", markersize=8, zorder=7)


def shaded(canvas: Canvas, axes: Sequence[Axes], last: float) -> None:
    """The colour bar of the steps."""
    shades = ScalarMappable(colours(last), colormaps["plasma"])
    canvas.colorbar(shades, ax=list(axes), label="steps taken", shrink=0.7, extend="min")
