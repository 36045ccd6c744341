"""Is it PCGrad's direction, its length or balance alone that helps?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.decisions import OPEN, Claims, Row, sided
from ..report.findings import Findings, Settings
from ..report.grids import at_edge, chosen, judged
from ..report.intervals import Interval, named, ratio_interval
from .common import ALPHA, ARMS, STUDENT, arms, either
from .landscape import LONG, SGD_RATES, Paths, arrival, by_rate, paths
from .problems import Batch, regression, regression_batch, regression_start

WORSE = sided(("* over PCGrad's", ">", 1)).open_unless(("steps on the landscape", ">=", LONG))

CLAIMS = {
    "PC-23": Row(
        "Ablation: PCGrad's direction at the plain gradient's length is worse than PCGrad.",
        WORSE,
        instead="Meta-World",
    ),
    "PC-24": Row(
        "Ablation: the plain direction at PCGrad's length is worse than PCGrad.",
        WORSE,
        instead="Meta-World",
    ),
    "PC-25": Row(
        "Ablation: GradNorm, which balances magnitudes alone, is worse than PCGrad.",
        WORSE,
        instead="Meta-World",
    ),
}
claim = Claims(CLAIMS)


class Arms(NamedTuple):
    """Every arm on the landscape and on the regression."""

    found: Paths
    choice: dict[str, np.ndarray]  # SGD's rate on the landscape, by arm, an index `[start]`
    steps: dict[tuple[str, str], np.ndarray]  # to the common side, by (optimizer, arm), `[start]`
    trials: dict[str, Trial]  # by optimizer


def run(settings: Settings) -> Findings:
    found, trials = paths(settings), ablation_of_regression(settings)
    steps = {("Adam", arm): arrival(found, arm, sgd=False) + 1.0 for arm in ARMS}
    choice = {arm: chosen(np.log(by_rate(found, arm) + 1.0)) for arm in ARMS}
    steps |= {("SGD", arm): judged(by_rate(found, arm) + 1.0, choice[arm]) for arm in ARMS}
    every = Arms(found, choice, steps, trials)
    yield claim("PC-23", *against_pcgrad("direction only", every))
    yield claim("PC-24", *against_pcgrad("magnitude only", every))
    yield claim("PC-25", *against_pcgrad("GradNorm", every))


def against_pcgrad(arm: str, arms: Arms) -> tuple[dict[str, float], str]:
    """Numbers and configuration of "this arm is worse than PCGrad"."""
    found, choice, steps, trials = arms
    numbers: dict[str, float] = {"steps on the landscape": float(found.steps[-1])}
    for optimizer in ("Adam", "SGD"):
        label = f"landscape, {optimizer}"
        ratio = ratio_interval(steps[optimizer, arm], steps[optimizer, "PCGrad"])
        numbers |= {
            f"{label}: mean steps to the common side, {name}": float(steps[optimizer, name].mean())
            for name in (arm, "PCGrad")
        }
        numbers |= named(f"{label}: steps of {arm} over PCGrad's", ratio)
        numbers |= {
            f"{label}: share of starts that get there, {name}": float(
                (steps[optimizer, name] <= found.steps[-1]).mean()
            )
            for name in (arm, "PCGrad")
        }
        if optimizer == "SGD":
            edge = any(at_edge(choice[name], len(SGD_RATES)) for name in (arm, "PCGrad"))
            numbers[f"{label}: steps of {arm} over PCGrad's{OPEN}"] = float(edge)
            numbers |= {
                f"{label}: rate of {name}": SGD_RATES[int(np.median(choice[name]))]
                for name in (arm, "PCGrad")
            }
        trial = trials[optimizer]
        edge = any(at_edge(trial.choice(name), len(trial.rates)) for name in (arm, "PCGrad"))
        label = f"regression, {optimizer}: loss of {arm} over PCGrad's"
        numbers |= named(label, trial.over(arm, "PCGrad"), unsettled=edge)
    return (
        numbers,
        "landscape: steps to θ_1 < 0 and L_2 < 0 for good, of "
        f"{found.steps[-1]:,} (the count for those that do not get there), ratios paired "
        f"over {len(steps['Adam', 'sum'])} starts, "
        f"SGD at each arm's best of {', '.join(f'{r:g}' for r in SGD_RATES)}; regression: "
        f"Σ L_i/Var y_i after {trials['Adam'].steps} steps, each arm at its best of five "
        "rates, paired over seeds; rates are chosen on the other half of starts or seeds, and one "
        "at the edge of its grid settles nothing; GradNorm with "
        f"α = {ALPHA}, on losses above their floor. {STUDENT}",
    )


class Trial(NamedTuple):
    """Σ_i L_i / variance of y_i over the last tenth of the steps."""

    final: np.ndarray  # [arm, rate, seed]
    rates: tuple[float, ...]
    steps: int

    def choice(self, arm: str) -> np.ndarray:
        """The rate of every seed, an index `[seed]`, best on the other half of them."""
        return chosen(self.final[ARMS.index(arm)])

    def over(self, arm: str, other: str) -> Interval:
        """Ratio of two arms, each at its best rate, paired by seed."""
        both = (judged(self.final[ARMS.index(name)], self.choice(name)) for name in (arm, other))
        return ratio_interval(*both)


def ablation_of_regression(settings: Settings) -> dict[str, Trial]:
    """Every arm at every rate on every seed, as lanes of one program; all see the same samples."""
    seeds = settings.seeds if settings.full else max(2, settings.seeds // 2)
    steps = settings.count(3000 if settings.full else 400)
    rates = {"Adam": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "SGD": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
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
            regression, arms(arm), mf.jacobian("trunk.*"), either(sgd, lr), reduction="sum"
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
    every_arm: Callable[..., Any] = vmap(advance)
    forward = replayed(lambda state, *lanes: every_arm(*lanes, state))
    kept = []
    for time in tqdm(range(steps), desc="ablation on the regression", leave=False):
        batch = tuple(part[seed] for part in batches(keys, zero + time))
        state, losses = forward(state, arm, sgd, lr, batch)
        if time >= steps - max(1, steps // 10):
            kept.append(losses)
    _, targets = batches(keys, zero + steps)
    final = (torch.stack(kept).mean(0) / targets.var(1)[seed]).sum(-1)
    final = final.reshape(2, len(ARMS), 5, seeds).numpy()
    return {name: Trial(final[i], some, steps) for i, (name, some) in enumerate(rates.items())}
