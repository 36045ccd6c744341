"""Does GradNorm balance two regressions that differ in scale?"""

import numpy as np

from ..report.decisions import OPEN
from ..report.figures import axes, name_lines
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.grids import spelled
from ..report.intervals import mean_interval, named, ratio_interval
from .common import (
    ALPHA,
    INTERVAL,
    Problem,
    Runs,
    default_runs,
    problem_of,
)
from .decisions import claim
from .toy_figures import by_rate, lines, losses_and_weights


def run(settings: Settings) -> Findings:
    problem, results = problem_of(settings), default_runs(settings)
    yield comparable(problem, results["equal"])
    yield dominated(problem, results["equal"])
    yield losses_and_weights(problem, results)
    yield weights_over_time(problem, results["GradNorm"])
    yield by_rate(problem, results)
    yield learnt_weights(problem, results["GradNorm"])
    yield similar_rates(results)
    yield rescaled(problem, results["GradNorm"])


def comparable(problem: Problem, runs: Runs) -> Claim:
    scaled = runs.initial / np.array(problem.scales) ** 2
    spread = ratio_interval(scaled[:, 0], scaled[:, 1])
    return claim(
        "GN-19",
        {
            "L_1(0)/σ_1², mean over seeds": scaled[:, 0].mean(),
            "L_2(0)/σ_2²": scaled[:, 1].mean(),
            **named("their ratio", spread),
        },
        "σ = (1, 100), test data before training; holds if the ratio's interval lies within .9 "
        f"to 1.1; {INTERVAL}",
    )


def dominated(problem: Problem, runs: Runs) -> Claim:
    final = runs.of(runs.test)[-1]
    ratio = ratio_interval(final[:, 0], final[:, 1])
    numbers = {
        "best learning rate over all seeds": problem.rates[runs.best()],
        **named("L̃_1/L̃_2 at the end", ratio),
        f"L̃_1/L̃_2 at the end{OPEN}": float(runs.settles_nothing()),
    }
    numbers |= {f"L̃_{task + 1} at the end": float(final[:, task].mean()) for task in (0, 1)}
    return claim(
        "GN-17",
        numbers,
        "equal weights at their best learning rate, by the other half of the seeds; L̃_i = "
        "L_i/L_i(0); holds if the interval of "
        f"L̃_1/L̃_2 is above 1; {INTERVAL}",
    )


def weights_over_time(problem: Problem, runs: Runs) -> Figure:
    best = runs.best()
    steps = np.arange(1, len(runs.weights) + 1)
    weights, lengths = runs.weights[:, best], runs.weights[:, best] * runs.lengths[:, best]
    canvas, panels = axes(1, 3, (15.5, 4.4))
    ratio = runs.test[:, best] / runs.test[:, best].mean(-1, keepdims=True)
    drawn = ((steps, weights), (steps, lengths), (runs.steps, ratio))
    labels = (
        f"weight w_i (they sum to {len(problem.scales)})",
        "G_i = w_i‖∇_W L_i‖",
        "relative inverse rate r_i (test data)",
    )
    for panel, (times, values), label in zip(panels, drawn, labels, strict=True):
        ends = lines(panel, times, values, problem.scales, geometric=panel is panels[1])
        panel.set(xlabel="step", ylabel=label)
        if panel is panels[1]:
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0)
        name_lines(panel, ends)
    return Figure(
        "weights",
        f"GradNorm at Adam {problem.rates[best]:g}, α = {ALPHA}: weights (the middle of Figure 3 "
        "of Chen et al. 2018), gradient lengths at the last shared layer, "
        "relative inverse training rates; mean and 95 % band over seeds.",
        canvas,
    )


def learnt_weights(problem: Problem, runs: Runs) -> Claim:
    weights = runs.of(runs.weights)
    average, early = weights.mean(0), weights[: max(1, len(weights) // 4)][-1]
    separation, soon = average[:, 0] / average[:, 1], early[:, 0] / early[:, 1]
    trail = weights[..., 0]
    wander = mean_interval(np.abs(np.diff(trail, axis=0)).sum(0) / np.ptp(trail, axis=0))
    smooth = wander.high < 2
    return claim(
        "GN-20",
        {
            "average w_1": float(average[:, 0].mean()),
            "average w_2": float(average[:, 1].mean()),
            "smallest w_1/w_2 of a seed": float(separation.min()),
            "smallest w_1/w_2 of a seed after a quarter of the run": float(soon.min()),
            **named("path length of w_1 over its range", wander),
        },
        f"α = {ALPHA}, Adam {spelled(runs.judged_rates())}; separated if the averages' ratio is "
        "above 5 in every seed, "
        "smooth if w_1's path is shorter than twice its "
        f"range{'' if smooth else ': they separate, but chatter'}; {INTERVAL}",
    )


def similar_rates(results: dict[str, Runs]) -> Claim:
    both = {name: np.log(result.of(result.test)[1:]) for name, result in results.items()}
    unequal = {
        name: np.exp(np.abs(values[..., 0] - values[..., 1]).mean(0))
        for name, values in both.items()
    }
    spread = ratio_interval(unequal["GradNorm"], unequal["equal"])
    return claim(
        "GN-04",
        {
            "spread, equal weights": float(unequal["equal"].mean()),
            "spread, GradNorm": float(unequal["GradNorm"].mean()),
            **named("their ratio", spread),
            f"their ratio{OPEN}": float(
                any(results[name].settles_nothing() for name in ("equal", "GradNorm"))
            ),
        },
        "spread: larger over smaller L̃_i, geometric mean over the run, each method at its best "
        f"learning rate; holds if GradNorm's is smaller; {INTERVAL}",
    )


def rescaled(problem: Problem, runs: Runs) -> Claim:
    sums = np.abs(runs.weights.sum(-1) - len(problem.scales)).max()
    return claim(
        "GN-15",
        {"largest deviation from T": float(sums), "smallest weight": float(runs.weights.min())},
        "every step, seed and learning rate, float32; weights stay positive through the floor of "
        "the library's rule",
    )
