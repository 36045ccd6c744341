"""95 % intervals: Student's t over seeds, paired ratios, shares of draws."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def half_width(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Half a 95 % t interval of the mean over `axis`, which holds n >= 2 values."""
    n = values.shape[axis]
    return stats.t.ppf(0.975, n - 1) * values.std(axis, ddof=1) / np.sqrt(n)


def mean_interval(values: ArrayLike | Tensor) -> Interval:
    """The mean of `[seed]` and its t interval."""
    values = np.asarray(values, dtype=float)
    mean, half = float(values.mean()), float(half_width(values))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(numerator: ArrayLike | Tensor, denominator: ArrayLike | Tensor) -> Interval:
    """Geometric mean of ratios `[seed]`, paired by seed, with the t interval of their logs."""
    logs = np.log(np.asarray(numerator, dtype=float)) - np.log(np.asarray(denominator, dtype=float))
    return Interval(*(float(np.exp(x)) for x in mean_interval(logs)))


def share_interval(hits: int, draws: int) -> Interval:
    """Wilson's interval of a share of independent draws."""
    interval = stats.binomtest(hits, draws).proportion_ci(0.95, "wilson")
    return Interval(hits / draws, float(interval.low), float(interval.high))


def named(name: str, interval: Interval) -> dict[str, float]:
    """A mean and its two ends as three entries of `Claim.measured`."""
    return {name: interval.mean, f"{name}, low": interval.low, f"{name}, high": interval.high}
