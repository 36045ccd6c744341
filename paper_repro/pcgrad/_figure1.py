"""Figure 1: does PCGrad get through where Adam on the sum is stuck, and is it curved?"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import SymmetricalLogLocator
from mpl_toolkits.mplot3d import Axes3D
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import STUCK
from ..report.decisions import Exact, Measured, Row, decided
from ..report.figures import arrow, axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.options import Option, Rate, Steps, drawn
from . import landscape
from .common import COLOURS
from .measures import magnitude_similarity


@decided(
    f"after {landscape.LONG} steps or more descent on the sum has half learnt task 2 (L_2 at most "
    "15), or PCGrad is not on the side where θ_1 < 0 and L_2 < 0"
)
def gets_out(measured: Measured) -> Verdict:
    stuck = measured["sum: L_2 at the end"] > STUCK.now
    passed = measured["PCGrad: θ_1 at the end"] < 0 and measured["PCGrad: L_2 at the end"] < 0
    if stuck and passed:
        return "holds"
    return "does not hold" if measured["steps"] >= landscape.LONG else "inconclusive"


@decided("Definition 3's H is positive on no recorded step of either path", trained=False)
def sharp(measured: Measured) -> Verdict:
    shares = [measured[f"{arm}: share of steps with H > 0"] for arm in ("sum", "PCGrad")]
    if max(shares) == 0:
        return "does not hold"
    return "holds" if min(shares) > 0.5 else "holds only when"


CLAIMS = {
    "PC-04": Row(
        "Figure 1: in sharp valley walls descent follows task 1's valley and learns task "
        "2 extremely slowly; PCGrad gets out.",
        gets_out,
    ),
    "PC-05": Exact(
        "Figure 1 is an instance of sharp curvature in the sense of the theory.",
        sharp,
        when="where a step crosses a cusp; elsewhere H is not positive",
    ),
}


class Conditions(NamedTuple):
    """Along one path; the axis is time."""

    cosine: np.ndarray
    similarity: np.ndarray  # Φ
    pointwise: np.ndarray  # gᵀ∇²L g / ‖g‖²
    averaged: np.ndarray  # Definition 3's, over the step that was taken, over ‖g‖²


def conditions(found: landscape.Paths, methods: Sequence[str]) -> dict[str, Conditions]:
    def one(at: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        params = {"theta": at}
        gramian = mf.task_gramian(landscape.losses, params, None)[1]
        pointwise = mf.diagnostics.curvature(landscape.losses, params, None) / gramian.sum()
        pair = mf.diagnostics.cosines(gramian)[0, 1], magnitude_similarity(gramian)[0, 1]
        return (*pair, pointwise, landscape.definition_3(at, after))

    return {
        arm: Conditions(*(x.numpy() for x in vmap(one)(found.theta[:, i], found.following[:, i])))
        for arm, i in lanes_in(found, methods).items()
    }


def run(settings: Settings) -> Findings:
    found, methods = landscape.paths(settings), ("sum", "PCGrad")
    along = conditions(found, methods)
    yield figure_1(found, methods)
    yield condition_curves(found, along)
    steps = int(found.steps[-1])
    plain, edited = (found.theta[-1, i] for i in lanes_in(found, methods).values())
    yield Claim(
        "PC-04",
        {
            "steps": steps,
            "sum: L_2 at the end": landscape.values(plain)[1],
            "PCGrad: θ_1 at the end": edited[0],
            "PCGrad: L_2 at the end": landscape.values(edited)[1],
        },
        f"Adam {landscape.ADAM_RATE:g} from {landscape.START}"
        f"{', a short budget' if steps < landscape.LONG else ''}. Natural log; totals on the cusp "
        "are noise and are not judged",
    )
    positive: dict[str, float] = {}
    for arm, path in along.items():
        positive[f"{arm}: share of steps with H > 0"] = (path.averaged > 0).mean()
        positive[f"{arm}: share of points with gᵀ∇²L g > 0"] = (path.pointwise > 0).mean()
    yield Claim(
        "PC-05",
        positive,
        "Definition 3's H, the mean of gᵀ∇²L g over the step that is taken, at "
        f"{len(found.steps)} points of each path. log|·| is concave off its cusp, so that the "
        "curvature at a point is never positive; across the cusp the slope jumps up",
    )


Methods = Annotated[
    tuple[Literal["sum", "PCGrad", "direction only", "magnitude only", "GradNorm"], ...],
    Option("methods, under Adam"),
]
Start = Annotated[tuple[float, float], Option("start θ_1,θ_2", -1e3, 1e3)]


def lanes_in(found: landscape.Paths, methods: Sequence[str]) -> dict[str, int]:
    """Adam's lane of every method from the first start."""
    return {arm: int(found.chosen(arm)[0]) for arm in methods}


