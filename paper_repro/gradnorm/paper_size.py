"""The regressions at the paper's size: the runs that several questions share, and what they say."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from ..report.decisions import APART
from ..report.findings import Settings
from ..report.grids import spelled
from ..report.intervals import Interval, named, ratio_interval
from .common import ALPHA, METHODS, OWN_RATE, RATE, TWO, Problem, Runs, Variants, train, variants_of
from .refine import More, neighbours_apart, refined

# at T = 10, and at T = 2; by default, and with --full
ROUNDS = ((0, 1), (4, 2))
AT_ONE, AT_BEST = f"at Adam {RATE:g} for both", "each at its best rate"


def problem_of(settings: Settings, scales: tuple[float, ...] = TWO) -> Problem:
    """The paper's, for as long as there is time: a step of ten tasks takes twice as long."""
    if settings.full:
        rates = (3e-4, RATE, 3e-3, 1e-2, 3e-2)
        return Problem(scales, rates=rates if scales == TWO else rates[:-1], steps=2000)
    return Problem(scales) if scales == TWO else Problem(scales, rates=(RATE, 3e-3), steps=500)


def seeds_of(settings: Settings, scales: tuple[float, ...]) -> int:
    """At the paper's size: fewer at T = 10, where ratios scatter less."""
    if settings.full:
        return settings.seeds if scales == TWO else max(2, settings.seeds // 2)
    return max(2, (4 if scales == TWO else 3) * settings.seeds // 16)


def runs_at(problem: Problem, seeds: int, settings: Settings, about: str) -> More:
    """What trains a method, by its name of METHODS, at any rates."""

    def at(name: str, rates: tuple[float, ...]) -> Runs:
        one = problem._replace(rates=rates)
        variants = variants_of(one, seeds, settings)
        return train(METHODS[name], one, variants, settings, f"{name}: {about}", seeds)

    return at


def default_runs(settings: Settings, scales: tuple[float, ...] = TWO) -> dict[str, Runs]:
    """Equal, learnt and static weights at the paper's size. Static: GradNorm's average over time,
    paired with the run of its own learning rate, at T = 2, else 1/L_i(0), which scales alone say;
    by default at the rate fixed beforehand. The rates of the other two are refined around the best
    ones, in at most `ROUNDS`.
    """
    problem, seeds = problem_of(settings, scales), seeds_of(settings, scales)
    variants = variants_of(problem, seeds, settings)
    count = f"T = {len(scales)}"
    more = runs_at(problem, seeds, settings, count)
    runs = {name: more(name, problem.rates) for name in METHODS}
    weights = runs["GradNorm"].average
    if len(scales) != 2:
        weights = (torch.tensor(scales, device=settings.device) ** -2).expand_as(weights)
    at = slice(None) if settings.full else problem.rates.index(RATE)
    fixed = Variants(*(leaf[at].reshape(-1, *leaf.shape[1:]) for leaf in (*variants[:2], weights)))
    static = train("weighted", problem, fixed, settings, f"static weights, {count}", seeds)
    rounds = ROUNDS[settings.full][scales == TWO]
    return {**refined(runs, more, rounds), "static": static}


def setting(problem: Problem, runs: Runs) -> str:
    """What a row says of its runs."""
    return (
        f"T = {len(problem.scales)}, {problem}, α = {ALPHA}, {runs.steps[-1]} steps, "
        f"{runs.test.shape[2]} seeds; fixed beforehand: {RATE:g}, Adam's own default, and "
        f"{OWN_RATE:g}, the rate of GradNorm's weights, of which the paper states none here"
    )


class Pair(NamedTuple):
    """Equal weights and GradNorm: final losses as judged, `[seed]`."""

    equal: np.ndarray
    learnt: np.ndarray
    # a rate at the edge of its grid, or neither has learnt anything
    open: bool
    # of the losses of rates next to the best ones, in half widths of the ratio's interval; None at
    # a rate that was not searched
    apart: float | None = None
    trained: bool = True  # equal weights end below an untrained network's loss
    rates: str = ""  # in words, of one at searched rates

    @property
    def ratio(self) -> Interval:
        return ratio_interval(self.learnt, self.equal)

    def named(self, name: str) -> dict[str, float]:
        """The ratio, as a claim's numbers; of weights that learn nothing their loss instead."""
        if not self.trained:
            return {f"{name}: equal weights learn nothing, mean loss": float(self.equal.mean())}
        found = named(name, self.ratio, unsettled=self.open)
        return found if self.apart is None else {**found, name + APART: self.apart}


def pair_of(results: Mapping[str, Runs]) -> Pair:
    """Each at its best rate."""
    both = equal, learnt = results["equal"], results["GradNorm"]
    rates = [spelled(runs.rates[i] for i in runs.choice()) for runs in both]
    return Pair(
        equal.judged(),
        learnt.judged(),
        any(runs.at_edge() for runs in both) or all(runs.untrained() for runs in both),
        neighbours_apart(results) if len(equal.rates) > 1 else None,
        not equal.learns_nothing(),
        f"equal {rates[0]}, GradNorm {rates[1]}",
    )


def pairs_of(results: Mapping[str, Runs]) -> dict[str, Pair]:
    """At the rate that is fixed beforehand, and each at its best."""
    return {
        AT_ONE: pair_of({name: runs.at(RATE) for name, runs in results.items()}),
        AT_BEST: pair_of(results),
    }
