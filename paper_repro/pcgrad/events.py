"""Does a logged quantity mark the step at which the second task sets in?"""

import numpy as np

from ..report.decisions import Measured, Row, decided, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.grids import judged
from ..report.intervals import named, share_interval
from .training import Log, logs_of, rolling, settings_of


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


def run(settings: Settings) -> Findings:
    logs = logs_of(settings)
    numbers: dict[str, float] = {}
    for name, whole in logs.items():
        # up to the step at which 90 % of task 2's fall is done in the median seed
        loss = np.median(rolling(whole.losses[:, :, 1], 5), 1)
        target = loss[0] - 0.9 * (loss[0] - loss.min())
        stop = max(10, int((loss <= target).argmax()) + 1)
        log = Log(*(part[:stop] for part in whole))
        onset = np.array([knee(loss) for loss in rolling(log.losses[:, :, 1], 5).T])
        layers = [layer for layer in np.moveaxis(log.layers, -1, 0) if np.ptp(layer) > 0]  # shared
        series = [log.cosine, log.similarity, log.bound, log.curvature, *layers]
        at = np.array([[shift(one) for one in values.T] for values in series])
        close = np.abs(at - onset) <= WITHIN
        # of each half of the seeds the quantity that is closest in the other half
        hits = judged(1.0 - close) < 0.5
        numbers[f"{name}: share by chance, about"] = (2 * WITHIN + 1) / len(log.cosine)
        share = share_interval(int(hits.sum()), len(hits))
        numbers |= named(f"{name}: closest quantity, share of seeds", share)
    yield Claim("PC-29", numbers, settings_of(logs))
