"""From runs of a part to its table, JSON and figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.intervals import Estimate, bracket, estimate, paired, pm
from common.study import Found, Plan, about_rates, rate_of
from common.tables import bar, by_method, page, said


class Metric(NamedTuple):
    """A number of a run that the table shows."""

    key: str
    title: str
    lower_is_better: bool


class Shown(NamedTuple):
    """How a part is shown."""

    metrics: tuple[Metric, ...]  # compared with the mean
    worst: str  # the column of `worst`
    curve: str  # what `curve` is
    first: int  # where the curve's first entry lies, in `unit`
    every: int  # what lies between two of them
    unit: str
    notes: tuple[str, ...]


class Row(NamedTuple):
    """A method in numbers. None where there is nothing to compare with."""

    values: dict[str, Estimate]
    against_mean: dict[str, Estimate | None]  # paired by seed, corrected for the rivals
    worst: Estimate
    step_ms: float


def rows(found: Found, metrics: Sequence[Metric]) -> dict[str, Row]:
    """One row a method."""
    (every,) = found.runs.values()

    def of(name: str, key: str) -> list[float]:
        return [run[key] for run in every[name]]

    def against(name: str, key: str) -> Estimate | None:
        if name == "mean" or "mean" not in every:
            return None
        return paired(of(name, key), of("mean", key), len(every) - 1)

    return {
        name: Row(
            {metric.key: estimate(of(name, metric.key)) for metric in metrics},
            {metric.key: against(name, metric.key) for metric in metrics},
            estimate(of(name, "worst")),
            sorted(of(name, "step_ms"))[len(runs) // 2],
        )
        for name, runs in every.items()
    }


def table(found: Found, plan: Plan, shown: Shown) -> str:
    """Markdown: the numbers, what they show, how they were taken."""
    (choices,) = found.choices.values()
    result = rows(found, shown.metrics)
    columns = ["method"]
    for metric in shown.metrics:
        columns += [metric.title, f"{metric.title} − that of mean"]
    columns += [shown.worst, "rate", "step, ms"]
    lines = []
    for name, row in result.items():
        line = [name]
        for metric in shown.metrics:
            line += [pm(row.values[metric.key], 3), bracket(row.against_mean[metric.key], 3)]
        lines.append([*line, pm(row.worst, 3), rate_of(choices[name]), f"{row.step_ms:.3g}"])
    lead = [
        line
        for metric in shown.metrics
        for line in said(
            f"Against the mean, {metric.title}",
            {name: row.against_mean[metric.key] for name, row in result.items()},
            lower_is_better=metric.lower_is_better,
        )
    ]
    notes = [
        *shown.notes,
        f"Mean ± standard error over {len(plan.seeds)} seeds, which fix the tasks, the first "
        "weights and all randomness, the same for every method. Brackets are Student's t "
        "intervals, paired by seed, with Bonferroni's correction: 95 % for the "
        f"{max(len(result) - 1, 0)} rivals of the mean in a column together.",
        *about_rates(plan, found),
        "step: processor time of one step of one of the runs that go side by side, whatever else "
        "the machine did.",
    ]
    return page(columns, lines, lead, notes)


class Along(NamedTuple):
    """How a quantity goes along a run, over seeds."""

    slope: Estimate  # of its logarithm, a step
    fit: float  # R² of the straight line through the logarithm, mean over seeds
    positive: float  # share of looks at which it is above 0; the others have no logarithm
    change: Estimate  # mean over the last third less that over the first


def along(series: Sequence[Sequence[float]], every: int) -> Along:
    """Of a quantity that was looked at in regular steps, one series per seed.

    Returns:
        slope and fit over the looks at which the quantity is above 0, NaN where a seed has fewer
        than three.
    """
    slopes, fits, changes, above = [], [], [], []
    for values in series:
        y = np.array(values)
        above.append(float((y > 0).mean()))
        third = max(1, len(y) // 3)
        changes.append(float(y[-third:].mean() - y[:third].mean()))
        x = every * np.arange(len(y))[y > 0]
        if len(x) < 3:
            slopes.append(math.nan)
            fits.append(math.nan)
            continue
        log = np.log(y[y > 0])
        slope, level = np.polyfit(x, log, 1)
        slopes.append(float(slope))
        spread = float(((log - log.mean()) ** 2).sum())
        left = float(((log - level - slope * x) ** 2).sum())
        fits.append(1 - left / spread if spread else math.nan)
    return Along(estimate(slopes), float(np.mean(fits)), float(np.mean(above)), estimate(changes))


def landscape(found: Found, every: int) -> list[str]:
    """What exact gradients show of PCGrad's Figure 5, of the method that has the middle of it."""
    (runs,) = found.runs.values()
    name = "mean" if "mean" in runs else next(iter(runs))
    curvature = along([run["curvature"] for run in runs[name]], every)
    conflict = along([run["conflict"] for run in runs[name]], every)
    first = estimate([run["first"] for run in runs[name]])
    rises = "yes" if curvature.slope.low > 0 and curvature.fit > 0.8 else "no"
    line = f"log-slope {bracket(curvature.slope, 4)} a step, R² {curvature.fit:.2f}"
    if math.isnan(curvature.slope.mean):
        rises, line = "not known", "no line with fewer than three looks above 0 in a run"
    more = "yes" if conflict.change.low > 0 else "no" if conflict.change.high < 0 else "not shown"
    alone = "yes" if first.low > 0.8 else "no" if first.high < 0.8 else "not shown"
    return [
        f"Along training by {name}, as in PCGrad's Figure 5, 95 % intervals over seeds — "
        f"curvature gᵀ∇²L g/‖g‖² rises exponentially: {rises} ({line}, above 0 at "
        f"{100 * curvature.positive:.0f} % of the looks). Conflicts become more frequent: {more} "
        f"(share of conflicting pairs, last third less first: {bracket(conflict.change)}). One "
        f"task makes over 80 % of the early progress: {alone} (share {bracket(first)}).",
    ]