@drawn
def figure1(
    start: Start = landscape.START,
    methods: Methods = ("sum", "PCGrad"),
    steps: Steps = landscape.BUDGET,
    rate: Rate = landscape.ADAM_RATE,
) -> Figure:
    """The landscape, each task's part of it, and every method's path (Figure 1)."""
    return figure_1(landscape.paths_from(start, methods, steps, rate), methods)


@drawn
def conditions_along(
    start: Start = landscape.START,
    methods: Methods = ("sum", "PCGrad"),
    steps: Steps = landscape.BUDGET,
    rate: Rate = landscape.ADAM_RATE,
) -> Figure:
    """Conflict, dominance and curvature along every method's path over the landscape."""
    found = landscape.paths_from(start, methods, steps, rate)
    return condition_curves(found, conditions(found, methods))


def named_arm(arm: str) -> str:
    return "Adam on the sum" if arm == "sum" else f"Adam with {arm}"


def figure_1(found: landscape.Paths, methods: Sequence[str]) -> Figure:
    """The surface of the sum, both tasks' contours, and the sum's with one path a method."""
    paths = {arm: found.theta[:, i].numpy() for arm, i in lanes_in(found, methods).items()}
    columns = max(2, len(methods))
    canvas = Canvas(figsize=(7.4 + 3.9 * columns, 9.2), layout="constrained")
    grid = canvas.add_gridspec(2, 1 + columns, width_ratios=[1.9] + [1.0] * columns)
    reach = np.concatenate([*paths.values(), [[-4, -4], [4, 7]]])
    x, y = (
        torch.linspace(float(low), float(high), count, dtype=torch.float64)
        for low, high, count in zip(reach.min(0), reach.max(0), (161, 221), strict=True)
    )
    each = over(x, y)
    surface = canvas.add_subplot(grid[:, 0], projection="3d")
    assert isinstance(surface, Axes3D)
    surface.plot_surface(
        *smooth_surface(x, y), cmap="viridis", rcount=110, ccount=110, rasterized=True
    )
    surface.view_init(35, -120)
    surface.set(xlabel="θ₁", ylabel="θ₂", zlabel="L₁ + L₂")
    surface.zaxis.labelpad = 8
    surface.set_box_aspect((4, 5, 4), zoom=0.9)  # pyright: ignore[reportArgumentType]

    def panel(place: Any, title: str, heights: np.ndarray, height: float, bar: str = "") -> Axes:
        """Contours down to -160 and up to 80, times `height`."""
        here = canvas.add_subplot(place)
        levels = np.linspace(-160, 80, 13) * height
        filled = here.contourf(x, y, heights, levels, cmap="viridis", extend="both", zorder=-2)
        if bar:
            canvas.colorbar(filled, ax=here, label=bar)
        here.set(xlabel="θ₁", ylabel="θ₂", title=title)
        return here

    tasks = [
        panel(grid[0, 1], "L₁", each[..., 0], 0.5),
        panel(grid[0, 2], "L₂", each[..., 1], 0.5, "L₁, and L₂"),
    ]
    sums = []
    for i, (arm, theta) in enumerate(paths.items()):
        bar = "L₁ + L₂" if i == len(paths) - 1 else ""
        here = panel(grid[1, 1 + i], named_arm(arm), each.sum(-1), 1.0, bar)
        here.plot(theta[:, 0], theta[:, 1], color="white", linewidth=2.6)
        here.plot(theta[:, 0], theta[:, 1], color="black", linewidth=1.4)
        here.plot(*theta[-1], "o", color="black", markerfacecolor="white", markersize=8)
        sums.append(here)
    first = paths[methods[0]]
    for here in (*tasks, *sums):
        here.plot(*first[0], "*", color="white", markeredgecolor="black", markersize=13)
    steepest(sums[0], first[-1], float(min(x[-1] - x[0], y[-1] - y[0])) / 5)
    ends = ", ".join(f"{arm} ({path[-1][0]:.2f}, {path[-1][1]:.2f})" for arm, path in paths.items())
    values = {arm: landscape.values(torch.from_numpy(path)) for arm, path in paths.items()}
    rate = float(found.lanes.lr[lanes_in(found, methods)[methods[0]]])
    return Figure(
        "figure1",
        "Figure 1 of Yu et al. 2020: the surface of the sum of the losses, the losses of either "
        f"task, and the sum with the paths of {int(found.steps[-1]):,} steps of Adam {rate:g} from "
        f"the star to the circle: {ends}. The arrows at the end of the first path are the "
        "directions of steepest descent of both tasks (of one length; true lengths in the legend).",
        canvas,
        [
            {"method": arm, "step": int(step), "theta": at.tolist(), "losses": loss.tolist()}
            for arm, path in paths.items()
            for step, at, loss in zip(found.steps, path, values[arm], strict=True)
        ],
    )


