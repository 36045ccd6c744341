"""Maps of the toy: trajectories over the contours of the mean loss."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from ._toy import STARTS, at, minimum_of_mean, pareto_set
from .toy_runs import Run

LEGEND = (
    "Colour: steps taken, on a log scale; dots: starts, those of the paper and (-8.5, -5) of its "
    "code; crosses: ends; green: Pareto set; star: minimum of the mean; "
    "contours: mean loss."
)


def map_axis(axis: Axes, sign: float, best: np.ndarray) -> None:
    """Contours of the mean loss, the Pareto set in green, its minimum of the mean as a star."""
    side = torch.linspace(-11, 11, 181, dtype=torch.float64)
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
        xlim=(-11, 11),
        ylim=(-11, 11),
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
    norm = LogNorm(last / 100, last)  # in the first hundredth all go the same way
    axes = []
    for i, (title, (run, hyper)) in enumerate(panels.items()):
        axis = canvas.add_subplot(rows, columns, i + 1)
        map_axis(axis, sign, best)
        axis.set_title(title)
        points = run.of(STARTS, hyper, sign).cpu()
        for start in range(len(STARTS)):
            axis.scatter(
                *points[:, start].T,
                c=np.maximum(run.times, 1),
                cmap="plasma",
                norm=norm,
                s=3,
                zorder=3,
                linewidths=0,
                rasterized=True,
            )
        axis.plot(*np.array(STARTS).T, "o", color="black", markersize=5, zorder=5)
        axis.plot(
            *points[-1].T, "X", color="white", markeredgecolor="black", markersize=8, zorder=7
        )
        axes.append(axis)
    shades = ScalarMappable(norm, colormaps["plasma"])
    canvas.colorbar(shades, ax=axes, label="steps taken", shrink=0.7, extend="min")
    return canvas
