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
from ..report.decisions import Claims, Measured, Row, decided, named_so, sided, verdict_of
from ..report.figures import axes, band
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import clustered_share, mean_interval, named
from ..report.options import Option, Seeds, drawn
from ..report.parts import kept
from .common import STUDENT
from .measures import curvature_bound, magnitude_similarity
from .problems import PROBLEMS, Problem


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
        sided(("*: share of the larger fall, first tenth", ">", CLEARLY)),
        instead="Meta-World",
    ),
}
claim = Claims(CLAIMS)

COLOURS, LINES = ("C0", "C1"), ("-", "--")


class Log(NamedTuple):
    """Of a training run, every step; the first axes are time and seed."""

    losses: np.ndarray  # [time, seed, task]
    cosine: np.ndarray  # [time, seed]
    similarity: np.ndarray  # [time, seed], Φ
    bound: np.ndarray  # [time, seed], ξ
    curvature: np.ndarray  # [time, seed], gᵀ∇²L g
    averaged: np.ndarray  # [time, seed], the paper's H: its mean over the step that Adam takes
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
            for f in (mf.diagnostics.cosines, magnitude_similarity, curvature_bound)
        ]
        layers = torch.stack(
            [torch.cosine_similarity(leaf[0], leaf[1], 0) for leaf in flat.values()]
        )
        g = {name: leaf.sum(0) for name, leaf in rows.items()}
        state = optimizer.update(g, state[1], params)
        bent = curvatures(lambda p: problem.losses(p, batch).sum(), params, state[0], g)
        return state, (losses, *pair, *bent, gramian.sum(), layers)

    zero = torch.zeros((), dtype=torch.int64)
    params = vmap(problem.start)(keys)
    state, every_key = (params, vmap(optimizer.init)(params)), vmap(advance, (0, None, 0))
    forward = replayed(lambda state, keys, time: every_key(keys, time, state))
    kept = []
    for time in tqdm(
        range(settings.count(problem.steps)), desc=f"{label}, sum of the losses", leave=False
    ):
        state, logged = forward(state, keys, zero + time)
        kept.append(logged)
    return Log(*(torch.stack(parts).numpy() for parts in zip(*kept, strict=True)))


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


@kept
def log_of(name: str, steps: int, rate: float, settings: Settings) -> Log:
    """Of one problem."""
    return train(PROBLEMS[name]._replace(steps=steps, lr=rate), settings, name)


def logs_of(
    settings: Settings, problems: Sequence[str] = tuple(PROBLEMS), steps: int = 0, rate: float = 0.0
) -> dict[str, Log]:
    """By problem; steps and learning rate are its own where they are 0."""
    return {
        name: log_of(name, steps or PROBLEMS[name].steps, rate or PROBLEMS[name].lr, settings)
        for name in problems
    }


Problems = Annotated[tuple[Literal["regression", "maze"], ...], Option("problems that are trained")]
TrainingSteps = Annotated[int, Option("steps of Adam; 0: the problem's own", low=0)]
TrainingRate = Annotated[float, Option("learning rate; 0: the problem's own", 0.0, 1e3)]


@drawn
def curvature(
    problems: Problems = ("regression", "maze"),
    steps: TrainingSteps = 0,
    rate: TrainingRate = 0.0,
    seeds: Seeds = 16,
) -> Figure:
    """Conflict, dominance and curvature while two tasks are trained (Figure 5)."""
    return training_figure(logs_of(Settings(seeds=seeds), problems, steps, rate))


def run(settings: Settings) -> Findings:
    logs = logs_of(settings)
    yield training_figure(logs)
    yield curvature_rises(logs)
    yield conflict_grows(logs)
    yield one_task_first(logs)


def _numbered(logs: dict[str, Log]) -> list[tuple[str, Log, np.ndarray]]:
    return [(name, log, np.arange(len(log.cosine))) for name, log in logs.items()]


ABOUT = {"regression": "a regression", "maze": "a maze with two goals"}


