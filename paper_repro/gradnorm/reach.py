"""How far does GradNorm's gain over equal weights reach, and does it grow with the tasks?"""

from collections.abc import Mapping

from ..report.decisions import APART, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import mean_interval, named, ratio_interval
from .common import ALPHA, INTERVAL, METHODS, RATE, REDUCED, TEN, TWO, Problem, Runs, few
from .lanes import EQUAL, size_of
from .paper_size import (
    AT_BEST,
    AT_ONE,
    Pair,
    default_runs,
    pair_of,
    pairs_of,
    problem_of,
    refined,
    runs_at,
    setting,
)
from .toy_figures import over_equal
from .train_lanes import OF_TEN, ten_tasks, two_tasks

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
    "GN-23": Row("Ten tasks also gain from GradNorm.", sided(("GradNorm over equal, *", "<", 1))),
    "GN-24": Row(
        "The benefit grows with the number of tasks.",
        sided(("ratio at T = * over that at T = *", "<", 1)),
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
    yield from of_ten(settings, results)


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


def of_ten(settings: Settings, two: dict[str, Runs]) -> Findings:
    """At the paper's size; of one set of scales at a reduced one."""
    ten = default_runs(settings, TEN)
    pairs, problem = pairs_of(ten), problem_of(settings, TEN)
    text = setting(problem, ten["equal"])
    one, best = pairs[AT_ONE], pairs[AT_BEST]
    fixed = ratio_interval(one.learnt, ten["static"].at(RATE).picked().scores)
    yield Claim(
        "GN-23",
        {
            **one.named(f"GradNorm over equal, {AT_ONE}"),
            **best.named(f"GradNorm over equal, {AT_BEST}"),
            **named("GradNorm over 1/L_i(0)", fixed),
        },
        f"ten scales from 3 to 81; best rates: {best.rates}; static weights 1/L_i(0) {AT_ONE}; "
        f"{text}. {INTERVAL}",
    )

    early = pairs_of({name: until(runs, ten["equal"].steps[-1]) for name, runs in two.items()})
    traces = (
        (two_tasks(settings), OF_TEN, OF_TEN),
        (ten_tasks(settings), EQUAL, f"GradNorm, {ALPHA:g}"),
    )
    reduced = (
        pair_of({"equal": static.runs(equal), "GradNorm": learnt.runs(own)})
        for (static, learnt), equal, own in traces
    )
    numbers = grown(AT_ONE, early[AT_ONE], one) | grown(AT_BEST, early[AT_BEST], best)
    yield Claim(
        "GN-24",
        numbers | grown(f"of ten, {AT_BEST}", *reduced),
        f"σ = {TWO} at T = 2 and ten other scales at T = 10, after as many steps; of ten: the "
        f"first two of those and all of them, {size_of(settings)}; else {text}. {INTERVAL}",
    )


def until(runs: Runs, step: int) -> Runs:
    """Test losses up to a step."""
    sooner = runs.steps <= step
    return runs._replace(steps=runs.steps[sooner], test=runs.test[sooner])


def grown(how: str, few: Pair, many: Pair) -> dict[str, float]:
    """The ratio at ten tasks over that at two, paired by seed; none decides where one of the two
    is of equal weights that learn nothing.
    """
    seeds = min(len(few.equal), len(many.equal))
    ratios = [(pair.learnt / pair.equal)[:seeds] for pair in (many, few)]
    name = f"ratio at T = 10 over that at T = 2, {how}"
    unsettled = few.open or many.open or not (few.trained and many.trained)
    numbers = named(name, ratio_interval(*ratios), unsettled=unsettled)
    if few.apart is not None and many.apart is not None:
        numbers[name + APART] = max(few.apart, many.apart)
    return numbers
