"""PCGrad's diagnosis (Yu et al. 2020, sections 2.2 and 4, Figure 5): dominance, conflict and
curvature while two small networks are trained.

A regression on a tanh unit and on a smaller product of two, which is flat at first; and a maze with
a near goal and a far one in another direction: a policy that is told its task by a one-hot code,
exact values and exact policy gradients. Both are trained on the sum of the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, half_width, mean_interval, ratio_interval, share_interval
from .common import ARMS, PAPER, STUDENT, arms, either, named, normal

COLOURS, LINES = ("C0", "C1"), ("-", "--")
INPUTS, HIDDEN, SAMPLES = 6, 16, 32
SIDE, DISCOUNT, SLIP = 6, 0.85, 0.1
# rows and columns of the maze: 2 moves to task 1's goal, 5 to task 2's
BEGIN, GOALS = (2, 2), ((2, 4), (5, 0))
Batch = Any


# ---- a regression ----


def regression(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared errors `[2]` of a tanh network with two shared layers."""
    x, y = batch
    for layer in ("trunk.0", "trunk.1"):
        x = torch.tanh(x @ params[f"{layer}.weight"].mT + params[f"{layer}.bias"])
    return (x @ params["heads.weight"].mT + params["heads.bias"] - y).square().mean(0)


def network(key: Tensor, widths: tuple[int, ...], names: tuple[str, ...]) -> mf.types.Params:
    params: mf.types.Params = {}
    for i, name in enumerate(names):
        params[f"{name}.weight"] = normal(key, 2 * i, (widths[i + 1], widths[i])) / widths[i] ** 0.5
        params[f"{name}.bias"] = torch.zeros(widths[i + 1], dtype=torch.float64) + 0 * normal(
            key, 2 * i + 1, (widths[i + 1],)
        )
    return params


def regression_start(key: Tensor) -> mf.types.Params:
    return network(key, (INPUTS, HIDDEN, HIDDEN, 2), ("trunk.0", "trunk.1", "heads"))


