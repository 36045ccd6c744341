"""Means over seeds with Student's t intervals, alone and several at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Estimate(NamedTuple):
    """A mean over seeds, its standard error, and the t interval around it."""

    mean: float
    error: float
    low: float
    high: float
    seeds: int

    @property
    def open(self) -> bool:
        """Whether 0 lies inside, or nothing is known."""
        return not (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float], comparisons: int = 1, level: float = 0.95) -> Estimate:
    """Mean, standard error and the interval of Student's t, over at least two seeds.

    Args:
        values: one a seed; for a comparison the differences, paired by seed.
        comparisons: with K > 1 the interval is Bonferroni's, at level 1 - (1 - level)/K, so that K
            such intervals hold together with probability at least `level`, however they depend on
            one another.
        level: of the interval, or of all K together.

    Returns:
        the estimate; NaN or infinite ends where a value is not finite.

    Raises:
        ValueError: for fewer than two values or less than one comparison.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"values: an interval needs at least 2 seeds, got {count}")
    if comparisons < 1:
        raise ValueError(f"comparisons: expected at least 1, got {comparisons}")
    if not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, math.nan, math.nan, count)
    mean = math.fsum(values) / count
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1) / count)
    reach = _reach(count, comparisons, level) * error
    return Estimate(mean, error, mean - reach, mean + reach, count)


def half_width(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Half a 95 % t interval of the mean over `axis`, which holds n >= 2 values."""
    count = values.shape[axis]
    return np.asarray(_reach(count) * values.std(axis, ddof=1) / np.sqrt(count))


def _reach(count: int, comparisons: int = 1, level: float = 0.95) -> float:
    """Half an interval's length in standard errors."""
    return float(stdtrit(count - 1, 1 - (1 - level) / comparisons / 2))


def paired(ours: Sequence[float], theirs: Sequence[float], comparisons: int = 1) -> Estimate:
    """The estimate of ours less theirs, seed by seed."""
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)], comparisons)


def against(
    values: Mapping[str, Sequence[float]], rival: str, comparisons: int = 0
) -> dict[str, Estimate]:
    """Of every other name the estimate of its values less the rival's, seed by seed; all of them
    hold together, or as many comparisons as there are. Nothing without the rival.
    """
    others = [name for name in values if name != rival] if rival in values else []
    count = comparisons or len(others)
    return {name: paired(values[name], values[rival], count) for name in others}


def verdicts(found: dict[str, Estimate], *, lower_is_better: bool = True) -> dict[str, list[str]]:
    """Names by what their intervals (of a difference to the one that they are compared with) say.

    Returns:
        `{"better": [...], "worse": [...], "no difference shown": [...], "failed": [...]}`, empty
        groups left out; failed is what has a run without a finite number.
    """
    groups: dict[str, list[str]] = {
        said: [] for said in ("better", "worse", "no difference shown", "failed")
    }
    for name, value in found.items():
        if not math.isfinite(value.mean):
            groups["failed"].append(name)
        elif value.open:
            groups["no difference shown"].append(name)
        else:
            groups["better" if (value.high < 0) == lower_is_better else "worse"].append(name)
    return {said: names for said, names in groups.items() if names}


def all_above(values: Iterable[Estimate | None]) -> str:
    """Whether every one of these differences is above 0.

    That all are takes no correction: the weakest of them decides. That one is not does: of many
    that are all above 0, some interval lies below by chance, the likelier the more there are.

    Args:
        values: their intervals; None where there is nothing to compare is left out.

    Returns:
        `"holds"` where all intervals lie above 0, `"does not hold"` where one lies below even when
        corrected for as many as there are here, else `"inconclusive"`; `""` for none.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if any(highest(value, len(known)) < 0 for value in known):
        return "does not hold"
    return "holds" if all(value.low > 0 for value in known) else "inconclusive"


def highest(value: Estimate, count: int) -> float:
    """The upper end, also when corrected for that many."""
    return max(value.high, value.mean + _reach(value.seeds, count) * value.error)


def pm(value: Estimate | None, digits: int = 2) -> str:
    """For a table: mean ± standard error."""
    return "–" if value is None else f"{value.mean:.{digits}f} ± {value.error:.{digits}f}"


def bracket(value: Estimate | None, digits: int = 2) -> str:
    """For a table: mean [low, high], with signs."""
    if value is None:
        return "–"
    return f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
