"""Does GradNorm reach its two aims: norms on one scale, similar rates?"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ..report.decisions import Claims, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import Interval, mean_interval, named, ratio_interval
from . import lanes
from .common import ALPHA
from .rivals import ten_tasks, two_tasks

CLAIMS = {
    "GN-07": Row(
        "Two aims: gradient lengths on one scale, and tasks that train at similar rates.",
        sided((f"T = *, spread of *, α = {ALPHA:g} over equal", "<", 1)),
    ),
    "GN-11": Row(
        "A slow task has a larger target and so speeds up.",
        sided(("T = *, α = * minus α = 0: correlation of log r_i and log w_i", ">", 0)),
        when="its weight is meant, and ten tasks: that of a slow one rises more at α = 1 than at "
        "α = 0; whether its loss then falls faster decides nothing",
    ),
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    size, both = lanes.size_of(settings), [two_tasks(settings), ten_tasks(settings)[:2]]
    yield two_aims(both, size)
    yield slow_tasks(both, size)


def two_aims(both: Sequence[tuple[lanes.Trace, lanes.Trace]], size: lanes.Size) -> Claim:
    numbers: dict[str, float] = {}
    for static, learnt in both:
        count = static.test.shape[-1]
        arms = {lanes.EQUAL: (static, "static, 1" if count == 2 else lanes.EQUAL)}
        alphas = lanes.EVERY_ALPHA if count == 2 else lanes.TEN_ALPHAS
        arms |= {f"α = {alpha:g}": (learnt, f"GradNorm, {alpha:g}") for alpha in alphas}
        own, first, last = (arms[f"α = {alpha:g}"] for alpha in (ALPHA, alphas[0], alphas[-1]))
        for what in ("G_i", "L̃_i"):
            numbers |= {
                f"T = {count}, spread of {what}, {label}": float(spread(what, arm).mean())
                for label, arm in arms.items()
            }
            over = partial(over_spread, what)
            name = f"T = {count}, spread of {what}, α = "
            equal = f"{name}{ALPHA} over equal"
            numbers |= named(
                equal,
                over(own, arms[lanes.EQUAL]),
                unsettled=lanes.unsettled(over, 1, own, arms[lanes.EQUAL]),
            )
            numbers |= named(f"{name}{alphas[-1]:g} over 0", over(last, first))
    return claim(
        "GN-07",
        numbers,
        "spread: exponential of the deviation over tasks of the logarithm, mean over the run, on "
        "test data. "
        "One settles nothing where rates that the seeds do not tell from the best one put it on "
        "another side. Where α lowers one spread and raises the other they are two aims, not one. "
        f"{size}; {lanes.PAIRED}",
    )


def spread(what: str, arm: lanes.Arm) -> np.ndarray:
    """Of the tasks' G_i or L̃_i, mean over the run, `[seed]`."""
    trace, name = arm
    values = trace.of(trace.test if what == "L̃_i" else trace.weights * trace.lengths, name)
    return np.exp(np.log(values[1:]).std(-1).mean(0))


def over_spread(what: str, *arms: lanes.Arm) -> Interval:
    """The ratio of two arms' spreads."""
    return ratio_interval(*(spread(what, arm) for arm in arms))


def slow_tasks(both: Sequence[tuple[lanes.Trace, lanes.Trace]], size: lanes.Size) -> Claim:
    numbers: dict[str, float] = {}
    for static, learnt in both:
        count = static.test.shape[-1]
        alphas = lanes.EVERY_ALPHA if count == 2 else lanes.TEN_ALPHAS
        arms = {lanes.EQUAL: (static, "static, 1" if count == 2 else lanes.EQUAL)} | {
            f"α = {alpha:g}": (learnt, f"GradNorm, {alpha:g}") for alpha in alphas
        }
        found = {
            label: catching_up(trace.of(trace.test, name)) for label, (trace, name) in arms.items()
        }
        last = f"α = {alphas[-1]:g}"
        answer = {
            label: answered(trace.of(trace.test, name), trace.of(trace.weights, name))
            for label, (trace, name) in arms.items()
            if label != lanes.EQUAL
        }
        name = f"T = {count}, {last} minus α = 0: correlation of log r_i and log w_i"
        both_ends = arms[last], arms["α = 0"]
        numbers |= named(
            name, less_answered(*both_ends), unsettled=lanes.unsettled(less_answered, 0, *both_ends)
        )
        for label, values in answer.items():
            which = f"T = {count}, {label}: correlation of log r_i with the next change of log w_i"
            numbers |= named(which, mean_interval(values))
        for label, values in found.items():
            numbers |= named(f"T = {count}, correlation, {label}", mean_interval(values))
        for other in (lanes.EQUAL, "α = 0"):
            name = f"T = {count}, {last} minus {other}"
            edge = any(trace.settles_nothing(lane) for trace, lane in (arms[last], arms[other]))
            numbers |= named(name, mean_interval(found[last] - found[other]), unsettled=edge)
    return claim(
        "GN-11",
        numbers,
        "correlation over tasks of log r_i with the change of log w_i in the next of "
        f"{lanes.WINDOWS} windows. The same with the fall of log L̃_i stands beside: a task that "
        f"is behind by chance falls back to the others with equal weights, too; {size}; "
        f"{lanes.PAIRED}",
    )


def less_answered(*arms: lanes.Arm) -> Interval:
    """How much more the first arm's weights answer the ratios than the second's."""
    more, less = (
        answered(trace.of(trace.test, name), trace.of(trace.weights, name)) for trace, name in arms
    )
    return mean_interval(more - less)


def answered(ratios: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation over tasks and windows of log r_i with the next change of log w_i, `[seed]`. Both
    about their mean over tasks. The weight does not enter the loss that ranks the tasks, so that no
    regression to the mean ties the two.
    """
    ahead, moved = np.log(ratios[1:-1]), np.diff(np.log(weights[1:]), axis=0)
    ahead, moved = ahead - ahead.mean(-1, keepdims=True), moved - moved.mean(-1, keepdims=True)
    return (ahead * moved).sum((0, 2)) / np.sqrt((ahead**2).sum((0, 2)) * (moved**2).sum((0, 2)))


def catching_up(ratios: np.ndarray) -> np.ndarray:
    """Correlation over tasks and windows of log r_i with the next fall of log L̃_i, `[seed]`. Both
    about their mean over tasks.
    """
    logs = np.log(ratios[1:])  # at the start all r_i are 1
    ahead, fall = logs[:-1], logs[:-1] - logs[1:]
    ahead, fall = ahead - ahead.mean(-1, keepdims=True), fall - fall.mean(-1, keepdims=True)
    return (ahead * fall).sum((0, 2)) / np.sqrt((ahead**2).sum((0, 2)) * (fall**2).sum((0, 2)))
