"""Learning rates refined around each contender's best, until the ratio of both is settled."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..report.bounds import GAP
from ..report.intervals import Interval, ratio_interval
from .common import METHODS, Runs

More = Callable[[str, tuple[float, ...]], Runs]


def refined(runs: Mapping[str, Runs], more: More, rounds: int) -> dict[str, Runs]:
    """The runs with further rates: at factors 2^±1/2 of the best ones, then 2^±1/4, and so on.

    A rate is added on a side where there is none yet, or where the next one's loss differs from the
    best one's by more than `GAP` half widths of the ratio's interval. No round begins without
    such a side.
    """
    found, before = dict(runs), ratio_of(runs)
    for number in range(1, rounds + 1):
        half = half_of(before)
        wanted = {name: added(found[name], 2**0.5**number, half) for name in METHODS}
        if not any(wanted.values()):
            break
        for name, rates in wanted.items():
            if rates:
                found[name] = together(found[name], more(name, rates))
        before = ratio_of(found)
    return found


def ratio_of(runs: Mapping[str, Runs]) -> Interval:
    """GradNorm's loss over equal weights', each at its best rate."""
    return ratio_interval(*(runs[name].judged() for name in reversed(METHODS)))


def half_of(ratio: Interval) -> float:
    """Half the width of its interval, of the logarithm."""
    return float(np.log(ratio.high / ratio.low) / 2)


def added(runs: Runs, factor: float, half: float) -> tuple[float, ...]:
    """Rates to run next, by this factor from the best ones."""
    rates = set()
    for best in set(runs.choice().tolist()):
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
    half = half_of(ratio_of(runs))
    most = max(
        apart(one, best, best + step)
        for one in (runs[name] for name in METHODS)
        for best in set(one.choice().tolist())
        for step in (-1, 1)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(most) / half)


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