def over(*lines: Tensor) -> np.ndarray:
    """Both losses on a mesh, `[y, x, task]`."""
    return landscape.values(torch.stack(torch.meshgrid(*lines, indexing="xy"), -1)).numpy()


def smooth_surface(x: Tensor, y: Tensor, count: int = 110, finer: int = 8) -> list[np.ndarray]:
    """A mesh of `count` points a side, and the sum of the losses there, smoothed over one step.

    The losses' valleys are narrower than a step of any mesh, which would meet their lowest line
    now and then and show it as needles.
    """
    fine = [
        torch.linspace(float(line[0]), float(line[-1]), finer * (count - 1) + 1, dtype=line.dtype)
        for line in (x, y)
    ]
    smooth = gaussian_filter(over(*fine).sum(-1), finer, mode="nearest")
    return [*np.meshgrid(*(line[::finer].numpy() for line in fine)), smooth[::finer, ::finer]]


def steepest(panel: Axes, point: np.ndarray, length: float) -> None:
    """The directions of steepest descent of each task at a point, of one length."""
    params = {"theta": torch.from_numpy(point)}
    gradients = mf.task_gradients(landscape.losses, params, None)[1]["theta"].numpy()
    for task, colour in ((0, "C1"), (1, "C4")):
        norm, name = np.linalg.norm(gradients[task]), "₁₂"[task]
        if norm > 0:  # on a cusp's floor there is none
            arrow(panel, point, point - length * gradients[task] / norm, colour, width=2.5)
        panel.plot([], [], color=colour, label=f"-g{name}, length {norm:.2g}")
    panel.legend()


def condition_curves(found: landscape.Paths, along: dict[str, Conditions]) -> Figure:
    canvas, panels = axes(len(along), 3, (15, 3.6 * len(along)))

    def points(panel: Axes, values: np.ndarray, colour: str, label: str, size: int = 2) -> None:
        steps = np.maximum(found.steps, 1)
        panel.plot(steps, values, ".", color=colour, markersize=size, label=label)

    for row, (arm, path) in enumerate(along.items()):
        angles, dominance, curvature = here = panels[3 * row : 3 * row + 3]
        colour = {"sum": "C0"}.get(arm, COLOURS[arm])
        points(angles, path.cosine, colour, "cos φ")
        angles.set(ylabel=f"{named_arm(arm)}: cos φ", ylim=(-1.05, 1.05))
        conflict = np.where(path.cosine < 0, -path.cosine, np.nan)
        points(dominance, conflict, "#444444", "-cos φ where < 0")
        points(dominance, path.similarity, colour, "Φ")
        dominance.set(ylabel="dominance: Φ <= -cos φ", yscale="log")
        points(curvature, path.averaged, "C4", "H, over the step", 3)
        points(curvature, path.pointwise, colour, "at the point")
        for panel in (angles, curvature):
            panel.axhline(0, color="black", linewidth=1)
        curvature.set(ylabel="curvature gᵀ∇²L g/‖g‖²")
        curvature.set_yscale("symlog", linthresh=1.0)
        curvature.yaxis.set_major_locator(SymmetricalLogLocator(base=10**4, linthresh=1.0))
        for panel in here:
            panel.set(xlabel="step")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        for panel in (dominance, curvature):
            panel.legend(markerscale=5)
    return Figure(
        "conditions",
        "The paper's three conditions at every recorded point of every path. First: conflict. "
        "Second: dominance, Φ at or below -cos φ. Third: curvature. "
        "log|·| is concave off its cusp, so the curvature at the point is never positive; over "
        "the step that is taken across a cusp it is.",
        canvas,
        [
            {"method": arm, "step": int(step)}
            | {name: float(x[i]) for name, x in path._asdict().items()}
            for arm, path in along.items()
            for i, step in enumerate(found.steps)
        ],
    )
