"""How far does GradNorm's gain over equal weights reach?"""

from typing import NamedTuple

from ..report.figures import axes, beside_one
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, named, ratio_interval
from .common import INTERVAL, METHODS, PAPER, Problem, Runs, default_runs, few, train, variants_of


def others_of(problem: Problem, settings: Settings) -> dict[str, Problem]:
    """Other readings of the paper's problem; those of its own size with --full alone."""
    short = problem if settings.full else problem._replace(steps=problem.steps // 4)
    others = {
        "SGD": short._replace(optimizer="sgd", rates=(1e-5, 1e-4, 1e-3, 1e-2)),
        "x ~ U(0, 1)": short._replace(law="uniform"),
    }
    if settings.full:
        others |= {
            "x on the unit sphere": problem._replace(law="unit"),
            "250 inputs, 100 outputs": problem._replace(inputs=250, outputs=100),
            "250/100, literal scale": problem._replace(inputs=250, outputs=100, literal=True),
            "250/100, literal scale, 8,000 steps": problem._replace(
                inputs=250, outputs=100, literal=True, steps=8000
            ),
            "ten tasks": problem._replace(
                scales=(48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)
            ),
        }
    return others


def run(settings: Settings) -> Findings:
    problem, results = Problem(), default_runs(settings)
    comparisons = {"default: Adam, x ~ N(0, I)": compare(results["equal"], results["GradNorm"])}
    rates = {
        f"default at Adam {rate:g}": ratio_interval(
            results["GradNorm"].final()[i], results["equal"].final()[i]
        )
        for i, rate in enumerate(problem.rates)
    }
    seeds = settings.seeds if settings.full else few(settings)
    for name, other in others_of(problem, settings).items():
        variants = variants_of(other, seeds, settings)
        runs = [
            train(method, other, variants, settings, f"{label}: {name}", seeds)
            for method, label in METHODS.items()
        ]
        comparisons[name] = compare(*runs)
    yield reach(comparisons, rates)
    yield reduction(problem, comparisons, rates, settings, seeds)
    if "ten tasks" in comparisons:
        ten, two = comparisons["ten tasks"].ratio, comparisons["default: Adam, x ~ N(0, I)"].ratio
        yield ten_gain(ten)
        yield gain_grows(two, ten)


def ten_gain(ten: Interval) -> Claim:
    return Claim(
        "GN-23",
        PAPER,
        "Ten tasks also gain from GradNorm.",
        verdict_of([ten.high < 1], [ten.low > 1]),
        named("GradNorm over equal", ten),
        f"ten scales from 3 to 81, each method at its best learning rate; {INTERVAL}",
    )


def gain_grows(two: Interval, ten: Interval) -> Claim:
    return Claim(
        "GN-24",
        PAPER,
        "The benefit grows with the number of tasks.",
        verdict_of([ten.high < two.low], [ten.low > two.high]),
        {**named("ratio at T = 2", two), **named("ratio at T = 10", ten)},
        "T = 2 and 10, other scales, each method at its best learning rate; holds if the "
        f"intervals are apart in that order; {INTERVAL}",
    )


class Comparison(NamedTuple):
    """Both methods in one configuration."""

    ratio: Interval  # GradNorm over equal, each at its best learning rate
    of_means: float  # the same as a ratio of means over seeds
    equal_rate: float
    gradnorm_rate: float


def compare(equal: Runs, gradnorm: Runs) -> Comparison:
    a, b = gradnorm.final()[gradnorm.best()], equal.final()[equal.best()]
    return Comparison(
        ratio_interval(a, b),
        float(a.mean() / b.mean()),
        equal.rates[equal.best()],
        gradnorm.rates[gradnorm.best()],
    )


def reach(comparisons: dict[str, Comparison], rates: dict[str, Interval]) -> Figure:
    rows = list(rates.items()) + [
        (f"{name}\nbest rates: equal {c.equal_rate:g}, GradNorm {c.gradnorm_rate:g}", c.ratio)
        for name, c in comparisons.items()
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
        f"Where GradNorm's gain holds and where it stops. {INTERVAL}. Blue: the interval is "
        "below 1; vermillion: above; grey: it contains 1.",
        canvas,
    )


def reduction(
    problem: Problem,
    comparisons: dict[str, Comparison],
    rates: dict[str, Interval],
    settings: Settings,
    seeds: int,
) -> Claim:
    ratios = {name: c.ratio for name, c in comparisons.items()} | rates
    holds = [f"{name} ({ratio.mean:.3g})" for name, ratio in ratios.items() if ratio.high < 1]
    fails = [f"{name} ({ratio.mean:.3g})" for name, ratio in ratios.items() if ratio.high >= 1]
    numbers: dict[str, float] = {}
    for name, c in comparisons.items():
        numbers |= {**named(name, c.ratio), f"{name}: ratio of means": c.of_means}
        numbers |= {
            f"{name}: best rate, equal": c.equal_rate,
            f"{name}: best rate, GradNorm": c.gradnorm_rate,
        }
    for name, ratio in rates.items():
        numbers |= named(name, ratio)
    return Claim(
        "GN-21",
        PAPER,
        "Balanced by GradNorm the tasks reach a lower normalised test error than with equal "
        "weights.",
        verdict_of(
            [ratio.high < 1 for ratio in ratios.values()],
            [ratio.low > 1 for ratio in ratios.values()],
        ),
        numbers,
        "ratios GradNorm/equal, each method at its own best learning rate of a common grid "
        "unless a rate is named; below 1 with its interval: "
        f"{'; '.join(holds) or 'none'}. Not: {'; '.join(fails) or 'none'}. Default "
        f"{settings.count(problem.steps)} steps, {settings.seeds} seeds; "
        f"other configurations {seeds} "
        f"seeds{'' if settings.full else ', a quarter of the steps'}. {INTERVAL}",
    )
