"""PCGrad's landscape (Yu et al. 2020, Figure 1 and Appendix D): paths of Adam with and without
PCGrad, the three conditions along them, the ablation.

L_1 = 20 log max(|θ_1/2 + tanh θ_2|, 5e-6), L_2 = 25 log max(|θ_1/2 - tanh θ_2 + 2|, 5e-6) from (.5,
-3). The base of the logarithm is not stated; natural here. Each loss falls into a cusp, where it is
noise: end states are judged by the side they are on and by averages over time, never by totals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.ticker import SymmetricalLogLocator
from torch import Tensor
from torch.func import grad, hessian, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import ratio_interval, share_interval
from .common import (
    ALPHA,
    ARMS,
    COLOURS,
    LINES,
    PAPER,
    STUDENT,
    WILSON,
    arms,
    arrow,
    compiled,
    either,
    named,
    normal,
)
from .training import Trial, ablation_of_regression

START = (0.5, -3.0)
FLOOR = 5e-6
ADAM_RATE, SGD_RATES = 1e-3, (1e-6, 3e-6, 1e-5)
# steps a compiled call; more cost compilation and, with these many lanes, save nothing
UNROLLED = 2
EAGER_STEPS = 20_000  # where nothing can be compiled
ENOUGH = 200_000  # PCGrad needs about 150,000 steps to get across: fewer decide nothing
POINTS = 1000  # of every path


def losses(params: mf.types.Params, batch: object = None) -> Tensor:
    """Both losses, **above their floor** of 20 log 5e-6 and 25 log 5e-6: the same gradients, and
    the losses >= 0 that GradNorm asks for.
    """
    x, y = params["theta"][0], params["theta"][1]
    inner = torch.stack([x / 2 + torch.tanh(y), x / 2 - torch.tanh(y) + 2])
    return torch.tensor([20.0, 25.0], dtype=x.dtype) * torch.log(
        inner.abs().clamp_min(FLOOR) / FLOOR
    )


OFFSET = np.array([20.0, 25.0]) * np.log(FLOOR)
"""Added to `losses`, the paper's values."""


# ---- paths ----


class Lanes(NamedTuple):
    arm: Tensor  # [lane], index of ARMS
    sgd: Tensor  # [lane]
    lr: Tensor  # [lane]
    start: Tensor  # [lane, 2]


class Paths(NamedTuple):
    lanes: Lanes
    steps: np.ndarray  # [time]
    theta: Tensor  # [time, lane, 2]
    following: Tensor  # [time, lane, 2], one step later

    def chosen(self, arm: str, *, sgd: bool, lr: float | None = None) -> Tensor:
        """Lanes of one arm and optimizer, one a start; the paper's start is the first."""
        mask = (self.lanes.arm == ARMS.index(arm)) & (self.lanes.sgd == sgd)
        return (mask if lr is None else mask & (self.lanes.lr == lr)).nonzero().flatten()


def lanes_of(seeds: int) -> Lanes:
    """Every arm with Adam and with SGD at each rate, from the paper's start and from others within
    about .05 of it.
    """
    key = mf.random.key(0)
    starts = (
        torch.tensor(START, dtype=torch.float64)
        + 0.05 * normal(key, 0, (seeds, 2)) * (torch.arange(seeds) > 0)[:, None]
    )
    rates = [(False, ADAM_RATE), *((True, rate) for rate in SGD_RATES)]
    every = [
        (arm, sgd, rate, start)
        for arm in range(len(ARMS))
        for sgd, rate in rates
        for start in starts
    ]
    arm, sgd, lr, start = zip(*every, strict=True)
    return Lanes(
        torch.tensor(arm),
        torch.tensor(sgd),
        torch.tensor(lr, dtype=torch.float64),
        torch.stack(start),
    )


def step_of(arm: Tensor, sgd: Tensor, lr: Tensor) -> mf.Step:
    return mf.descend(losses, arms(arm), either(sgd, lr), mf.jacobian(), reduction="sum")


