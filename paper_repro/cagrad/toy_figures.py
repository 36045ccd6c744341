"""CAGrad's toy (Liu et al. 2021, Figures 1 and 3) with starts, methods and c of one's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.gridspec import GridSpec
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor

from common.problems import cagrad_toy as problem

from ..report.findings import Figure
from ..report.options import Impossible, Option, Rate, Starts, Steps, drawn
from .toy_runs import compiler_works, stepped

Name = Literal["GD", "MGDA", "MGDA, epsilon", "PCGrad", "GradNorm", "CAGrad", "CAGrad, epsilons"]
Sign = Annotated[
    Literal["code", "printed"], Option("sign of tanh in f₂: + as in the code, or - as printed")
]
COMPILED = 2000  # steps from which compiling pays, with few lanes
SIGNS = {"code": problem.CODE, "printed": problem.PAPER_SIGN}
LOOKS: dict[str, dict[str, Any]] = {
    "GD": {"color": "#444444", "linestyle": "-"},
    "MGDA": {"color": "C0", "linestyle": "--"},
    "MGDA, epsilon": {"color": "C4", "linestyle": "--"},
    "PCGrad": {"color": "C3", "linestyle": "-."},
    "GradNorm": {"color": "C2", "linestyle": ":"},
    "CAGrad": {"color": "C1", "linestyle": "-"},
    "CAGrad, epsilons": {"color": "C4", "linestyle": (0, (1, 2))},
}
LEGEND = (
    "Colour: steps taken, on a log scale; dots: starts; crosses: ends; green: Pareto set; star: "
    "minimum of the mean; contours: mean loss."
)


def square(extent: float, points: int) -> Tensor:
    """Points `[side, side, 2]` of a square around 0."""
    side = torch.linspace(-extent, extent, points, dtype=torch.float64)
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)


def maps(
    canvas: Canvas, grid: GridSpec, times: np.ndarray, paths: Mapping[str, Tensor], sign: float
) -> None:
    """A map a place of the grid: the path `points[time, start]` over contours of the mean loss, the
    Pareto set, the minimum of the mean; it grows with starts off it. And the colour bar of steps.
    """
    last = float(times[-1])
    # in the first hundredth all go the same way
    steps = LogNorm(max(last / 100, 0.5), max(last, 1.0))
    front, best = problem.pareto_set(9), problem.minimum_of_mean()[0]
    for i, (title, points) in enumerate(paths.items()):
        axis = canvas.add_subplot(grid[divmod(i, grid.ncols)])
        extent = max(11.0, 1.1 * float(points[0].abs().max()))
        side = np.linspace(-extent, extent, 181)
        mean = problem.at(square(extent, 181), sign).mean(-1)
        # light: the trajectories are to be seen
        light = {"cmap": "Greys_r", "vmin": -45, "vmax": 10, "extend": "both"}
        axis.contourf(side, side, mean, levels=np.linspace(-16, 10, 14), **light)
        axis.plot(*front.T, color="C2", alpha=0.6, linewidth=7, solid_capstyle="round", zorder=2)
        axis.plot(*best, "*", color="white", markeredgecolor="black", markersize=13, zorder=6)
        look = {"cmap": "plasma", "norm": steps, "s": 3, "zorder": 3, "linewidths": 0}
        for path in points.unbind(1):
            axis.scatter(*path.T, c=np.maximum(times, 1), rasterized=True, **look)
        axis.plot(*points[0].T, "o", color="black", markersize=5, zorder=5)
        ends = {"color": "white", "markeredgecolor": "black", "markersize": 8, "zorder": 7}
        axis.plot(*points[-1].T, "X", **ends)
        limits, ticks = (-extent, extent), [-10, 0, 10]
        axis.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks)
        axis.set(title=title, xlabel="x₁", ylabel="x₂", aspect="equal")
    shades = ScalarMappable(steps, colormaps["plasma"])
    canvas.colorbar(shades, ax=canvas.axes, label="steps taken", shrink=0.7, extend="min")


@drawn
def toy(
    starts: Starts = problem.PRINTED,
    methods: Annotated[tuple[Name, ...], Option("methods")] = ("GD", "MGDA", "PCGrad", "CAGrad"),
    c: Annotated[tuple[float, ...], Option("CAGrad's radius; from 1 on it halts", 0.0, 1e6)] = (
        0.5,
    ),
    alpha: Annotated[float, Option("GradNorm's strength α", 0.0, 10.0)] = 0.12,
    steps: Steps = 100_000,
    rate: Rate = problem.LR,
    sign: Sign = "code",
) -> Figure:
    """Where each method goes from each start, and the mean loss on the way (Figures 1 and 3)."""
    for start in starts:
        if max(map(abs, start)) > 1e3:
            raise Impossible(f"starts: expected numbers up to 1000, got {start[0]:g},{start[1]:g}")
    panels: dict[str, tuple[str, float]] = {}
    for name in methods:
        if name.startswith("CAGrad"):
            panels |= {f"{name}, c = {value:g}": (name, value) for value in c}
        elif name == "GradNorm":
            panels[f"GradNorm, α = {alpha:g}"] = name, alpha
        else:
            panels[name] = name, problem.RULES[name][1][0]
    # a lane a panel and start, panel by panel
    table = [(start, x, methods.index(name)) for name, x in panels.values() for start in starts]
    start, hyper, which = (torch.tensor(column) for column in zip(*table, strict=True))
    start, hyper = start.double(), hyper.double()
    lanes = problem.Lanes(start, torch.full_like(hyper, SIGNS[sign]), hyper, which)
    compiled = steps >= COMPILED and compiler_works(torch.device("cpu"))
    times, points, trail = stepped(tuple(methods), lanes, steps, rate, compiled=compiled)
    first = int(times[1])  # every step up to it, and then those that are kept
    times = np.concatenate([np.arange(first), times[1:]])
    points = torch.cat([trail[:first], points[1:]])
    runs = dict(zip(panels, points.split(len(starts), 1), strict=True))
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    canvas = Canvas(figsize=(3.5 * columns + 1, 3.6 * rows + 3.4), layout="constrained")
    grid = canvas.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [0.9])
    maps(canvas, grid, times, runs, SIGNS[sign])
    panel = canvas.add_subplot(grid[rows, :])
    # the first points and some two hundred more of every way are kept, the last one among them
    later = range(first, len(times), max(1, len(times) // 200))
    chosen = sorted({*range(first), *later, len(times) - 1})
    found: list[dict[str, Any]] = []
    for label, (name, hyper) in panels.items():
        both = problem.at(runs[label], SIGNS[sign])
        of_c = name.startswith("CAGrad")
        look = dict(LOOKS[name])
        if of_c and len(c) > 1:
            look["alpha"] = 0.35 + 0.65 * c.index(hyper) / len(c)
        lines = panel.plot(times[1:], both[1:].mean(-1).numpy(), **look)
        lines[0].set_label(label)
        found += [
            {
                "method": name,
                "c": hyper if of_c else None,
                "start": list(start),
                "step": int(times[moment]),
                "x": runs[label][moment, lane].tolist(),
                "losses": both[moment, lane].tolist(),
                "mean loss": float(both[moment, lane].mean()),
            }
            for lane, start in enumerate(starts)
            for moment in chosen
        ]
    panel.set(xlabel="steps taken", ylabel="mean loss, one line a start", xscale="log")
    panel.grid()
    panel.legend()
    return Figure(
        "toy",
        f"The toy of Liu et al. 2021 (Figures 1 and 3), {'+' if sign == 'code' else '-'} in f₂, "
        f"Adam {rate:g}, {times[-1]:,.0f} steps. {LEGEND}",
        canvas,
        found,
    )


@drawn
def surface(
    sign: Sign = "code",
    extent: Annotated[float, Option("half the side of the square", 0.1, 1e3)] = 11.0,
    points: Annotated[int, Option("points of a side", 10, 1000)] = 221,
    elevation: Annotated[float, Option("degrees above the plane", -90.0, 90.0)] = 25.0,
    azimuth: Annotated[float, Option("degrees around", -360.0, 360.0)] = -60.0,
) -> Figure:
    """The surfaces of the toy's two losses and of their mean (Figure 1)."""
    canvas = Canvas(figsize=(13, 4.2), layout="constrained")
    grid = square(extent, points)
    values = problem.at(grid, SIGNS[sign])
    x, y = grid.numpy().transpose(2, 0, 1)
    look = {"cmap": "viridis", "vmin": -20, "vmax": 10, "linewidth": 0, "rasterized": True}
    for i, (name, z) in enumerate(
        {"L₁": values[..., 0], "L₂": values[..., 1], "mean loss": values.mean(-1)}.items()
    ):
        axis = canvas.add_subplot(1, 3, i + 1, projection="3d")
        assert isinstance(axis, Axes3D)
        axis.plot_surface(x, y, z.numpy(), rcount=110, ccount=110, **look)
        # a title would stand at the top of the box that holds the cube, far above the surface
        axis.text2D(0.5, 0.86, name, transform=axis.transAxes, ha="center")
        axis.view_init(elevation, azimuth)
        axis.xaxis.labelpad, axis.zaxis.labelpad = 8, 11  # next to their numbers
        # room for the label of the z axis
        axis.set_box_aspect(None, zoom=0.72)  # pyright: ignore[reportArgumentType]
        axis.set(xlabel="x₁", ylabel="x₂", zlabel="loss")
        if extent == 11.0:
            ticks = [-10, 0, 10]
            axis.set(zlim=(-21, 11), xticks=ticks, yticks=ticks, zticks=[-20, *ticks])
    few = slice(None, None, max(1, points // 40))
    where, losses = (each[few, few].reshape(-1, 2).tolist() for each in (grid, values))
    found = [{"x": at, "losses": both} for at, both in zip(where, losses, strict=True)]
    return Figure(
        "surface",
        "The toy's two losses and their mean (the surfaces of Figure 1 of Liu et al. 2021); "
        f"{'+ in f₂, as in the code of the paper' if sign == 'code' else '- in f₂, as printed'}. "
        "The two narrow valleys are cusps of log|·|.",
        canvas,
        found,
    )
