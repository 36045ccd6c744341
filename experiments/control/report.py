"""From runs of a part to its table and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.intervals import Estimate, against, bracket, estimate, pm
from common.study import Found, Plan, about_rates, rate_of
from common.tables import by_method, page, said


class Metric(NamedTuple):
    """A number of a run that the table shows."""

    key: str
    title: str
    lower_is_better: bool


class Shown(NamedTuple):
    """How a part is shown."""

    metrics: tuple[Metric, ...]  # compared with the mean
    worst: str  # the column of `worst`
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


def numbers_of(found: Found, plan: Plan, shown: Shown, settings: Mapping[str, Any]) -> dict:
    """All of it, for `results.json`."""
    return {
        "settings": dict(settings),
        "plan": plan._asdict(),
        "higher is better": {m.key: not m.lower_is_better for m in shown.metrics},
        "methods": by_method(rows(found, shown.metrics), found, *found.runs),
    }
