"""How far does GradNorm's gain over equal weights reach?"""

from collections.abc import Mapping

from ..report.decisions import Claims, Row, sided
from ..report.figures import axes, beside_one
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import Interval, mean_interval, named, ratio_interval
from .common import INTERVAL, METHODS, RATE, REDUCED, Problem, Runs, few
from .paper_size import (
    AT_BEST,
    AT_ONE,
    Pair,
    default_runs,
    pair_of,
    pairs_of,
    problem_of,
    runs_at,
    setting,
)
from .refine import refined

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
claim = Claims(CLAIMS)


def others_of(problem: Problem) -> dict[str, Problem]:
    """Other readings of the paper's problem."""
    return {
        "SGD": problem._replace(
            optimizer="sgd", rates=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
        ),
        "x ~ U(0, 1)": problem._replace(law="uniform", rates=(*problem.rates, 1e-1)),
        "x on the unit sphere": problem._replace(law="unit"),
        "25 inputs, 10 outputs": problem._replace(inputs=REDUCED.inputs, outputs=REDUCED.outputs),
        # its targets are nearly signs, which takes longer to learn
        "literal scale, 8,000 steps": problem._replace(
            literal=True, steps=8000, rates=problem.rates[1:-1]
        ),
    }


OWN = (0.0025, 0.25)
"""Other rates of GradNorm's weights, with --full: a tenth and ten times the default run's."""


def run(settings: Settings) -> Findings:
    """The paper's problem; with --full other readings of it, and other rates of the weights."""
    problem, results = problem_of(settings), default_runs(settings)
    pairs, rates = pairs_of(results), by_rate(results)
    text = setting(problem, results["equal"])
    others = others_of(problem) if settings.full else {}
    beside = {name: trained(other, settings, few(settings), name) for name, other in others.items()}
    if settings.full:
        beside |= at_own_rates(problem, results["equal"], settings)
    yield reach(pairs, rates, beside, text)
    yield alike(pairs[AT_BEST], problem, text, settings)
    yield reduction(pairs, rates, beside, curves(results), text)


def trained(problem: Problem, settings: Settings, seeds: int, name: str) -> Pair:
    """Both methods, each at its best rate; with --full of a grid that is refined."""
    at = runs_at(problem, seeds, settings, name)
    runs = {method: at(method, problem.rates) for method in METHODS.values()}
    return pair_of(refined(runs, at, 2) if settings.full else runs)


def at_own_rates(problem: Problem, equal: Runs, settings: Settings) -> dict[str, Pair]:
    """GradNorm at other rates of its weights, each at its best learning rate, as its rival is."""
    found = {}
    for own in OWN:
        name = f"weights' own rate {own:g}"
        at = runs_at(problem._replace(own=own), equal.test.shape[2], settings, f"T = 2, {name}")
        runs = {"equal": equal, "GradNorm": at("GradNorm", problem.rates)}
        found[name] = pair_of(refined(runs, at, 2))
    return found


def by_rate(results: Mapping[str, Runs]) -> dict[float, Interval]:
    """GradNorm's final loss over equal weights' at one learning rate for both. Not at a rate at
    which equal weights learn nothing: their loss is not a unit.
    """
    equal, learnt = results["equal"], results["GradNorm"]
    both = [rate for rate in equal.rates if rate in learnt.rates]
    return {
        rate: ratio_interval(learnt.at(rate).judged(), equal.at(rate).judged())
        for rate in both
        if not equal.at(rate).learns_nothing()
    }


def curves(results: Mapping[str, Runs]) -> dict[str, float]:
    """Both methods' final losses over that of an untrained network, by rate."""
    found: dict[str, float] = {}
    for name in ("equal", "GradNorm"):
        runs = results[name]
        for rate, final in zip(runs.rates, runs.final(), strict=True):
            mean = mean_interval(final / runs.test.shape[-1])
            found |= named(f"{name} at Adam {rate:g}, loss over an untrained network's", mean)
    return found


def alike(regression: Pair, problem: Problem, text: str, settings: Settings) -> Claim:
    """The paper's regression, and maps as many classes."""
    seeds, rates = few(settings), (1e-3, 3e-3, 1e-2)
    other = problem if settings.full else REDUCED
    other = other._replace(kind="classification", rates=rates)
    entropy = trained(other, settings, seeds, "classification")
    return claim(
        "GN-29",
        {
            **regression.named(f"regression: GradNorm over equal, {AT_BEST}"),
            **entropy.named(f"classification: GradNorm over equal, {AT_BEST}"),
        },
        f"final Σ L_i/L_i(0), each method at its best rate; regression: {text}; classification: "
        f"which of {other.outputs} outputs of (B + ε_i)x is largest, σ_i times the cross entropy, "
        f"{other}, {settings.count(other.steps)} steps, {seeds} seeds, rates "
        f"{', '.join(f'{rate:g}' for rate in rates)}{', refined' * settings.full}. {INTERVAL}",
    )


