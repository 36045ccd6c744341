"""95 % intervals: Student's t over seeds, paired ratios, shares of draws."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtri, stdtrit
from torch import Tensor

from common.intervals import half_width


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: ArrayLike | Tensor) -> Interval:
    """The mean of `[seed]` and its t interval."""
    values = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):  # of runs that diverged: NaN, without a warning
        mean, half = float(values.mean()), float(half_width(values))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(numerator: ArrayLike | Tensor, denominator: ArrayLike | Tensor) -> Interval:
    """Geometric mean of ratios `[seed]`, paired by seed, with the t interval of their logs."""
    with np.errstate(invalid="ignore"):  # as above
        logs = np.log(np.asarray(numerator, float)) - np.log(np.asarray(denominator, float))
    return Interval(*(float(np.exp(x)) for x in mean_interval(logs)))


def share_interval(hits: int, draws: int) -> Interval:
    """Wilson's interval of a share of independent draws."""
    from scipy.stats import binomtest

    interval = binomtest(hits, draws).proportion_ci(0.95, "wilson")
    return Interval(hits / draws, float(interval.low), float(interval.high))


def clustered_share(shares: ArrayLike | Tensor) -> Interval:
    """Mean of shares, one a seed `[seed]`, with an interval within [0, 1]. Clopper and Pearson's
    exact interval at the number of independent draws whose mean would scatter as this one does
    (Korn & Graubard 1998), at least the number of seeds.
    """
    values = np.asarray(shares, dtype=float)
    seeds, mean = len(values), float(values.mean())
    square = float(values.var(ddof=1)) / seeds  # of the mean's standard error
    count = float(seeds)
    if 0 < mean < 1 and square > 0:
        few = (ndtri(0.975) / stdtrit(seeds - 1, 0.975)) ** 2
        count = max(count, few * mean * (1 - mean) / square)
    hits = mean * count
    low = betaincinv(hits, count - hits + 1, 0.025) if hits > 0 else 0.0
    high = betaincinv(hits + 1, count - hits, 0.975) if hits < count else 1.0
    return Interval(mean, float(low), float(high))


OPEN = ", settles nothing"
"""Ends the name of a number that is 1 where a configuration decides neither way: the best setting
lies at the edge of its grid, or neither side has learnt anything.
"""


def named(name: str, interval: Interval, *, unsettled: bool | None = None) -> dict[str, float]:
    """A mean and its two ends as three entries of `Claim.measured`, and whether it is `OPEN`."""
    ends = {name: interval.mean, f"{name}, low": interval.low, f"{name}, high": interval.high}
    return ends if unsettled is None else ends | {name + OPEN: float(unsettled)}
