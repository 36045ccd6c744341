"""CAGrad's toy (Liu et al. 2021, Figures 1 and 3) with starts, methods and c of one's own."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor

from common.problems import cagrad_toy as problem

from ..report.findings import Figure
from ..report.options import Impossible, Option, Rate, Starts, Steps, drawn
from .toy_maps import SIGNS as LEGEND
from .toy_maps import lane_map, shaded
from .toy_runs import COLOURS, DASHES, compiler_works, cpp_compiler, ways

Name = Literal["GD", "MGDA", "MGDA, epsilon", "PCGrad", "GradNorm", "CAGrad", "CAGrad, epsilons"]
Sign = Annotated[
    Literal["code", "printed"], Option("sign of tanh in f₂: + as in the code, or - as printed")
]
COMPILED = 2000  # steps from which compiling pays, with few lanes
SIGNS = {"code": problem.CODE, "printed": problem.PAPER_SIGN}


def lanes_from(
    names: Sequence[str], panels: Sequence[tuple[str, float]], starts: Starts, sign: float
) -> problem.Lanes:
    """A lane a panel and start, panel by panel."""
    rows = [(start, hyper, names.index(name)) for name, hyper in panels for start in starts]
    start, hyper, which = (torch.tensor(column) for column in zip(*rows, strict=True))
    start, hyper = start.double(), hyper.double()
    return problem.Lanes(start, torch.full_like(hyper, sign), hyper, which)


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
        else:
            label = f"GradNorm, α = {alpha:g}" if name == "GradNorm" else name
            panels[label] = name, alpha if name == "GradNorm" else problem.RULES[name][1][0]
    compiled = steps >= COMPILED and compiler_works(torch.device("cpu"), cpp_compiler())
    names = tuple(dict.fromkeys(name for name, _ in panels.values()))
    lanes = lanes_from(names, list(panels.values()), starts, SIGNS[sign])
    times, points = ways(names, lanes, steps, rate, compiled=compiled)
    runs = dict(zip(panels, points.split(len(starts), 1), strict=True))
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    canvas = Canvas(figsize=(3.5 * columns + 1, 3.6 * rows + 3.4), layout="constrained")
    grid = canvas.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [0.9])
    best, _ = problem.minimum_of_mean()
    last = float(times[-1])
    axes = []
    for i, (label, run) in enumerate(runs.items()):
        axis = canvas.add_subplot(grid[i // columns, i % columns])
        lane_map(axis, times, run, SIGNS[sign], best, last)
        axis.set_title(label)
        axes.append(axis)
    shaded(canvas, axes, last)
    found = records(panels, times, runs, starts, SIGNS[sign])
    panel = canvas.add_subplot(grid[rows, :])
    for label, (name, hyper) in panels.items():
        values = problem.at(runs[label], SIGNS[sign]).mean(-1).numpy()
        one = len(c) < 2 or not name.startswith("CAGrad")
        shade = 1.0 if one else 0.35 + 0.65 * c.index(hyper) / len(c)
        look: dict[str, Any] = {"color": COLOURS.get(name, "C4"), "alpha": shade}
        look["linestyle"] = DASHES.get(name, "--")
        lines = panel.plot(np.maximum(times, 1), values, **look)
        lines[0].set_label(label)
    panel.set(xlabel="steps taken", ylabel="mean loss, one line a start", xscale="log")
    panel.grid()
    panel.legend()
    return Figure(
        "toy",
        f"The toy of Liu et al. 2021 (Figures 1 and 3), {'+' if sign == 'code' else '-'} in f₂, "
        f"Adam {rate:g}, {last:,.0f} steps. {LEGEND}",
        canvas,
        found,
    )


def records(
    panels: dict[str, tuple[str, float]],
    times: np.ndarray,
    runs: dict[str, Tensor],
    starts: Starts,
    sign: float,
) -> list[dict[str, Any]]:
    """Of every method and start some two hundred points of the way, the last one among them."""
    every = max(1, len(times) // 200)
    chosen = sorted({*range(0, len(times), every), len(times) - 1})
    found = []
    for label, (name, hyper) in panels.items():
        points = runs[label][chosen]
        both = problem.at(points, sign)
        found += [
            {
                "method": name,
                "c": hyper if name.startswith("CAGrad") else None,
                "start": list(start),
                "step": int(times[moment]),
                "x": points[i, lane].tolist(),
                "losses": both[i, lane].tolist(),
                "mean loss": float(both[i, lane].mean()),
            }
            for lane, start in enumerate(starts)
            for i, moment in enumerate(chosen)
        ]
    return found


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
    side = torch.linspace(-extent, extent, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    values = problem.at(grid, SIGNS[sign])
    whole = extent == 11.0
    for i, (name, z) in enumerate(
        {"L₁": values[..., 0], "L₂": values[..., 1], "mean loss": values.mean(-1)}.items()
    ):
        axis = canvas.add_subplot(1, 3, i + 1, projection="3d")
        assert isinstance(axis, Axes3D)
        axis.plot_surface(
            grid[..., 0].numpy(),
            grid[..., 1].numpy(),
            z.numpy(),
            cmap="viridis",
            rcount=110,
            ccount=110,
            linewidth=0,
            vmin=-20,
            vmax=10,
            rasterized=True,
        )
        # a title would stand at the top of the box that holds the cube, far above the surface
        axis.text2D(0.5, 0.86, name, transform=axis.transAxes, ha="center")
        axis.view_init(elevation, azimuth)
        axis.xaxis.labelpad, axis.zaxis.labelpad = 8, 11  # next to their numbers
        # room for the label of the z axis
        axis.set_box_aspect(None, zoom=0.72)  # pyright: ignore[reportArgumentType]
        axis.set(xlabel="x₁", ylabel="x₂", zlabel="loss")
        if whole:
            ticks = [-10, 0, 10]
            axis.set(zlim=(-21, 11), xticks=ticks, yticks=ticks, zticks=[-20, *ticks])
    few = slice(None, None, max(1, points // 40))
    found = [
        {"x": x.tolist(), "losses": both.tolist()}
        for x, both in zip(
            grid[few, few].reshape(-1, 2), values[few, few].reshape(-1, 2), strict=True
        )
    ]
    return Figure(
        "surface",
        "The toy's two losses and their mean (the surfaces of Figure 1 of Liu et al. 2021); "
        f"{'+ in f₂, as in the code of the paper' if sign == 'code' else '- in f₂, as printed'}. "
        "The two narrow valleys are cusps of log|·|.",
        canvas,
        found,
    )
