"""Figure 5: what do curvature, conflict and progress do during training?"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import constant, replayed

from ..report.bounds import CLEARLY
from ..report.decisions import Measured, Row, decided, named_so, sided, verdict_of
from ..report.figures import axes, band
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import clustered_share, mean_interval, named
from ..report.options import Option, Seeds, drawn
from ..report.parts import kept
from .common import STUDENT
from .measures import curvature_bound, magnitude_similarity
from .problems import PROBLEMS


@decided(
    "in neither problem H rises (slope of log H) as an exponential does (R² above .8), and in one "
    "it falls or does otherwise (intervals)"
)
def judge_exponential(measured: Measured) -> Verdict:
    rises, falls = [], []
    for end in named_so(measured, "*: slope of log H, per 100 steps, low"):
        name = end.split(": ")[0]
        slope, straight = f"{name}: slope of log H, per 100 steps", f"{name}: R²"
        rises.append(measured[f"{slope}, low"] > 0 and measured[f"{straight}, low"] > CLEARLY.now)
        falls.append(measured[f"{slope}, high"] < 0 or measured[f"{straight}, high"] < CLEARLY.now)
    return verdict_of(rises, falls)


CLAIMS = {
    "PC-26": Row(
        "Figure 5, left: the multi-task curvature rises about exponentially during training.",
        judge_exponential,
        instead="Meta-World",
    ),
    "PC-27": Row(
        "Figure 5, middle: conflicts become more frequent as training proceeds.",
        sided(("*: difference", ">", 0)),
        instead="Meta-World",
    ),
    "PC-28": Row(
        "Figure 5, right: one task's progress dominates while the other is not learnt.",
        sided(("*: share of the larger fall of its whole, first tenth", ">", CLEARLY)),
        instead="Meta-World",
    ),
}


class Log(NamedTuple):
    """Of a training run, every step; the first axes are time and seed."""

    losses: np.ndarray  # [time, seed, task]
    cosine: np.ndarray  # [time, seed]
    similarity: np.ndarray  # [time, seed], Φ
    bound: np.ndarray  # [time, seed], ξ
    curvature: np.ndarray  # [time, seed], gᵀ∇²L g
    averaged: np.ndarray  # [time, seed], the paper's H: its mean over the step that Adam takes
    layers: np.ndarray  # [time, seed, layer], cosine of the two gradients of one leaf


@kept
def log_of(name: str, steps: int, rate: float, settings: Settings) -> Log:
    """Of Adam on the sum of a problem's losses."""
    problem, optimizer, keys = PROBLEMS[name], mf.adam(rate), torch.arange(settings.seeds)

    def advance(
        key: Tensor, time: Tensor, state: tuple[mf.types.Params, Any]
    ) -> tuple[Any, tuple[Tensor, ...]]:
        batch, params = problem.batch(key, time), state[0]
        losses, rows = mf.task_gradients(problem.losses, params, batch)
        flat = {name: leaf.flatten(1) for name, leaf in rows.items()}
        gramian = torch.stack([leaf @ leaf.mT for leaf in flat.values()]).sum(0)
        measures = mf.diagnostics.cosines, magnitude_similarity, curvature_bound
        pair = [measure(gramian)[0, 1] for measure in measures]
        leaves = [torch.cosine_similarity(leaf[0], leaf[1], 0) for leaf in flat.values()]
        g = {name: leaf.sum(0) for name, leaf in rows.items()}
        state = optimizer.update(g, state[1], params)
        bent = curvatures(lambda p: problem.losses(p, batch).sum(), params, state[0], g)
        return state, (losses, *pair, *bent, torch.stack(leaves))

    zero = torch.zeros((), dtype=torch.int64)
    params = vmap(problem.start)(keys)
    state, every_key = (params, vmap(optimizer.init)(params)), vmap(advance, (0, None, 0))
    forward = replayed(lambda state, keys, time: every_key(keys, time, state))
    every = []
    for time in tqdm(range(settings.count(steps)), desc=f"training on the {name}", leave=False):
        state, logged = forward(state, keys, zero + time)
        every.append(logged)
    return Log(*(torch.stack(parts).numpy() for parts in zip(*every, strict=True)))


