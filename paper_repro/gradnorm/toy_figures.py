"""The figures of GradNorm's toy (Chen et al. 2018, Figure 3) for any number of tasks."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes

from ..report.figures import axes, band, name_lines, plain_ticks, shades
from ..report.findings import Figure, Settings
from ..report.intervals import Interval, half_width, mean_interval, named, ratio_interval
from ..report.options import Option, Rate, Seeds, Steps, drawn
from .common import ALPHA, COLOURS, INTERVAL, Problem, Runs, Variants, train
from .lanes import EVERY_ALPHA

Scales = Annotated[tuple[float, ...], Option("σ of every task", 1e-6, 1e6, 2, twice=True)]
Size = Annotated[int, Option("size", low=1, high=100_000)]
Alpha = Annotated[float, Option("strength α of GradNorm", low=0.0, high=10.0)]
Rates = Annotated[tuple[float, ...], Option("learning rates of Adam", 1e-12, 1e3)]
Named = Literal["equal", "GradNorm", "static"]
METHODS: tuple[Named, ...] = ("equal", "GradNorm", "static")


def trained(
    problem: Problem,
    seeds: int,
    alphas: Sequence[float] = (ALPHA,),
    methods: Sequence[str] = METHODS,
) -> dict[str, Runs]:
    """By method; of GradNorm a variant a rate and α, of static weights at its average over time."""
    settings = Settings(seeds=seeds)
    pairs = [(rate, alpha) for rate in problem.rates for alpha in alphas]
    lr, alpha = (torch.tensor(column) for column in zip(*pairs, strict=True))
    ones = torch.ones(len(pairs), seeds, len(problem.scales))
    variants, found = Variants(lr, alpha, ones), {}
    if "equal" in methods:
        plain = Variants(*(leaf[:: len(alphas)] for leaf in variants))
        found["equal"] = train("weighted", problem, plain, settings, "equal weights", seeds)
    if {"GradNorm", "static"} & {*methods}:
        found["GradNorm"] = train("gradnorm", problem, variants, settings, "GradNorm", seeds)
    if "static" in methods:
        fixed = variants._replace(weights=found["GradNorm"].average)
        found["static"] = train("weighted", problem, fixed, settings, "static weights", seeds)
    return {name: found[name] for name in methods}


def task_looks(scales: Sequence[float]) -> list[tuple[str, Any]]:
    """A task's name and colour: a shade by its scale's rank where there are many."""
    colours = shades(len(scales))
    ranks = np.argsort(np.argsort(scales, kind="stable")) if len(scales) > 7 else range(len(scales))
    return [(f"σ = {x:g}", colours[int(rank)]) for x, rank in zip(scales, ranks, strict=True)]


def lines(
    panel: Axes, times: np.ndarray, values: np.ndarray, scales: Sequence[float], **look: Any
) -> list[tuple[float, str, Any]]:
    """A line per task of `values[time, seed, task]`; returns their ends, for `name_lines`."""
    ends = []
    for task, (name, colour) in enumerate(task_looks(scales)):
        band(panel, times, values[..., task], colour, **look)
        ends.append((float(values[-1, :, task].mean()), name, colour))
    return ends


def losses_and_weights(problem: Problem, runs: dict[str, Runs]) -> Figure:
    """Normalised test losses by method and by task, and the weights that GradNorm learns."""
    canvas, panels = axes(1, 3, (15.5, 4.4))
    shown = next(name for name in ("GradNorm", *runs) if name in runs)
    tips = []
    for method, one in runs.items():
        best = one.best()
        label, test = f"{method}, Adam {one.rates[best]:g}", one.test[:, best]
        band(panels[0], one.steps, test.mean(-1), COLOURS[method], label, geometric=True)
        if method in (shown, "equal"):
            look: dict[str, Any] = {"geometric": True, "alpha": 0.15}
            look["dash"] = "-" if method == shown else ":"
            ends = lines(panels[1], one.steps, test, problem.scales, **look)
            tips = ends if method == shown else tips
    dotted = "; dotted: equal" if "equal" in runs and shown != "equal" else ""
    titles = "mean of L_i/L_i(0) on test data", f"L_i/L_i(0) on test data, {shown}{dotted}"
    for panel, title in zip(panels, titles, strict=False):
        panel.set(xlabel="step", ylabel=title, yscale="log")
        panel.axhline(1, color="#999999", linewidth=1, label="untrained")
        plain_ticks(panel.yaxis)
    panels[0].legend()
    name_lines(panels[1], tips)
    learnt = runs[shown]
    weights = learnt.weights[:, learnt.best()]
    ends = lines(panels[2], np.arange(1, len(weights) + 1), weights, problem.scales)
    panels[2].set(
        xlabel="step", ylabel=f"weight w_i, {shown} (sum {len(problem.scales)})", ylim=(0, None)
    )
    name_lines(panels[2], ends)
    found = [
        {
            "method": method,
            "rate": rate,
            "step": int(step),
            "task": task + 1,
            "scale": scale,
            **named("L/L(0)", ratio_interval(one.test[i, variant, :, task], 1.0)),
            "weight": float(one.weights[max(0, int(step) - 1), variant, :, task].mean()),
        }
        for method, one in runs.items()
        for variant, rate in enumerate(one.rates)
        for i, step in enumerate(one.steps)
        for task, scale in enumerate(problem.scales)
    ]
    # not on other seeds, as in the claims
    chosen = f"which is the best of {len(learnt.rates)} by these losses, " * (len(learnt.rates) > 1)
    return Figure(
        "curves",
        "The toy of Chen et al. 2018 (Figure 3; there, 250 inputs, 100 outputs, four layers of "
        f"100; here, {len(problem.scales)} tasks, {problem}), Adam: test losses in "
        "units of their initial values, each method at the learning rate named, "
        f"{chosen}and GradNorm's weights; mean (of losses geometric) and 95 % band over "
        f"{learnt.test.shape[2]} seeds. Static weights are GradNorm's average over time, by seed.",
        canvas,
        found,
    )


@drawn
def toy(
    scales: Scales = (1.0, 100.0),
    methods: Annotated[tuple[Named, ...], Option("methods")] = METHODS,
    alpha: Alpha = ALPHA,
    rates: Annotated[
        tuple[float, ...], Option("learning rates of Adam; the best is drawn", 1e-12, 1e3)
    ] = (1e-3,),
    steps: Steps = 2000,
    seeds: Seeds = 4,
    inputs: Size = 250,
    outputs: Size = 100,
    width: Size = 100,
    batch: Size = 100,
) -> Figure:
    """Losses and weights of regressions that differ in scale (Figure 3)."""
    problem = Problem(scales, inputs, outputs, width, rates=rates, steps=steps, batch=batch)
    return losses_and_weights(problem, trained(problem, seeds, (alpha,), methods))


@drawn
def rates(
    scales: Scales = (1.0, 100.0),
    alpha: Alpha = ALPHA,
    rates: Rates = (3e-4, 1e-3, 3e-3, 1e-2),
    steps: Steps = 1000,
    seeds: Seeds = 8,
    inputs: Size = 25,
    outputs: Size = 10,
    width: Size = 64,
    batch: Size = 50,
) -> Figure:
    """GradNorm's final loss next to equal and static weights', by learning rate."""
    problem = Problem(scales, inputs, outputs, width, rates=rates, steps=steps, batch=batch)
    return by_rate(problem, trained(problem, seeds, (alpha,)))


RATIO = ("over equal", "low", "high")


def over_equal(equal: Runs, other: Runs) -> dict[float, Interval]:
    """A method's final loss over equal weights' at one learning rate for both. Not at a rate at
    which equal weights learn nothing: their loss is not a unit.
    """
    return {
        rate: ratio_interval(other.at(rate).picked().scores, equal.at(rate).picked().scores)
        for rate in equal.rates
        if rate in other.rates and not equal.at(rate).learns_nothing()
    }


def by_rate(problem: Problem, results: dict[str, Runs]) -> Figure:
    """Final losses, and their ratio to equal weights' at the same rate."""
    canvas, panels = axes(1, 2, (11, 4.2))
    offsets, found, tasks = (0.94, 1.0, 1.06), [], len(problem.scales)
    for (method, runs), offset in zip(results.items(), offsets, strict=False):
        final, ratios = runs.final() / tasks, over_equal(results["equal"], runs)
        style = {"color": COLOURS[method], "marker": "o", "capsize": 3}
        at = np.array(runs.rates) * offset
        panels[0].errorbar(at, final.mean(1), half_width(final), label=method, **style)
        found += [
            {
                "method": method,
                "rate": rate,
                "final": float(end.mean()),
                **(dict(zip(RATIO, ratios[rate], strict=True)) if rate in ratios else {}),
            }
            for rate, end in zip(runs.rates, final, strict=True)
        ]
        if method != "equal" and ratios:
            middle, low, high = np.array(list(ratios.values())).T
            at, bars = np.array(list(ratios)) * offset, (middle - low, high - middle)
            panels[1].errorbar(at, middle, bars, label=f"{method} / equal", **style)
    panels[0].axhline(1, color="#999999", linewidth=1, label="untrained")
    panels[1].axhline(1, color="#999999", linewidth=1)
    titles = "mean of L_i/L_i(0) on test data at the end", "ratio at the same learning rate"
    for axis, label in zip(panels, titles, strict=True):
        axis.set(xlabel="Adam's learning rate", ylabel=label, xscale="log")
        axis.set_xticks(problem.rates, [f"{rate:g}" for rate in problem.rates])
        axis.minorticks_off()
        if axis.get_legend_handles_labels()[0]:  # no ratio where equal weights learn nothing
            axis.legend()
    return Figure(
        "rates",
        "The learning rate beside the weighting: final normalised test loss by rate and method. "
        f"{len(problem.scales)} tasks, {problem}. {INTERVAL}. A bar of the second panel "
        "that crosses 1 shows no difference.",
        canvas,
        found,
    )


