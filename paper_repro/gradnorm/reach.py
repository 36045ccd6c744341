"""How far does GradNorm's gain over equal weights reach?"""

from typing import NamedTuple

import numpy as np

from ..report.decisions import OPEN
from ..report.figures import axes, beside_one
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.grids import spelled
from ..report.intervals import Interval, named, ratio_interval
from .common import (
    INTERVAL,
    METHODS,
    Problem,
    Runs,
    default_runs,
    few,
    problem_of,
    train,
    variants_of,
)
from .decisions import claim


def others_of(problem: Problem, settings: Settings) -> dict[str, Problem]:
    """Other readings of the paper's problem; those of its own size with --full alone."""
    short = problem if settings.full else problem._replace(steps=problem.steps // 2)
    others = {
        "SGD": short._replace(
            optimizer="sgd", rates=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
        ),
        "x ~ U(0, 1)": short._replace(law="uniform", rates=(*problem.rates, 3e-2)),
    }
    if settings.full:
        others |= {
            "x on the unit sphere": problem._replace(law="unit"),
            "250 inputs, 100 outputs": problem._replace(inputs=250, outputs=100),
            "250/100, literal scale": problem._replace(inputs=250, outputs=100, literal=True),
            "250/100, literal scale, 8,000 steps": problem._replace(
                inputs=250, outputs=100, literal=True, steps=8000
            ),
        }
    return others


def run(settings: Settings) -> Findings:
    problem, results = problem_of(settings), default_runs(settings)
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
    yield alike(comparisons["default: Adam, x ~ N(0, I)"], problem, settings)
    yield reduction(problem, comparisons, rates, settings, seeds)


class Comparison(NamedTuple):
    """Both methods in one configuration."""

    ratio: Interval  # GradNorm over equal, each at its best learning rate
    of_means: float  # the same as a ratio of means over seeds
    equal_rates: list[float]  # of the even and of the odd seeds
    gradnorm_rates: list[float]
    open: bool  # it settles nothing: a rate at the edge of its grid, or nothing learnt


def compare(equal: Runs, gradnorm: Runs) -> Comparison:
    a, b = gradnorm.judged(), equal.judged()
    with np.errstate(invalid="ignore"):  # both may be infinite
        of_means = float(a.mean() / b.mean())
    return Comparison(
        ratio_interval(a, b),
        of_means,
        equal.judged_rates(),
        gradnorm.judged_rates(),
        equal.settles_nothing() or gradnorm.settles_nothing(),
    )


def alike(regression: Comparison, problem: Problem, settings: Settings) -> Claim:
    """The default problem, and the same maps as ten classes."""
    seeds = few(settings)
    other = problem._replace(
        kind="classification",
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        steps=problem.steps if settings.full else problem.steps // 2,
    )
    variants = variants_of(other, seeds, settings)
    entropy = compare(
        *(
            train(method, other, variants, settings, f"{label}: classification", seeds)
            for method, label in METHODS.items()
        )
    )
    numbers: dict[str, float] = {}
    for name, found in {"regression": regression, "classification": entropy}.items():
        label = f"{name}: GradNorm over equal"
        numbers |= {**named(label, found.ratio), label + OPEN: float(found.open)}
    return claim(
        "GN-29",
        numbers,
        f"final Σ L_i/L_i(0), each method at its best rate; regression: the default problem; "
        f"classification: which of {problem.outputs} outputs of (B + ε_i)x is largest, σ_i times "
        f"the cross entropy, {settings.count(other.steps)} steps, {seeds} seeds, rates "
        f"{', '.join(f'{rate:g}' for rate in other.rates)}. {INTERVAL}",
    )


def reach(comparisons: dict[str, Comparison], rates: dict[str, Interval]) -> Figure:
    rows = list(rates.items()) + [
        (
            f"{name}{' (settles nothing)' if c.open else ''}\nbest rates: equal "
            f"{spelled(c.equal_rates)}, GradNorm {spelled(c.gradnorm_rates)}",
            c.ratio,
        )
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
        "Where GradNorm's gain holds and where it stops; the best rate is chosen on the other half "
        f"of the seeds, so there may be two. {INTERVAL}. Blue: the interval is "
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
    ratios = {name: c.ratio for name, c in comparisons.items() if not c.open}
    nothing = [name for name, c in comparisons.items() if c.open]
    holds = [f"{name} ({ratio.mean:.3g})" for name, ratio in ratios.items() if ratio.high < 1]
    fails = [f"{name} ({ratio.mean:.3g})" for name, ratio in ratios.items() if not ratio.high < 1]
    numbers: dict[str, float] = {}
    for name, c in comparisons.items():
        label = f"GradNorm over equal: {name}"
        numbers |= {**named(label, c.ratio), f"{name}: ratio of means": c.of_means}
        numbers[f"{label}{OPEN}"] = float(c.open)
        for method, both in (("equal", c.equal_rates), ("GradNorm", c.gradnorm_rates)):
            halves = zip(("even", "odd"), both, strict=True)
            numbers |= {f"{name}: rate of the {half} seeds, {method}": x for half, x in halves}
    for name, ratio in rates.items():
        numbers |= named(f"at one rate: {name}", ratio)
    return claim(
        "GN-21",
        numbers,
        "ratios GradNorm/equal, each method at its own best learning rate of a common grid, chosen "
        "on the other half of the seeds; below 1 with its interval: "
        f"{'; '.join(holds) or 'none'}. Not: {'; '.join(fails) or 'none'}. "
        f"Settling nothing (best rate at the edge of its grid, or nothing learnt): "
        f"{'; '.join(nothing) or 'none'}. At one rate for both, beside. {problem.inputs} inputs, "
        f"{problem.outputs} outputs, width {problem.width}; default "
        f"{settings.count(problem.steps)} steps, {settings.seeds} seeds; other configurations "
        f"{seeds} seeds{'' if settings.full else ', half of the steps'}. {INTERVAL}",
    )
