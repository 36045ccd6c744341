"""Does a logged quantity mark the step at which the second task sets in?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.grids import judged
from ..report.intervals import named, share_interval
from .decisions import claim
from .problems import PROBLEMS
from .training import Log, logs_of, rolling, settings_of


def knee(values: np.ndarray) -> int:
    """Where two straight lines, joined there, fit best.

    At least a tenth of the points on each side.
    """
    count = len(values)
    t = np.arange(count)
    best, at = np.inf, count // 2
    for k in range(max(2, count // 10), count - max(2, count // 10)):
        design = np.stack([np.ones(count), t, np.clip(t - k, 0, None)], 1)
        residual = ((values - design @ np.linalg.lstsq(design, values, rcond=None)[0]) ** 2).sum()
        if residual < best:
            best, at = residual, k
    return at


def shift(values: np.ndarray) -> int:
    """Where the ranks of a series change their mean most.

    The largest deviation of their cumulative sum.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.nan_to_num(values))
    count = len(values)
    size = np.arange(1, count)
    deviation = np.abs(np.cumsum(ranks - ranks.mean())[:-1]) / np.sqrt(size * (count - size))
    edge = max(2, count // 10)
    return edge + int(deviation[edge - 1 : count - edge].argmax())


class Marks(NamedTuple):
    """How often each quantity's change-point lies near the onset of task 2."""

    onset: float  # its median step
    chance: float  # the share by chance, about
    close: dict[str, np.ndarray]  # by quantity, `[seed]`
    best: str

    @property
    def hits(self) -> np.ndarray:
        """Of the closest quantity, `[seed]`: in each half of the seeds that of the other half."""
        return judged(1.0 - np.array(list(self.close.values()))) < 0.5


def marks(name: str, whole: Log) -> Marks:
    log = shortened(whole)
    series = {"cos φ": log.cosine, "Φ": log.similarity, "ξ": log.bound, "H": log.curvature}
    leaves = list(PROBLEMS[name].start(torch.tensor(0)))
    # heads are each one task's
    series |= {
        f"cos φ of {leaf}": log.layers[:, :, i]
        for i, leaf in enumerate(leaves)
        if np.ptp(log.layers[:, :, i]) > 0
    }
    seeds = log.cosine.shape[1]
    events = np.array([knee(rolling(log.losses[:, seed, 1], 5)) for seed in range(seeds)])
    close = {
        label: np.array([abs(shift(values[:, seed]) - events[seed]) <= 5 for seed in range(seeds)])
        for label, values in series.items()
    }
    best = max(close, key=lambda label: close[label].mean())
    return Marks(float(np.median(events)), 11 / len(log.cosine), close, best)


def run(settings: Settings) -> Findings:
    logs = logs_of(settings)
    found = {name: marks(name, log) for name, log in logs.items()}
    yield events_figure(found)
    yield change_points(found, settings_of(logs))


def events_figure(found: dict[str, Marks]) -> Figure:
    canvas, panels = axes(1, len(found), (6.5 * len(found), 4.4))
    for panel, (name, mark) in zip(panels, found.items(), strict=True):
        order = np.arange(len(mark.close))[::-1]
        panel.barh(order, [values.mean() for values in mark.close.values()], color="C0")
        panel.axvline(mark.chance, color="#444444", linestyle="--", label="by chance, about")
        panel.axvline(0.5, color="C1", linestyle=":", label="most seeds")
        panel.set_yticks(order, list(mark.close))
        panel.set(xlabel=f"{name}: share of seeds", xlim=(0, 1))
        panel.legend()
    return Figure(
        "events",
        "Does a logged quantity mark the step at which the second task sets in? Share of seeds "
        "in which its largest shift (of ranks) lies within 5 steps "
        "of the knee in task 2's loss, over the part of the run up to 90 % of that loss's fall.",
        canvas,
    )


def change_points(found: dict[str, Marks], where: str) -> Claim:
    numbers: dict[str, float] = {}
    for name, mark in found.items():
        numbers |= {
            f"{name}: median onset of task 2, step": mark.onset,
            f"{name}: share by chance, about": mark.chance,
        }
        numbers |= {
            f"{name}, {label}: share of seeds within 5 steps": float(values.mean())
            for label, values in mark.close.items()
        }
    closest = [
        f"{name}: {mark.best} in {mark.close[mark.best].mean():.0%} of the seeds"
        for name, mark in found.items()
    ]
    for name, mark in found.items():
        share = share_interval(int(mark.hits.sum()), len(mark.hits))
        numbers |= named(f"{name}: closest quantity, share of seeds", share)
    return claim(
        "PC-29",
        numbers,
        f"{where}; holds if some quantity's change-point lies within 5 steps of the knee in task "
        f"2's loss in most seeds, and in more than chance gives. Closest: {'; '.join(closest)}",
    )


def shortened(log: Log) -> Log:
    """Up to the step at which 90 % of task 2's fall is done in the median seed."""
    loss = np.median(rolling(log.losses[:, :, 1], 5), 1)
    target = loss[0] - 0.9 * (loss[0] - loss.min())
    stop = max(10, int((loss <= target).argmax()) + 1)
    return Log(*(part[: min(len(part), stop)] for part in log))
