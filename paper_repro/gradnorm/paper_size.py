"""The regressions at the paper's size: the runs that several questions share, and what they say."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..report.decisions import APART, settles_nothing
from ..report.findings import Settings
from ..report.grids import spelled
from ..report.intervals import Interval, named, ratio_interval
from .common import ALPHA, METHODS, RATE, TWO, Method, Problem, Runs, Variants, train, variants_of
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
    methods: dict[str, Method] = {name: method for method, name in METHODS.items()}

    def at(name: str, rates: tuple[float, ...]) -> Runs:
        one = problem._replace(rates=rates)
        variants = variants_of(one, seeds, settings)
        return train(methods[name], one, variants, settings, f"{name}: {about}", seeds)

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
    runs = {name: more(name, problem.rates) for name in METHODS.values()}
    learnt = runs["GradNorm"]
    at = slice(None) if settings.full else problem.rates.index(RATE)
    reciprocal = torch.tensor(scales, device=settings.device) ** -2
    weights = learnt.average if len(scales) == 2 else reciprocal.expand_as(learnt.average)
    fixed = Variants(*(leaf[at].reshape(-1, *leaf.shape[1:]) for leaf in (*variants[:2], weights)))
    static = train("weighted", problem, fixed, settings, f"static weights, {count}", seeds)
    rounds = ROUNDS[settings.full][scales == TWO]
    return {**(refined(runs, more, rounds) if rounds else runs), "static": static}


def setting(problem: Problem, runs: Runs) -> str:
    """What a row says of its runs."""
    return (
        f"T = {len(problem.scales)}, {problem}, α = {ALPHA}, {runs.steps[-1]} steps, "
        f"{runs.test.shape[2]} seeds; {RATE:g} is Adam's own default, fixed beforehand; so is the "
        f"rate of GradNorm's weights, {problem.own:g}, of which the paper states none here"
    )


class Pair(NamedTuple):
    """Equal weights and GradNorm: final losses as judged, `[seed]`."""

    equal: np.ndarray
    learnt: np.ndarray
    equal_rates: Sequence[float]
    learnt_rates: Sequence[float]
    # a rate at the edge of its grid, or neither has learnt anything
    open: bool
    # of the losses of rates next to the best ones, in half widths of the ratio's interval; None at
    # a rate that was not searched
    apart: float | None = None
    trained: bool = True  # equal weights end below an untrained network's loss

    @property
    def ratio(self) -> Interval:
        return ratio_interval(self.learnt, self.equal)

    @property
    def rates(self) -> str:
        return f"equal {spelled(self.equal_rates)}, GradNorm {spelled(self.learnt_rates)}"

    @property
    def settles_nothing(self) -> bool:
        """Of one at searched rates; also of weights that learn nothing."""
        return not self.trained or settles_nothing(self.named(AT_BEST), AT_BEST)

    def named(self, name: str) -> dict[str, float]:
        """The ratio, as a claim's numbers; of weights that learn nothing their loss instead."""
        if not self.trained:
            return {f"{name}: equal weights learn nothing, mean loss": float(self.equal.mean())}
        found = named(name, self.ratio, unsettled=self.open)
        return found if self.apart is None else {**found, name + APART: self.apart}


def pair_of(results: Mapping[str, Runs]) -> Pair:
    """Each at its best rate."""
    both = equal, learnt = results["equal"], results["GradNorm"]
    return Pair(
        equal.judged(),
        learnt.judged(),
        equal.judged_rates(),
        learnt.judged_rates(),
        any(runs.at_edge() for runs in both) or all(runs.untrained() for runs in both),
        neighbours_apart(results) if len(equal.rates) > 1 else None,
        not equal.learns_nothing(),
    )


def pairs_of(results: Mapping[str, Runs]) -> dict[str, Pair]:
    """At the rate that is fixed beforehand, and each at its best."""
    return {
        AT_ONE: pair_of({name: runs.at(RATE) for name, runs in results.items()}),
        AT_BEST: pair_of(results),
    }
