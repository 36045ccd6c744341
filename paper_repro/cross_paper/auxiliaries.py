"""Does MGDA neglect a main task among auxiliary ones, and does CAGrad keep the balance?"""

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

import mtlfunc as mf

from ..report.bounds import FAR, NEAR
from ..report.decisions import Measured, Row, decided, ends, named_so, verdict_of
from ..report.figures import METHOD_COLOURS, axes, band, name_lines
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.grids import at_edge
from ..report.intervals import mean_interval, named
from ..report.options import Option, Seeds, drawn
from . import digits


@decided(
    "in no case all parts are shown, and in one MGDA's weight on the main task is above 1/3, its "
    f"accuracy less than {FAR:g} below, CAGrad's more than {NEAR:g} below, or CAGrad's least "
    "cosine smaller than equal weights'"
)
def balance(measured: Measured) -> Verdict:
    """Of every scale of the reconstruction error and time."""
    shown, lost = [], []
    for end in named_so(measured, "* steps: MGDA's weight on the main task, low"):
        case = end.split(": MGDA's weight")[0]
        share, mgda, cagrad, least = (
            ends(measured, f"{case}: {what}")
            for what in (
                "MGDA's weight on the main task",
                "MGDA minus equal weights, accuracy",
                "CAGrad minus equal weights, accuracy",
                "least cosine of d with a task, CAGrad minus equal weights",
            )
        )
        if measured[f"{case}: a best rate at the edge of its grid (1: yes)"]:
            shown.append(False)
            lost.append(False)
            continue
        near = cagrad[0] > -NEAR.now and least[0] > 0
        shown.append(share[1] < 1 / 3 and mgda[1] < -FAR.now and near)
        lost.append(share[0] > 1 / 3 or mgda[0] > -FAR.now or cagrad[1] < -NEAR.now or least[1] < 0)
    return verdict_of(shown, lost)


CLAIMS = {
    "CA-37": Row(
        "MGDA neglects the main task and falls far below the baseline; CAGrad keeps main "
        "and auxiliary tasks balanced.",
        balance,
        when="the reconstruction error is the mean per pixel",
        instead="CIFAR-10",
    )
}

C = 0.4


Found = dict[str, dict[str, digits.Runs]]
"""By scale of the reconstruction error, then by method."""


def trained(settings: Settings, steps: int, c: float) -> tuple[Found, str]:
    """All that the claim and its figure show, and how it was trained."""
    data, scales = digits.split(settings.seeds), torch.tensor([*digits.SCALES.values()])
    rules = {"mean": mf.mean(), "MGDA": mf.mgda(), "CAGrad": mf.cagrad(c=torch.tensor(c))}
    every = {name: digits.train(rule, scales, data, steps, name) for name, rule in rules.items()}
    where = (
        f"digits, {digits.LABELS} labels, rotation and reconstruction as auxiliaries, trunk of "
        f"{digits.HIDDEN}-{digits.HIDDEN}, {steps} steps of Adam at the best of "
        f"{len(digits.RATES)} rates, {settings.seeds} seeds, 95 % t intervals, paired"
    )
    runs = zip(*every.values(), strict=True)
    found = (dict(zip(rules, each, strict=True)) for each in runs)
    return dict(zip(digits.SCALES, found, strict=True)), where


@drawn
def main_task(
    c: Annotated[float, Option("CAGrad's c", 0.0, 1e3)] = C,
    steps: Annotated[int, Option("steps of Adam", low=digits.MOMENTS)] = 300,
    seeds: Seeds = 16,
) -> Figure:
    """What MGDA and CAGrad do to a main task among auxiliary ones."""
    return course(*trained(Settings(seeds=seeds), steps, c))


def run(settings: Settings) -> Findings:
    found = trained(settings, settings.count(300), C)
    yield judge(*found)
    yield course(*found)


