"""What does α do, and what are its average weights worth kept fixed?"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..report.bounds import BALANCED, NEARLY
from ..report.decisions import OPEN, Claims, Measured, Row, decided, named_so, sided, verdict_of
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.grids import at_edge, chosen, judged
from ..report.intervals import half_width, mean_interval, named, ratio_interval
from .common import (
    ALPHA,
    COLOURS,
    INTERVAL,
    RATE,
    REDUCED,
    UNTRAINED,
    Problem,
    Runs,
    Variants,
    few,
    train,
)
from .lanes import EVERY_ALPHA, RATIOS, Size, Trace, size_of
from .paper_size import default_runs, problem_of
from .rivals import two_tasks
from .toy_figures import against_alpha


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
claim = Claims(CLAIMS)


class Sweeps(NamedTuple):
    """At one learning rate and a quarter of the seeds; by default of a reduced problem."""

    alphas: list[str]
    learnt: Runs  # one variant an α
    last: np.ndarray  # [alpha, seed], the large task's weight in the last quarter
    second: Tensor  # [weight], w_2 of the static grid
    static: Runs  # one variant a grid weight, then GradNorm's average at α = .12
    problem: Problem
    setting: str


def swept(settings: Settings) -> Sweeps:
    """α, and a grid of static weights."""
    seeds, device = few(settings), settings.device
    problem = (problem_of(settings) if settings.full else REDUCED)._replace(rates=(RATE,))
    alphas = torch.tensor([0.0, ALPHA, 0.5, 1.0, 2.0], device=device)
    lr = torch.full_like(alphas, problem.rates[0])
    every = Variants(lr, alphas, torch.ones(len(alphas), seeds, 2, device=device))
    learnt = train("gradnorm", problem, every, settings, "sweep of α", seeds)
    second = torch.tensor([1.0, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4], device=device)
    fixed = torch.stack([2 - second, second], -1)[:, None].expand(-1, seeds, -1)
    one = lr[:1].expand(len(second) + 1)
    grid = Variants(one, one, torch.cat([fixed, learnt.average[1:2]]))
    static = train("weighted", problem, grid, settings, "grid of static weights", seeds)
    return Sweeps(
        [f"{alpha:g}" for alpha in alphas.tolist()],
        learnt,
        learnt.weights[-len(learnt.weights) // 4 :, ..., 1].mean(0),
        second,
        static,
        problem,
        f"{problem}, Adam {RATE:g}, {settings.count(problem.steps)} steps, {seeds} seeds",
    )


def run(settings: Settings) -> Findings:
    sweeps = swept(settings)
    yield figure(sweeps)
    yield balanced(sweeps)
    yield degrees(sweeps, two_tasks(settings)[1], size_of(settings))
    yield kept_fixed(sweeps, default_runs(settings))


def figure(sweeps: Sweeps) -> Figure:
    final, grid = (runs.final() / 2 for runs in (sweeps.learnt, sweeps.static))
    second = sweeps.second.tolist()
    average = [float(sweeps.learnt.average[1:2][..., 1].mean())]
    canvas, panels = axes(1, 3, (13, 4.2))
    against_alpha(panels, sweeps.problem, [float(alpha) for alpha in sweeps.alphas], sweeps.learnt)
    fixed: dict[str, Any] = {"color": COLOURS["static"], "marker": "o", "label": "static grid"}
    own: dict[str, Any] = {"color": "#000000", "marker": "s", "label": "GradNorm's average"}
    for at, values, style in ((second, grid[:-1], fixed), (average, grid[-1:], own)):
        panels[2].errorbar(at, values.mean(1), half_width(values), **style)
    panels[2].axhline(
        final[1].mean(), color=COLOURS["GradNorm"], linestyle="--", label=f"GradNorm, α = {ALPHA}"
    )
    panels[2].set(
        xlabel="static weight w_2 (w_1 = 2 - w_2)",
        ylabel="mean of L_i/L_i(0) on test data at the end",
        xscale="log",
        ylim=(0, None),
    )
    panels[2].legend()
    caption = f"Sweep of α and grid of static weights; {sweeps.setting}. {INTERVAL}."
    return Figure("sweeps", caption, canvas)


def balanced(sweeps: Sweeps) -> Claim:
    learnt, last, names = sweeps.learnt, sweeps.last, sweeps.alphas
    halves = learnt.weights * learnt.lengths
    halves = halves[len(halves) // 2 :]
    # [alpha, seed]
    unequal = np.exp(np.median(np.abs(np.log(halves[..., 0]) - np.log(halves[..., 1])), axis=0))
    plain = learnt.lengths[0, 0]
    changes = [ratio_interval(last[i + 1], last[i]) for i in range(len(names) - 1)]
    return claim(
        "GN-05",
        {
            "larger over smaller length, unweighted, at the start": float(
                np.mean(plain[:, 1] / plain[:, 0])
            ),
            **named(f"larger over smaller G_i, α = {ALPHA}", mean_interval(unequal[1])),
            **{
                f"w_2 at α = {name}": float(value)
                for name, value in zip(names, last.mean(1), strict=True)
            },
            **named("w_2, α = 2 over α = 0", ratio_interval(last[-1], last[0])),
            **{
                key: value
                for (a, b), change in zip(pairwise(names), changes, strict=True)
                for key, value in named(f"w_2 at α = {b} over {a}", change).items()
            },
        },
        f"{sweeps.setting}; lengths: their ratio, the median of the second half; {INTERVAL}",
    )


def degrees(sweeps: Sweeps, learnt: Trace, size: Size) -> Claim:
    final, names = sweeps.learnt.final(), sweeps.alphas
    rates = sweeps.learnt.test[1:]
    spread = np.exp(np.abs(np.log(rates[..., 0]) - np.log(rates[..., 1])).mean(0))
    effect = ratio_interval(spread[-1], spread[0])
    loss = ratio_interval(final[-1], final[0])
    ends = (RATIOS[0], RATIOS[-1])
    best = {ratio: learnt.judged_alpha(f"ratio {ratio:g}") for ratio in ends}
    grows = mean_interval(np.sqrt(best[ends[1]]) - np.sqrt(best[ends[0]]))
    edges = [
        learnt.settles_nothing(f"ratio {ratio:g}, {alpha:g}")
        for ratio in ends
        for alpha in EVERY_ALPHA
    ] + [(alphas == max(EVERY_ALPHA)).mean() >= 0.5 for alphas in best.values()]
    largest = "best α, √ scale, at the largest ratio less at 1"
    return claim(
        "GN-12",
        {
            **{
                f"spread of L̃ at α = {name}": float(value)
                for name, value in zip(names, spread.mean(1), strict=True)
            },
            **named("spread at α = 2 over α = 0", effect),
            **named("final loss at α = 2 over α = 0", loss),
            **{f"σ_2/σ_1 = {ratio:g}: mean best α": float(x.mean()) for ratio, x in best.items()},
            **named(largest, grows, unsettled=any(edges)),
        },
        f"spread: {sweeps.setting}; smaller at α = 2 than at 0. Best α: of "
        f"{', '.join(f'{alpha:g}' for alpha in EVERY_ALPHA)} in every seed, at the learning rate "
        f"that is best for it on the other half of the seeds, σ_2/σ_1 of "
        f"{', '.join(f'{ratio:g}' for ratio in ends)}; larger at the last than at the first; "
        f"{size}; {INTERVAL}",
    )


def kept_fixed(sweeps: Sweeps, results: dict[str, Runs]) -> Claim:
    final, grid = sweeps.learnt.final(), sweeps.static.final()
    tops = chosen(grid[:-1])
    best, edge = judged(grid[:-1], tops), at_edge(tops, len(grid) - 1)
    untrained = grid[-1].mean() > 2 * UNTRAINED
    near_grid, against = ratio_interval(grid[-1], best), ratio_interval(final[1], best)
    dynamic = ratio_interval(*(results[name].at(RATE).judged() for name in ("static", "GradNorm")))
    return claim(
        "GN-22",
        {
            "best w_2 of the grid": float(sweeps.second[int(np.median(tops))]),
            "final loss at the grid's best": float(best.mean()),
            **named("static average over the grid's best", near_grid, unsettled=edge or untrained),
            **named("GradNorm over the grid's best", against),
            **named(f"the paper's size: static over GradNorm, both at Adam {RATE:g}", dynamic),
        },
        f"{sweeps.setting}, one learning rate; nearly: the ratio's interval is below 1.1; the "
        f"grid's best is chosen on the other half of the seeds; {INTERVAL}",
    )
