"""Does GradNorm balance two regressions that differ in scale?"""

import numpy as np

from ..report.bounds import COMPARABLE, FAR_APART, SMOOTH
from ..report.decisions import Claims, Exact, Measured, Row, decided, ends, exact, sided
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named, ratio_interval
from .common import INTERVAL, RATE, Problem, Runs
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
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    problem, every = problem_of(settings), default_runs(settings)
    results = {name: runs.at(RATE) for name, runs in every.items()}
    yield comparable(problem, results["equal"])
    yield dominated(results["equal"], problem)
    yield losses_and_weights(problem, results)
    yield by_rate(problem, every)
    yield learnt_weights(results["GradNorm"], problem)
    yield similar_rates(results, problem)
    yield rescaled(problem, every["GradNorm"])


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
        f"σ = (1, 100), test data before training; {INTERVAL}",
    )


def dominated(runs: Runs, problem: Problem) -> Claim:
    final = runs.test[-1, 0]
    ratio = ratio_interval(final[:, 0], final[:, 1])
    numbers = named("L̃_1/L̃_2 at the end", ratio, unsettled=runs.settles_nothing())
    numbers |= {f"L̃_{task + 1} at the end": float(final[:, task].mean()) for task in (0, 1)}
    return claim(
        "GN-17",
        numbers,
        f"equal weights; L̃_i = L_i/L_i(0); Adam {RATE:g}, {setting(problem, runs)}; {INTERVAL}",
    )


def learnt_weights(runs: Runs, problem: Problem) -> Claim:
    weights = runs.weights[:, 0]
    average, early = weights.mean(0), weights[: max(1, len(weights) // 4)][-1]
    separation, soon = average[:, 0] / average[:, 1], early[:, 0] / early[:, 1]
    trail = weights[..., 0]
    wander = mean_interval(np.abs(np.diff(trail, axis=0)).sum(0) / np.ptp(trail, axis=0))
    return claim(
        "GN-20",
        {
            "average w_1": float(average[:, 0].mean()),
            "average w_2": float(average[:, 1].mean()),
            "smallest w_1/w_2 of a seed": float(separation.min()),
            "smallest w_1/w_2 of a seed after a quarter of the run": float(soon.min()),
            **named("path length of w_1 over its range", wander),
        },
        f"Adam {RATE:g}, {setting(problem, runs)}; {INTERVAL}",
    )


def similar_rates(results: dict[str, Runs], problem: Problem) -> Claim:
    both = {name: np.log(result.test[1:, 0]) for name, result in results.items()}
    unequal = {
        name: np.exp(np.abs(values[..., 0] - values[..., 1]).mean(0))
        for name, values in both.items()
    }
    spread = ratio_interval(unequal["GradNorm"], unequal["equal"])
    edge = any(results[name].settles_nothing() for name in ("equal", "GradNorm"))
    return claim(
        "GN-04",
        {
            "spread, equal weights": float(unequal["equal"].mean()),
            "spread, GradNorm": float(unequal["GradNorm"].mean()),
            **named("their ratio", spread, unsettled=edge),
        },
        f"spread: larger over smaller L̃_i, geometric mean over the run; Adam {RATE:g}, "
        f"{setting(problem, results['GradNorm'])}; {INTERVAL}",
    )


def rescaled(problem: Problem, runs: Runs) -> Claim:
    sums = np.abs(runs.weights.sum(-1) - len(problem.scales)).max()
    return claim(
        "GN-15",
        {"largest deviation from T": float(sums), "smallest weight": float(runs.weights.min())},
        "every step, seed and learning rate, float32; weights stay positive through the floor of "
        "the library's rule",
    )