@drawn
def strength(
    alphas: Annotated[tuple[float, ...], Option("strengths α", low=0.0, high=10.0)] = EVERY_ALPHA,
    scales: Scales = (1.0, 100.0),
    rate: Rate = 3e-3,
    steps: Steps = 500,
    seeds: Seeds = 4,
    inputs: Size = 25,
    outputs: Size = 10,
    width: Size = 64,
    batch: Size = 50,
) -> Figure:
    """GradNorm's final loss and average weights against α."""
    problem = Problem(scales, inputs, outputs, width, rates=(rate,), steps=steps, batch=batch)
    learnt = trained(problem, seeds, alphas, ("GradNorm",))["GradNorm"]
    final = learnt.final() / len(scales)
    last = learnt.weights[-max(1, len(learnt.weights) // 4) :].mean(0)  # [alpha, seed, task]
    canvas, panels = axes(1, 2, (11, 4.2))
    look: dict[str, Any] = {"marker": "o"}
    panels[0].errorbar(alphas, final.mean(1), half_width(final), color=COLOURS["GradNorm"], **look)
    panels[0].set(xlabel="α", ylabel="mean of L_i/L_i(0) on test data at the end", ylim=(0, None))
    ends = []
    for task, (name, colour) in enumerate(task_looks(scales)):
        values = last[..., task]
        panels[1].errorbar(alphas, values.mean(1), half_width(values), color=colour, **look)
        ends.append((float(values[-1].mean()), name, colour))
    panels[1].set(xlabel="α", ylabel="w_i, last quarter of the run", ylim=(0, None))
    name_lines(panels[1], ends)
    return Figure(
        "strength",
        f"Sweep of α, Adam {rate:g}, {steps} steps, {len(scales)} tasks, {problem}. 95 % t "
        f"intervals over {seeds} seeds.",
        canvas,
        [
            {
                "alpha": alpha,
                "task": task + 1,
                "scale": scale,
                "final": mean_interval(final[i]).mean,
                "weight": float(last[i, :, task].mean()),
            }
            for i, alpha in enumerate(alphas)
            for task, scale in enumerate(scales)
        ],
    )