def regression_batch(key: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Fresh samples of y = (3 tanh(a·x), tanh(2b·x) tanh(2c·x)) with random a, b, c of unit length."""
    directions = normal(key, 50, (3, INPUTS))
    a, b, c = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    x = mf.random.normal(
        mf.random.fold_in(mf.random.fold_in(key, 52), step), (SAMPLES, INPUTS), torch.float64
    )
    return x, torch.stack(
        [3 * torch.tanh(x @ a), torch.tanh(2 * (x @ b)) * torch.tanh(2 * (x @ c))], -1
    )


# ---- a maze with two goals ----


def moves() -> Tensor:
    """Transition probabilities `[action, state, state]` of a grid with walls around it; a move
    slips to a random one now and then.
    """
    plain = torch.zeros(4, SIDE * SIDE, SIDE * SIDE, dtype=torch.float64)
    for action, (down, right) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        for state in range(SIDE * SIDE):
            row, column = (
                min(max(state // SIDE + down, 0), SIDE - 1),
                min(max(state % SIDE + right, 0), SIDE - 1),
            )
            plain[action, state, row * SIDE + column] = 1
    return (1 - SLIP) * plain + SLIP * plain.mean(0)


def maze(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Minus the value `[task]` of the start under the policy: 1 at the goal, discounted; solved
    exactly, so gradients are exact policy gradients.

    batch: transition probabilities `[action, state, state]`, and the goals' states `[task, state]`
    as one-hot rows.
    """
    transition, goals = batch
    count, states = goals.shape
    # The code of the task is an input: x = (one-hot state, one-hot task).
    codes = torch.eye(count, dtype=goals.dtype).repeat_interleave(states, 0)
    x = torch.cat([torch.eye(states, dtype=goals.dtype).repeat(count, 1), codes], -1)
    hidden = torch.tanh(x @ params["trunk.weight"].mT + params["trunk.bias"])
    policy = torch.softmax(hidden @ params["policy.weight"].mT + params["policy.bias"], -1).reshape(
        count, states, 4
    )
    walk = torch.einsum("tsa,asn->tsn", policy, transition)
    # A goal absorbs: its value is 1, and nothing flows out of it.
    walk = DISCOUNT * walk * (1 - goals)[:, :, None]
    values = torch.linalg.solve(torch.eye(states, dtype=goals.dtype) - walk, goals)
    return -values[:, BEGIN[0] * SIDE + BEGIN[1]]


def maze_start(key: Tensor) -> mf.types.Params:
    params = network(key, (SIDE * SIDE + len(GOALS), HIDDEN, 4), ("trunk", "policy"))
    return params | {
        "trunk.weight": params["trunk.weight"] * (SIDE * SIDE + len(GOALS)) ** 0.5,
        "policy.weight": params["policy.weight"] * 0.3,
    }


def maze_batch(key: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    goals = torch.zeros(len(GOALS), SIDE * SIDE, dtype=torch.float64)
    for task, (row, column) in enumerate(GOALS):
        goals[task, row * SIDE + column] = 1
    return moves(), goals


# ---- training, with everything logged ----


class Problem(NamedTuple):
    losses: Callable[..., Tensor]
    start: Callable[[Tensor], mf.types.Params]
    batch: Callable[[Tensor, Tensor], Batch]
    lr: float  # of Adam
    steps: int
    unit: str  # of the loss


PROBLEMS = {
    "regression": Problem(
        regression, regression_start, regression_batch, 5e-3, 700, "mean squared error"
    ),
    "maze": Problem(maze, maze_start, maze_batch, 3e-3, 400, "-value of the start"),
}


class Log(NamedTuple):
    """Of a training run, every step; the first axes are time and seed."""

    losses: np.ndarray  # [time, seed, task]
    cosine: np.ndarray  # [time, seed]
    similarity: np.ndarray  # [time, seed], Φ
    bound: np.ndarray  # [time, seed], ξ
    curvature: np.ndarray  # [time, seed], gᵀ∇²L g
    square: np.ndarray  # [time, seed], ‖g‖²
    layers: np.ndarray  # [time, seed, layer], cosine of the two gradients of one leaf


def train(problem: Problem, settings: Settings, label: str) -> Log:
    """Adam on the sum of the losses."""
    optimizer, keys = mf.adam(problem.lr), torch.arange(settings.seeds)

    def advance(
        key: Tensor, time: Tensor, state: tuple[mf.types.Params, Any]
    ) -> tuple[Any, tuple[Tensor, ...]]:
        batch, params = problem.batch(key, time), state[0]
        losses, rows = mf.task_gradients(problem.losses, params, batch)
        flat = {name: leaf.flatten(1) for name, leaf in rows.items()}
        gramian = torch.stack([leaf @ leaf.mT for leaf in flat.values()]).sum(0)
        pair = [
            f(gramian)[0, 1]
            for f in (
                mf.diagnostics.cosines,
                mf.diagnostics.magnitude_similarity,
                mf.diagnostics.curvature_bound,
            )
        ]
        layers = torch.stack(
            [torch.cosine_similarity(leaf[0], leaf[1], 0) for leaf in flat.values()]
        )
        curvature = mf.diagnostics.curvature(problem.losses, params, batch)
        state = optimizer.update(
            {name: leaf.sum(0) for name, leaf in rows.items()}, state[1], params
        )
        return state, (losses, *pair, curvature, gramian.sum(), layers)

    zero = torch.zeros((), dtype=torch.int64)
    params = vmap(problem.start)(keys)
    state, forward = (params, vmap(optimizer.init)(params)), vmap(advance, (0, None, 0))
    kept = []
    for time in tqdm(
        range(settings.count(problem.steps)), desc=f"{label}, sum of the losses", leave=False
    ):
        state, logged = forward(keys, zero + time, state)
        kept.append(logged)
    return Log(*(torch.stack(parts).numpy() for parts in zip(*kept, strict=True)))


def run(settings: Settings) -> Findings:
    yield from dominated(settings)
    logs = {name: train(problem, settings, name) for name, problem in PROBLEMS.items()}
    yield training_figure(logs)
    yield curvature_rises(logs)
    yield conflict_grows(logs)
    yield one_task_first(logs)
    yield from change_points(logs)


# ---- PC-02: one gradient dominates ----


RATIOS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def progress(settings: Settings) -> dict[str, np.ndarray]:
    """Fall of each task's loss over its initial gap, `[ratio, draw, task]`, when the second of two
    quadratic tasks is multiplied by ρ.

    SGD steps by 1/ℒ of the summed loss, as its stability asks, Adam by .05.
    """
    draws, dim, steps = settings.count(200), 10, settings.count(50)

    def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        factors, centres, scale = batch
        return (
            scale
            * 0.5
            * torch.einsum("tij,tj->ti", factors, params["x"] - centres).square().sum(-1)
        )

    def one(key: Tensor, ratio: Tensor, adam: bool) -> tuple[Tensor, Tensor]:
        factors, centres = normal(key, 0, (2, dim, dim)) / dim**0.5, normal(key, 1, (2, dim))
        scale = torch.stack([torch.ones_like(ratio), ratio])
        hessian = (scale[:, None, None] * (factors.mT @ factors)).sum(0)
        optimizer = mf.adam(0.05) if adam else mf.sgd(1 / torch.linalg.eigvalsh(hessian)[-1])
        step = mf.descend(losses, mf.mean(), optimizer, mf.jacobian(), reduction="sum")
        batch, params = (factors, centres, scale), {"x": 2 * normal(key, 2, (dim,))}
        state = step.init(params, batch)
        first = losses(params, batch)
        for _ in range(steps):
            state, _ = step.update(state, batch)
        square = mf.task_gramian(losses, params, batch)[1].diagonal()
        return 1 - losses(state.params, batch) / first, square / square.sum()

    grid = {}
    for name, adam in (("SGD", False), ("Adam", True)):
        both = vmap(vmap(lambda key, ratio, adam=adam: one(key, ratio, adam), (0, None)), (None, 0))
        fall, share = both(torch.arange(draws), torch.tensor(RATIOS, dtype=torch.float64))
        grid[name] = fall.numpy()
        grid["share"] = share.numpy()
    return grid


def dominated(settings: Settings) -> Findings:
    grid = progress(settings)
    small = {name: grid[name][:, :, 0] for name in ("SGD", "Adam")}
    falls = {
        name: [mean_interval(values[i + 1] - values[i]) for i in range(len(RATIOS) - 1)]
        for name, values in small.items()
    }
    monotone = {name: all(change.high < 0 for change in changes) for name, changes in falls.items()}
    over = {name: mean_interval(values[-1] - values[0]) for name, values in small.items()}
    canvas, axis = axes(1, 2, (11, 4.2))
    axis[0].errorbar(
        RATIOS,
        grid["share"][:, :, 1].mean(1),
        half_width(grid["share"][:, :, 1]),
        color="#444444",
        marker="o",
        capsize=3,
    )
    axis[0].set(
        xlabel="ρ, factor of task 2's loss",
        ylabel="‖g₂‖² / (‖g₁‖² + ‖g₂‖²) at the start",
        xscale="log",
        ylim=(0, 1.05),
    )
    for (name, style), task in (
        (pair, task) for pair in (("SGD", "-"), ("Adam", "--")) for task in (0, 1)
    ):
        values = grid[name][:, :, task]
        axis[1].errorbar(
            RATIOS,
            values.mean(1),
            half_width(values),
            color=COLOURS[task],
            linestyle=style,
            marker="os"[task],
            capsize=3,
            label=f"task {task + 1}, {name}",
        )
    axis[1].set(
        xlabel="ρ, factor of task 2's loss",
        ylabel="fall of the loss / loss at the start",
        xscale="log",
    )
    axis[1].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    yield Figure(
        "dominance",
        "Two random quadratic tasks in 10 dimensions, the second multiplied by ρ; "
        f"{settings.count(50)} steps on the sum, {settings.count(200)} draws, "
        "means with 95 % intervals. Left: share of the squared length of the gradients that is "
        "task 2's. Right: what each task gains.",
        canvas,
    )
    numbers: dict[str, float] = {
        f"ρ = {ratio:g}: share of task 2": float(grid["share"][i, :, 1].mean())
        for i, ratio in enumerate(RATIOS)
    }
    for name, values in small.items():
        numbers |= {
            f"{name}, ρ = {ratio:g}: fall of task 1": float(values[i].mean())
            for i, ratio in enumerate(RATIOS)
        }
        numbers |= named(f"{name}: change of task 1's fall from ρ = 1 to 1000", over[name])
    holds = [name for name, ok in monotone.items() if ok]
    yield Claim(
        "PC-02",
        PAPER,
        "The summed gradient can be dominated by the largest one, which is then over-served "
        "while the others are under-served.",
        verdict_of([monotone[name] for name in small], [over[name].low > 0 for name in small]),
        numbers,
        f"{settings.count(200)} random pairs; SGD by 1/ℒ of the sum, Adam by .05, "
        f"{settings.count(50)} steps; holds for an optimizer if the small-gradient "
        "task's progress falls with every step of ρ (paired 95 % t intervals): "
        f"{', '.join(holds) or 'none'}",
    )


# ---- Figure 5 ----


def _numbered(logs: dict[str, Log]) -> list[tuple[str, Log, np.ndarray]]:
    return [(name, log, np.arange(len(log.cosine))) for name, log in logs.items()]


def training_figure(logs: dict[str, Log]) -> Figure:
    canvas, axis = axes(len(logs), 4, (16, 3.6 * len(logs)))
    for row, (name, log, steps) in enumerate(_numbered(logs)):
        here = axis[4 * row : 4 * row + 4]
        for task in (0, 1):
            values = log.losses[:, :, task]
            here[0].plot(
                values.mean(1), color=COLOURS[task], linestyle=LINES[task], label=f"task {task + 1}"
            )
            half = half_width(values)
            here[0].fill_between(
                steps,
                values.mean(1) - half,
                values.mean(1) + half,
                color=COLOURS[task],
                alpha=0.2,
                linewidth=0,
            )
        here[0].set(ylabel=f"{name}: {PROBLEMS[name].unit}")
        here[0].legend(frameon=False)
        conflict = rolling((log.cosine < 0).astype(float))
        half = half_width(conflict)
        here[1].plot(conflict.mean(1), color="#444444")
        here[1].fill_between(
            steps,
            conflict.mean(1) - half,
            conflict.mean(1) + half,
            color="#444444",
            alpha=0.2,
            linewidth=0,
        )
        here[1].set(ylabel="share of steps with cos φ < 0", ylim=(-0.05, 1.05))
        for values, colour, style, label in (
            (log.similarity, "C0", "-", "Φ"),
            (log.bound, "C3", "--", "ξ"),
        ):
            here[2].plot(np.nanmedian(values, 1), color=colour, linestyle=style, label=label)
        here[2].set(ylabel="magnitude similarity Φ, bound ξ", ylim=(0, 1.5))
        here[2].legend(frameon=False)
        quantiles = np.quantile(log.curvature, [0.25, 0.5, 0.75], axis=1)
        here[3].plot(quantiles[1], color="C1")
        here[3].fill_between(steps, quantiles[0], quantiles[2], color="C1", alpha=0.2, linewidth=0)
        here[3].set_yscale("symlog", linthresh=1e-6)
        here[3].set(ylabel="curvature gᵀ∇²L g")
        for panel in here:
            panel.set(xlabel="step")
    seeds = next(iter(logs.values())).cosine.shape[1]
    return Figure(
        "training",
        "Figure 5's quantities while a regression and a maze with two goals are trained on the "
        f"sum of the losses by Adam, {seeds} seeds. From the left: "
        "losses (mean, 95 % band), share of conflicting steps among the last 20 (mean, 95 % "
        "band), Φ and ξ (medians), curvature (median, quartiles).",
        canvas,
    )


def rolling(values: np.ndarray, width: int = 20) -> np.ndarray:
    """Mean over the last `width` steps (fewer at the start) of `[time, ...]`."""
    total = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), 0)
    stop = np.arange(1, len(values) + 1)
    begin = np.maximum(stop - width, 0)
    return (total[stop] - total[begin]) / (stop - begin).reshape(-1, *[1] * (values.ndim - 1))


