"""Several settings together: what a design of paired seeds can see, and what it shows."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import bootstrap, kendalltau, ttest_1samp

from common.intervals import Estimate, bracket, estimate, pm
from common.tables import markdown


def seen(deviation: float, seeds: int, level: float, share: float = 0.9) -> float:
    """The difference that a t test of paired differences shows in this share of studies.

    Args:
        deviation: of one difference.
        seeds: n >= 2 of them.
        level: of the test, two-sided.
        share: of the studies.
    """
    from statsmodels.stats.power import TTestPower  # a second

    return deviation * float(TTestPower().solve_power(nobs=seeds, alpha=level, power=share))


class Pooled(NamedTuple):
    """A paired difference in the mean over the settings."""

    mixed: Estimate  # by the mixed model, 95 %
    p: float  # of a mean of 0 by the mixed model
    drawn: Estimate  # by the bootstrap, 95 %


def mixed_model(values: np.ndarray) -> tuple[Estimate, float]:
    """The mean of differences `[setting, seed]`, at least two of each, and p of a mean of 0.

    The settings are fixed effects that sum to 0, a seed is a random effect of all its settings, and
    the mean has Student's t with one degree less than there are seeds.
    """
    import statsmodels.api as sm  # a second

    if np.ptp(values, axis=1).max() == 0:  # which has no model
        same = estimate([*map(float, values.mean(0))])
        return same, float(same.mean == 0)
    sets, seeds = values.shape
    contrasts = np.vstack([np.eye(sets - 1), -np.ones(sets - 1)])  # they sum to 0 over the sets
    design = np.hstack([np.ones((values.size, 1)), np.repeat(contrasts, seeds, 0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed's own variance is 0, which it may be
        model = sm.MixedLM(values.ravel(), design, np.tile(np.arange(seeds), sets))
        # the default optimizer stops early at that end, with too large a standard error
        found: Any = model.fit(reml=True, method="powell")
    mean, error = float(found.fe_params[0]), float(found.bse_fe[0])
    reach = float(stdtrit(seeds - 1, 0.975)) * error
    mixed = Estimate(mean, error, mean - reach, mean + reach, seeds)
    return mixed, 2 * float(stdtr(seeds - 1, -abs(mean) / error))


def pooled(values: np.ndarray) -> Pooled:
    """`mixed_model`, and a bootstrap that draws seeds, each with all its settings."""
    return Pooled(*mixed_model(values), _drawn(values.mean(0)))


def alone(values: Sequence[float]) -> Pooled:
    """Differences of one setting `[seed]`, by Student's t and by a bootstrap of the seeds."""
    test: Any = ttest_1samp(values, 0.0)
    return Pooled(estimate(values), float(test.pvalue), _drawn(np.array(values)))


