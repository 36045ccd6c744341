"""From runs to a table and a JSON file."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from common.intervals import Estimate, against, bracket, estimate, pm
from common.study import Found, Plan, about_rates, rate_of
from common.tables import by_method, page, said

from .data import Benchmark
from .metrics import METRICS, by_task, flat, metrics_of
from .published import PUBLISHED
from .render import CLASSES
from .train import ALONE, ROOMS

SHORT = {"mIoU": "mIoU, %", "pixel accuracy": "pixels, %", "absolute error": "abs"}
SHORT |= {"relative error": "rel", "mean angle": "mean, °", "median angle": "median, °"}
SHORT |= {"within 11.25°": "11.25°, %", "within 22.5°": "22.5°, %", "within 30°": "30°, %"}


class Row(NamedTuple):
    """A rule in numbers, all paired over seeds. None where there is nothing to compare with."""

    metrics: dict[str, Estimate]
    flat: Estimate | None  # Δm flat over metrics, lower is better, corrected for the rules
    by_task: Estimate | None  # LibMTL's Δm with its averages: by task first, higher is better
    against_mean: Estimate | None  # of flat, corrected for the rivals
    tasks: dict[str, Estimate]  # by task, its own metrics' Δm less mean's, lower is better
    weights: dict[str, float]
    step_ms: float
    published_base: float | None  # Δm flat against the published single-task metrics


def tests_of(found: Found, method: str, average: str) -> list[dict[str, float]]:
    """Test metrics, one entry per seed; `average` is `test` or `pooled`."""
    return [run[average] for run in found.runs[""][method]]


def bases(found: Found, benchmark: Benchmark, average: str = "test") -> list[dict[str, float]]:
    """The single-task networks' metrics, one entry per seed."""
    alone = [tests_of(found, ALONE[task], average) for task in benchmark.tasks]
    return [{k: v for part in seed for k, v in part.items()} for seed in zip(*alone, strict=True)]