def curvature_rises(logs: dict[str, Log]) -> Claim:
    numbers: dict[str, float] = {}
    rises, falls = [], []
    for name, log, steps in _numbered(logs):
        fits = [
            exponential(steps, log.curvature[:, seed]) for seed in range(log.curvature.shape[1])
        ]
        slopes, quality, positive = (np.array(x) for x in zip(*fits, strict=True))
        slope, median = mean_interval(slopes), float(np.median(quality))
        numbers |= named(
            f"{name}: slope of log H, per 100 steps", Interval(*(100 * x for x in slope))
        )
        numbers |= {
            f"{name}: median R²": median,
            f"{name}: share of steps with H > 0": float(positive.mean()),
        }
        per_length = mean_interval(
            [
                exponential(steps, (log.curvature / log.square)[:, seed])[0]
                for seed in range(log.curvature.shape[1])
            ]
        )
        numbers |= named(
            f"{name}: slope of log H/‖g‖², per 100 steps", Interval(*(100 * x for x in per_length))
        )
        rises.append(slope.low > 0 and median > 0.8)
        falls.append(slope.high < 0 or median <= 0.8)
    return Claim(
        "PC-26",
        PAPER,
        "Figure 5, left: the multi-task curvature rises about exponentially during training.",
        verdict_of(rises, falls),
        numbers,
        "H in the limit of a short step, gᵀ∇²L g; least squares of log H on the step where H > "
        f"0; {settings_of(logs)}; holds if the slope is positive "
        f"and R² above .8: {_which(logs, rises)}. {STUDENT}",
    )


