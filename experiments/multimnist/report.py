"""From runs to a table, a JSON file and a figure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.intervals import Estimate, against, bracket, estimate, paired, pm
from common.judge import delta_m
from common.study import Found, Plan, about_rates, rate_of
from common.tables import by_method, intervals, markdown, page

from .train import ALONE, BASE, OF_DATA, PREFERENCES, SETTINGS, TASKS

MEAN, WIDE = "mean", "twice as wide"
THEIRS = {
    "left alone": (97.23,), "right alone": (95.90,), "mean": (96.46, 94.99), "uw": (96.47, 95.29),
    "gradnorm": (96.27, 94.84), "mgda-ub": (97.26, 95.90),
}  # fmt: skip
"""Sener and Koltun 2018, Table 3, MultiMNIST: accuracies in per cent; there the rows are single
task, uniform scaling, Kendall et al. 2018, GradNorm, ours. Lin et al. 2019 (Pareto MTL) have
figures of these data and no numbers (Figures 4, 13, 14; Table 1 is of faces).
"""
CORNER = (2.0, 2.0)  # test losses from which the hypervolume is measured, as in COSMOS' code
Runs = list[dict[str, Any]]


class Row(NamedTuple):
    """A method in one setting, all paired over seeds. None where there is nothing to compare."""

    test: dict[str, Estimate]  # by learnt task, per cent
    delta_m: Estimate | None  # against one task alone, per cent, corrected for the rules
    against_mean: Estimate | None  # accuracy, mean over tasks, points, corrected for the rivals
    against_alone: dict[str, Estimate]  # by task, points, corrected for the two
    gap: Estimate  # training less test accuracy, mean over learnt tasks, points
    gap_above: Estimate | None  # less that of the networks that learn one task alone
    parameters: int
    step_ms: float


def accuracies(runs: Runs, part: str, task: str) -> list[float]:
    """Per cent, one a seed."""
    return [100 * run[part][task] for run in runs]


def both(methods: Mapping[str, Runs], name: str, part: str) -> list[float]:
    """Mean over the two tasks, one a seed; `name` "alone" takes the two networks together."""
    own = [methods[ALONE[task] if name == "alone" else name] for task in TASKS]
    left, right = (accuracies(runs, part, t) for runs, t in zip(own, TASKS, strict=True))
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def rows(found: Found) -> dict[str, dict[str, Row]]:
    """By setting and method."""
    return {setting: _rows(methods) for setting, methods in found.runs.items()}


def _rows(methods: Mapping[str, Runs]) -> dict[str, Row]:
    rules = [name for name in methods if name not in ALONE.values()]
    result, own = {}, {name: both(methods, name, "test") for name in rules}
    less = against(own, MEAN)
    for name, runs in methods.items():
        joint = name in rules
        learnt = list(runs[0]["test"])
        test = {task: accuracies(runs, "test", task) for task in learnt}
        alone = {task: accuracies(methods[ALONE[task]], "test", task) for task in learnt}
        gap = [
            sum(100 * (run["train"][t] - run["test"][t]) for t in learnt) / len(learnt)
            for run in runs
        ]
        result[name] = Row(
            test={task: estimate(values) for task, values in test.items()},
            delta_m=estimate(_deltas(test, alone), len(rules)) if joint else None,
            against_mean=less.get(name),
            against_alone={t: paired(test[t], alone[t], len(TASKS)) for t in learnt}
            if joint
            else {},
            gap=estimate(gap),
            gap_above=paired(gap, _gaps(methods, "alone")) if joint else None,
            parameters=runs[0]["parameters"],
            step_ms=sorted(run["step_ms"] for run in runs)[len(runs) // 2],
        )
    return result


def _deltas(test: Mapping[str, list[float]], alone: Mapping[str, list[float]]) -> list[float]:
    """Δm of every seed; NaN where a network alone is never right."""

    def by_seed(values: Mapping[str, list[float]]) -> list[dict[str, float]]:
        columns = zip(*(values[task] for task in TASKS), strict=True)
        return [dict(zip(TASKS, each, strict=True)) for each in columns]

    return list(map(delta_m, by_seed(test), by_seed(alone)))


def _gaps(methods: Mapping[str, Runs], name: str) -> list[float]:
    train, test = (both(methods, name, part) for part in ("train", "test"))
    return [a - b for a, b in zip(train, test, strict=True)]


def table(found: Found, plan: Plan, settings: Mapping[str, Any]) -> str:
    """Markdown: the numbers, what they show, how they were taken."""
    lines, every = [], rows(found)
    for setting, methods in every.items():
        for name, row in methods.items():
            line = [setting, name, *(pm(row.test.get(task)) for task in TASKS)]
            line += [bracket(row.delta_m, 1), bracket(row.against_mean), pm(row.gap, 1)]
            line.append(rate_of(found.choices[setting][name]))
            lines.append([*line, f"{row.parameters:,}", f"{row.step_ms:.2f}"])
    columns = ["setting", "method", "left, %", "right, %", "Δm, %", "less mean's, points"]
    columns += ["training − test, points", "rate", "parameters", "step, ms"]
    mine = every[BASE] if _published(found, settings) else {}
    theirs = [
        [x, " and ".join(f"{v:.2f}" for v in them), " and ".join(map(pm, mine[x].test.values()))]
        for x, them in THEIRS.items()
        if x in mine
    ]
    fronts = [
        [name, pm(estimate(values)) if len(values) > 1 else f"{values[0]:.2f}"]
        for name, values in volumes(found).items()
    ]
    before = [
        *_part(["method", "Sener & Koltun 2018, Table 3, %", "here, %"], theirs),
        *_part(["front", "hypervolume of test losses"], fronts),
        *(line for said in _said(found, every) for line in (said, "")),
    ]
    return page(columns, lines, before, _notes(found, plan, settings))


def _published(found: Found, settings: Mapping[str, Any]) -> bool:
    """Whether published numbers stand next to these."""
    return bool(settings["data"]) and settings["set"] == "mnist" and BASE in found.runs


def _part(columns: list[str], lines: list[list[str]]) -> list[str]:
    return [markdown(columns, lines), ""] if lines else []


def volumes(found: Found) -> dict[str, list[float]]:
    """Hypervolume of each front's test losses from `CORNER`, one a seed; a network whose numbers
    stopped being finite adds nothing.
    """
    from moocore import hypervolume

    return {
        name: [
            float(hypervolume(np.nan_to_num(points, nan=CORNER[0]), ref=CORNER))
            for points in zip(
                *([[run["loss"][t] for t in TASKS] for run in runs] for runs in front.values()),
                strict=True,
            )
        ]
        for name, front in found.fronts.items()
    }


def below_alone(row: Row) -> str:
    """Whether some task ends below its own network."""
    worse = [task for task, value in row.against_alone.items() if value.high < 0]
    better = [task for task, value in row.against_alone.items() if value.low > 0]
    said = [f"{word} {' and '.join(t)}" for word, t in (("below", worse), ("above", better)) if t]
    return ", ".join(said) or "no difference shown"


def _said(found: Found, every: Mapping[str, dict[str, Row]]) -> list[str]:
    """What the corrected intervals say."""
    lines = []
    joint = {name: methods[MEAN] for name, methods in every.items() if MEAN in methods}
    if joint:
        by_setting = "; ".join(f"{name}: {below_alone(row)}" for name, row in joint.items())
        lines.append(f"**Mean loss against one task alone, by task** — {by_setting}.")
        gaps = "; ".join(f"{name}: {bracket(row.gap_above, 1)}" for name, row in joint.items())
        alone = {name: sum(every[name][x].step_ms for x in ALONE.values()) for name in joint}
        times = (f"{name} {row.step_ms / alone[name]:.2f}" for name, row in joint.items())
        lines.append(
            "**One network for both** — its gap between training and test accuracy less "
            f"that of two separate ones, points: {gaps}. Processor time of a step over that of the "
            f"two: {', '.join(times)}."
        )
    if WIDE in joint and BASE in every:
        less = paired(both(found.runs[WIDE], MEAN, "test"), both(found.runs[BASE], "alone", "test"))
        lines.append(
            f"**Capacity** — one network twice as wide less two separate ones of half its width, "
            f"mean accuracy of both tasks, points: {bracket(less)}."
        )
    return lines


def _notes(found: Found, plan: Plan, settings: Mapping[str, Any]) -> list[str]:
    """How the numbers were taken."""
    fronts = (
        f"Fronts: {len(PREFERENCES)} networks each, weights {', '.join(PREFERENCES)} of the left "
        f"task, at the mean loss's rate, on the seeds {', '.join(map(str, plan.front_seeds))}; "
        f"hypervolume below the losses {CORNER[0]:g} and {CORNER[1]:g}, by moocore. COSMOS is its "
        "objective alone, a network for each preference."
    )
    theirs = "Published numbers: 100 epochs of all 60,000 images, at a rate that the official code "
    theirs += "does not name."
    longer = f" (twice as long: {2 * settings['epochs']})" if "twice as long" in found.runs else ""
    own = "Cross-stitch networks have a body for each task; the others one for both."
    wide = "Twice as wide: both stages; of LeNet the fully connected one."
    return [
        *([fronts] if found.fronts else []),
        *([theirs] if _published(found, settings) else []),
        f"On {settings['images']}; batches of {settings['batch']}, {settings['epochs']} epochs"
        f"{longer}, {settings['optimizer']}. Accuracy on test pairs: mean ± standard error over "
        f"{len(plan.seeds)} seeds, which fix pairs, first weights and the order of batches, the "
        "same for every method.",
        "Δm: mean relative loss of accuracy against the two networks of the same seed and setting "
        "that learnt one task alone; lower is better.",
        "Brackets are Student's t intervals, paired by seed, with Bonferroni's correction: 95 % "
        "for all rules of a setting together, or for all its rivals of the mean; by task for the "
        "two. Those of gaps and of capacity hold one at a time.",
        *([own] if "cross-stitch" in found.runs else []),
        *([wide] if WIDE in found.runs else []),
        *settings.get("runs", ()),
        *about_rates(plan, found),
        "step: a run's share of the median processor time of a step, on one thread.",
    ]


def figures(found: Found) -> dict[str, Figure]:
    """By name: intervals of each setting; MGDA's picture, left against right; the fronts."""
    panels = {
        "Δm against one task alone, % (lower is better)": "delta_m",
        "accuracy less the mean loss's, points": "against_mean",
        "training − test accuracy, less that alone, points": "gap_above",
    }
    drawn = {}
    for i, (setting, methods) in enumerate(rows(found).items()):
        rules = {name: row for name, row in methods.items() if row.delta_m is not None}
        drawn["multimnist" + f"-{setting}".replace(" ", "-") * (i > 0)] = intervals(
            {what: {k: getattr(x, own) for k, x in rules.items()} for what, own in panels.items()}
        )
    if BASE in found.runs and MEAN in found.runs[BASE]:
        drawn["accuracies"] = _gains(found.runs[BASE])
    if found.fronts:
        drawn["fronts"] = _fronts(found.fronts)
    return drawn


