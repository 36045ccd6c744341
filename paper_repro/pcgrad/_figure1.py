"""Figure 1: does PCGrad get through where Adam on the sum is stuck, and is it curved?"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import SymmetricalLogLocator
from mpl_toolkits.mplot3d import Axes3D
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.func import grad, hessian, vmap

import mtlfunc as mf

from ..report.bounds import STUCK
from ..report.decisions import Claims, Exact, Measured, Row, decided
from ..report.figures import arrow, axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Option, Rate, Steps, drawn
from . import landscape
from .common import COLOURS, WILSON
from .landscape import paths
from .measures import curvature_bound, magnitude_similarity


@decided(
    f"after {landscape.LONG} steps or more descent on the sum has learnt task 2 (L_2 at most 30), "
    "or PCGrad is not on the side where θ_1 < 0 and L_2 < 0"
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
claim = Claims(CLAIMS)


class Conditions(NamedTuple):
    """Along one path; the axis is time."""

    cosine: np.ndarray
    similarity: np.ndarray  # Φ
    bound: np.ndarray  # ξ
    pointwise: np.ndarray  # gᵀ∇²L g / ‖g‖²
    averaged: np.ndarray  # Definition 3's, over the step that was taken, over ‖g‖²
    secant: np.ndarray  # 2 (L(θ + Δ) - L - g·Δ) / ‖Δ‖² over the step Δ that was taken
    sharpest: np.ndarray  # ‖∇²L‖


def conditions(theta: Tensor, following: Tensor) -> Conditions:
    def total(at: Tensor) -> Tensor:
        return landscape.losses({"theta": at}).sum()

    def one(at: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        params, move = {"theta": at}, after - at
        gramian = mf.task_gramian(landscape.losses, params, None)[1]
        pair = [
            f(gramian)[0, 1]
            for f in (mf.diagnostics.cosines, magnitude_similarity, curvature_bound)
        ]
        pointwise = mf.diagnostics.curvature(landscape.losses, params, None) / gramian.sum()
        secant = 2 * (total(after) - total(at) - grad(total)(at) @ move) / move.square().sum()
        averaged = landscape.definition_3(at, after)
        return (*pair, pointwise, averaged, secant, torch.linalg.matrix_norm(hessian(total)(at), 2))

    return Conditions(*(x.numpy() for x in vmap(one)(theta, following)))


def run(settings: Settings) -> Findings:
    found = paths(settings)
    yield figure_1(found, ("sum", "PCGrad"))
    lane = lanes_in(found, ("sum", "PCGrad"))
    along = {arm: conditions(found.theta[:, i], found.following[:, i]) for arm, i in lane.items()}
    yield condition_curves(found, along)
    yield gets_through(found, along, lane)
    yield curved(found, along)


Methods = Annotated[
    tuple[Literal["sum", "PCGrad", "direction only", "magnitude only", "GradNorm"], ...],
    Option("methods, under Adam"),
]
Start = Annotated[tuple[float, float], Option("start θ_1,θ_2", -1e3, 1e3)]


def lanes_in(found: landscape.Paths, methods: Sequence[str]) -> dict[str, int]:
    """Adam's lane of every method from the first start."""
    return {arm: int(found.chosen(arm, sgd=False)[0]) for arm in methods}


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
    lane = lanes_in(found, methods)
    along = {arm: conditions(found.theta[:, i], found.following[:, i]) for arm, i in lane.items()}
    return condition_curves(found, along)


def named_arm(arm: str) -> str:
    return "Adam on the sum" if arm == "sum" else f"Adam with {arm}"