def rows(found: Found, benchmark: Benchmark) -> dict[str, Row]:
    """One row a method, the single-task networks first."""
    base = {average: bases(found, benchmark, average) for average in ("test", "pooled")}
    rules = [name for name in found.runs[""] if name not in ALONE.values()]
    published = PUBLISHED.get(benchmark.name)

    def deltas(method: str, delta: Callable[..., float], tasks: tuple[str, ...]) -> list[float]:
        names, average = metrics_of(tasks), "pooled" if delta is by_task else "test"
        return [
            delta({k: test[k] for k in names}, {k: one[k] for k in names})
            for test, one in zip(tests_of(found, method, average), base[average], strict=True)
        ]

    every, count = benchmark.tasks, len(rules) - 1

    def less(tasks: tuple[str, ...], comparisons: int) -> dict[str, Estimate]:
        return against({name: deltas(name, flat, tasks) for name in rules}, "mean", comparisons)

    whole = less(every, count)
    by_itself = {task: less((task,), count * len(every)) for task in every}
    result = {}
    for name, runs in found.runs[""].items():
        tests, joint = tests_of(found, name, "test"), name in rules
        metrics = {k: estimate([test[k] for test in tests]) for k in tests[0]}
        result[name] = Row(
            metrics=metrics,
            flat=estimate(deltas(name, flat, every), len(rules)) if joint else None,
            by_task=estimate(deltas(name, by_task, every), len(rules)) if joint else None,
            against_mean=whole.get(name),
            tasks={task: each[name] for task, each in by_itself.items() if name in each},
            weights={t: sum(r["weights"][t] for r in runs) / len(runs) for t in runs[0]["weights"]},
            step_ms=sorted(run["step_ms"] for run in runs)[len(runs) // 2],
            published_base=flat({k: v.mean for k, v in metrics.items()}, published.base)
            if published and joint
            else None,
        )
    return result


def table(
    found: Found, plan: Plan, benchmark: Benchmark, settings: Mapping[str, Any], size: tuple
) -> str:
    """Markdown: the numbers, what they show, how they were taken."""
    lines, names = [], list(metrics_of(benchmark.tasks))
    found_rows, choices = rows(found, benchmark), found.choices[""]
    for name, row in found_rows.items():
        deltas = [bracket(value, 1) for value in (row.flat, row.against_mean, row.by_task)]
        metrics = [_shown(k, row.metrics.get(k)) for k in names]
        lines.append([name, *metrics, *deltas, rate_of(choices[name]), f"{row.step_ms:.0f}"])
    columns = ["rule", *(SHORT[k] for k in names), "Δm flat (lower is better), %"]
    columns += ["Δm flat − that of mean", "LibMTL's Δm, by task (higher is better), %"]
    columns += ["rate", "step, ms"]
    before = [*_verdicts(found_rows, benchmark), *_beside(found_rows, benchmark, size)]
    return page(columns, lines, before, _notes(found_rows, found, plan, benchmark, settings))


def _shown(name: str, value: Estimate | None) -> str:
    if value is None:
        return "–"
    if "°" in SHORT[name] and "%" not in SHORT[name]:
        return pm(value, 1)
    if "%" in SHORT[name]:
        return f"{100 * value.mean:.1f} ± {100 * value.error:.1f}"
    return pm(value, 4 if value.mean < 0.1 else 3)


def _verdicts(found: Mapping[str, Row], benchmark: Benchmark) -> list[str]:
    """What the corrected intervals say."""
    joint = {name: row.flat for name, row in found.items()}
    equal = {name: row.against_mean for name, row in found.items()}
    lines = said("Δm flat against one task alone", joint) + said("Against the mean loss", equal)
    for task in benchmark.tasks:
        each = {name: row.tasks.get(task) for name, row in found.items()}
        lines += said(f"Against the mean loss, metrics of {task}", each)
    return lines


def _beside(found: Mapping[str, Row], benchmark: Benchmark, size: tuple[int, int]) -> list[str]:
    """Published numbers next to measured ones, where the images are the papers'."""
    published = PUBLISHED.get(benchmark.name)
    if published is None or size != benchmark.size:
        return []
    low, high = published.others
    ours = ", ".join(
        f"{name} {row.published_base:.2f}" for name, row in found.items() if row.published_base
    )
    return [
        f"**Against the published single-task metrics**, Δm flat, lower is better — measured here: "
        f"{ours}; published: CAGrad {published.cagrad:.2f}, other methods {low:.2f} to {high:.2f}.",
        "",
    ]


def _notes(
    found: Mapping[str, Row], result: Found, plan: Plan, benchmark: Benchmark, settings: Mapping
) -> list[str]:
    """How the numbers were taken."""
    rules = sum(row.flat is not None for row in found.values())
    rivals, tasks = max(rules - 1, 0), len(benchmark.tasks)
    where = (
        f"rendered rooms, {ROOMS.size[0]} x {ROOMS.size[1]} pixels, {len(CLASSES)} classes: of "
        f"every seed {ROOMS.counts[0]} to learn from and {ROOMS.counts[1]} to test on of its own"
        if benchmark is ROOMS
        else f"{benchmark.name}, read from a folder"
    )
    return [
        f"On {where}. Metrics: mean ± standard error over {len(plan.seeds)} seeds, which fix data, "
        f"first weights and order of batches, the same for every rule; {settings['network']}, "
        f"{settings['epochs']} epochs of batches of {benchmark.batch}, Adam.",
        "Δm: mean relative change against networks of the same seed, encoder and schedule that "
        "learnt one task alone. Flat: over all metrics, lower is better, the metrics averaged over "
        "batches (CAGrad, Nash-MTL, FAMO). LibMTL's: over a task's metrics first, higher is "
        "better, the metrics averaged over pixels. The metrics shown are those of flat.",
        "Brackets are Student's t intervals, paired by seed, with Bonferroni's correction: 95 % "
        f"for all {rules} rules of a column together, for the {rivals} rivals of the mean, and in "
        f"the verdicts by task for {rivals} rivals × {tasks} tasks.",
        *about_rates(plan, result),
        "The score on validation data is the mean over metrics of ± their logarithm: to first "
        "order Δm, without a baseline. Weights of the static search are chosen by it, too, so that "
        "it chooses from more runs than the others.",
        "step: median processor time of one step on one thread, whatever else the machine did; "
        "where runs of a rule are one program, a run's share.",
    ]


def numbers_of(
    found: Found, plan: Plan, benchmark: Benchmark, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it, for `results.json`."""
    return {
        "benchmark": benchmark.name,
        "settings": dict(settings),
        "plan": plan._asdict(),
        "Δm": {
            "flat": "over metrics, lower is better (CAGrad, Nash-MTL, FAMO)",
            "by task": "a task's metrics first, higher is better, of metrics pooled over pixels "
            "(LibMTL)",
        },
        "higher is better": {k: METRICS[k].higher_is_better for k in metrics_of(benchmark.tasks)},
        "methods": by_method(rows(found, benchmark), found),
    }
