"""Does a logged quantity mark the step at which the second task sets in?"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from ..report.decisions import Measured, Row, decided, named_so, verdict_of
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


def marks(logs: Mapping[str, Log]) -> dict[str, Marks]:
    """By problem, over the steps up to which 90 % of task 2's fall is done in the median seed."""
    found = {}
    for name, whole in logs.items():
        loss = np.median(rolling(whole.losses[:, :, 1], 5), 1)
        target = loss[0] - 0.9 * (loss[0] - loss.min())
        stop = max(10, int((loss <= target).argmax()) + 1)
        log = Log(*(part[:stop] for part in whole))
        series = {"cos φ": log.cosine, "Φ": log.similarity, "ξ": log.bound, "H": log.curvature}
        for i, leaf in enumerate(PROBLEMS[name].start(torch.tensor(0))):
            if np.ptp(log.layers[:, :, i]) > 0:  # heads are each one task's
                series[f"cos φ of {leaf}"] = log.layers[:, :, i]
        onset = np.array([knee(loss) for loss in rolling(log.losses[:, :, 1], 5).T])
        changes = {
            label: np.array([shift(one) for one in values.T]) for label, values in series.items()
        }
        found[name] = Marks(onset, (2 * WITHIN + 1) / len(log.cosine), changes)
    return found


@drawn
def onsets(
    problems: Problems = ("regression", "maze"),
    steps: TrainingSteps = 0,
    rate: TrainingRate = 0.0,
    seeds: Seeds = 16,
) -> Figure:
    """How far every logged quantity's change is from the step at which task 2 sets in."""
    return events_figure(marks(logs_of(Settings(seeds=seeds), problems, steps, rate)))


def run(settings: Settings) -> Findings:
    logs = logs_of(settings)
    found = marks(logs)
    yield events_figure(found)
    numbers: dict[str, float] = {}
    for name, mark in found.items():
        # of each half of the seeds the quantity that is closest in the other half
        hits = judged(1.0 - np.array(list(mark.close.values()))) < 0.5
        numbers[f"{name}: share by chance, about"] = mark.chance
        share = share_interval(int(hits.sum()), len(hits))
        numbers |= named(f"{name}: closest quantity, share of seeds", share)
    yield Claim("PC-29", numbers, settings_of(logs))


SPELLED = {"cos φ": "cosine φ", "Φ": "similarity Φ", "ξ": "bound ξ", "H": "curvature H"}


def events_figure(found: Mapping[str, Marks]) -> Figure:
    canvas, panels = axes(1, len(found), (7.5 * len(found), 4.8))
    for panel, (name, mark) in zip(panels, found.items(), strict=True):
        order, close = np.arange(len(mark.changes))[::-1], mark.close
        panel.axvspan(-WITHIN, WITHIN, color="C0", alpha=0.2, linewidth=0)
        panel.axvline(0, color="black", linewidth=1)
        right = panel.get_yaxis_transform()  # from the left edge to the right one, at height y
        for y, (label, at) in zip(order, mark.changes.items(), strict=True):
            near, apart = close[label], at - mark.onset
            for chosen, colour in ((near, "C0"), (~near, "#999999")):
                panel.plot(apart[chosen], y + 0 * at[chosen], "o", color=colour, alpha=0.6)
            count = f"{near.sum()} of {len(near)}"
            panel.text(1.02, y, count, transform=right, va="center")
        labels = [SPELLED.get(label, label.replace("cos φ of", "φ in")) for label in mark.changes]
        panel.set_yticks(order, labels)
        best = max(close, key=lambda label: close[label].mean())
        title = f"{best} is within {WITHIN} steps in most seeds"
        if close[best].mean() <= 0.5:
            title = f"most seeds are not within {WITHIN} steps"
        panel.set(xlabel="steps from the onset of task 2 to the change", title=f"{name}: {title}")
    chance = [f"{mark.chance * len(mark.onset):.1f} in {name}" for name, mark in found.items()]
    return Figure(
        "events",
        "Does a logged quantity mark the step at which the second task sets in? A point a seed: "
        "steps from the knee in task 2's loss (0) to the largest shift of the quantity's ranks, "
        f"over the part of the run up to 90 % of that loss's fall. Blue: within {WITHIN} steps; at "
        f"the right, their number (by chance, about {', '.join(chance)}).",
        canvas,
        [
            {"problem": name, "quantity": label, "seed": i, "onset": int(on), "change": int(step)}
            for name, mark in found.items()
            for label, at in mark.changes.items()
            for i, (on, step) in enumerate(zip(mark.onset, at, strict=True))
        ],
    )
