"""From runs to a table, a JSON file and a figure."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.intervals import (
    Estimate,
    all_above,
    bracket,
    estimate,
    paired,
    pm,
    verdicts,
)
from common.study import Found, Plan, about_rates, rate_of
from common.tables import as_dicts, bar, markdown

from .tasks import MAIN
from .train import ALONE, RULES, WINDOWS

CAGRAD, MGDA, MEAN = "cagrad", "mgda", "mean"


class Row(NamedTuple):
    """A method at one number of labels, all paired over seeds. None where nothing compares."""

    accuracy: Estimate  # per cent
    against_mean: Estimate | None  # percentage points, corrected for the rivals of the mean
    cagrad_above: Estimate | None  # CAGrad less this one, corrected for CAGrad's rivals
    weights: dict[str, Estimate]  # by task, mean over steps, sum 1
    descends: dict[str, Estimate] | None  # by task, per cent of steps
    step_ms: float


def rows(found: Found) -> dict[str, dict[str, Row]]:
    """By problem and method."""
    return {problem: _rows(methods) for problem, methods in found.runs.items()}


def _rows(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Row]:
    test = {name: [100 * run["test"] for run in each] for name, each in runs.items()}
    rivals = len(runs) - 1  # the main task alone is one

    def against(ours: str, theirs: str) -> Estimate | None:
        both = ours != theirs and ours in test and theirs in test
        return paired(test[ours], test[theirs], rivals) if both else None

    result = {}
    for name, each in runs.items():
        learnt = each[0]["weights"]
        descends = {t: estimate([100 * run["descends"][t] for run in each]) for t in learnt}
        result[name] = Row(
            accuracy=estimate(test[name]),
            against_mean=against(name, MEAN),
            cagrad_above=against(CAGRAD, name),
            weights={t: estimate([run["weights"][t] for run in each]) for t in learnt},
            descends=descends if math.isfinite(descends[MAIN].mean) else None,
            step_ms=sorted(run["step_ms"] for run in each)[len(each) // 2],
        )
    return result


def table(found: Found, plan: Plan, settings: Mapping[str, Any]) -> str:
    """Markdown: the numbers, what they show, how they were taken."""
    lines, every = [], rows(found)
    for problem, methods in every.items():
        for name, row in methods.items():
            lines.append(
                [
                    problem,
                    name,
                    pm(row.accuracy),
                    bracket(row.against_mean, 1),
                    bracket(row.cagrad_above, 1),
                    pm(row.weights[MAIN], 3),
                    "–" if row.descends is None else pm(row.descends[MAIN], 1),
                    rate_of(found.choices[problem][name]),
                    f"{row.step_ms:.1f}",
                ]
            )
    columns = ["labels", "method", "accuracy, %", "less mean's", "CAGrad's less its"]
    columns += ["weight on the main task", "main task falls, % of steps", "rate", "step, ms"]
    text = "\n".join(
        [
            markdown(columns, [[line[0].split()[0], *line[1:]] for line in lines]),
            "",
            *_verdicts(every, settings),
            "",
            *(f"- {note}" for note in _notes(every, found, plan, settings)),
            "",
        ]
    )
    return text


def _said(values: Mapping[str, Estimate | None]) -> str:
    groups = verdicts({k: v for k, v in values.items() if v is not None}, lower_is_better=False)
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items())


def _verdicts(every: Mapping[str, dict[str, Row]], settings: Mapping[str, Any]) -> list[str]:
    """What the corrected intervals say."""
    lines = []
    for problem, methods in every.items():
        said = _said({name: row.against_mean for name, row in methods.items()})
        if said:
            lines += [f"**{problem}, against the mean loss of all tasks** — {said}.", ""]
    best, neglect = highest(every), neglected(every)
    where = f"on {settings['images']}, with {', '.join(settings['auxiliaries'])}"
    if best:
        lines += [
            f"**CA-36, CAGrad has the highest accuracy for every number of labels — stand-in: "
            f"{best}** {where}."
            if settings["data"] is None
            else f"**CA-36, CAGrad has the highest accuracy for every number of labels: {best}** "
            f"{where}.",
            "",
        ]
    if neglect:
        lines += [
            f"**CA-37, MGDA neglects the main task and falls far below the baseline: {neglect}** "
            f"{where}.",
            "",
        ]
    return lines[:-1]


def highest(every: Mapping[str, dict[str, Row]]) -> str:
    """Whether CAGrad is above every rival in every problem; "" without CAGrad or a rival.

    It holds against all rules alone, not against those that `--rules` has left.
    """
    said = all_above(row.cagrad_above for methods in every.values() for row in methods.values())
    all_there = all({ALONE, *RULES} <= set(methods) for methods in every.values())
    return "inconclusive" if said == "holds" and not all_there else said


def neglected(every: Mapping[str, dict[str, Row]]) -> str:
    """Whether MGDA's weight on the main task is below equal, and its accuracy below the mean's."""
    shown, lost = [], []
    for methods in every.values():
        row = methods.get(MGDA)
        if row is None or row.against_mean is None:
            return ""
        weight, equal = row.weights[MAIN], 1 / len(row.weights)
        shown.append(weight.high < equal and row.against_mean.high < 0)
        lost.append(weight.low > equal or row.against_mean.low > 0)
    return "does not hold" if any(lost) else "holds" if all(shown) else "inconclusive"


def _notes(
    every: Mapping[str, dict[str, Row]], found: Found, plan: Plan, settings: Mapping[str, Any]
) -> list[str]:
    """How the numbers were taken."""
    rivals = len(plan.methods) - 1
    return [
        f"On {settings['images']}; {settings['network']}, {settings['steps']} steps of Adam with "
        f"{settings['batch']} images a task. Test accuracy of the main task: mean ± standard error "
        f"over {len(plan.seeds)} seeds, which fix the division of the images, first weights and "
        "batches, the same for every method.",
        f"Auxiliary tasks, on images without labels: {', '.join(settings['auxiliaries'])}. "
        f"{ALONE}: the same network and steps without them.",
        "Brackets are Student's t intervals, paired by seed, with Bonferroni's correction: 95 % "
        f"for all {rivals} rivals of the mean, or of CAGrad, at one number of labels together.",
        *about_rates(plan, found),
        "Weights: mean over steps of the weights on the trunk's gradients, scaled to sum 1. The "
        "main task falls where its gradient's product with the direction is above 0, which is "
        "known where gradients are measured: over the trunk, of GradNorm over its last layer.",
        "step: median processor time of one step of one run on one thread"
        + (", of a vmapped program its share." if settings["data"] is None else "."),
    ]


def figure(found: Found) -> Figure:
    """Accuracies, differences to the mean loss, and the weight on the main task as it goes."""
    every = rows(found)
    problems = list(every)
    fig = Figure(figsize=(4.2 * len(problems), 7.4), layout="constrained")
    axes = fig.subplots(3, len(problems), squeeze=False)
    for j, problem in enumerate(problems):
        upper, middle, lower = axes[:, j]
        names = list(every[problem])
        for i, (name, row) in enumerate(every[problem].items()):
            bar(upper, float(i), row.accuracy, f"C{i}")
            bar(middle, float(i), row.against_mean, f"C{i}")
            runs = found.runs[problem][name]
            if name != ALONE:
                _course(lower, [run["course"][MAIN] for run in runs], f"C{i}", name)
        for ax in (upper, middle):
            ax.set_yticks(range(len(names)), names if j == 0 else [])
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.grid(axis="x", alpha=0.3)
        middle.axvline(0, color="0.6", lw=1)
        upper.set(title=problem, xlabel="test accuracy, % (95 % interval)")
        middle.set(xlabel="less that of the mean loss, points\n(intervals hold together at 95 %)")
        lower.set(xlabel="share of the steps", ylim=(0, None))
    axes[2, 0].set_ylabel("weight on the main task\n(sum 1)")
    handles, names = axes[2, 0].get_legend_handles_labels()
    if handles:
        fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    return fig


def _course(ax: Axes, curves: list[list[float]], colour: str, name: str) -> None:
    """Mean over seeds and its interval, in parts of the run."""
    bands = [estimate(column) for column in zip(*curves, strict=True)]
    along = [(i + 0.5) / len(bands) for i in range(len(bands))]
    ax.plot(along, [band.mean for band in bands], color=colour, label=name)
    low, high = [band.low for band in bands], [band.high for band in bands]
    ax.fill_between(along, low, high, color=colour, alpha=0.15, lw=0)


def numbers_of(found: Found, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for `results.json`."""
    every = rows(found)
    return {
        "settings": dict(settings),
        "plan": plan._asdict(),
        "parts of a course": WINDOWS,
        "CA-36": highest(every),
        "CA-37": neglected(every),
        "problems": {
            problem: {
                name: {
                    "summary": as_dicts(row),
                    "choice": as_dicts(found.choices[problem][name]),
                    "runs": found.runs[problem][name],
                }
                for name, row in methods.items()
            }
            for problem, methods in every.items()
        },
    }
