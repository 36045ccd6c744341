"""The benchmarks' losses and metrics, and Δm in both of its signs.

With p the prediction and y the truth, over the pixels whose truth is known (a label within the
classes, a depth other than 0, a normal other than the zero vector):

- confusion matrix C[y, p], counted over all batches; mIoU = mean of C[c, c] / (Σ_p C[c, p] +
  Σ_y C[y, c] - C[c, c]) over the classes that occur in truth or prediction; pixel accuracy =
  Σ_c C[c, c] / Σ C;
- absolute depth error = mean |p - y|, relative depth error = mean |p - y| / y;
- angles between normals arccos(p·y / ‖p‖), clamped to [-1, 1]: mean and median in degrees, and the
  shares below 11.25, 22.5 and 30 degrees.

There are two averages of the metrics of depth and normals. CAGrad's, Nash-MTL's and FAMO's code
takes them per batch and averages over batches, each of which counts as one: `Scores.result`. LibMTL
takes means and the median over all known pixels of all images: `Scores.pooled`. Both have NaN as
mIoU where a class is absent, and for errors where nothing in a batch is known; here the class and
the batch are left out.

There are also two Δm, in per cent, B being the metrics of networks that learn one task alone:

- `flat`, lower is better: -(100/K) Σ_k s_k (M_k - B_k)/B_k over all K metrics, s_k = 1 where higher
  is better and -1 elsewhere (CAGrad, Nash-MTL, FAMO). A task of five metrics counts five times.
- `by_task`, higher is better: (100/T) Σ_t (1/K_t) Σ_k s_k (M_k - B_k)/B_k over the K_t metrics of
  each task (LibMTL's `count_improvement`, there as a fraction). Tasks count alike. LibMTL's base is
  what the user gives, else the metrics after the first epoch, and without validation data it
  reports the epoch that is best on test data; here the base is always measured, or published, and
  test data choose nothing.

The two can disagree about the sign of a change: CAGrad's published row on NYUv2 is worse than its
base by 0.20 % flat, and better by 4.33 % by task, since all five metrics of normals are worse,
which are one task.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

import mtlfunc as mf

from .render import Views

SEGMENT, DEPTH, NORMAL = "segmentation", "depth", "normals"
TASKS = (SEGMENT, DEPTH, NORMAL)

Outputs = dict[str, Tensor]
"""By task: logits `[view, class, height, width]`, depth `[view, 1, …]`, normals `[view, 3, …]`."""


class Metric(NamedTuple):
    """What is reported of a task."""

    task: str
    higher_is_better: bool


METRICS = {
    "mIoU": Metric(SEGMENT, True), "pixel accuracy": Metric(SEGMENT, True),
    "absolute error": Metric(DEPTH, False), "relative error": Metric(DEPTH, False),
    "mean angle": Metric(NORMAL, False), "median angle": Metric(NORMAL, False),
    "within 11.25°": Metric(NORMAL, True), "within 22.5°": Metric(NORMAL, True),
    "within 30°": Metric(NORMAL, True),
}  # fmt: skip


def metrics_of(tasks: Sequence[str]) -> dict[str, Metric]:
    """The metrics of some tasks, in the published order."""
    return {name: metric for name, metric in METRICS.items() if metric.task in tasks}


def losses(outputs: Outputs, views: Views) -> dict[str, Tensor]:
    """The papers' losses of the tasks that have outputs, by task, in the order of `TASKS`.
    Cross-entropy over labelled pixels; mean |p - y| over pixels of known depth; one less the mean
    of p·y/‖p‖ over pixels of known normals.
    """
    found = {}
    if SEGMENT in outputs:
        found[SEGMENT] = _cross_entropy(outputs[SEGMENT], views.label)
    if DEPTH in outputs:
        known = views.depth != 0
        error = (outputs[DEPTH] - views.depth).abs() * known
        found[DEPTH] = error.sum() / known.sum().clamp_min(1)
    if NORMAL in outputs:
        known = (views.normal != 0).any(1)
        agree = (unit(outputs[NORMAL]) * views.normal).sum(1) * known
        found[NORMAL] = 1 - agree.sum() / known.sum().clamp_min(1)
    return found


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    known = label >= 0
    # three times as fast on a CPU as cross_entropy, whose kernel for images has one thread's pace
    right = logits.log_softmax(1).gather(1, label.clamp_min(0)[:, None])[:, 0]
    return -(right * known).sum() / known.sum().clamp_min(1)


def unit(normals: Float[Tensor, "view 3 height width"]) -> Float[Tensor, "view 3 height width"]:
    """Of length 1; a zero vector stays one."""
    x, y, z = normals.unbind(1)  # a norm over the channels is slow on a CPU
    square = (x * x + y * y + z * z)[:, None]
    return normals * square.clamp_min(1e-24).rsqrt()


def confusion(
    predicted: Int[Tensor, "*shape"], truth: Int[Tensor, "*shape"], classes: int
) -> Int[Tensor, "class class"]:
    """Counts of pixels by true class (rows) and predicted class, where the truth is known."""
    known = (truth >= 0) & (truth < classes)
    index = truth[known] * classes + predicted[known]
    return torch.bincount(index, minlength=classes**2).reshape(classes, classes)


def segmentation_scores(counts: Int[Tensor, "class class"]) -> dict[str, float]:
    """mIoU over the classes that occur, and pixel accuracy, of a confusion matrix."""
    right, counts = counts.diagonal().double(), counts.double()
    union = counts.sum(0) + counts.sum(1) - right
    occurs = union > 0
    return {
        "mIoU": float((right[occurs] / union[occurs]).mean()),
        "pixel accuracy": float(right.sum() / counts.sum()),
    }


def depth_scores(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Absolute and relative error of one batch; none where nothing is known."""
    known = truth != 0
    if not known.any():
        return {}
    error = (predicted[known] - truth[known]).abs().double()
    relative = error / truth[known].double()
    return {"absolute error": float(error.mean()), "relative error": float(relative.mean())}