def part(label: str, methods: dict[str, digits.Runs], end: int) -> dict[str, float]:
    """Numbers up to the moment of index `end`."""
    base = methods["mean"]
    steps = digits.moments(len(base.weights))[end]
    label = f"{label}, {steps} steps"
    share = mean_interval(methods["MGDA"].weights[:steps, :, 0].mean(0))
    numbers = named(f"{label}: MGDA's weight on the main task", share)
    for name in ("MGDA", "CAGrad"):
        less = mean_interval(methods[name].curve[end] - base.curve[end])
        numbers |= named(f"{label}: {name} minus equal weights, accuracy", less)
    # The task that d serves least: the smallest over tasks of the mean cosine.
    own, equal = (methods[x].cosines[:steps].mean(0).amin(-1) for x in ("CAGrad", "mean"))
    least = f"{label}: least cosine of d with a task, CAGrad minus equal weights"
    edge = any(
        at_edge(run.choice[[end, -1]].ravel(), len(digits.RATES)) for run in methods.values()
    )
    return {
        **numbers,
        **named(least, mean_interval(own - equal)),
        f"{label}: a best rate at the edge of its grid (1: yes)": float(edge),
    }


def judge(found: Found, where: str) -> Claim:
    numbers: dict[str, float] = {}
    for name, methods in found.items():
        count = len(methods["mean"].curve)
        for end in (count // 3 - 1, count - 1):
            numbers |= part(name, methods, end)
    return Claim(
        "CA-37",
        numbers,
        "both scales of the reconstruction error, after a third of the steps and after all: "
        "accuracies at the rate that is best then, the rest at the rate that is best at the end. "
        "Judged: MGDA's mean weight on the main task is below 1/3; its accuracy is more than "
        f"{FAR:g} below that of equal weights; CAGrad's is at most {NEAR:g} below, and the task "
        f"that d serves least has a larger cosine. {where}",
    )


WINDOWS = 20
ROWS = (
    ("weight on the main task (sum 1)", (0, 1), (-0.03, 1.03)),
    ("accuracy of the main task, %", (0, 100), (0, 103)),
    ("cosine of d with the task that it serves least", (-1, 1), (-0.2, 0.7)),
)
"""Of the figure: what it shows, what that can be, and the axis."""


def course(found: Found, where: str) -> Figure:
    """Columns are scales, rows quantities, lines methods."""
    canvas, panels = axes(3, len(found), (14, 11.5))
    numbers: list[dict[str, Any]] = []
    for column, (scale, methods) in enumerate(found.items()):
        for row, (what, within, limits) in enumerate(ROWS):
            panel, ends = panels[len(found) * row + column], []
            for m, run in methods.items():
                label, colour = "equal weights" if m == "mean" else m, METHOD_COLOURS[m]
                at, here = courses(run)[row]
                band(panel, at, here, colour, alpha=0.2, within=within)
                ends.append((float(here[-1].mean()), label, colour))
                numbers += [
                    {"scale": scale, "method": label, "quantity": what, "step": float(x), "mean": y}
                    for x, y in zip(at, here.mean(1).tolist(), strict=True)
                ]
            panel.set(
                xlabel="step", ylabel=what, xlim=(0, len(methods["mean"].weights)), ylim=limits
            )
            if not row:
                panel.set_title(f"reconstruction error {scale}")
            name_lines(panel, ends)
    return Figure(
        "auxiliaries",
        "A main task with few labels among auxiliary ones, under two scales of an auxiliary loss. "
        "Top: the weight of the main task. Middle: its accuracy on test images. Bottom: the "
        "smallest over tasks of the cosine between the direction and the task's gradient over the "
        f"trunk. Linear axes; bands: 95 % intervals over seeds. {where}.",
        canvas,
        numbers,
    )


def courses(run: digits.Runs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each of `ROWS` steps, and values `[time, seed]`: those of every step in windows."""
    times = np.array(digits.moments(len(run.weights)))
    weight = windows(run.weights[..., 0] / run.weights.sum(-1))
    return [weight, (times, 100 * run.curve.numpy()), windows(run.cosines.amin(-1))]


def windows(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Middles of windows of training and means in them, `[window, seed]`, of `[step, seed]`."""
    parts = values.tensor_split(min(WINDOWS, len(values)))
    middles = len(values) * (np.arange(len(parts)) + 0.5) / len(parts)
    return middles, torch.stack([part.mean(0) for part in parts]).numpy()
