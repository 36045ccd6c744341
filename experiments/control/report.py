"""From runs of a part to its table, JSON and figure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.intervals import Estimate, against, bracket, estimate, pm
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

    less = {m.key: against({name: of(name, m.key) for name in every}, "mean") for m in metrics}
    return {
        name: Row(
            {metric.key: estimate(of(name, metric.key)) for metric in metrics},
            {key: each.get(name) for key, each in less.items()},
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


def figure(found: Found, shown: Shown) -> Figure:
    """Curves, and differences to the mean."""
    (runs,) = found.runs.values()
    fig = Figure(figsize=(10.4, 4.4), layout="constrained")
    axes: list[Any] = list(fig.subplots(1, 2))
    for i, (name, of) in enumerate(runs.items()):
        curves = [run["curve"] for run in of]
        _curve(axes[0], curves, shown.first, shown.every, f"C{i}", name)
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
