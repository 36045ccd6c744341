"""Does GradNorm balance two regressions that differ in scale?"""

import numpy as np

from ..report.bounds import COMPARABLE, FAR_APART, SMOOTH
from ..report.decisions import Exact, Measured, Row, decided, ends, exact, sided
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named, ratio_interval
from .common import INTERVAL, RATE, Runs
from .paper_size import default_runs, problem_of, setting
from .toy_figures import by_rate, losses_and_weights


@decided("the interval of the ratio lies outside .9 to 1.1", trained=False)
def judge_comparable(measured: Measured) -> Verdict:
    (low, high), most = ends(measured, "their ratio"), COMPARABLE.now
    if low > 2 - most and high < most:
        return "holds"
    return "does not hold" if low > most or high < 2 - most else "inconclusive"


@decided("in some seed the average weights are not 5 times apart")
def separates(measured: Measured) -> Verdict:
    """Early: by a quarter of the run; smooth: a path shorter than twice its range."""
    if measured["smallest w_1/w_2 of a seed"] <= FAR_APART.now:
        return "does not hold"
    early = measured["smallest w_1/w_2 of a seed after a quarter of the run"] > FAR_APART.now
    smooth = measured["path length of w_1 over its range, high"] < SMOOTH.now
    return "holds" if early and smooth else "holds only when"


CLAIMS = {
    "GN-04": Row(
        "Balance means that all tasks train at similar rates.", sided(("their ratio", "<", 1))
    ),
    "GN-15": Exact(
        "After each update the weights are rescaled to sum to T.",
        exact(("largest deviation from T", "<", 1e-5)),
    ),
    "GN-17": Row(
        "With equal weights the large-scale, large-gradient task dominates: the small one "
        "is left behind.",
        sided(("L̃_1/L̃_2 at the end", ">", 1)),
    ),
    "GN-19": Exact(
        "Tasks differ only in σ_i, so L_i(0)/σ_i² is the same for all and the sum of loss "
        "ratios is a fair metric.",
        judge_comparable,
    ),
    "GN-20": Row(
        "From equal weights w_1 rises far above w_2; the curves separate early and stay smooth.",
        separates,
        when="smoothness is left out: the weights part early, and chatter",
    ),
}


def run(settings: Settings) -> Findings:
    problem, every = problem_of(settings), default_runs(settings)
    results = {name: runs.at(RATE) for name, runs in every.items()}
    equal, learnt = results["equal"], results["GradNorm"]
    where = f"Adam {RATE:g}, {setting(problem, equal)}; {INTERVAL}"
    yield losses_and_weights(problem, results)
    yield by_rate(problem, every)

    scaled = equal.initial / np.array(problem.scales) ** 2
    spread = ratio_interval(scaled[:, 0], scaled[:, 1])
    yield Claim(
        "GN-19",
        named("their ratio", spread),
        f"L_1(0)/σ_1² over L_2(0)/σ_2², σ = (1, 100), test data before training; {INTERVAL}",
    )

    final = equal.test[-1, 0]
    behind = ratio_interval(final[:, 0], final[:, 1])
    yield Claim(
        "GN-17",
        named("L̃_1/L̃_2 at the end", behind, unsettled=equal.settles_nothing()),
        f"equal weights; L̃_i = L_i/L_i(0); {where}",
    )

    weights = learnt.weights[:, 0]
    average, early = weights.mean(0), weights[: max(1, len(weights) // 4)][-1]
    trail = weights[..., 0]
    wander = mean_interval(np.abs(np.diff(trail, axis=0)).sum(0) / np.ptp(trail, axis=0))
    soon = "smallest w_1/w_2 of a seed after a quarter of the run"
    yield Claim(
        "GN-20",
        {
            "smallest w_1/w_2 of a seed": (average[:, 0] / average[:, 1]).min(),
            soon: (early[:, 0] / early[:, 1]).min(),
            **named("path length of w_1 over its range", wander),
        },
        f"w_1/w_2 of the weights' average over the run unless a moment is named; {where}",
    )

    edge = equal.settles_nothing() or learnt.settles_nothing()
    yield Claim(
        "GN-04",
        named("their ratio", ratio_interval(unequal(learnt), unequal(equal)), unsettled=edge),
        "GradNorm's spread over equal weights': larger over smaller L̃_i, geometric mean over the "
        f"run; {where}",
    )

    sums = np.abs(every["GradNorm"].weights.sum(-1) - len(problem.scales))
    yield Claim(
        "GN-15", {"largest deviation from T": sums.max()}, "every step, seed and rate, float32"
    )


def unequal(runs: Runs) -> np.ndarray:
    """Larger over smaller L̃_i, geometric mean over the run, `[seed]`."""
    logs = np.log(runs.test[1:, 0])
    return np.exp(np.abs(logs[..., 0] - logs[..., 1]).mean(0))