def figure_1(found: landscape.Paths, methods: Sequence[str]) -> Figure:
    """The surface of the sum, both tasks' contours, and the sum's with one path a method."""
    lane = lanes_in(found, methods)
    columns = max(2, len(methods))
    canvas = Canvas(figsize=(7.4 + 3.9 * columns, 9.2), layout="constrained")
    grid = canvas.add_gridspec(2, 1 + columns, width_ratios=[1.9] + [1.0] * columns)
    paths = {arm: found.theta[:, i].numpy() for arm, i in lane.items()}
    reach = np.concatenate([*paths.values(), [[-4, -4], [4, 7]]])
    x, y = (
        torch.linspace(float(low) - 0.0, float(high), count, dtype=torch.float64)
        for low, high, count in zip(reach.min(0), reach.max(0), (161, 221), strict=True)
    )
    each = landscape.values(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)).numpy()
    surface = canvas.add_subplot(grid[:, 0], projection="3d")
    assert isinstance(surface, Axes3D)
    surface.plot_surface(
        *smooth_surface(x, y), cmap="viridis", rcount=110, ccount=110, rasterized=True
    )
    surface.view_init(35, -120)
    surface.set(xlabel="θ₁", ylabel="θ₂", zlabel="L₁ + L₂")
    surface.zaxis.labelpad = 8
    surface.set_box_aspect((4, 5, 4), zoom=0.9)  # pyright: ignore[reportArgumentType]
    shown = [("L₁", each[..., 0]), ("L₂", each[..., 1])]
    shown += [(named_arm(arm), each.sum(-1)) for arm in methods]
    panels: list[Axes] = []
    for i, (title, heights) in enumerate(shown):
        panel = canvas.add_subplot(grid[0, 1 + i] if i < 2 else grid[1, i - 1])
        panels.append(panel)
        levels = np.linspace(-160, 80, 13) * (1 if i > 1 else 0.5)
        filled = panel.contourf(x, y, heights, levels, cmap="viridis", extend="both", zorder=-2)
        if i == len(shown) - 1:
            canvas.colorbar(filled, ax=panel, label="L₁ + L₂")
        if i == 1:  # whose levels have half the distance
            canvas.colorbar(filled, ax=panel, label="L₁, and L₂")
        panel.set(xlabel="θ₁", ylabel="θ₂", title=title)
        if i > 1:
            theta = paths[methods[i - 2]]
            panel.plot(theta[:, 0], theta[:, 1], color="white", linewidth=2.6)
            panel.plot(theta[:, 0], theta[:, 1], color="black", linewidth=1.4)
            panel.plot(*theta[-1], "o", color="black", markerfacecolor="white", markersize=8)
        first = next(iter(paths.values()))[0]
        panel.plot(*first, "*", color="white", markeredgecolor="black", markersize=13)
    stuck = found.theta[-1, lane[methods[0]]]
    steepest(panels[2], stuck, min(x[-1] - x[0], y[-1] - y[0]) / 5)
    steps = int(found.steps[-1])
    ends = ", ".join(f"{arm} ({path[-1][0]:.2f}, {path[-1][1]:.2f})" for arm, path in paths.items())
    rate = float(found.lanes.lr[lane[methods[0]]])
    return Figure(
        "figure1",
        "Figure 1 of Yu et al. 2020: the surface of the sum of the losses, the losses of either "
        f"task, and the sum with the paths of {steps:,} steps of Adam {rate:g} from the star to "
        f"the circle: {ends}. The arrows at the end of the first path are the directions of "
        "steepest descent of both tasks (of one length; true lengths in the legend).",
        canvas,
        [
            {"method": arm, "step": int(step), "theta": at.tolist(), "losses": loss.tolist()}
            for arm, i in lane.items()
            for step, at, loss in zip(
                found.steps, found.theta[:, i], landscape.values(found.theta[:, i]), strict=True
            )
        ],
    )


def smooth_surface(x: Tensor, y: Tensor, count: int = 110, finer: int = 8) -> list[np.ndarray]:
    """A mesh of `count` points a side, and the sum of the losses there, smoothed over one step.

    The losses' valleys are narrower than a step of any mesh, which would meet their lowest line
    now and then and show it as needles.
    """
    fine = [
        torch.linspace(float(line[0]), float(line[-1]), finer * (count - 1) + 1, dtype=line.dtype)
        for line in (x, y)
    ]
    height = landscape.values(torch.stack(torch.meshgrid(*fine, indexing="xy"), -1)).sum(-1).numpy()
    smooth = gaussian_filter(height, finer, mode="nearest")
    return [*np.meshgrid(*(line[::finer].numpy() for line in fine)), smooth[::finer, ::finer]]


def steepest(panel: Axes, at: Tensor, length: float | Tensor) -> None:
    """The directions of steepest descent of each task at a point, of one length."""
    gradients = mf.task_gradients(landscape.losses, {"theta": at}, None)[1]["theta"].numpy()
    point = at.numpy()
    for task, colour in ((0, "C1"), (1, "C4")):
        norm, name = np.linalg.norm(gradients[task]), "₁₂"[task]
        if norm > 0:  # on a cusp's floor there is none
            arrow(panel, point, point - float(length) * gradients[task] / norm, colour, width=2.5)
        panel.plot([], [], color=colour, label=f"-g{name}, length {norm:.2g}")
    panel.legend()


