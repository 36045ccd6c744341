"""Does a logged quantity mark the step at which the second task sets in?"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from ..report.decisions import Claims, Measured, Row, decided, named_so, verdict_of
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.grids import judged
from ..report.intervals import named, share_interval
from ..report.options import Seeds, drawn
from .problems import PROBLEMS
from .training import Log, Problems, TrainingRate, TrainingSteps, logs_of, rolling, settings_of


@decided(
    "in neither problem a quantity marks the onset in most seeds and more often than by chance, "
    "and in one none does (intervals)"
)
def marked(measured: Measured) -> Verdict:
    shown, lost = [], []
    for end in named_so(measured, "*: closest quantity, share of seeds, low"):
        name = end.removesuffix(", low")
        most = max(0.5, measured[f"{end.split(':')[0]}: share by chance, about"])
        shown.append(measured[end] > most)
        lost.append(measured[f"{name}, high"] < most)
    return verdict_of(shown, lost)


CLAIMS = {
    "PC-29": Row(
        "Open: some logged quantity marks the step at which the second task starts to be "
        "learnt (curvature and conflict show no visible event).",
        marked,
    )
}
claim = Claims(CLAIMS)

WITHIN = 5  # steps, of the onset


def knee(values: np.ndarray) -> int:
    """Where two straight lines, joined there, fit best. At least a tenth of the points on each
    side.
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
    """Where the ranks of a series change their mean most. The largest deviation of their cumulative
    sum.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.nan_to_num(values))
    count = len(values)
    size = np.arange(1, count)
    deviation = np.abs(np.cumsum(ranks - ranks.mean())[:-1]) / np.sqrt(size * (count - size))
    edge = max(2, count // 10)
    return edge + int(deviation[edge - 1 : count - edge].argmax())


class Marks(NamedTuple):
    """Where each quantity changes most, and where task 2 sets in."""

    onset: np.ndarray  # [seed], the step of the knee in task 2's loss
    chance: float  # the share of seeds within a few steps of it by chance, about
    changes: dict[str, np.ndarray]  # by quantity, the step of its largest shift, `[seed]`

    @property
    def close(self) -> dict[str, np.ndarray]:
        """By quantity, whether its change lies near the onset, `[seed]`."""
        return {name: abs(at - self.onset) <= WITHIN for name, at in self.changes.items()}

    @property
    def best(self) -> str:
        close = self.close
        return max(close, key=lambda label: close[label].mean())

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
    onset = np.array([knee(rolling(log.losses[:, seed, 1], 5)) for seed in range(seeds)])
    changes = {
        label: np.array([shift(values[:, seed]) for seed in range(seeds)])
        for label, values in series.items()
    }
    return Marks(onset, (2 * WITHIN + 1) / len(log.cosine), changes)


def all_marks(logs: Mapping[str, Log]) -> dict[str, Marks]:
    return {name: marks(name, log) for name, log in logs.items()}


@drawn
def onsets(
    problems: Problems = ("regression", "maze"),
    steps: TrainingSteps = 0,
    rate: TrainingRate = 0.0,
    seeds: Seeds = 16,
) -> Figure:
    """How far every logged quantity's change is from the step at which task 2 sets in."""
    return events_figure(all_marks(logs_of(Settings(seeds=seeds), problems, steps, rate)))


def run(settings: Settings) -> Findings:
    logs = logs_of(settings)
    found = all_marks(logs)
    yield events_figure(found)
    yield change_points(found, settings_of(logs))


SPELLED = {"cos φ": "cosine φ", "Φ": "similarity Φ", "ξ": "bound ξ", "H": "curvature H"}


def events_figure(found: Mapping[str, Marks]) -> Figure:
    canvas, panels = axes(1, len(found), (7.5 * len(found), 4.8))
    for panel, (name, mark) in zip(panels, found.items(), strict=True):
        order = np.arange(len(mark.changes))[::-1]
        panel.axvspan(-WITHIN, WITHIN, color="C0", alpha=0.2, linewidth=0)
        panel.axvline(0, color="black", linewidth=1)
        for y, (label, at) in zip(order, mark.changes.items(), strict=True):
            near = mark.close[label]
            for chosen, colour in ((near, "C0"), (~near, "#999999")):
                panel.plot(
                    (at - mark.onset)[chosen], y + 0 * at[chosen], "o", color=colour, alpha=0.6
                )
            panel.text(
                1.02,
                y,
                f"{near.sum()} of {len(near)}",
                transform=panel.get_yaxis_transform(),
                va="center",
            )
        labels = [SPELLED.get(label, label.replace("cos φ of", "φ in")) for label in mark.changes]
        panel.set_yticks(order, labels)
        panel.set(
            xlabel="steps from the onset of task 2 to the change",
            title=f"{name}: most seeds are not within {WITHIN} steps"
            if all(near.mean() <= 0.5 for near in mark.close.values())
            else f"{name}: {mark.best} is within {WITHIN} steps in most seeds",
        )
    return Figure(
        "events",
        "Does a logged quantity mark the step at which the second task sets in? A point a seed: "
        "steps from the knee in task 2's loss (0) to the largest shift of the quantity's ranks, "
        f"over the part of the run up to 90 % of that loss's fall. Blue: within {WITHIN} steps; at "
        "the right, their number (by chance, about "
        + ", ".join(
            f"{mark.chance * len(mark.onset):.1f} in {name}" for name, mark in found.items()
        )
        + ").",
        canvas,
        [
            {
                "problem": name,
                "quantity": label,
                "seed": i,
                "onset": int(onset),
                "change": int(step),
            }
            for name, mark in found.items()
            for label, at in mark.changes.items()
            for i, (onset, step) in enumerate(zip(mark.onset, at, strict=True))
        ],
    )


def change_points(found: dict[str, Marks], where: str) -> Claim:
    numbers: dict[str, float] = {}
    for name, mark in found.items():
        numbers |= {
            f"{name}: median onset of task 2, step": float(np.median(mark.onset)),
            f"{name}: share by chance, about": mark.chance,
        }
        numbers |= {
            f"{name}, {label}: share of seeds within 5 steps": float(values.mean())
            for label, values in mark.close.items()
        }
        share = share_interval(int(mark.hits.sum()), len(mark.hits))
        numbers |= named(f"{name}: closest quantity, share of seeds", share)
    return claim("PC-29", numbers, where)


def shortened(log: Log) -> Log:
    """Up to the step at which 90 % of task 2's fall is done in the median seed."""
    loss = np.median(rolling(log.losses[:, :, 1], 5), 1)
    target = loss[0] - 0.9 * (loss[0] - loss.min())
    stop = max(10, int((loss <= target).argmax()) + 1)
    return Log(*(part[: min(len(part), stop)] for part in log))