def _gains(methods: Mapping[str, Runs]) -> Figure:
    """Gains on the mean loss with their intervals, left against right; networks alone as lines."""
    fig, ax = _panel("accuracy less the mean loss's, points")

    def gain(name: str, task: str) -> Estimate:
        ours, means = (accuracies(methods[x], "test", task) for x in (name, MEAN))
        return paired(ours, means)

    rules = [name for name in methods if name not in (MEAN, *ALONE.values())]
    rules.sort(key=lambda name: gain(name, TASKS[1]).mean)
    for name, height in zip(rules, np.linspace(0.02, 0.98, len(rules)), strict=True):
        x, y = (gain(name, task) for task in TASKS)
        reach = [[each.mean - each.low] for each in (y, x)]  # both ways
        ax.errorbar(x.mean, y.mean, *reach, fmt="o", ms=4, color="C0", lw=0.6)
        line, beside = {"arrowstyle": "-", "color": "0.7", "lw": 0.6}, (1.03, height)
        ax.annotate(name, (x.mean, y.mean), beside, textcoords="axes fraction", arrowprops=line)
    ax.plot(0, 0, "k+", ms=12, mew=2, label="mean loss")
    for task, draw, style in zip(TASKS, (ax.axvline, ax.axhline), ("--", ":"), strict=True):
        draw(gain(ALONE[task], task).mean, color="k", lw=1, ls=style, label=ALONE[task])
    ax.legend()
    return fig


def _fronts(fronts: Mapping[str, Mapping[str, Runs]]) -> Figure:
    """Mean test losses over the seeds, left against right, a line for each front."""
    fig, ax = _panel("test loss")
    for name, front in fronts.items():
        losses = [[[run["loss"][t] for t in TASKS] for run in runs] for runs in front.values()]
        ax.plot(*np.mean(losses, 1).T, "o-", label=name, ms=5)
    ax.legend()
    return fig


def _panel(what: str) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = fig.add_subplot(xlabel=f"left, {what}", ylabel=f"right, {what}")
    ax.grid(alpha=0.3)
    return fig, ax


def numbers_of(found: Found, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for `results.json`."""
    every = rows(found)
    return {
        "settings": dict(settings),
        "plan": plan._asdict(),
        "architectures": {name: (SETTINGS | OF_DATA)[name]._asdict() for name in every},
        "fronts": found.fronts,
        "problems": {
            setting: by_method(methods, found, setting) for setting, methods in every.items()
        },
    }