def training_figure(logs: dict[str, Log]) -> Figure:
    canvas, panels = axes(len(logs), 4, (16, 3.6 * len(logs)))
    for row, (name, log, steps) in enumerate(_numbered(logs)):
        here = panels[4 * row : 4 * row + 4]
        for task in (0, 1):
            label = f"task {task + 1}"
            values, dash = log.losses[:, :, task], LINES[task]
            band(here[0], steps, values, COLOURS[task], label, dash=dash, alpha=0.2)
        here[0].set(ylabel=f"{name}: {PROBLEMS[name].unit}")
        here[0].legend()
        conflict = rolling((log.cosine < 0).astype(float))
        band(here[1], steps, conflict, "#444444", within=(0, 1))
        here[1].set(ylabel="share of steps with cos φ < 0", ylim=(-0.05, 1.05))
        for values, colour, style, label in (
            (log.similarity, "C0", "-", "Φ"),
            (log.bound, "C3", "--", "ξ"),
        ):
            here[2].plot(np.nanmedian(values, 1), color=colour, linestyle=style, label=label)
        here[2].set(ylabel="magnitude similarity Φ, bound ξ", ylim=(0, 1.5))
        here[2].legend()
        for values, colour, style, label in (
            (log.averaged, "C1", "-", "the paper's H, over Adam's step"),
            (log.curvature, "C0", "--", "at the point"),
        ):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
            here[3].plot(middle, color=colour, linestyle=style, label=label)
            here[3].fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        here[3].set_yscale("symlog", linthresh=1e-6)
        here[3].set(ylabel="multi-task curvature $g^T\\nabla^2 L\\,g$")
        here[3].legend()
        for panel in here:
            panel.set(xlabel="step")
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
                "step": int(step),
                "losses": log.losses[i].mean(0).tolist(),
                "conflict": float((log.cosine[i] < 0).mean()),
                "similarity": float(np.nanmedian(log.similarity[i])),
                "bound": float(np.nanmedian(log.bound[i])),
                "H": float(np.median(log.averaged[i])),
                "curvature at the point": float(np.median(log.curvature[i])),
            }
            for name, log, steps in _numbered(logs)
            for i, step in enumerate(steps)
        ],
    )


def rolling(values: np.ndarray, width: int = 20) -> np.ndarray:
    """Mean over the last `width` steps (fewer at the start) of `[time, ...]`."""
    total = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), 0)
    stop = np.arange(1, len(values) + 1)
    begin = np.maximum(stop - width, 0)
    return (total[stop] - total[begin]) / (stop - begin).reshape(-1, *[1] * (values.ndim - 1))


def curvature_rises(logs: dict[str, Log]) -> Claim:
    numbers: dict[str, float] = {}
    for name, log, steps in _numbered(logs):
        fits = [exponential(steps, log.averaged[:, seed]) for seed in range(log.averaged.shape[1])]
        slopes, quality, positive = (np.array(x) for x in zip(*fits, strict=True))
        numbers |= named(f"{name}: slope of log H, per 100 steps", mean_interval(100 * slopes))
        numbers |= named(f"{name}: R²", mean_interval(quality))
        numbers[f"{name}: share of steps with H > 0"] = float(positive.mean())
        beside = {"log H/‖g‖²": log.averaged / log.square, "gᵀ∇²L g, at the point": log.curvature}
        for what, values in beside.items():
            found = [100 * exponential(steps, values[:, i])[0] for i in range(values.shape[1])]
            label = f"{name}: slope of {what}, per 100 steps"
            numbers |= named(label, mean_interval(found))
    return claim(
        "PC-26",
        numbers,
        "H by the paper's definition, over the step that Adam takes (at the point alone, beside); "
        f"least squares of log H on the step where H > 0; {settings_of(logs)}. {STUDENT}",
    )


def exponential(steps: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope and R² of a straight line through log values, and the share where they are positive.
    The line goes through the positive ones alone.
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


def conflict_grows(logs: dict[str, Log]) -> Claim:
    numbers: dict[str, float] = {}
    for name, log, _ in _numbered(logs):
        third = max(1, len(log.cosine) // 3)
        first, last = (log.cosine[:third] < 0).mean(0), (log.cosine[-third:] < 0).mean(0)
        middle = (
            (log.cosine[third:-third] < 0).mean() if len(log.cosine) > 2 * third else first.mean()
        )
        thirds = zip(("first", "middle", "last"), (first.mean(), middle, last.mean()), strict=True)
        numbers |= {
            f"{name}: share of conflict, {which} third": float(share) for which, share in thirds
        }
        numbers |= named(f"{name}: difference", mean_interval(last - first))
    return claim(
        "PC-27",
        numbers,
        "share of steps with cos φ < 0, last against first third, paired by seed; "
        f"{settings_of(logs)}. {STUDENT}",
    )


def one_task_first(logs: dict[str, Log]) -> Claim:
    numbers: dict[str, float] = {}
    for name, log, _ in _numbered(logs):
        early = max(1, len(log.losses) // 10)
        # three steps each, against the noise of batches
        fall = np.clip(log.losses[:3].mean(0) - log.losses[early : early + 3].mean(0), 0, None)
        share = np.where(fall.sum(-1) > 0, fall[:, 0] / np.maximum(fall.sum(-1), 1e-300), 0.5)
        larger = clustered_share(np.maximum(share, 1 - share))
        numbers |= named(f"{name}: share of the larger fall, first tenth", larger)
        numbers |= {f"{name}: of the seeds, task 1 is the faster": float((share > 0.5).mean())}
    return claim(
        "PC-28",
        numbers,
        f"fall of each loss over the first tenth of the steps; {settings_of(logs)}. The tasks "
        "were made unequal (a tanh unit of size 3 against a product of size 1, goals 2 and 5 "
        f"moves away). {STUDENT}",
    )
