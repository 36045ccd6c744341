"""From runs to a table and a JSON file."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from common.intervals import Estimate, against, bracket, estimate, pm
from common.judge import delta_m
from common.study import Found, Plan, about_rates, rate_of
from common.tables import by_method, page, said

from .benchmark import Benchmark
from .train import alone

MEAN = "mean"


class Row(NamedTuple):
    """A method in numbers. None where there is nothing to compare with."""

    tasks: dict[str, Estimate]  # the metric by learnt task
    metric: Estimate | None  # mean over these; None where tasks have units of their own
    worst: Estimate | None  # the worst of them
    delta_m: Estimate | None  # against one network per task, lower is better, corrected
    published: Estimate | None  # Δm against the published base, lower is better, corrected
    # mean over tasks, or Δm against the published base, less that of the mean loss, corrected
    against_mean: Estimate | None
    epoch: float  # mean over seeds of the epoch that validation chose
    step_ms: float


def rows(found: Found, benchmark: Benchmark) -> dict[str, Row]:
    """One row per method."""
    runs = found.runs[""]
    rules = [name for name in runs if name not in alone(benchmark)]
    single = [runs[name] for name in alone(benchmark) if name in runs]
    seeds = range(len(next(iter(runs.values()))))
    base = [{k: v for each in single for k, v in each[seed]["test"].items()} for seed in seeds]

    def deltas(name: str, bases: list[dict[str, float]]) -> list[float]:
        higher = benchmark.higher_is_better
        pairs = zip(runs[name], bases, strict=True)
        return [delta_m(run["test"], one, higher) for run, one in pairs]

    published = [dict(zip(benchmark.tasks, benchmark.base, strict=False))] * len(seeds)

    def compared(name: str) -> list[float]:
        if benchmark.base:
            return deltas(name, published)
        return [sum(run["test"].values()) / len(run["test"]) for run in runs[name]]

    result, less = {}, against({name: compared(name) for name in rules}, MEAN)
    for name, each in runs.items():
        joint, alike = name in rules, not benchmark.base
        worst = min if benchmark.higher_is_better else max
        result[name] = Row(
            tasks={k: estimate([run["test"][k] for run in each]) for k in each[0]["test"]},
            metric=estimate(compared(name)) if alike else None,
            worst=estimate([worst(run["test"].values()) for run in each]) if alike else None,
            delta_m=estimate(deltas(name, base), len(rules)) if joint and single else None,
            published=None if alike or not joint else estimate(compared(name), len(rules)),
            against_mean=less.get(name),
            epoch=sum(run["epoch"] for run in each) / len(each),
            step_ms=sorted(run["step_ms"] for run in each)[len(each) // 2],
        )
    return result


def table(found: Found, plan: Plan, benchmark: Benchmark, settings: Mapping[str, Any]) -> str:
    """Markdown: the numbers, what they show, how they were taken."""
    every, choices, own = rows(found, benchmark), found.choices[""], bool(benchmark.base)
    lines = []
    for name, row in every.items():
        shown = [pm(row.tasks.get(task), 3) for task in benchmark.tasks]
        values = [*shown, bracket(row.published, 1)] if own else [pm(row.metric, 4)]
        values += [] if own else [pm(row.worst, 4)]
        values += [bracket(row.against_mean, 1 if own else 4), bracket(row.delta_m, 1)]
        values += [f"{row.epoch:.0f}", rate_of(choices[name]), f"{row.step_ms:.0f}"]
        lines.append([name, *values])
    way = "higher" if benchmark.higher_is_better else "lower"
    columns = ["method"]
    if own:
        columns += [*benchmark.tasks, "Δm against the published base, %", "less mean's"]
    else:
        columns += [f"{benchmark.metric} ({way} is better)", "worst task", "less mean's"]
    columns += ["Δm, %", "epoch", "rate", "step, ms"]
    against = said(
        "Against the mean loss",
        {name: row.against_mean for name, row in every.items()},
        lower_is_better=own or not benchmark.higher_is_better,
    )
    notes = [
        f"On {settings['samples']}, {len(benchmark.tasks)} tasks; metric: {benchmark.metric}, "
        f"{way} is better; epochs: {settings['epochs']}, in batches of {settings['batch']}"
        f"{settings['per']}; network: {settings['parameters']:,} parameters{settings['narrowed']}.",
        f"Mean ± standard error over {len(plan.seeds)} seeds, which fix first weights, order of "
        "batches and, where the files do not, the validation samples. The epoch is the one with "
        "the best mean validation metric (on QM9 the best validation Δm); test samples choose "
        "nothing.",
        "Δm: mean over tasks of the relative loss against one network per task, lower is better "
        "(CAGrad, Nash-MTL, FAMO); LibMTL's Δm is minus this one, as every task has one metric.",
        "Brackets are Student's t intervals, paired by seed, with Bonferroni's correction: 95 % "
        "for all rules of a column together.",
        *about_rates(plan, found),
        "step: mean processor time of one step, whatever else the machine did.",
    ]
    return page(columns, lines, against, notes)


def numbers_of(
    found: Found, plan: Plan, benchmark: Benchmark, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it, for `results.json`."""
    return {
        "benchmark": benchmark.title, "metric": benchmark.metric,
        "higher is better": benchmark.higher_is_better,
        "published base": dict(zip(benchmark.tasks, benchmark.base, strict=False)),
        "settings": dict(settings), "plan": plan._asdict(),
        "methods": by_method(rows(found, benchmark), found),
    }  # fmt: skip