def exponential(steps: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope and R² of a straight line through log values, where they are positive, and the share of
    steps where they are.
    """
    good = np.isfinite(values) & (values > 0)
    if good.sum() < 3:
        return 0.0, 0.0, float(good.mean())
    x, y = steps[good], np.log(values[good])
    slope, intercept = np.polyfit(x, y, 1)
    scatter = ((y - y.mean()) ** 2).sum()
    return (
        float(slope),
        float(1 - ((y - slope * x - intercept) ** 2).sum() / scatter) if scatter else 0.0,
        float(good.mean()),
    )


def settings_of(logs: dict[str, Log]) -> str:
    lengths = ", ".join(f"{name} {len(log.cosine)} steps" for name, log in logs.items())
    return f"{next(iter(logs.values())).cosine.shape[1]} seeds, Adam on the sum, {lengths}"


def _which(logs: dict[str, Log], holds: list[bool]) -> str:
    return ", ".join(name for name, ok in zip(logs, holds, strict=True) if ok) or "in neither"


def conflict_grows(logs: dict[str, Log]) -> Claim:
    numbers: dict[str, float] = {}
    changes = []
    for name, log, _ in _numbered(logs):
        third = max(1, len(log.cosine) // 3)
        first, last = (log.cosine[:third] < 0).mean(0), (log.cosine[-third:] < 0).mean(0)
        changes.append(mean_interval(last - first))
        middle = (
            (log.cosine[third:-third] < 0).mean() if len(log.cosine) > 2 * third else first.mean()
        )
        thirds = zip(("first", "middle", "last"), (first.mean(), middle, last.mean()), strict=True)
        numbers |= {
            f"{name}: share of conflict, {which} third": float(share) for which, share in thirds
        }
        numbers |= named(f"{name}: difference", changes[-1])
    return Claim(
        "PC-27",
        PAPER,
        "Figure 5, middle: conflicts become more frequent as training proceeds.",
        verdict_of([change.low > 0 for change in changes], [change.high < 0 for change in changes]),
        numbers,
        "share of steps with cos φ < 0, last against first third, paired by seed; "
        f"{settings_of(logs)}; holds if the difference is above 0: "
        f"{_which(logs, [change.low > 0 for change in changes])}. {STUDENT}",
    )


def one_task_first(logs: dict[str, Log]) -> Claim:
    numbers: dict[str, float] = {}
    shares = []
    for name, log, _ in _numbered(logs):
        early = max(1, len(log.losses) // 10)
        # three steps each, against the noise of batches
        fall = np.clip(log.losses[:3].mean(0) - log.losses[early : early + 3].mean(0), 0, None)
        share = np.where(fall.sum(-1) > 0, fall[:, 0] / np.maximum(fall.sum(-1), 1e-300), 0.5)
        shares.append(mean_interval(np.maximum(share, 1 - share)))
        numbers |= named(f"{name}: share of the larger fall, first tenth", shares[-1])
        numbers |= {f"{name}: of the seeds, task 1 is the faster": float((share > 0.5).mean())}
    return Claim(
        "PC-28",
        PAPER,
        "Figure 5, right: one task's progress dominates while the other is not learnt.",
        verdict_of([share.low > 0.8 for share in shares], [share.high < 0.8 for share in shares]),
        numbers,
        f"fall of each loss over the first tenth of the steps; {settings_of(logs)}; holds if one "
        "task takes more than 80 % of it: "
        f"{_which(logs, [share.low > 0.8 for share in shares])}. The tasks were made unequal (a "
        "tanh unit of size 3 against a "
        f"product of size 1, goals 2 and 5 moves away). {STUDENT}",
    )


# ---- is there an event when the second task sets in? ----


def knee(values: np.ndarray) -> int:
    """Where two straight lines, joined there, fit best; at least a tenth of the points on each
    side.
    """
    count = len(values)
    t = np.arange(count)
    best, at = np.inf, count // 2
    for k in range(max(2, count // 10), count - max(2, count // 10)):
        design = np.stack([np.ones(count), t, np.clip(t - k, 0, None)], 1)
        residual = ((values - design @ np.linalg.lstsq(design, values, rcond=None)[0]) ** 2).sum()
        if residual < best:
            best, at = residual, k
    return at


def shift(values: np.ndarray) -> int:
    """Where the ranks of a series change their mean most: the largest deviation of their cumulative
    sum.
    """
    ranks = stats.rankdata(np.nan_to_num(values))
    count = len(values)
    size = np.arange(1, count)
    deviation = np.abs(np.cumsum(ranks - ranks.mean())[:-1]) / np.sqrt(size * (count - size))
    edge = max(2, count // 10)
    return edge + int(deviation[edge - 1 : count - edge].argmax())


def change_points(logs: dict[str, Log]) -> Findings:
    numbers: dict[str, float] = {}
    marked, named_quantities = [], []
    canvas, axis = axes(1, len(logs), (6.5 * len(logs), 4.4))
    for panel, (name, whole) in zip(axis, logs.items(), strict=True):
        log = shortened(whole)
        series = {"cos φ": log.cosine, "Φ": log.similarity, "ξ": log.bound, "H": log.curvature}
        leaves = list(PROBLEMS[name].start(torch.tensor(0)))
        # heads are each one task's
        series |= {
            f"cos φ of {leaf}": log.layers[:, :, i]
            for i, leaf in enumerate(leaves)
            if np.ptp(log.layers[:, :, i]) > 0
        }
        seeds = log.cosine.shape[1]
        events = np.array([knee(rolling(log.losses[:, seed, 1], 5)) for seed in range(seeds)])
        close = {
            label: np.array(
                [abs(shift(values[:, seed]) - events[seed]) <= 5 for seed in range(seeds)]
            )
            for label, values in series.items()
        }
        chance = 11 / len(log.cosine)
        best = max(close, key=lambda label: close[label].mean())
        numbers |= {
            f"{name}: median onset of task 2, step": float(np.median(events)),
            f"{name}: share by chance, about": chance,
        }
        numbers |= {
            f"{name}, {label}: share of seeds within 5 steps": float(values.mean())
            for label, values in close.items()
        }
        marked.append(
            bool(
                close[best].mean() > 0.5
                and share_interval(int(close[best].sum()), seeds).low > chance
            )
        )
        named_quantities.append(f"{name}: {best} in {close[best].mean():.0%} of the seeds")
        order = np.arange(len(close))[::-1]
        panel.barh(order, [values.mean() for values in close.values()], color="C0")
        panel.axvline(chance, color="#444444", linestyle="--", label="by chance, about")
        panel.axvline(0.5, color="C1", linestyle=":", label="most seeds")
        panel.set_yticks(order, list(close))
        panel.set(xlabel=f"{name}: share of seeds", xlim=(0, 1))
        panel.legend(frameon=False, loc="lower right")
    yield Figure(
        "events",
        "Does a logged quantity mark the step at which the second task sets in? Share of seeds "
        "in which its largest shift (of ranks) lies within 5 steps "
        "of the knee in task 2's loss, over the part of the run up to 90 % of that loss's fall.",
        canvas,
    )
    yield Claim(
        "PC-29",
        PAPER,
        "Open: the second task starts to be learnt at some point, yet curvature and conflict "
        "show no visible event then. Does some logged quantity?",
        verdict_of(marked, [not found for found in marked]),
        numbers,
        f"{settings_of(logs)}; holds if some quantity's change-point lies within 5 steps of the "
        "knee in task 2's loss in most seeds, and in more than "
        f"chance gives. Closest: "
        f"{'; '.join(named_quantities)}",
    )


def shortened(log: Log) -> Log:
    """Up to the step at which 90 % of task 2's fall is done in the median seed."""
    loss = np.median(rolling(log.losses[:, :, 1], 5), 1)
    target = loss[0] - 0.9 * (loss[0] - loss.min())
    stop = max(10, int((loss <= target).argmax()) + 1)
    return Log(*(part[: min(len(part), stop)] for part in log))


# ---- the ablation on the regression ----


class Trial(NamedTuple):
    """Σ_i L_i / variance of y_i over the last tenth of the steps."""

    final: np.ndarray  # [arm, rate, seed]
    rates: tuple[float, ...]
    steps: int

    def best(self, arm: str) -> int:
        return int(np.nan_to_num(self.final[ARMS.index(arm)].mean(-1), nan=np.inf).argmin())

    def over(self, arm: str, other: str) -> Interval:
        """Ratio of two arms, each at its best rate, paired by seed."""
        return ratio_interval(
            self.final[ARMS.index(arm), self.best(arm)],
            self.final[ARMS.index(other), self.best(other)],
        )


def ablation_of_regression(settings: Settings) -> dict[str, Trial]:
    """Every arm at every rate on every seed, as lanes of one program; all see the same samples."""
    seeds, steps = (
        settings.seeds if settings.full else max(2, settings.seeds // 2),
        settings.count(3000 if settings.full else 400),
    )
    rates = {"Adam": (3e-3, 1e-2, 3e-2), "SGD": (1e-2, 3e-2, 1e-1)}
    every = [
        (arm, name == "SGD", rate, seed)
        for name, some in rates.items()
        for arm in range(len(ARMS))
        for rate in some
        for seed in range(seeds)
    ]
    arm, sgd, lr, seed = (torch.tensor(x) for x in zip(*every, strict=True))
    lr = lr.double()

    def step_of(arm: Tensor, sgd: Tensor, lr: Tensor) -> mf.Step:
        return mf.descend(
            regression, arms(arm), either(sgd, lr), mf.jacobian("trunk.*"), reduction="sum"
        )

    def advance(
        arm: Tensor, sgd: Tensor, lr: Tensor, batch: Batch, state: mf.TrainState
    ) -> tuple[mf.TrainState, Tensor]:
        state, info = step_of(arm, sgd, lr).update(state, batch)
        return state, info.losses

    keys, zero = torch.arange(seeds), torch.zeros((), dtype=torch.int64)
    batches = vmap(regression_batch, (0, None))
    batch = tuple(part[seed] for part in batches(keys, zero))
    params = vmap(regression_start)(keys)
    start = {name: leaf[seed] for name, leaf in params.items()}
    state = vmap(lambda arm, sgd, lr, params, batch: step_of(arm, sgd, lr).init(params, batch))(
        arm, sgd, lr, start, batch
    )
    forward, kept = vmap(advance), []
    for time in tqdm(range(steps), desc="ablation on the regression", leave=False):
        batch = tuple(part[seed] for part in batches(keys, zero + time))
        state, losses = forward(arm, sgd, lr, batch, state)
        if time >= steps - max(1, steps // 10):
            kept.append(losses)
    _, targets = batches(keys, zero + steps)
    final = (
        (torch.stack(kept).mean(0) / targets.var(1)[seed])
        .sum(-1)
        .reshape(2, len(ARMS), 3, seeds)
        .numpy()
    )
    return {name: Trial(final[i], some, steps) for i, (name, some) in enumerate(rates.items())}