def _drawn(values: np.ndarray) -> Estimate:
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return estimate([*map(float, values)])
    options: Any = {"n_resamples": 9999, "method": "BCa", "random_state": 0}
    drawn = bootstrap((values,), np.mean, **options)
    ends = drawn.confidence_interval
    mean, error = float(values.mean()), float(drawn.standard_error)
    return Estimate(mean, error, float(ends.low), float(ends.high), len(values))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each of a family."""
    from statsmodels.stats.multitest import multipletests

    adjusted: Any = multipletests(values, method="holm")[1]
    return [float(p) for p in adjusted]


def said(mean: float, p: float) -> str:
    """What an adjusted p says of a difference."""
    return "not shown" if not p < 0.05 else "above" if mean > 0 else "below"


def power_table(differences: Mapping[str, np.ndarray], rivals: int, counts: tuple[int, ...]) -> str:
    """A table of the differences, in the mean over the settings, that are shown nine times of ten.

    The deviation of a seed's mean over the settings is that of the earlier runs, or that of their
    settings if they were independent, whichever is larger.

    Args:
        differences: of an earlier study, `[setting, seed]` by rule.
        rivals: of one family; Holm's first step has a level of .05 / rivals, its last one of .05.
        counts: of seeds.
    """
    lines = []
    for name, rows in differences.items():
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


class Judged(NamedTuple):
    """A rival less the mean loss."""

    found: Pooled
    p: float  # Holm's
    verdict: str


def against_mean(levels: Mapping[str, np.ndarray], rivals: Sequence[str]) -> dict[str, Judged]:
    """Each rival less the mean loss in the mean over the sets.

    Args:
        levels: accuracies `[set, seed]` by method, in points.
        rivals: the family.
    """
    found = [pooled(levels[name] - levels["mean"]) for name in rivals]
    adjusted = holm([each.p for each in found])
    verdicts = [said(each.mixed.mean, p) for each, p in zip(found, adjusted, strict=True)]
    for k, each in enumerate(found):
        if verdicts[k] != "not shown":
            verdicts[k] += ", not confirmed" * each.drawn.open
    return dict(zip(rivals, map(Judged, found, adjusted, verdicts), strict=True))


def rivals_table(
    judged: Mapping[str, Judged], levels: Mapping[str, np.ndarray], sets: Sequence[str]
) -> str:
    """What `against_mean` gave, and each set alone, whose names are `sets`."""
    less = {name: levels[name] - levels["mean"] for name in judged}
    alone: Any = [ttest_1samp(x, 0.0, axis=1) for x in less.values()]
    single = [holm(p) for p in zip(*(each.pvalue for each in alone), strict=True)]
    lines = []
    for k, (name, each) in enumerate(judged.items()):
        own = [(less[name][i].mean(), p[k]) for i, p in enumerate(single)]
        lines.append([name, bracket(each.found.mixed), f"{each.p:.2g}", bracket(each.found.drawn)])
        shown = [f"{mean:+.2f}, p {p:.2g}, {said(mean, p)}" for mean, p in own]
        lines[-1] += [f"**{each.verdict}**", *shown]
    columns = ["less the mean loss, points", "mixed model", "Holm's p", "bootstrap", "verdict"]
    legend = (
        f"Intervals are of 95 %, one at a time. p and the verdicts are Holm's over {len(judged)} "
        "methods, in each set as well. What is not shown may be as large as the interval says."
    )
    return f"{legend}\n\n{markdown([*columns, *sets], lines)}"


def broken(levels: np.ndarray) -> int:
    """How many runs end below 20 % right: they broke down."""
    return int((levels < 20).sum())


def levels_table(
    rates: Mapping[str, Sequence[str]],
    levels: Mapping[str, np.ndarray],
    deltas: Mapping[str, np.ndarray],
    sets: Sequence[str],
) -> str:
    """By method its rates, accuracies on the sets in per cent, how many runs broke down, Δm where
    it has one.
    """
    lines = []
    for name, values in levels.items():
        own = [pm(estimate([*x])) for x in values] + [f"{broken(values)}"]
        lines.append([name, *rates[name], *own])
        if deltas:
            lines[-1].append(pm(estimate([*deltas[name]]) if name in deltas else None, 1))
    columns = ["method", *(f"rate, {x}" for x in sets), *(f"{x}, %" for x in sets)]
    return markdown([*columns, "runs below 20 %"] + ["Δm, %"] * bool(deltas), lines)


def panels(
    levels: Mapping[str, np.ndarray], names: Sequence[str], sets: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Differences to the mean loss, all sets together and each alone, the lowest first."""
    less = {name: levels[name] - levels["mean"] for name in names}
    names = sorted(less, key=lambda name: less[name].mean())
    found = {"all sets, points": {name: mixed_model(less[name])[0] for name in names}}
    for i, which in enumerate(sets):
        found[f"{which}, points"] = {name: estimate([*less[name][i]]) for name in names}
    return found


class Arm(NamedTuple):
    """Whether an arm keeps Nash-MTL's gain, its own gain, and what Nash-MTL gains beyond it."""

    verdict: str
    gain: Judged
    rest: Judged


def against_arms(levels: Mapping[str, np.ndarray], nash: str, arms: Sequence[str]) -> list[Arm]:
    """Each arm less the mean loss and Nash-MTL less each, as one family."""
    found = [pooled(levels[name] - levels["mean"]) for name in arms]
    found += [pooled(levels[nash] - levels[name]) for name in arms]
    p = holm([each.p for each in found])
    judged = [Judged(x, q, said(x.mixed.mean, q)) for x, q in zip(found, p, strict=True)]
    pairs = zip(judged[: len(arms)], judged[len(arms) :], strict=True)
    return [Arm(_kept(gain.verdict, rest.verdict), gain, rest) for gain, rest in pairs]


def _kept(gain: str, rest: str) -> str:
    return "loses" if rest == "above" else "keeps" if gain == "above" else "open"


def arms_table(
    levels: Mapping[str, np.ndarray], nash: str, arms: Sequence[str], *, gains: bool
) -> str:
    """What `against_arms` gave, if Nash-MTL `gains` anything."""
    lines = []
    for name, arm in zip(arms, against_arms(levels, nash, arms), strict=True):
        lines.append([name, f"**{arm.verdict if gains else 'no gain shown'}**"])
        for each in arm[1:]:
            one = each.found
            lines[-1] += [bracket(one.mixed), f"{each.p:.2g}", bracket(one.drawn)]
    columns = ["arm", "Nash-MTL's gain", "arm − mean loss", "Holm's p", "bootstrap"]
    table = markdown([*columns, "Nash-MTL − arm", "Holm's p", "bootstrap"], lines)
    legend = (
        "Differences of accuracy in points, in the mean over all settings, with 95 % intervals, "
        f"one at a time. p is Holm's over all differences. Nash-MTL is `{nash}`. An arm keeps its "
        "gain where the arm is shown to be above the mean loss and Nash-MTL is not shown to be "
        "above the arm. It loses the gain, or a part of it, where Nash-MTL is shown to be."
    )
    return f"{legend}\n\n{table}"


