"""The regressions at the paper's size: the runs that several questions share, and what they say."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from ..report.bounds import GAP
from ..report.decisions import APART
from ..report.findings import Settings
from ..report.intervals import Interval, named, ratio_interval
from .common import ALPHA, METHODS, OWN_RATE, RATE, TWO, Problem, Runs, Variants, train, variants_of

# at T = 10, and at T = 2; by default, and with --full
ROUNDS = ((0, 1), (4, 2))
More = Callable[[str, tuple[float, ...]], Runs]
"""What trains a method, by its name of METHODS, at any rates."""
AT_ONE, AT_BEST = f"at Adam {RATE:g} for both", "each at its best rate"


def problem_of(settings: Settings, scales: tuple[float, ...] = TWO) -> Problem:
    """The paper's, for as long as there is time: a step of ten tasks takes twice as long."""
    if settings.full:
        rates = (3e-4, RATE, 3e-3, 1e-2, 3e-2)
        return Problem(scales, rates=rates if scales == TWO else rates[:-1], steps=2000)
    return Problem(scales) if scales == TWO else Problem(scales, rates=(RATE, 3e-3), steps=500)


def runs_at(problem: Problem, seeds: int, settings: Settings, about: str) -> More:
    def at(name: str, rates: tuple[float, ...]) -> Runs:
        one = problem._replace(rates=rates)
        variants = variants_of(one, seeds, settings)
        return train(METHODS[name], one, variants, settings, f"{name}: {about}", seeds)

    return at


def default_runs(settings: Settings, scales: tuple[float, ...] = TWO) -> dict[str, Runs]:
    """Equal, learnt and static weights at the paper's size. Static: GradNorm's average over time,
    paired with the run of its own learning rate, at T = 2, else 1/L_i(0), which scales alone say;
    by default at the rate fixed beforehand. The rates of the other two are refined around the best
    ones, in at most `ROUNDS`. Seeds are fewer at T = 10, where ratios scatter less.
    """
    few, many = (8, 16) if settings.full else (3, 4)
    seeds = max(2, (many if scales == TWO else few) * settings.seeds // 16)
    problem = problem_of(settings, scales)
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


def refined(runs: Mapping[str, Runs], more: More, rounds: int) -> dict[str, Runs]:
    """The runs with further rates: at factors 2^±1/2 of the best ones, then 2^±1/4, and so on.

    A rate is added on a side where there is none yet, or where the next one's loss differs from the
    best one's by more than `GAP` half widths of the ratio's interval. No round begins without
    such a side.
    """
    found = dict(runs)
    for number in range(1, rounds + 1):
        half = half_of(found)
        wanted = {name: added(found[name], 2**0.5**number, half) for name in METHODS}
        if not any(wanted.values()):
            break
        for name, rates in wanted.items():
            if rates:
                found[name] = together(found[name], more(name, rates))
    return found


def ratio_of(runs: Mapping[str, Runs]) -> Interval:
    """GradNorm's loss over equal weights', each at its best rate."""
    return ratio_interval(*(runs[name].picked().scores for name in reversed(METHODS)))


def half_of(runs: Mapping[str, Runs]) -> float:
    """Half the width of that ratio's interval, of the logarithm."""
    return float(np.log(ratio_of(runs).high / ratio_of(runs).low) / 2)


def added(runs: Runs, factor: float, half: float) -> tuple[float, ...]:
    """Rates to run next, by this factor from the best ones."""
    rates = set()
    for best in set(runs.picked().choice.tolist()):
        for side, other in ((1 / factor, best - 1), (factor, best + 1)):
            if apart(runs, best, other) > GAP * half:
                rates.add(float(f"{runs.rates[best] * side:.3g}"))
    return tuple(sorted(rates - set(runs.rates)))


def apart(runs: Runs, best: int, other: int) -> float:
    """|log| of the ratio of two rates' losses; infinite where such a rate is missing."""
    if not 0 <= other < len(runs.rates):
        return float("inf")
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = float(np.log(runs.final()[other] / runs.final()[best]).mean())
    return abs(difference) if np.isfinite(difference) else float("inf")


def neighbours_apart(runs: Mapping[str, Runs]) -> float:
    """How far the losses of the rates next to the best ones are from theirs, the largest. In half
    widths of the ratio's interval; infinite for a best rate at an edge.
    """
    most = max(
        apart(one, best, best + step)
        for one in (runs[name] for name in METHODS)
        for best in set(one.picked().choice.tolist())
        for step in (-1, 1)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(most) / half_of(runs))


def together(*parts: Runs) -> Runs:
    """Runs of one method at several sets of rates, rates in their order."""
    rates = [rate for part in parts for rate in part.rates]
    order = np.argsort(rates)
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts], 1)[:, order]
        for name in ("test", "weights", "lengths")
    }
    average = torch.cat([part.average for part in parts])[torch.as_tensor(order)]
    return parts[0]._replace(average=average, rates=[rates[i] for i in order], **joined)


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
    first, second = equal.picked(), learnt.picked()
    return Pair(
        first.scores,
        second.scores,
        first.edge or second.edge or all(runs.untrained() for runs in both),
        neighbours_apart(results) if len(equal.rates) > 1 else None,
        not equal.learns_nothing(),
        f"equal {first.settings}, GradNorm {second.settings}",
    )


def pairs_of(results: Mapping[str, Runs]) -> dict[str, Pair]:
    """At the rate that is fixed beforehand, and each at its best."""
    return {
        AT_ONE: pair_of({name: runs.at(RATE) for name, runs in results.items()}),
        AT_BEST: pair_of(results),
    }
