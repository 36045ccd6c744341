"""Figure 1: does PCGrad get through where Adam on the sum is stuck, and is it curved?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import SymmetricalLogLocator
from torch import Tensor
from torch.func import grad, hessian, vmap

import mtlfunc as mf

from ..report.figures import arrow, axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import named, share_interval
from .common import COLOURS, WILSON
from .decisions import LONG, claim
from .landscape import ADAM_RATE, START, Paths, across, losses, paths, values


class Conditions(NamedTuple):
    """Along one path; the axis is time."""

    cosine: np.ndarray
    similarity: np.ndarray  # Φ
    bound: np.ndarray  # ξ
    pointwise: np.ndarray  # gᵀ∇²L g / ‖g‖²
    secant: np.ndarray  # 2 (L(θ + Δ) - L - g·Δ) / ‖Δ‖² over the step Δ that was taken
    sharpest: np.ndarray  # ‖∇²L‖


def conditions(theta: Tensor, following: Tensor) -> Conditions:
    def total(at: Tensor) -> Tensor:
        return losses({"theta": at}).sum()

    def one(at: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        params, move = {"theta": at}, after - at
        gramian = mf.task_gramian(losses, params, None)[1]
        pair = [
            f(gramian)[0, 1]
            for f in (
                mf.diagnostics.cosines,
                mf.diagnostics.magnitude_similarity,
                mf.diagnostics.curvature_bound,
            )
        ]
        pointwise = mf.diagnostics.curvature(losses, params, None) / gramian.sum()
        secant = 2 * (total(after) - total(at) - grad(total)(at) @ move) / move.square().sum()
        return (*pair, pointwise, secant, torch.linalg.matrix_norm(hessian(total)(at), 2))

    return Conditions(*(x.numpy() for x in vmap(one)(theta, following)))


def run(settings: Settings) -> Findings:
    found = paths(settings)
    yield figure_1(found)
    lane = {arm: int(found.chosen(arm, sgd=False)[0]) for arm in ("sum", "PCGrad")}
    along = {arm: conditions(found.theta[:, i], found.following[:, i]) for arm, i in lane.items()}
    yield condition_curves(found, along)
    yield gets_through(found, along, lane)
    yield curved(found, along)


def figure_1(found: Paths) -> Figure:
    canvas, panels = axes(1, 4, (18, 4.8))
    x = torch.linspace(-4, 4, 161, dtype=torch.float64)
    y = torch.linspace(-4, 7, 221, dtype=torch.float64)
    grid = values(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)).numpy()
    lane = {arm: int(found.chosen(arm, sgd=False)[0]) for arm in ("sum", "PCGrad")}
    deep = found.theta[len(found.theta) // 2, lane["sum"]]  # in the deep valley
    levels, total = np.arange(-160, 81, 20), grid.sum(-1)
    for panel in panels[:3]:
        filled = panel.contourf(x, y, total, levels, cmap="Greys_r", extend="both", zorder=-2)
        if panel is panels[2]:
            canvas.colorbar(filled, ax=panel, label="L₁ + L₂", pad=0.01)
        thin = {"colors": "#999999", "linewidths": 0.3, "linestyles": "solid"}
        panel.contour(x, y, total, levels, zorder=-1, **thin)
    colours = ("C0", COLOURS["PCGrad"])
    for i, colour, panel in zip(lane.values(), colours, panels[1:3], strict=True):
        theta = found.theta[:, i].numpy()
        panel.plot(theta[:, 0], theta[:, 1], color=colour, linewidth=1.2)
        panel.plot(*theta[0], "k*", markersize=11)
        panel.plot(*theta[-1], "o", color="black", markerfacecolor="white", markersize=8)
    for task, colour, style in ((0, "C0", "solid"), (1, "C1", "dashed")):
        each = {"colors": colour, "linestyles": style, "linewidths": 0.8}
        panels[3].contour(x, y, grid[..., task], np.arange(-40, 61, 10), **each)
    steepest(panels[0], panels[3], deep)
    titles = ("L₁ + L₂", "Adam on the sum", "Adam with PCGrad", "L₁ and L₂")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xlabel="θ₁", ylabel="θ₂", xlim=(-4, 4), ylim=(-4, 7), title=title)
        panel.grid(False)
    steps = found.steps[-1]
    ends = {arm: found.theta[-1, i].tolist() for arm, i in lane.items()}
    return Figure(
        "figure1",
        "Figure 1 of Yu et al. 2020. Contours of the sum (white: high) and of each loss; the paths "
        f"of {steps:,} steps of Adam {ADAM_RATE:g} from the star to the "
        f"circle, the sum's at ({ends['sum'][0]:.2f}, {ends['sum'][1]:.2f}), PCGrad's at "
        f"({ends['PCGrad'][0]:.2f}, {ends['PCGrad'][1]:.2f}). Square: a point "
        "of the sum's path in task 1's deep valley, with the directions of steepest descent of "
        "each task (arrows of one length; true lengths in the legend).",
        canvas,
    )


def steepest(sum_panel: Axes, task_panel: Axes, at: Tensor) -> None:
    """The directions of steepest descent of each task at a point, of one length."""
    gradients = mf.task_gradients(losses, {"theta": at}, None)[1]["theta"].numpy()
    point = at.numpy()
    for task, colour, style in ((0, "C0", "solid"), (1, "C1", "dashed")):
        length, name = np.linalg.norm(gradients[task]), "₁₂"[task]
        labels = (f"-g{name}, length {length:.2g}", f"L{name}")
        for panel, label in zip((sum_panel, task_panel), labels, strict=True):
            arrow(panel, point, point - 1.8 * gradients[task] / length, colour, style)
            panel.plot([], [], color=colour, linestyle=style, label=label)
    for panel in (sum_panel, task_panel):
        panel.plot(*point, "s", color="black", markersize=5)
        panel.legend()


def condition_curves(found: Paths, along: dict[str, Conditions]) -> Figure:
    canvas, panels = axes(2, 3, (15, 7.2))
    for row, (arm, path) in enumerate(along.items()):
        here, steps = panels[3 * row : 3 * row + 3], np.maximum(found.steps, 1)
        colour = "C0" if arm == "sum" else COLOURS[arm]
        here[0].plot(steps, path.cosine, ".", color=colour, markersize=2)
        here[0].axhline(0, color="black", linewidth=1)
        here[0].set(
            ylabel=f"{'Adam on the sum' if arm == 'sum' else 'Adam with PCGrad'}: cos φ",
            ylim=(-1.05, 1.05),
        )
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
        here[2].plot(
            steps, path.secant, ".", color="C4", markersize=2, label="over the step (secant)"
        )
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
        "The paper's three conditions at every recorded point of the two paths. Left: conflict. "
        "Middle: dominance, Φ at or below -cos φ. Right: curvature. "
        "log|·| is concave off its cusp, so the curvature at the point is never positive; over "
        "the step that is taken across a cusp it is.",
        canvas,
    )


def gets_through(found: Paths, along: dict[str, Conditions], lane: dict[str, int]) -> Claim:
    ends = {
        arm: (found.theta[-1, i].tolist(), values(found.theta[-1, i]).tolist())
        for arm, i in lane.items()
    }
    plain = found.chosen("sum", sgd=False)
    starts = len(plain)
    others = (
        share_interval(int((values(found.theta[-1, plain])[:, 1] > 30).sum()), starts),
        share_interval(int(across(found, "PCGrad").sum()), starts),
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
    short = int(found.steps[-1]) < LONG
    return claim(
        "PC-04",
        numbers,
        f"Adam {ADAM_RATE:g} from {START}{', a short budget' if short else ''}; holds if the sum "
        "ends with L_2 > 30 and PCGrad with θ_1 < 0 and L_2 < 0. "
        f"Also {starts} starts within about .05. Natural log; totals on the cusp are noise and "
        f"are not judged. {WILSON}",
    )


def curved(found: Paths, along: dict[str, Conditions]) -> Claim:
    numbers: dict[str, float] = {}
    for arm, path in along.items():
        needed = path.bound * np.nanmax(path.sharpest)
        numbers |= {
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
        f"gᵀ∇²L g at {len(found.steps)} points of each path; holds if it is positive. log|·| is "
        "concave off its cusp; only the secant over a step across "
        "the cusp is positive. ∇L has no useful Lipschitz constant there, so Theorem 2 says "
        "nothing about this figure",
    )