def angles(predicted: Tensor, truth: Tensor) -> Float[Tensor, " pixel"]:
    """Degrees between predicted and true normals, where these are known; float64."""
    known = (truth != 0).any(1)
    cosine = (unit(predicted).double() * truth.double()).sum(1)[known].clamp(-1, 1)
    return torch.rad2deg(cosine.arccos())


def angle_scores(angle: Float[Tensor, " pixel"]) -> dict[str, float]:
    """Mean and median in degrees, shares within three of them; none where nothing is known."""
    if not len(angle):
        return {}
    return {
        "mean angle": float(angle.mean()),
        "median angle": float(angle.quantile(0.5)) if len(angle) < 2**24 else _median(angle),
        "within 11.25°": float((angle < 11.25).double().mean()),
        "within 22.5°": float((angle < 22.5).double().mean()),
        "within 30°": float((angle < 30).double().mean()),
    }


def _median(values: Tensor) -> float:
    """Mean of the two in the middle; `quantile` refuses that many."""
    ordered = values.sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


class Scores:
    """Metrics over batches, with both averages."""

    def __init__(self, classes: int) -> None:
        """No batch yet."""
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.batches: dict[str, list[float]] = {}
        self.depths: list[tuple[float, float, int]] = []  # sums of both errors, known pixels
        self.angles: list[Tensor] = []

    def add(self, outputs: Outputs, views: Views) -> None:
        """Count one batch of predictions."""
        if SEGMENT in outputs:
            predicted = outputs[SEGMENT].argmax(1)
            self.counts += confusion(predicted, views.label, len(self.counts)).cpu()
        found: dict[str, float] = {}
        if DEPTH in outputs:
            found |= depth_scores(outputs[DEPTH], views.depth)
            known = int((views.depth != 0).sum())
            sums = [found.get(k, 0.0) * known for k in ("absolute error", "relative error")]
            self.depths.append((sums[0], sums[1], known))
        if NORMAL in outputs:
            angle = angles(outputs[NORMAL], views.normal)
            found |= angle_scores(angle)
            self.angles.append(angle.float().cpu())
        for name, value in found.items():
            self.batches.setdefault(name, []).append(value)

    def result(self) -> dict[str, float]:
        """Every metric of the tasks that had outputs and pixels that are known; batches count alike
        (CAGrad, Nash-MTL, FAMO).
        """
        found = segmentation_scores(self.counts) if bool(self.counts.any()) else {}
        return found | {name: sum(each) / len(each) for name, each in self.batches.items()}

    def pooled(self) -> dict[str, float]:
        """The same metrics; pixels of all batches count alike (LibMTL)."""
        found = segmentation_scores(self.counts) if bool(self.counts.any()) else {}
        if known := sum(count for *_, count in self.depths):
            found["absolute error"] = sum(one for one, *_ in self.depths) / known
            found["relative error"] = sum(one for _, one, _ in self.depths) / known
        return found | (angle_scores(torch.cat(self.angles).double()) if self.angles else {})


def flat(values: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Δm flat over metrics, lower is better (CAGrad, Nash-MTL, FAMO), in per cent."""
    higher = {name: METRICS[name].higher_is_better for name in values}
    return mf.diagnostics.delta_m(values, base, higher)


def by_task(values: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Δm by task first, higher is better (LibMTL), in per cent. The mean over tasks of the mean
    over a task's metrics of the relative gain on the base. LibMTL averages the metrics themselves
    as `Scores.pooled` does.
    """
    gains: dict[str, list[float]] = {}
    for name, value in values.items():
        metric = METRICS[name]
        gain = (value - base[name]) / abs(base[name]) * (1 if metric.higher_is_better else -1)
        gains.setdefault(metric.task, []).append(gain)
    return 100 * sum(sum(each) / len(each) for each in gains.values()) / len(gains)