def condition_curves(found: landscape.Paths, along: dict[str, Conditions]) -> Figure:
    canvas, panels = axes(len(along), 3, (15, 3.6 * len(along)))
    for row, (arm, path) in enumerate(along.items()):
        here, steps = panels[3 * row : 3 * row + 3], np.maximum(found.steps, 1)
        colour = {"sum": "C0"}.get(arm, COLOURS[arm])
        here[0].plot(steps, path.cosine, ".", color=colour, markersize=2)
        here[0].axhline(0, color="black", linewidth=1)
        here[0].set(ylabel=f"{named_arm(arm)}: cos φ", ylim=(-1.05, 1.05))
        conflict = path.cosine < 0
        here[1].plot(
            steps[conflict],
            -path.cosine[conflict],
            ".",
            color="#444444",
            markersize=2,
            label="-cos φ where < 0",
        )
        here[1].plot(steps, path.similarity, ".", color=colour, markersize=2, label="Φ")
        here[1].set(ylabel="dominance: Φ <= -cos φ", yscale="log")
        here[2].plot(steps, path.averaged, ".", color="C4", markersize=3, label="H, over the step")
        here[2].plot(steps, path.pointwise, ".", color=colour, markersize=2, label="at the point")
        here[2].axhline(0, color="black", linewidth=1)
        here[2].set(ylabel="curvature gᵀ∇²L g/‖g‖²")
        here[2].set_yscale("symlog", linthresh=1.0)
        here[2].yaxis.set_major_locator(SymmetricalLogLocator(base=10**4, linthresh=1.0))
        for panel in here:
            panel.set(xlabel="step")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        for panel in here[1:]:
            panel.legend(markerscale=5)
    return Figure(
        "conditions",
        "The paper's three conditions at every recorded point of every path. Left: conflict. "
        "Middle: dominance, Φ at or below -cos φ. Right: curvature. "
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


def gets_through(
    found: landscape.Paths, along: dict[str, Conditions], lane: dict[str, int]
) -> Claim:
    ends = {
        arm: (found.theta[-1, i].tolist(), landscape.values(found.theta[-1, i]).tolist())
        for arm, i in lane.items()
    }
    plain = found.chosen("sum", sgd=False)
    starts = len(plain)
    others = (
        share_interval(int((landscape.values(found.theta[-1, plain])[:, 1] > 30).sum()), starts),
        share_interval(int(landscape.across(found, "PCGrad").sum()), starts),
    )
    numbers: dict[str, float] = {"steps": int(found.steps[-1])}
    for arm, (theta, loss) in ends.items():
        numbers |= {
            f"{arm}: θ_1 at the end": theta[0],
            f"{arm}: θ_2 at the end": theta[1],
            f"{arm}: L_2 at the end": loss[1],
        }
    numbers |= named("starts near the paper's with L_2 > 30 at the end, sum", others[0]) | named(
        "with θ_1 < 0 and L_2 < 0, PCGrad", others[1]
    )
    for arm, path in along.items():
        conflict = path.cosine < 0
        numbers |= {
            f"{arm}: share of points in conflict": float(conflict.mean()),
            f"{arm}: median Φ": float(np.nanmedian(path.similarity)),
        }
        numbers |= {
            f"{arm}: of these, cos φ <= -Φ and ξ <= 1": float(
                ((path.cosine <= -path.similarity) & (path.bound <= 1))[conflict].mean()
            )
        }
    short = int(found.steps[-1]) < landscape.LONG
    return claim(
        "PC-04",
        numbers,
        f"Adam {landscape.ADAM_RATE:g} from "
        f"{landscape.START}{', a short budget' if short else ''}. Also {starts} starts within "
        f"about .05. Natural log; totals on the cusp are noise and are not judged. {WILSON}",
    )


def curved(found: landscape.Paths, along: dict[str, Conditions]) -> Claim:
    numbers: dict[str, float] = {}
    for arm, path in along.items():
        needed = path.bound * np.nanmax(path.sharpest)
        numbers |= {
            f"{arm}: share of steps with H > 0": float((path.averaged > 0).mean()),
            f"{arm}: mean H/‖g‖²": float(np.nanmean(path.averaged)),
            f"{arm}: median H/‖g‖²": float(np.nanmedian(path.averaged)),
            f"{arm}: share of steps with H > 0 and ℓ > ξℒ": float(
                ((path.cosine < 0) & (path.averaged > needed)).mean()
            ),
            f"{arm}: share of points with gᵀ∇²L g > 0": float((path.pointwise > 0).mean()),
            f"{arm}: largest gᵀ∇²L g/‖g‖²": float(np.nanmax(path.pointwise)),
            f"{arm}: share of steps with a positive secant curvature": float(
                (path.secant > 0).mean()
            ),
            f"{arm}: median secant curvature": float(np.nanmedian(path.secant)),
            f"{arm}: largest ‖∇²L‖ met, at most ℒ": float(np.nanmax(path.sharpest)),
            f"{arm}: share of steps with ℓ > ξℒ by these": float(
                ((path.cosine < 0) & (path.secant > needed)).mean()
            ),
        }
    return claim(
        "PC-05",
        numbers,
        "Definition 3's H, the mean of gᵀ∇²L g over the step that is taken, at "
        f"{len(found.steps)} points of each path. log|·| is concave off its cusp, so that the "
        "curvature at a point is never positive; across the cusp the slope jumps up, and H is as "
        "large as 1 over the squared distances from it, which its mean shows. ∇L has no useful "
        "Lipschitz constant there: where ℓ > ξℒ is met is beside",
    )
