"""Does GradNorm reach its two aims: norms on one scale, similar rates?"""

from functools import partial

import numpy as np

from ..report.decisions import Row, sided
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
        "α = 0; whether its loss then falls faster is not measured",
    ),
}


def run(settings: Settings) -> Findings:
    size, both = lanes.size_of(settings), {2: two_tasks(settings), 10: ten_tasks(settings)}
    aims: dict[str, float] = {}
    answers: dict[str, float] = {}
    for count, (static, learnt) in both.items():
        plain = static, "static, 1" if count == 2 else lanes.EQUAL
        own = learnt, f"GradNorm, {ALPHA:g}"
        for what in ("G_i", "L̃_i"):
            compare = partial(over_spread, what)
            aims |= named(
                f"T = {count}, spread of {what}, α = {ALPHA} over equal",
                compare(own, plain),
                unsettled=lanes.unsettled(compare, 1, own, plain),
            )
        alpha = (lanes.EVERY_ALPHA if count == 2 else lanes.TEN_ALPHAS)[-1]
        ends = (learnt, f"GradNorm, {alpha:g}"), (learnt, "GradNorm, 0")
        answers |= named(
            f"T = {count}, α = {alpha:g} minus α = 0: correlation of log r_i and log w_i",
            less_answered(*ends),
            unsettled=lanes.unsettled(less_answered, 0, *ends),
        )
    nothing = (
        "a number settles nothing where rates that the seeds do not tell from the best one put its "
        f"interval on another side; {size}; {lanes.PAIRED}"
    )
    yield Claim(
        "GN-07",
        aims,
        "spread: exponential of the deviation over tasks of the logarithm, mean over the run, on "
        f"test data; {nothing}",
    )
    yield Claim(
        "GN-11",
        answers,
        "correlation over tasks of log r_i with the change of log w_i in the next of "
        f"{lanes.WINDOWS} windows; {nothing}",
    )


def over_spread(what: str, *arms: lanes.Arm) -> Interval:
    """The ratio of two arms' spreads over tasks of G_i or L̃_i, mean over the run."""
    spreads = []
    for trace, name in arms:
        values = trace.of(trace.test if what == "L̃_i" else trace.weights * trace.lengths, name)
        spreads.append(np.exp(np.log(values[1:]).std(-1).mean(0)))
    return ratio_interval(*spreads)


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
