"""How far does GradNorm's gain over equal weights reach?"""

from collections.abc import Mapping

from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import mean_interval, named
from .common import INTERVAL, METHODS, REDUCED, Problem, Runs, few
from .paper_size import (
    AT_BEST,
    Pair,
    default_runs,
    pair_of,
    pairs_of,
    problem_of,
    runs_at,
    setting,
)
from .refine import refined
from .toy_figures import over_equal

CLAIMS = {
    "GN-21": Row(
        "Balanced by GradNorm the tasks reach a lower normalised test error than with "
        "equal weights.",
        sided(("GradNorm over equal, *", "<", 1)),
        finding=(
            "the toy at the paper's size. GradNorm ends at {GradNorm over equal, each at its "
            "best rate} times the normalised test loss of equal weights if each has its best "
            "rate, of a grid that was refined around it. At the learning rate 0.001, which "
            "was fixed beforehand, equal weights end at {equal at Adam 0.001, loss over an "
            "untrained network's} times the loss of an untrained network"
        ),
    ),
    "GN-29": Row(
        "GradNorm works for regression and classification losses alike.",
        sided(
            ("regression: GradNorm over equal, each at its best rate", "<", 1),
            ("classification: GradNorm over equal, each at its best rate", "<", 1),
        ),
    ),
}


def run(settings: Settings) -> Findings:
    problem, results = problem_of(settings), default_runs(settings)
    pairs, rates = pairs_of(results), over_equal(results["equal"], results["GradNorm"])
    text = setting(problem, results["equal"])
    yield alike(pairs[AT_BEST], problem, text, settings)
    numbers: dict[str, float] = {}
    for how, pair in pairs.items():
        numbers |= pair.named(f"GradNorm over equal, {how}")
    for rate, ratio in rates.items():
        numbers |= named(f"both at Adam {rate:g}", ratio)
    where = f"final Σ L_i/L_i(0) on test data; best rates: {pairs[AT_BEST].rates}; {text}"
    yield Claim("GN-21", numbers | curves(results), f"{where}. {INTERVAL}")


def curves(results: Mapping[str, Runs]) -> dict[str, float]:
    """Both methods' final losses over that of an untrained network, by rate."""
    found: dict[str, float] = {}
    for name in METHODS:
        runs = results[name]
        for rate, final in zip(runs.rates, runs.final(), strict=True):
            mean = mean_interval(final / runs.test.shape[-1])
            found |= named(f"{name} at Adam {rate:g}, loss over an untrained network's", mean)
    return found


def alike(regression: Pair, problem: Problem, text: str, settings: Settings) -> Claim:
    """The paper's regression, and maps as many classes; with --full of a grid that is refined."""
    seeds, rates = few(settings), (1e-3, 3e-3, 1e-2)
    other = problem if settings.full else REDUCED
    other = other._replace(kind="classification", rates=rates)
    at = runs_at(other, seeds, settings, "classification")
    runs = {method: at(method, rates) for method in METHODS}
    entropy = pair_of(refined(runs, at, 2) if settings.full else runs)
    return Claim(
        "GN-29",
        {
            **regression.named(f"regression: GradNorm over equal, {AT_BEST}"),
            **entropy.named(f"classification: GradNorm over equal, {AT_BEST}"),
        },
        f"final Σ L_i/L_i(0); regression: {text}; classification: which of {other.outputs} outputs "
        f"of (B + ε_i)x is largest, σ_i times the cross entropy, {other}, "
        f"{settings.count(other.steps)} steps, {seeds} seeds, rates "
        f"{', '.join(f'{rate:g}' for rate in rates)}{', refined' * settings.full}. {INTERVAL}",
    )