def paths(settings: Settings) -> Paths:
    """All lanes side by side: `UNROLLED` steps in one compiled graph, or eager ones and a shorter
    budget where there is no compiler.
    """
    lanes = lanes_of(max(2, settings.seeds // (1 if settings.full else 4)))
    each = (lanes.arm, lanes.sgd, lanes.lr)

    def advance(
        arm: Tensor, sgd: Tensor, lr: Tensor, state: mf.TrainState
    ) -> tuple[mf.TrainState, Tensor]:
        step = step_of(arm, sgd, lr)
        first, _ = step.update(state, None)
        state = first
        for _ in range(UNROLLED - 1):
            state, _ = step.update(state, None)
        return state, first.params["theta"]

    forward: Callable[..., Any] = vmap(advance)
    state = vmap(lambda arm, sgd, lr, start: step_of(arm, sgd, lr).init({"theta": start}, None))(
        *each, lanes.start
    )
    budget = settings.count(500_000 if settings.full else 250_000)
    program = compiled(forward, *each, state) if budget > EAGER_STEPS else None
    budget = budget if program else settings.count(EAGER_STEPS)
    forward = program or forward
    blocks = max(1, budget // UNROLLED)
    every = max(1, blocks // POINTS)
    theta, following, steps = [], [], []
    for block in tqdm(range(blocks), desc=f"landscape, {UNROLLED} steps at a time", leave=False):
        before = state.params["theta"]
        state, first = forward(*each, state)
        if block % every == 0 or block + 1 == blocks:
            theta.append(before)
            following.append(first)
            steps.append(block * UNROLLED)
    return Paths(lanes, np.array(steps), torch.stack(theta), torch.stack(following))


# ---- what is read off them ----


def values(theta: Tensor) -> Tensor:
    """The paper's losses at points `[..., 2]`: `[..., task]`."""
    flat = vmap(lambda at: losses({"theta": at}))(theta.reshape(-1, 2)) + torch.from_numpy(OFFSET)
    return flat.reshape(*theta.shape[:-1], 2)


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


def across(found: Paths, arm: str) -> np.ndarray:
    """Whether each Adam lane ends on the common side, θ_1 < 0 and L_2 < 0."""
    end = found.theta[-1, found.chosen(arm, sgd=False)]
    return ((end[:, 0] < 0) & (values(end)[:, 1] < 0)).numpy()


def arrival(found: Paths, arm: str, *, sgd: bool, lr: float | None = None) -> np.ndarray:
    """Steps, `[start]`, to the common side: the first recorded point there from which on nine of
    ten are; the whole length for a path that has none.

    Totals on a cusp are noise, and SGD is thrown about by it; the side is neither.
    """
    theta = found.theta[:, found.chosen(arm, sgd=sgd, lr=lr)]
    there = ((theta[..., 0] < 0) & (values(theta)[..., 1] < 0)).numpy()
    count = len(there)
    onwards = there[::-1].cumsum(0)[::-1] / np.arange(count, 0, -1)[:, None]
    settled = there & (onwards >= 0.9)
    return np.where(settled.any(0), found.steps[settled.argmax(0)], found.steps[-1] + 1)


def best_rate(found: Paths, arm: str) -> float:
    return min(
        SGD_RATES, key=lambda lr: float(np.log(arrival(found, arm, sgd=True, lr=lr) + 1).mean())
    )


def figure_1(found: Paths) -> Figure:
    canvas, panels = axes(1, 4, (18, 4.8))
    x, y = (
        torch.linspace(-4, 4, 161, dtype=torch.float64),
        torch.linspace(-4, 7, 221, dtype=torch.float64),
    )
    grid = values(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
    lane = {arm: int(found.chosen(arm, sgd=False)[0]) for arm in ("sum", "PCGrad")}
    deep = found.theta[len(found.theta) // 2, lane["sum"]]  # in the deep valley
    gradients = mf.task_gradients(losses, {"theta": deep}, None)[1]["theta"].numpy()
    levels = np.arange(-160, 81, 20)
    filled = [
        panel.contourf(x, y, grid.sum(-1), levels=levels, cmap="Greys_r", extend="both", zorder=-2)
        for panel in panels[:3]
    ]
    canvas.colorbar(filled[2], ax=panels[2], label="L₁ + L₂", pad=0.01)
    for panel in panels[:3]:
        panel.contour(
            x,
            y,
            grid.sum(-1),
            levels=levels,
            colors="#999999",
            linewidths=0.3,
            linestyles="solid",
            zorder=-1,
        )
    for arm, panel in zip(("sum", "PCGrad"), panels[1:3], strict=True):
        theta = found.theta[:, lane[arm]].numpy()
        panel.plot(
            theta[:, 0], theta[:, 1], color=COLOURS[arm] if arm == "PCGrad" else "C0", linewidth=1.2
        )
        panel.plot(*theta[0], "k*", markersize=11)
        panel.plot(*theta[-1], "o", color="black", markerfacecolor="white", markersize=8)
    for task, (colour, style) in enumerate((("C0", "solid"), ("C1", "dashed"))):
        panels[3].contour(
            x,
            y,
            grid[..., task],
            levels=np.arange(-40, 61, 10),
            colors=colour,
            linestyles=style,
            linewidths=0.8,
        )
        unit = gradients[task] / np.linalg.norm(gradients[task])
        for panel in (panels[0], panels[3]):
            tip = deep.numpy() - 1.8 * unit
            label = f"-g{'₁₂'[task]}, length {np.linalg.norm(gradients[task]):.2g}"
            arrow(panel, deep.numpy(), tip, colour, style)
            panel.plot(
                [],
                [],
                color=colour,
                linestyle=style,
                label=label if panel is panels[0] else f"L{'₁₂'[task]}",
            )
    for panel, title in zip(
        panels, ("L₁ + L₂", "Adam on the sum", "Adam with PCGrad", "L₁ and L₂"), strict=True
    ):
        panel.set(xlabel="θ₁", ylabel="θ₂", xlim=(-4, 4), ylim=(-4, 7), title=title)
        panel.grid(False)
    for panel in (panels[0], panels[3]):
        panel.plot(*deep.numpy(), "s", color="black", markersize=5)
        panel.legend(loc="upper right", fontsize="small")
    steps = found.steps[-1]
    ends = {arm: found.theta[-1, i].tolist() for arm, i in lane.items()}
    return Figure(
        "figure1",
        "Figure 1 of the paper. Contours of the sum (white: high) and of each loss; the paths "
        f"of {steps:,} steps of Adam {ADAM_RATE:g} from the star to the "
        f"circle, the sum's at ({ends['sum'][0]:.2f}, {ends['sum'][1]:.2f}), PCGrad's at "
        f"({ends['PCGrad'][0]:.2f}, {ends['PCGrad'][1]:.2f}). Square: a point "
        "of the sum's path in task 1's deep valley, with the directions of steepest descent of "
        "each task (arrows of one length; true lengths in the legend).",
        canvas,
    )


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
            panel.legend(
                frameon=False,
                markerscale=5,
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=2,
                fontsize="small",
            )
    return Figure(
        "conditions",
        "The paper's three conditions at every recorded point of the two paths. Left: conflict. "
        "Middle: dominance, Φ at or below -cos φ. Right: curvature. "
        "log|·| is concave off its cusp, so the curvature at the point is never positive; over "
        "the step that is taken across a cusp it is.",
        canvas,
    )


def landscape(found: Paths) -> Findings:
    yield figure_1(found)
    lane = {arm: int(found.chosen(arm, sgd=False)[0]) for arm in ("sum", "PCGrad")}
    along = {arm: conditions(found.theta[:, i], found.following[:, i]) for arm, i in lane.items()}
    yield condition_curves(found, along)
    ends = {
        arm: (found.theta[-1, i].tolist(), values(found.theta[-1, i]).tolist())
        for arm, i in lane.items()
    }
    stuck, passed = ends["sum"][1][1] > 30, bool(across(found, "PCGrad")[0])
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
    short = int(found.steps[-1]) < ENOUGH
    yield Claim(
        "PC-04",
        PAPER,
        "Figure 1: in sharp valley walls descent follows task 1's valley and learns task 2 "
        "extremely slowly; PCGrad gets out.",
        "holds" if stuck and passed else "inconclusive" if stuck and short else "does not hold",
        numbers,
        f"Adam {ADAM_RATE:g} from {START}{', a short budget' if short else ''}; holds if the sum "
        "ends with L_2 > 30 and PCGrad with θ_1 < 0 and L_2 < 0. "
        f"Also {starts} starts within about .05. Natural log; totals on the cusp are noise and "
        f"are not judged. {WILSON}",
    )
    numbers = {}
    positive, met = [], []
    for arm, path in along.items():
        needed = path.bound * np.nanmax(path.sharpest)
        met.append(float(((path.cosine < 0) & (path.secant > needed)).mean()))
        positive.append(float((path.pointwise > 0).mean()))
        numbers |= {
            f"{arm}: share of points with gᵀ∇²L g > 0": positive[-1],
            f"{arm}: largest gᵀ∇²L g/‖g‖²": float(np.nanmax(path.pointwise)),
            f"{arm}: share of steps with a positive secant curvature": float(
                (path.secant > 0).mean()
            ),
            f"{arm}: median secant curvature": float(np.nanmedian(path.secant)),
            f"{arm}: largest ‖∇²L‖ met, at most ℒ": float(np.nanmax(path.sharpest)),
            f"{arm}: share of steps with ℓ > ξℒ by these": met[-1],
        }
    yield Claim(
        "PC-05",
        PAPER,
        "The figure is an instance of sharp curvature in the sense of the theory.",
        "does not hold"
        if max(positive) == 0
        else "holds"
        if min(positive) > 0.5
        else "holds only when",
        numbers,
        f"gᵀ∇²L g at {len(found.steps)} points of each path; holds if it is positive. log|·| is "
        "concave off its cusp; only the secant over a step across "
        "the cusp is positive. ∇L has no useful Lipschitz constant there, so Theorem 2 says "
        "nothing about this figure",
    )


# ---- ablation ----


def ablation(found: Paths, trials: dict[str, Trial]) -> Findings:
    rates = {arm: best_rate(found, arm) for arm in ARMS}
    steps = {("Adam", arm): arrival(found, arm, sgd=False) + 1.0 for arm in ARMS}
    steps |= {("SGD", arm): arrival(found, arm, sgd=True, lr=rates[arm]) + 1.0 for arm in ARMS}
    yield ablation_figure(found, rates, trials)
    texts = {
        "direction only": (
            "PC-23",
            "Ablation: PCGrad's direction at the plain gradient's length is worse than PCGrad.",
        ),
        "magnitude only": (
            "PC-24",
            "Ablation: the plain direction at PCGrad's length is worse than PCGrad.",
        ),
        "GradNorm": (
            "PC-25",
            "Ablation: GradNorm, which balances magnitudes alone, is worse than PCGrad.",
        ),
    }
    for arm, (identifier, text) in texts.items():
        numbers: dict[str, float] = {}
        worse: dict[str, tuple[bool, bool]] = {}
        for optimizer in ("Adam", "SGD"):
            ratio, label = (
                ratio_interval(steps[optimizer, arm], steps[optimizer, "PCGrad"]),
                f"landscape, {optimizer}",
            )
            worse[label] = ratio.low > 1, ratio.high < 1
            numbers |= {
                f"{label}: mean steps to the common side, {name}": float(
                    steps[optimizer, name].mean()
                )
                for name in (arm, "PCGrad")
            }
            numbers |= named(f"{label}: steps of {arm} over PCGrad's", ratio)
            there = {
                name: float((steps[optimizer, name] <= found.steps[-1]).mean())
                for name in (arm, "PCGrad")
            }
            numbers |= {
                f"{label}: share of starts that get there, {name}": share
                for name, share in there.items()
            }
            if optimizer == "SGD":
                numbers |= {
                    f"{label}: rate of {arm}": rates[arm],
                    f"{label}: rate of PCGrad": rates["PCGrad"],
                }
            ratio = trials[optimizer].over(arm, "PCGrad")
            numbers |= named(f"regression, {optimizer}: loss of {arm} over PCGrad's", ratio)
            worse[f"regression, {optimizer}"] = ratio.low > 1, ratio.high < 1
        yield Claim(
            identifier,
            PAPER,
            text,
            verdict_of([a for a, _ in worse.values()], [b for _, b in worse.values()])
            if int(found.steps[-1]) >= ENOUGH
            else "inconclusive",
            numbers,
            f"worse: {'; '.join(name for name, (a, _) in worse.items() if a) or 'nowhere'}; "
            "better: "
            f"{'; '.join(name for name, (_, b) in worse.items() if b) or 'nowhere'}. Landscape: "
            "steps to θ_1 < 0 and L_2 < 0 for good, of "
            f"{found.steps[-1]:,} (the count for those that do not get there), ratios paired "
            f"over {len(steps['Adam', 'sum'])} starts, "
            f"SGD at each arm's best of {', '.join(f'{r:g}' for r in SGD_RATES)}; regression: "
            f"Σ L_i/Var y_i after {trials['Adam'].steps} steps, each arm at its best of three "
            "rates, paired over seeds; GradNorm with "
            f"α = {ALPHA}, on losses above their floor. {STUDENT}",
        )


def ablation_figure(found: Paths, rates: dict[str, float], trials: dict[str, Trial]) -> Figure:
    canvas, panels = axes(1, 3, (16, 4.8))
    for panel, sgd in zip(panels[:2], (False, True), strict=True):
        for arm in ARMS:
            lanes = found.chosen(arm, sgd=sgd, lr=rates[arm] if sgd else None)
            second = values(found.theta[:, lanes])[..., 1].median(1).values.numpy()
            smooth = np.array(
                [np.median(second[max(0, i - 15) : i + 16]) for i in range(len(second))]
            )
            panel.plot(
                found.steps,
                smooth,
                color=COLOURS[arm],
                linestyle=LINES[arm],
                label=f"{arm}, {rates[arm]:g}" if sgd else arm,
            )
        panel.set(
            xlabel="step", ylabel=f"L₂, {'SGD at its best rate' if sgd else f'Adam {ADAM_RATE:g}'}"
        )
        panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        panel.legend(frameon=True, fontsize="small")
    others = [arm for arm in ARMS if arm != "PCGrad"]
    for i, (name, trial) in enumerate(trials.items()):
        for j, arm in enumerate(others):
            ratio = trial.over(arm, "PCGrad")
            bars = [[ratio.mean - ratio.low], [ratio.high - ratio.mean]]
            panels[2].errorbar(
                [j + 0.24 * i - 0.12],
                [ratio.mean],
                bars,
                color=COLOURS[arm],
                marker="os"[i],
                capsize=3,
            )
        panels[2].plot([], [], marker="os"[i], color="#444444", linestyle="", label=name)
    panels[2].axhline(1, color="black", linewidth=1)
    panels[2].set_xticks(range(len(others)), [arm.replace(" ", "\n") for arm in others])
    panels[2].set(ylabel="regression: Σ L_i / variance of y_i\nover PCGrad's", yscale="log")
    for axis in (panels[2].yaxis.set_major_formatter, panels[2].yaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}")
    panels[2].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    starts = len(found.chosen("sum", sgd=False))
    return Figure(
        "ablation",
        "PCGrad taken apart. Left and middle: L₂ on the landscape under Adam and SGD (each arm "
        f"at its best rate), median of {starts} starts, running median "
        f"of 31 points. Right: the regression after {trials['Adam'].steps} steps, each arm at "
        "its best rate: ratios to PCGrad's loss, paired by "
        "seed, geometric mean and 95 % interval.",
        canvas,
    )


def run(settings: Settings) -> Findings:
    found = paths(settings)
    yield from landscape(found)
    yield from ablation(found, ablation_of_regression(settings))
