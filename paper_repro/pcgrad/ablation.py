"""Is it PCGrad's direction, its length or balance alone that helps?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict, verdict_of
from ..report.intervals import Interval, named, ratio_interval
from .common import ALPHA, ARMS, COLOURS, LINES, PAPER, STUDENT, arms, either
from .landscape import ADAM_RATE, ENOUGH, SGD_RATES, Paths, arrival, best_rate, paths, values
from .problems import Batch, regression, regression_batch, regression_start


class Arms(NamedTuple):
    """Every arm on the landscape and on the regression."""

    found: Paths
    rates: dict[str, float]  # SGD's best on the landscape, by arm
    steps: dict[tuple[str, str], np.ndarray]  # to the common side, by (optimizer, arm), `[start]`
    trials: dict[str, Trial]  # by optimizer


def run(settings: Settings) -> Findings:
    found, trials = paths(settings), ablation_of_regression(settings)
    rates = {arm: best_rate(found, arm) for arm in ARMS}
    steps = {("Adam", arm): arrival(found, arm, sgd=False) + 1.0 for arm in ARMS}
    steps |= {("SGD", arm): arrival(found, arm, sgd=True, lr=rates[arm]) + 1.0 for arm in ARMS}
    yield ablation_figure(found, rates, trials)
    every = Arms(found, rates, steps, trials)
    yield Claim(
        "PC-23",
        PAPER,
        "Ablation: PCGrad's direction at the plain gradient's length is worse than PCGrad.",
        *against_pcgrad("direction only", every),
    )
    yield Claim(
        "PC-24",
        PAPER,
        "Ablation: the plain direction at PCGrad's length is worse than PCGrad.",
        *against_pcgrad("magnitude only", every),
    )
    yield Claim(
        "PC-25",
        PAPER,
        "Ablation: GradNorm, which balances magnitudes alone, is worse than PCGrad.",
        *against_pcgrad("GradNorm", every),
    )


def against_pcgrad(arm: str, arms: Arms) -> tuple[Verdict, dict[str, float], str]:
    """Verdict, numbers and configuration of "this arm is worse than PCGrad"."""
    found, rates, steps, trials = arms
    numbers: dict[str, float] = {}
    worse: dict[str, tuple[bool, bool]] = {}
    for optimizer in ("Adam", "SGD"):
        ratio, label = (
            ratio_interval(steps[optimizer, arm], steps[optimizer, "PCGrad"]),
            f"landscape, {optimizer}",
        )
        worse[label] = ratio.low > 1, ratio.high < 1
        numbers |= {
            f"{label}: mean steps to the common side, {name}": float(steps[optimizer, name].mean())
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
    return (
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
