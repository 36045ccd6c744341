"""Three sets of pairs together: what a design can see, and what its runs show."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import bootstrap, nct, ttest_1samp

from common.intervals import Estimate, bracket
from common.tables import markdown

SHOWN = ("nash-mtl", "uw", "pcgrad", "cagrad", "mgda", "gradnorm")


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


def differences(path: Path) -> dict[str, np.ndarray]:
    """Of the first study, by rule `[set, seed]`: accuracy less the mean loss's, in points."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SHOWN}
    for kept in json.loads(path.read_text(encoding="utf-8")).values():
        runs = kept["accuracies"]["hard sharing"]
        level = {name: 100 * np.mean([*runs[name].values()], 0) for name in ("mean", *SHOWN)}
        for name, rows in found.items():
            rows.append(level[name] - level["mean"])
    return {name: np.stack(rows) for name, rows in found.items()}


def power(path: Path, rivals: int, counts: tuple[int, ...]) -> str:
    """A table of the differences, in the mean over the sets, that are shown nine times of ten.

    The deviation of a seed's mean over the sets is that of the first study's five, or that of its
    sets if they were independent, whichever is larger.

    Args:
        path: accuracies of the first study.
        rivals: of one family; Holm's first step has a level of .05 / rivals, its last one of .05.
        counts: of seeds.
    """
    lines = []
    for name, rows in differences(path).items():
        own = rows.mean(0).std(ddof=1)
        apart = math.sqrt((rows.var(1, ddof=1)).sum()) / len(rows)
        deviation = max(own, apart)
        line = [name, f"{rows.mean():+.2f}", f"{own:.2f}", f"{apart:.2f}"]
        for count in counts:
            first, last = (seen(deviation, count, level) for level in (0.05 / rivals, 0.05))
            line.append(f"{first:.2f} to {last:.2f}")
        lines.append(line)
    columns = ["rule", "first study's mean", "deviation of a seed's mean", "if independent"]
    return markdown(columns + [f"seen with {count} seeds" for count in counts], lines)


class Pooled(NamedTuple):
    """Paired differences in the mean over the sets, in points."""

    mixed: Estimate  # by the mixed model, 95 %
    p: float  # of a mean of 0 by the mixed model
    drawn: Estimate  # by the bootstrap, 95 %


def pooled(values: np.ndarray) -> Pooled:
    """Differences `[set, seed]`, at least two of each, by both analyses."""
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


def rivals_table(
    levels: Mapping[str, np.ndarray], rivals: Sequence[str], sets: Sequence[str]
) -> str:
    """Each rival less the mean loss, the sets together and each alone.

    Args:
        levels: accuracies `[set, seed]` by method, in points.
        rivals: the family.
        sets: their names.
    """
    less = {name: levels[name] - levels["mean"] for name in rivals}
    found = {name: pooled(values) for name, values in less.items()}
    together = holm([each.p for each in found.values()])
    alone: Any = [ttest_1samp(x, 0.0, axis=1) for x in less.values()]
    single = [holm(p) for p in zip(*(each.pvalue for each in alone), strict=True)]
    lines = []
    for k, (name, each) in enumerate(found.items()):
        verdict = said(each.mixed.mean, together[k])
        if verdict != "not shown":
            verdict += ", not confirmed" * each.drawn.open
        own = [(less[name][i].mean(), p[k]) for i, p in enumerate(single)]
        lines.append([name, bracket(each.mixed), f"{together[k]:.2g}", bracket(each.drawn)])
        shown = [f"{mean:+.2f}, p {p:.2g}, {said(mean, p)}" for mean, p in own]
        lines[-1] += [f"**{verdict}**", *shown]
    columns = ["less the mean loss, points", "mixed model", "Holm's p", "bootstrap", "verdict"]
    return markdown([*columns, *sets], lines)


def arms_table(levels: Mapping[str, np.ndarray], nash: str, arms: Sequence[str]) -> str:
    """Each arm less the mean loss and Nash-MTL less each: whether the arm keeps Nash-MTL's gain."""
    found = [pooled(levels[name] - levels["mean"]) for name in arms]
    found += [pooled(levels[nash] - levels[name]) for name in arms]
    p = holm([each.p for each in found])
    lines = []
    for k, name in enumerate(arms):
        gain, rest = (said(found[i].mixed.mean, p[i]) for i in (k, k + len(arms)))
        verdict = "loses" if rest == "above" else "keeps" if gain == "above" else "open"
        lines.append([name, f"**{verdict}**"])
        for i in (k, k + len(arms)):
            lines[-1] += [bracket(found[i].mixed), f"{p[i]:.2g}", bracket(found[i].drawn)]
    columns = ["arm", "Nash-MTL's gain", "less the mean loss", "Holm's p", "bootstrap"]
    return markdown([*columns, "Nash-MTL less it", "Holm's p", "bootstrap"], lines)