def ranked(levels: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Methods by their mean over seeds, the lowest first, and those with a failed run last."""
    means = {name: float(np.mean([*own.values()])) for name, own in levels.items()}
    return sorted(means, key=lambda name: (math.isnan(means[name]), means[name]))


def alone_table(
    levels: Mapping[str, Mapping[int, float]],
    rivals: Sequence[str],
    more: Mapping[str, Sequence[str]],
    columns: Sequence[str],
) -> str:
    """Each method less the mean loss in one number, the lower the better, and the best first.

    Args:
        levels: by method and seed; NaN of a run that failed.
        rivals: Holm's family; those that have not run count with p = 1. Others get no verdict.
        more: other cells by method.
        columns: of these cells, and the number's name as the last.
    """
    found = dict[str, Pooled]()
    for name, own in levels.items():
        both = [k for k in own if k in levels["mean"]]
        if name != "mean" and len(both) > 1:
            found[name] = alone([own[k] - levels["mean"][k] for k in both])
    p = [found[x].p if x in found and math.isfinite(found[x].p) else 1.0 for x in rivals]
    adjusted, lines = dict(zip(rivals, holm(p), strict=True)), []
    for name in ranked(levels):
        line = [name, *more[name], pm(estimate([*levels[name].values()]), 1)]
        if name in found:
            line += [bracket(found[name].mixed, 1), bracket(found[name].drawn, 1)]
            verdict = said(found[name].mixed.mean, adjusted.get(name, 1.0))
            verdict = {"above": "worse", "below": "better"}.get(verdict, verdict)
            verdict = verdict if all(map(math.isfinite, levels[name].values())) else "failed"
            given = [f"{adjusted[name]:.2g}", f"**{verdict}**"] if name in rivals else ["–", "–"]
            lines.append(line + given)
        else:
            lines.append([*line, *["–"] * 4])
    rest = ["less the mean loss's", "bootstrap", "Holm's p", "verdict"]
    return markdown(["method", *columns, *rest], lines)


def agreement(
    published: Mapping[str, float], levels: Mapping[str, Mapping[int, float]]
) -> tuple[Estimate, float, int]:
    """How far a published order of methods is found.

    Args:
        published: a number by method.
        levels: the same number here by method and seed.

    Returns:
        Kendall's τ to the means over seeds with a 95 % percentile bootstrap of the seeds; p of the
        exact test of no order; how many methods there are, without those of which a run failed. NaN
        for fewer than three, or than two seeds that all of them have.
    """
    names = [x for x in published if x in levels and all(map(math.isfinite, levels[x].values()))]
    seeds = sorted(set.intersection(*({*levels[name]} for name in names))) if names else []
    if len(names) < 3 or len(seeds) < 2:
        none = math.nan
        return Estimate(none, none, none, none, len(seeds)), none, len(names)
    here = np.array([[levels[name][seed] for seed in seeds] for name in names])
    there = [published[name] for name in names]

    def tau(index: np.ndarray) -> float:
        found: Any = kendalltau(there, here[:, index].mean(1))
        return float(found.statistic)

    options: Any = {"n_resamples": 1999, "method": "percentile", "random_state": 0}
    every = np.arange(len(seeds))
    drawn = bootstrap((every,), tau, vectorized=False, **options)
    low, high = map(float, drawn.confidence_interval)
    test: Any = kendalltau(there, here.mean(1))
    found = Estimate(tau(every), float(drawn.standard_error), low, high, len(seeds))
    return found, float(test.pvalue), len(names)


def order(published: Mapping[str, float], levels: Mapping[str, Mapping[int, float]]) -> str:
    """`agreement` in a sentence."""
    found, p, count = agreement(published, levels)
    failed = [x for x in published if not all(map(math.isfinite, levels.get(x, {}).values()))]
    left = f" Left out, since a run failed: {', '.join(failed)}." * bool(failed)
    if math.isnan(found.mean):
        few = "fewer than three published methods have finite numbers on the same two seeds"
        return f"The order: {few}.{left}"
    verdict = "repeats" if found.low > 0 else "is reversed" if found.high < 0 else "is open"
    return (
        f"The published order of {count} methods **{verdict}**: Kendall's τ {bracket(found)} over "
        f"seeds. For a random order p is {p:.2g}.{left}"
    )