def reach(
    pairs: Mapping[str, Pair],
    rates: Mapping[float, Interval],
    beside: Mapping[str, Pair],
    text: str,
) -> Figure:
    best = {f"each at its best rate:\n{pairs[AT_BEST].rates}": pairs[AT_BEST]} | {
        f"{name}, each at its best rate:\n{pair.rates}": pair for name, pair in beside.items()
    }
    rows = [(f"both at Adam {rate:g}", ratio) for rate, ratio in rates.items()]
    rows += [
        (f"{name}{' (settles nothing)' * pair.settles_nothing}", pair.ratio)
        for name, pair in best.items()
    ]
    canvas, axis = axes(1, 1, (9, 0.6 * len(rows) + 1.2))
    for y, (_, ratio) in enumerate(reversed(rows)):
        beside_one(axis[0], ratio, y)
    axis[0].axvline(1, color="#999999", linewidth=1)
    axis[0].set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axis[0].set(
        xlabel="final normalised test loss, GradNorm / equal weights\n(below 1: GradNorm is "
        "better)",
        xscale="log",
    )
    axis[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis[0].xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    return Figure(
        "configurations",
        f"Where GradNorm's gain holds and where it stops; {text}. The best rate is chosen on the "
        f"other half of the seeds, so there may be two. {INTERVAL}. Blue: the interval is "
        "below 1; vermillion: above; grey: it contains 1.",
        canvas,
    )


def compared(ratio: Interval) -> str:
    """A ratio in words."""
    if ratio.high < 1:
        return f"{1 - ratio.mean:.1%} lower"
    return f"{ratio.mean - 1:.1%} higher" if ratio.low > 1 else "no different"


def beside_equal(one: Pair, best: Pair, rates: Mapping[float, Interval]) -> str:
    """A comparison at the rate fixed beforehand, at others and at the best ones, in words."""
    others = ", ".join(
        f"{compared(ratio)} at {rate:g}" for rate, ratio in rates.items() if rate != RATE
    )
    first = (
        f"{compared(one.ratio)} at Adam {RATE:g} for both, the rate fixed beforehand (ratio "
        f"{one.ratio})"
        if one.trained
        else f"at Adam {RATE:g}, the rate fixed beforehand, equal weights learn nothing"
    )
    return (
        f"GradNorm's final loss beside equal weights': {first}; {others}; each at its best rate "
        f"({best.rates}) {compared(best.ratio)} (ratio {best.ratio}"
        f"{', which settles nothing' * best.settles_nothing})"
    )


def numbers_of(pairs: Mapping[str, Pair], rates: Mapping[float, Interval]) -> dict[str, float]:
    """The same as numbers."""
    numbers: dict[str, float] = {}
    for how, pair in pairs.items():
        numbers |= pair.named(f"GradNorm over equal, {how}")
    for rate, ratio in rates.items():
        numbers |= named(f"both at Adam {rate:g}", ratio)
    return numbers


def reduction(
    pairs: Mapping[str, Pair],
    rates: Mapping[float, Interval],
    beside: Mapping[str, Pair],
    losses: Mapping[str, float],
    text: str,
) -> Claim:
    one, best = pairs[AT_ONE], pairs[AT_BEST]
    numbers = {**numbers_of(pairs, rates), **losses}
    for name, both in (("equal", best.equal_rates), ("GradNorm", best.learnt_rates)):
        numbers |= {f"best rate of the {half} seeds, {name}": both[i] for i, half in HALVES}
    for name, pair in beside.items():
        numbers |= pair.named(f"{name}, {AT_BEST}")
    readings = "".join(
        f"; {name}, {len(pair.equal)} seeds: "
        f"{'settles nothing' if pair.settles_nothing else compared(pair.ratio)} ({pair.ratio})"
        for name, pair in beside.items()
    )
    return claim(
        "GN-21", numbers, f"{beside_equal(one, best, rates)}{readings}. {text}. {INTERVAL}"
    )


HALVES = ((0, "even"), (1, "odd"))
