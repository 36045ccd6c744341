"""Is it PCGrad's direction, its length or balance alone that helps?"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.decisions import OPEN, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_best, at_edge, chosen, judged
from ..report.intervals import named, ratio_interval
from .common import ALPHA, ARMS, STUDENT, arm_step
from .landscape import LONG, SGD_RATES, arrival, paths
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


def run(settings: Settings) -> Findings:
    found, trained = paths(settings), settings.count(3000 if settings.full else 400)
    seeds = settings.seeds if settings.full else max(2, settings.seeds // 2)
    losses = dict(zip(RATES, on_regression(seeds, trained), strict=True))
    last = int(found.steps[-1])
    grids = {  # steps to the common side, [rate, start]
        arm: np.stack([arrival(found, arm, lr) for lr in SGD_RATES]) + 1.0 for arm in ARMS
    }
    choice = {arm: chosen(np.log(grid)) for arm, grid in grids.items()}
    steps = {
        "Adam": {arm: arrival(found, arm) + 1.0 for arm in ARMS},
        "SGD": {arm: judged(grid, choice[arm]) for arm, grid in grids.items()},
    }
    starts = len(found.chosen("sum"))

    def against(arm: str) -> tuple[dict[str, float], str]:
        """Numbers of an arm over PCGrad's, and how they were measured."""
        numbers: dict[str, float] = {"steps on the landscape": last}
        for optimizer, rates in RATES.items():
            pair = (arm, "PCGrad")
            label = f"landscape, {optimizer}: steps of {arm} over PCGrad's"
            numbers |= named(label, ratio_interval(*(steps[optimizer][name] for name in pair)))
            if optimizer == "SGD":
                numbers[label + OPEN] = any(at_edge(choice[x], len(SGD_RATES)) for x in pair)
            best = [at_best(losses[optimizer][ARMS.index(name)], rates) for name in pair]
            ratio = ratio_interval(*(each.scores for each in best))
            label = f"regression, {optimizer}: loss of {arm} over PCGrad's"
            numbers |= named(label, ratio, unsettled=any(each.edge for each in best))
        return numbers, (
            f"landscape: steps to θ_1 < 0 and L_2 < 0 for good, of {last:,} (the count for those "
            f"that do not get there), ratios paired over {starts} starts, SGD at each arm's best "
            f"of {', '.join(f'{rate:g}' for rate in SGD_RATES)}; regression: Σ L_i/Var y_i after "
            f"{trained} steps, each arm at its best of five rates, paired over seeds; "
            "rates are chosen on the other half of starts or seeds, and one at the edge of its "
            f"grid settles nothing; GradNorm with α = {ALPHA}. {STUDENT}"
        )

    yield Claim("PC-23", *against("direction only"))
    yield Claim("PC-24", *against("magnitude only"))
    yield Claim("PC-25", *against("GradNorm"))


RATES = {"Adam": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "SGD": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
"""Of the regression, by optimizer."""


def on_regression(seeds: int, steps: int) -> np.ndarray:
    """Σ_i L_i / variance of y_i over the last tenth of the steps, `[optimizer, arm, rate, seed]`.
    All are lanes of one program and see the same samples.
    """
    counts = len(RATES), len(ARMS), 5, seeds
    which, arm, rate, seed = torch.cartesian_prod(*(torch.arange(n) for n in counts)).unbind(1)
    sgd, lr = which > 0, torch.tensor(list(RATES.values()), dtype=torch.float64)[which, rate]

    def lane(arm: Tensor, sgd: Tensor, lr: Tensor) -> mf.Step:
        return arm_step(regression, arm, sgd, lr, "trunk.*")

    def advance(
        arm: Tensor, sgd: Tensor, lr: Tensor, batch: Batch, state: mf.TrainState
    ) -> tuple[mf.TrainState, Tensor]:
        state, info = lane(arm, sgd, lr).update(state, batch)
        return state, info.losses

    keys, zero = torch.arange(seeds), torch.zeros((), dtype=torch.int64)
    batches = vmap(regression_batch, (0, None))
    batch = tuple(part[seed] for part in batches(keys, zero))
    params = vmap(regression_start)(keys)
    start = {name: leaf[seed] for name, leaf in params.items()}
    state = vmap(lambda arm, sgd, lr, params, batch: lane(arm, sgd, lr).init(params, batch))(
        arm, sgd, lr, start, batch
    )
    every: Callable[..., Any] = vmap(advance)
    forward = replayed(lambda state, *lanes: every(*lanes, state))
    kept = []
    for time in tqdm(range(steps), desc="ablation on the regression", leave=False):
        batch = tuple(part[seed] for part in batches(keys, zero + time))
        state, losses = forward(state, arm, sgd, lr, batch)
        if time >= steps - max(1, steps // 10):
            kept.append(losses)
    _, targets = batches(keys, zero + steps)
    final = (torch.stack(kept).mean(0) / targets.var(1)[seed]).sum(-1)
    return final.reshape(counts).numpy()