NODES, SHARES = (x.tolist() for x in np.polynomial.legendre.leggauss(3))


def curvatures(
    loss: Callable[[mf.types.Params], Tensor],
    params: mf.types.Params,
    following: mf.types.Params,
    g: mf.types.Params,
) -> tuple[Tensor, Tensor]:
    """gᵀ∇²L(θ) g, and Definition 3's H: ∫₀¹ gᵀ∇²L(θ + s(θ' - θ)) g ds between two iterates. By
    Gauss's rule; all points side by side.
    """

    def at(s: Tensor) -> Tensor:
        point = {name: torch.lerp(leaf, following[name], s) for name, leaf in params.items()}
        bent = jvp(grad(loss), (point,), (g,))[1]
        return torch.stack([(g[name] * bent[name]).sum() for name in g]).sum()

    nodes, shares = (constant(x, next(iter(g.values()))) for x in (NODES, SHARES))
    found = vmap(at)(torch.cat([torch.zeros_like(nodes[:1]), 0.5 + nodes / 2]))
    return found[0], shares / 2 @ found[1:]


def logs_of(
    settings: Settings, problems: Sequence[str] = tuple(PROBLEMS), steps: int = 0, rate: float = 0.0
) -> dict[str, Log]:
    """By problem; steps and learning rate are its own where they are 0."""
    return {
        name: log_of(name, steps or PROBLEMS[name].steps, rate or PROBLEMS[name].lr, settings)
        for name in problems
    }


@drawn
def curvature(
    problems: Annotated[
        tuple[Literal["regression", "maze"], ...], Option("problems that are trained")
    ] = ("regression", "maze"),
    steps: Annotated[int, Option("steps of Adam; 0: the problem's own", low=0)] = 0,
    rate: Annotated[float, Option("learning rate; 0: the problem's own", 0.0, 1e3)] = 0.0,
    seeds: Seeds = 16,
) -> Figure:
    """Conflict, dominance and curvature while two tasks are trained (Figure 5)."""
    return training_figure(logs_of(Settings(seeds=seeds), problems, steps, rate))


