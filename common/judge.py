"""Verdicts from numbers of many seeds: which gains are above 0, and which of them decides."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mtlfunc as mf

from .intervals import Estimate, all_above, highest, paired

ARCHITECTURES = ("hard sharing", "task-conditioned", "soft attention", "cross-stitch")
BOTH = "two networks"
Values = dict[str, dict[str, list[float]]]
"""By measure and method, one number a seed, the larger the better."""


class Judged(NamedTuple):
    """What a run says."""

    verdict: str
    gains: dict[str, Estimate]  # what was judged; above 0 speaks for the claim
    decisive: str  # the gain on which the verdict hangs
    levels: dict[str, Estimate] = {}  # noqa: RUF012  what stands next to published numbers


def delta_m(
    test: Mapping[str, float], base: Mapping[str, float], higher_is_better: bool = True
) -> float:
    """Δm flat over metrics that are alike, lower is better, in per cent; NaN where a base is 0 or a
    run has failed.
    """
    if not all(base.values()) or not all(map(math.isfinite, (*test.values(), *base.values()))):
        return math.nan
    return mf.diagnostics.delta_m(dict(test), dict(base), dict.fromkeys(test, higher_is_better))


def columns(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    return {task: [run["test"][task] for run in runs] for task in runs[0]["test"]}


def accuracies(setting: str, tests: Mapping[str, Mapping[str, list[float]]]) -> Values:
    """Mean over both tasks, and each of them; the networks that learnt one together as one."""
    joint = {name: test for name, test in tests.items() if len(test) == 2}
    joint[BOTH] = {task: x for test in tests.values() if len(test) == 1 for task, x in test.items()}
    found = {
        f"{setting}, {task}": {name: [100 * x for x in test[task]] for name, test in joint.items()}
        for task in ("left", "right")
    }
    left, right = found.values()
    mean = {n: [(a + b) / 2 for a, b in zip(left[n], right[n], strict=True)] for n in joint}
    return {setting: mean, **found}


def above(found: Values, measure: str, ours: str, rivals: Sequence[str]) -> dict[str, Estimate]:
    """Gains on rivals that ran, in one measure, corrected for their number."""
    every = found[measure]
    there = [name for name in rivals if name in every and name != ours]
    return {
        f"{measure}: {ours} − {name}": paired(every[ours], every[name], len(there))
        for name in there
    }


def every_one(gains: dict[str, Estimate], levels: dict[str, Estimate] | None = None) -> Judged:
    """Holds where all gains are above 0; the lowest decides, and against it the surest below 0.

    One without a number, of a run that failed, keeps it from holding.
    """
    said = all_above(gains.values())
    against = said == "does not hold"
    failed = math.inf if against else -math.inf
    ends = {k: highest(x, len(gains)) if against else x.low for k, x in gains.items()}
    found = min(ends, key=lambda k: failed if math.isnan(ends[k]) else ends[k])
    return Judged(said, gains, found, levels or {})


def some_one(gains: dict[str, Estimate]) -> Judged:
    """Holds where one gain is above 0 when corrected for all, and not where all are below; the
    surest decides that it holds, else the one whose interval ends highest.
    """
    turned = [x._replace(mean=-x.mean, low=-x.high, high=-x.low) for x in gains.values()]
    said = {"holds": "does not hold", "does not hold": "holds"}
    verdict = said.get(all_above(turned), "inconclusive")
    # what is above 0 is so by its ratio to its error, whatever all are corrected for
    sure = {k: x.mean / x.error if x.error else x.mean * math.inf for k, x in gains.items()}
    ends = sure if verdict == "holds" else {k: x.high for k, x in gains.items()}
    best = max(ends, key=lambda name: -math.inf if math.isnan(ends[name]) else ends[name])
    return Judged(verdict, gains, best)


def alone(found: Values, settings: Sequence[str]) -> dict[str, Estimate]:
    parts = [f"{setting}, {task}" for setting in settings for task in ("left", "right")]
    return {k: v for part in parts for k, v in above(found, part, BOTH, ["mean"]).items()}


def over(
    found: Values, measures: Sequence[str], ours: str, rivals: Sequence[str]
) -> dict[str, Estimate]:
    return {k: v for m in measures for k, v in above(found, m, ours, rivals).items()}


def settings_of(found: Values) -> list[str]:
    return [name for name in found if not name.endswith((", left", ", right"))]
