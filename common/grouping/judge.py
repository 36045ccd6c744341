"""Forecasts against the truth: R², rank correlation, and the regret of the grouping they choose."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from .data import TASKS
from .truth import GROUPS

BUDGETS = (2, 3)
Gains = np.ndarray
"""Of a draw, `[seed, group, task]`: log(loss alone / loss in the group); NaN where no member."""
NUMBER = {group: number for number, group in enumerate(GROUPS)}


def partitions(tasks: Sequence[int], most: int) -> list[tuple[tuple[int, ...], ...]]:
    """All ways to divide the tasks into at most that many groups."""
    if not tasks:
        return [()]
    first, *rest = tasks
    found = []
    for one in partitions(rest, most):
        found += [
            (*one[:k], tuple(sorted((first, *part))), *one[k + 1 :]) for k, part in enumerate(one)
        ]
        if len(one) < most:
            found.append((*one, (first,)))
    return found


@functools.cache
def choices(most: int) -> np.ndarray:
    """Who is in which group, over T: `[grouping, group, task]`, in the order of `partitions`."""
    every = partitions(range(TASKS), most)
    found = np.zeros((len(every), len(GROUPS), TASKS))
    for number, one in enumerate(every):
        for group in one:
            found[number, NUMBER[group], list(group)] = 1 / TASKS
    return found


def means_of(gains: np.ndarray, most: int) -> np.ndarray:
    """The mean gain over tasks of every grouping, from `[group, task]`."""
    return np.tensordot(choices(most), np.nan_to_num(gains), 2)


def shown(least: int = 2, most: int = TASKS) -> np.ndarray:
    """Entries `[group, task]` to be forecast: members of groups of that many tasks."""
    return np.array([[least <= len(g) <= most and t in g for t in range(TASKS)] for g in GROUPS])


Fold = tuple[list[int], list[int]]
"""Seeds that a forecast is made on, and those that judge it."""


def folds(seeds: int) -> dict[str, list[Fold]]:
    """Forecasts from one seed, judged by all others; and from half of them, by the other half."""
    every = list(range(seeds))
    first, second = every[: seeds // 2], every[seeds // 2 :]
    return {
        "one seed": [([s], [x for x in every if x != s]) for s in every],
        "half of the seeds": [(first, second), (second, first)],
    }


def means(
    forecast: Sequence[np.ndarray], gains: Sequence[Gains], parts: Sequence[Fold]
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts and real gains `[draw, fold, group, task]`, each the mean over its seeds."""
    x = [[one[made].mean(0) for made, _ in parts] for one in forecast]
    y = [[one[judging].mean(0) for _, judging in parts] for one in gains]
    return np.array(x), np.array(y)


def chosen(forecast: np.ndarray, most: int) -> int:
    """The grouping that a forecast `[group, task]` says is best; being alone gains nothing."""
    return int(means_of(np.where(shown(), forecast, 0), most).argmax())


def ranks(
    forecast: Sequence[np.ndarray],
    gains: Sequence[Gains],
    parts: Sequence[Fold],
    kept: np.ndarray,
) -> np.ndarray:
    """Spearman's correlation over the entries kept, `[draw, fold]`."""
    pairs = zip(*means(forecast, gains, parts), strict=True)
    return np.array([[spearman(a[kept], b[kept]) for a, b in zip(*x, strict=True)] for x in pairs])


def above_random(
    forecast: Sequence[np.ndarray], gains: Sequence[Gains], parts: Sequence[Fold], most: int
) -> np.ndarray:
    """Mean log loss of the chosen grouping above that of all groupings whose groups are as large,
    `[draw, fold]`: how many tasks go together is kept, which ones is at random.
    """
    sizes = np.array([str(sorted(map(len, one))) for one in partitions(range(TASKS), most)])
    x, y = means(forecast, gains, parts)
    found = np.empty(x.shape[:2])
    for at in np.ndindex(found.shape):
        real, choice = means_of(y[at], most), chosen(x[at], most)
        found[at] = real[sizes == sizes[choice]].mean() - real[choice]
    return found


class Score(NamedTuple):
    """One forecaster; every array is `[draw, fold]`."""

    r2: np.ndarray  # around the draw's mean, with the slope that fits the other draws best
    rank: np.ndarray  # Spearman's correlation
    regret: dict[int, np.ndarray]  # by budget: mean log loss above that of the best grouping


def scored(forecast: Sequence[np.ndarray], gains: Sequence[Gains], parts: Sequence[Fold]) -> Score:
    """A forecaster over draws.

    Args:
        forecast: one `[seed, group, task]` a draw.
        gains: the same.
        parts: `folds`, of one kind.
    """
    kept = shown()
    x, y = means(forecast, gains, parts)
    regret = {most: np.empty(x.shape[:2]) for most in BUDGETS}
    for most, found in regret.items():
        for at in np.ndindex(found.shape):
            real = means_of(y[at], most)
            found[at] = real.max() - real[chosen(x[at], most)]
    x, y = (v[:, :, kept] for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    r2 = np.empty(x.shape[:2])
    for draw, fold in np.ndindex(r2.shape):
        slope = slope_of(np.delete(x, draw, 0).ravel(), np.delete(y, draw, 0).ravel())
        off, real = y[draw, fold] - slope * x[draw, fold], y[draw, fold]
        r2[draw, fold] = 1 - (off @ off) / (real @ real)
    return Score(r2, ranks(forecast, gains, parts, kept), regret)


def slope_of(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least squares line through 0; flat where x does not vary."""
    square = float(x @ x)
    return float(x @ y) / square if square else 0.0


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """0 where one of them does not vary: such a forecast orders nothing."""
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths else 0.0


EVEN = "evenly at random"


def unmeasured(gains: Sequence[Gains], parts: Sequence[Fold], most: int) -> dict[str, np.ndarray]:
    """Regrets `[draw, fold]` of what needs no forecast: one group, a grouping at random of all, and
    one of those whose groups are equally large.
    """
    real = np.array(
        [[means_of(one[judging].mean(0), most) for _, judging in parts] for one in gains]
    )
    every = partitions(range(TASKS), most)
    even = [{len(group) for group in one} == {TASKS // most} for one in every]
    chosen = {
        "all together": real[..., every.index((tuple(range(TASKS)),))],
        "at random": real.mean(-1),
        EVEN: real[..., even].mean(-1),
    }
    return {name: real.max(-1) - found for name, found in chosen.items()}
