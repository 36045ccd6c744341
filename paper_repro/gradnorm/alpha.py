"""What does α do, and what are its average weights worth kept fixed?"""

from itertools import pairwise

import numpy as np
import torch

from ..report.bounds import BALANCED, NEARLY
from ..report.decisions import OPEN, Measured, Row, decided, named_so, sided, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.grids import at_best
from ..report.intervals import mean_interval, named, ratio_interval
from .common import ALPHA, INTERVAL, RATE, REDUCED, UNTRAINED, Runs, Variants, few, train
from .lanes import EVERY_ALPHA, RATIOS, size_of
from .paper_size import default_runs, problem_of
from .train_lanes import two_tasks


@decided(
    "the lengths stay apart by more than 1.5 and the large task's weight rises in a step of α; in "
    "part unless it falls from α = 0 to 2 and rises in no step, by the intervals"
)
def controlled(measured: Measured) -> Verdict:
    ratio = f"larger over smaller G_i, α = {ALPHA:g}"
    steps = [name.removesuffix(", low") for name in named_so(measured, "w_2 at α = * over *, low")]
    shown = [
        measured[f"{ratio}, high"] < BALANCED.now,
        measured["w_2, α = 2 over α = 0, high"] < 1
        and all(measured[f"{step}, low"] <= 1 for step in steps),
    ]
    lost = [
        measured[f"{ratio}, low"] > BALANCED.now,
        any(measured[f"{step}, low"] > 1 for step in steps),
    ]
    if any(shown):
        return "holds" if all(shown) else "holds only when"
    return "does not hold" if all(lost) else "inconclusive"


@decided(
    "neither the spread of L̃ falls with α nor the best α grows with the ratio of scales, which is "
    "open where a rate, or α in half of the seeds, is at the edge of its grid"
)
def strength(measured: Measured) -> Verdict:
    spread, best = "spread at α = 2 over α = 0", "best α, √ scale, at the largest ratio less at 1"
    settles = not measured[best + OPEN]
    shown = [measured[f"{spread}, high"] < 1, settles and measured[f"{best}, low"] > 0]
    lost = [measured[f"{spread}, low"] > 1, settles and measured[f"{best}, high"] < 0]
    return verdict_of(shown, lost)


CLAIMS = {
    "GN-05": Row(
        "Acting on gradient lengths balances them, and α controls the dynamics: the final "
        "weights move monotonically with it.",
        controlled,
    ),
    "GN-12": Row(
        "α sets the strength of the pull back to a common rate: larger for more unequal tasks.",
        strength,
        when="the pull is asked for alone: that the best α is larger for unequal tasks stays open",
    ),
    "GN-22": Row(
        "Static weights set to GradNorm's time average nearly match a grid search over "
        "static weights.",
        sided(("static average over the grid's best", "<", NEARLY)),
        instead="NYUv2",
    ),
}


GRID = (1.0, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
"""w_2 of the static grid."""


def run(settings: Settings) -> Findings:
    """Sweeps at one learning rate and a quarter of the seeds; by default of a reduced problem."""
    seeds, device = few(settings), settings.device
    problem = (problem_of(settings) if settings.full else REDUCED)._replace(rates=(RATE,))
    alphas = torch.tensor(EVERY_ALPHA, device=device)
    lr = torch.full_like(alphas, RATE)
    every = Variants(lr, alphas, torch.ones(len(alphas), seeds, 2, device=device))
    learnt = train("gradnorm", problem, every, settings, "sweep of α", seeds)
    second = torch.tensor(GRID, device=device)
    fixed = torch.stack([2 - second, second], -1)[:, None].expand(-1, seeds, -1)
    one = lr[:1].expand(len(GRID) + 1)
    grid = Variants(one, one, torch.cat([fixed, learnt.average[1:2]]))
    static = train("weighted", problem, grid, settings, "grid of static weights", seeds)
    where = f"{problem}, Adam {RATE:g}, {settings.count(problem.steps)} steps, {seeds} seeds"
    yield balanced(learnt, where)
    yield degrees(learnt, settings, where)
    yield kept_fixed(static, default_runs(settings), where)


def balanced(learnt: Runs, where: str) -> Claim:
    last = learnt.weights[-len(learnt.weights) // 4 :, ..., 1].mean(0)  # [alpha, seed]
    halves = learnt.weights * learnt.lengths
    halves = np.log(halves[len(halves) // 2 :])
    unequal = np.exp(np.median(np.abs(halves[..., 0] - halves[..., 1]), axis=0))
    numbers = named(f"larger over smaller G_i, α = {ALPHA}", mean_interval(unequal[1]))
    numbers |= named("w_2, α = 2 over α = 0", ratio_interval(last[-1], last[0]))
    for (a, sooner), (b, later) in pairwise(zip(EVERY_ALPHA, last, strict=True)):
        numbers |= named(f"w_2 at α = {b:g} over {a:g}", ratio_interval(later, sooner))
    return Claim(
        "GN-05",
        numbers,
        "lengths: the median over the second half; w_2: the mean over the last quarter; "
        f"{where}; {INTERVAL}",
    )


def degrees(learnt: Runs, settings: Settings, where: str) -> Claim:
    rates = np.log(learnt.test[1:])
    spread = np.exp(np.abs(rates[..., 0] - rates[..., 1]).mean(0))  # [alpha, seed]
    ratios, (_, trace), size = (RATIOS[0], RATIOS[-1]), two_tasks(settings), size_of(settings)
    best = {ratio: trace.judged_alpha(f"ratio {ratio:g}") for ratio in ratios}
    edge = any((alphas == max(EVERY_ALPHA)).mean() >= 0.5 for alphas in best.values()) or any(
        trace.settles_nothing(f"ratio {ratio:g}, {alpha:g}")
        for ratio in ratios
        for alpha in EVERY_ALPHA
    )
    grows = mean_interval(np.sqrt(best[ratios[1]]) - np.sqrt(best[ratios[0]]))
    return Claim(
        "GN-12",
        {
            **named("spread at α = 2 over α = 0", ratio_interval(spread[-1], spread[0])),
            **named("best α, √ scale, at the largest ratio less at 1", grows, unsettled=edge),
        },
        f"spread: larger over smaller L̃_i, {where}. Best α of every seed, at the learning rate "
        f"that is best for it on the other half of the seeds: {size}; {INTERVAL}",
    )


def kept_fixed(static: Runs, results: dict[str, Runs], where: str) -> Claim:
    best, average = at_best(static.final()[:-1], GRID), static.final()[-1]
    near = ratio_interval(average, best.scores)
    unsettled = best.edge or average.mean() > 2 * UNTRAINED
    own, learnt = (results[name].at(RATE).picked().scores for name in ("static", "GradNorm"))
    dynamic = ratio_interval(own, learnt)
    return Claim(
        "GN-22",
        {
            **named("static average over the grid's best", near, unsettled=unsettled),
            **named(f"the paper's size: static over GradNorm, both at Adam {RATE:g}", dynamic),
        },
        f"{where}; the grid's best is chosen on the other half of the seeds; {INTERVAL}",
    )