def run(settings: Settings) -> Findings:
    logs = logs_of(settings)
    yield training_figure(logs)
    rises: dict[str, float] = {}
    grows: dict[str, float] = {}
    larger: dict[str, float] = {}
    for name, log in logs.items():
        slopes, quality = np.array([exponential(values) for values in log.averaged.T]).T
        rises |= named(f"{name}: slope of log H, per 100 steps", mean_interval(100 * slopes))
        rises |= named(f"{name}: R²", mean_interval(quality))
        third = max(1, len(log.cosine) // 3)
        first, last = (log.cosine[:third] < 0).mean(0), (log.cosine[-third:] < 0).mean(0)
        grows |= named(f"{name}: difference", mean_interval(last - first))
        tenth = max(1, len(log.losses) // 10)
        # three steps each, against the noise of batches
        start, early, end = (log.losses[i : i + 3].mean(0) for i in (0, tenth, len(log.losses) - 3))
        whole = start - end
        fall = np.clip(start - early, 0, None) / np.where(whole <= 0, np.inf, whole)
        share = np.where(fall.sum(-1) == 0, 0.5, fall[:, 0] / np.maximum(fall.sum(-1), 1e-300))
        of_larger = clustered_share(np.maximum(share, 1 - share))
        larger |= named(f"{name}: share of the larger fall of its whole, first tenth", of_larger)
    where = f"{settings_of(logs)}. {STUDENT}"
    yield Claim(
        "PC-26",
        rises,
        "H by the paper's definition, over the step that Adam takes; least squares of log H on the "
        f"step where H > 0; {where}",
    )
    yield Claim(
        "PC-27",
        grows,
        f"share of steps with cos φ < 0, last against first third, paired by seed; {where}",
    )
    yield Claim(
        "PC-28",
        larger,
        "fall of each loss over the first tenth of the steps, as a share of its fall over all; the "
        "tasks were made unequal: a tanh unit of size 3 and a product of size 1, goals 2 and 5 "
        f"moves away; {settings_of(logs)}. Korn and Graubard's intervals",
    )


def exponential(values: np.ndarray) -> tuple[float, float]:
    """Slope and R² of a straight line through the logarithms of positive values, by their index."""
    steps = np.flatnonzero(np.isfinite(values) & (values > 0))
    if len(steps) < 3:
        return 0.0, 0.0
    y = np.log(values[steps])
    slope, intercept = np.polyfit(steps, y, 1)
    scatter = ((y - y.mean()) ** 2).sum()
    rest = ((y - slope * steps - intercept) ** 2).sum()
    return float(slope), float(1 - rest / scatter) if scatter else 0.0


def settings_of(logs: dict[str, Log]) -> str:
    lengths = ", ".join(f"{name} {len(log.cosine)} steps" for name, log in logs.items())
    return f"{next(iter(logs.values())).cosine.shape[1]} seeds, Adam on the sum, {lengths}"


ABOUT = {"regression": "a regression", "maze": "a maze with two goals"}


def training_figure(logs: dict[str, Log]) -> Figure:
    canvas, panels = axes(len(logs), 4, (16, 3.6 * len(logs)))
    for row, (name, log) in enumerate(logs.items()):
        here, steps = panels[4 * row : 4 * row + 4], np.arange(len(log.cosine))
        for task, (colour, dash) in enumerate((("C0", "-"), ("C1", "--"))):
            values, label = log.losses[:, :, task], f"task {task + 1}"
            band(here[0], steps, values, colour, label, dash=dash, alpha=0.2)
        here[0].set(ylabel=f"{name}: {PROBLEMS[name].unit}")
        conflict = rolling((log.cosine < 0).astype(float))
        band(here[1], steps, conflict, "#444444", within=(0, 1))
        here[1].set(ylabel="share of steps with cos φ < 0", ylim=(-0.05, 1.05))
        here[2].plot(np.nanmedian(log.similarity, 1), "-", color="C0", label="Φ")
        here[2].plot(np.nanmedian(log.bound, 1), "--", color="C3", label="ξ")
        here[2].set(ylabel="magnitude similarity Φ, bound ξ", ylim=(0, 1.5))
        for values, colour, dash, label in (
            (log.averaged, "C1", "-", "the paper's H, over Adam's step"),
            (log.curvature, "C0", "--", "at the point"),
        ):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
            here[3].plot(middle, dash, color=colour, label=label)
            here[3].fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        here[3].set_yscale("symlog", linthresh=1e-6)
        here[3].set(ylabel="multi-task curvature $g^T\\nabla^2 L\\,g$")
        for panel in here:
            panel.set(xlabel="step")
        for i in (0, 2, 3):
            here[i].legend()
    seeds = next(iter(logs.values())).cosine.shape[1]
    return Figure(
        "training",
        "The quantities of Figure 5 of Yu et al. 2020 (there: two Meta-World tasks, reach and "
        f"press a button) while {' and '.join(ABOUT[name] for name in logs)} "
        f"{'are' if len(logs) > 1 else 'is'} trained on the sum of the losses by Adam, {seeds} "
        "seeds. From the left: "
        "losses (mean, 95 % band), share of conflicting steps among the last 20 (mean, 95 % "
        "band), Φ and ξ (medians), curvature as the paper defines it, over the step that is taken, "
        "and at the point alone (medians, quartiles).",
        canvas,
        [
            {
                "problem": name,
                "step": i,
                "losses": log.losses[i].mean(0).tolist(),
                "conflict": float((log.cosine[i] < 0).mean()),
                "similarity": float(np.nanmedian(log.similarity[i])),
                "bound": float(np.nanmedian(log.bound[i])),
                "H": float(np.median(log.averaged[i])),
                "curvature at the point": float(np.median(log.curvature[i])),
            }
            for name, log in logs.items()
            for i in range(len(log.cosine))
        ],
    )


def rolling(values: np.ndarray, width: int = 20) -> np.ndarray:
    """Mean over the last `width` steps (fewer at the start) of `[time, ...]`."""
    total = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), 0)
    stop = np.arange(1, len(values) + 1)
    begin = np.maximum(stop - width, 0)
    return (total[stop] - total[begin]) / (stop - begin).reshape(-1, *[1] * (values.ndim - 1))
