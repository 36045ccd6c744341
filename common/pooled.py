"""Several settings together: what a design of paired seeds can see, and what it shows."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import bootstrap, nct

from common.intervals import Estimate


def seen(deviation: float, seeds: int, level: float, share: float = 0.9) -> float:
    """The difference that a t test of paired differences shows in this share of studies.

    Args:
        deviation: of one difference.
        seeds: n >= 2 of them.
        level: of the test, two-sided.
        share: of the studies, at least .5.
    """
    degrees = seeds - 1
    bound = stdtrit(degrees, 1 - level / 2)

    def missed(distance: float) -> float:
        return float(nct.sf(bound, degrees, distance)) - share  # the other side adds < 1e-6

    distance: Any = brentq(missed, 0.0, 2 * bound + 2)
    return distance * deviation / math.sqrt(seeds)


class Pooled(NamedTuple):
    """A paired difference in the mean over the settings."""

    mixed: Estimate  # by the mixed model, 95 %
    p: float  # of a mean of 0 by the mixed model
    drawn: Estimate  # by the bootstrap, 95 %


def pooled(values: np.ndarray) -> Pooled:
    """Differences `[setting, seed]`, at least two of each, by a mixed model and by a bootstrap.

    The settings are fixed effects that sum to 0, a seed is a random effect of all its settings, and
    the mean has Student's t with one degree less than there are seeds. The bootstrap draws seeds,
    each with all its settings.
    """
    import statsmodels.api as sm  # a second

    sets, seeds = values.shape
    contrasts = np.vstack([np.eye(sets - 1), -np.ones(sets - 1)])  # they sum to 0 over the sets
    design = np.hstack([np.ones((values.size, 1)), np.repeat(contrasts, seeds, 0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed's own variance is 0, which it may be
        model = sm.MixedLM(values.ravel(), design, np.tile(np.arange(seeds), sets))
        found: Any = model.fit(reml=True)
    mean, error = float(found.fe_params[0]), float(found.bse_fe[0])
    reach = float(stdtrit(seeds - 1, 0.975)) * error
    options: Any = {"n_resamples": 9999, "method": "BCa", "random_state": 0}
    drawn = bootstrap((values.mean(0),), np.mean, **options)
    ends = drawn.confidence_interval
    return Pooled(
        Estimate(mean, error, mean - reach, mean + reach, seeds),
        2 * float(stdtr(seeds - 1, -abs(mean) / error)),
        Estimate(mean, float(drawn.standard_error), float(ends.low), float(ends.high), seeds),
    )


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each of a family."""
    order, largest = np.argsort(values), 0.0
    found = [0.0] * len(values)
    for rank, i in enumerate(order):
        largest = max(largest, min((len(values) - rank) * values[i], 1.0))
        found[i] = largest
    return found


def said(mean: float, p: float) -> str:
    """What an adjusted p says of a difference."""
    return "not shown" if not p < 0.05 else "above" if mean > 0 else "below"