def figure(found: Found, shown: Shown, looks: Mapping[str, str], every: int) -> Figure:
    """Curves, differences to the mean, and what was looked at on the way.

    Args:
        found: the study.
        shown: how the part is shown.
        looks: further series of a run, by key, each with its title.
        every: steps between two of their entries.
    """
    (runs,) = found.runs.values()
    count = 2 + len(looks)
    fig = Figure(figsize=(5.2 * count, 4.4), layout="constrained")
    axes: list[Any] = list(fig.subplots(1, count))
    for i, (name, of) in enumerate(runs.items()):
        curves = [run["curve"] for run in of]
        _curve(axes[0], curves, shown.first, shown.every, f"C{i}", name)
        for ax, key in zip(axes[2:], looks, strict=True):
            _curve(ax, [run[key] for run in of], 0, every, f"C{i}", name)
    axes[0].set(title=shown.curve, xlabel=shown.unit)
    axes[0].legend(fontsize="small")
    metric = shown.metrics[0]
    for i, row in enumerate(rows(found, shown.metrics).values()):
        bar(axes[1], float(i), row.against_mean[metric.key], f"C{i}")
    axes[1].set_yticks(range(len(runs)), list(runs))
    axes[1].set_ylim(len(runs) - 0.5, -0.5)
    axes[1].axvline(0, color="0.6", lw=1)
    way = "lower" if metric.lower_is_better else "higher"
    axes[1].set(title="Against the mean", xlabel=f"{metric.title}, difference ({way} is better)")
    for ax, title in zip(axes[2:], looks.values(), strict=True):
        ax.set(title=title, xlabel="steps")
    for ax in axes:
        ax.grid(alpha=0.3)
    return fig


def _curve(ax: Axes, series: Any, first: int, every: int, colour: str, name: str) -> None:
    """Mean over seeds, and its standard error as a band."""
    y = np.array(series)
    x = first + every * np.arange(y.shape[1])
    mean, error = y.mean(0), y.std(0, ddof=1) / len(y) ** 0.5
    ax.plot(x, mean, color=colour, label=name)
    ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, lw=0)


def numbers_of(found: Found, plan: Plan, shown: Shown, settings: Mapping[str, Any]) -> dict:
    """All of it, for `results.json`."""
    return {
        "settings": dict(settings),
        "plan": plan._asdict(),
        "higher is better": {m.key: not m.lower_is_better for m in shown.metrics},
        "methods": by_method(rows(found, shown.metrics), found, *found.runs),
    }
