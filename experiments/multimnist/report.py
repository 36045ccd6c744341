"""From runs to a table, a JSON file and a figure."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

import mtlfunc as mf
from experiments.common.intervals import Estimate, all_above, bracket, estimate, paired, pm
from experiments.common.study import Found, Plan, about_rates, rate_of
from experiments.common.tables import as_dicts, bar, markdown

from .architectures import ARCHITECTURES
from .train import ALONE, BASE, RULES, SETTINGS, TASKS

MEAN, PCGRAD, GRADNORM, WIDE = "mean", "pcgrad", "gradnorm", "twice as wide"
Runs = list[dict[str, Any]]


class Row(NamedTuple):
    """A method in one setting, all paired over seeds. None where there is nothing to compare."""

    test: dict[str, Estimate]  # by learnt task, per cent
    delta_m: Estimate | None  # against one task alone, per cent, corrected for the rules
    against_mean: Estimate | None  # accuracy, mean over tasks, points, corrected for the rivals
    against_alone: dict[str, Estimate]  # by task, points, corrected for the two
    gap: Estimate  # training less test accuracy, mean over learnt tasks, points
    gap_above: Estimate | None  # less that of the networks that learn one task alone
    gradnorm_above: Estimate | None  # GradNorm's accuracy less this one's, corrected for its rivals
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
    result = {}
    for name, runs in methods.items():
        joint = name in rules
        learnt = list(runs[0]["test"])
        test = {task: accuracies(runs, "test", task) for task in learnt}
        alone = {task: accuracies(methods[ALONE[task]], "test", task) for task in learnt}
        gap = [
            sum(100 * (run["train"][t] - run["test"][t]) for t in learnt) / len(learnt)
            for run in runs
        ]
        own = both(methods, name, "test") if joint else []
        result[name] = Row(
            test={task: estimate(values) for task, values in test.items()},
            delta_m=estimate(_deltas(test, alone), len(rules)) if joint else None,
            against_mean=paired(own, both(methods, MEAN, "test"), len(rules) - 1)
            if joint and name != MEAN and MEAN in rules
            else None,
            against_alone={t: paired(test[t], alone[t], len(TASKS)) for t in learnt}
            if joint
            else {},
            gap=estimate(gap),
            gap_above=paired(gap, _gaps(methods, "alone")) if joint else None,
            gradnorm_above=paired(both(methods, GRADNORM, "test"), own, len(rules) - 1)
            if joint and name != GRADNORM and GRADNORM in rules
            else None,
            parameters=runs[0]["parameters"],
            step_ms=sorted(run["step_ms"] for run in runs)[len(runs) // 2],
        )
    return result


def _deltas(test: Mapping[str, list[float]], alone: Mapping[str, list[float]]) -> list[float]:
    """Δm of every seed, lower is better; NaN where a network alone is never right."""
    higher: dict[str, bool] = dict.fromkeys(TASKS, True)
    seeds = range(len(test[TASKS[0]]))

    def of(values: Mapping[str, list[float]], seed: int) -> dict[str, float]:
        return {task: values[task][seed] for task in TASKS}

    every = [x for values in (*test.values(), *alone.values()) for x in values]
    if not all(map(math.isfinite, every)) or not all(x for v in alone.values() for x in v):
        return [math.nan] * len(seeds)
    return [mf.diagnostics.delta_m(of(test, s), of(alone, s), higher) for s in seeds]


def _gaps(methods: Mapping[str, Runs], name: str) -> list[float]:
    train, test = (both(methods, name, part) for part in ("train", "test"))
    return [a - b for a, b in zip(train, test, strict=True)]


def table(found: Found, plan: Plan, settings: Mapping[str, Any]) -> str:
    """Markdown: the numbers, what they show, how they were taken."""
    lines, every = [], rows(found)
    for setting, methods in every.items():
        for name, row in methods.items():
            lines.append(
                [
                    setting,
                    name,
                    *(pm(row.test.get(task)) for task in TASKS),
                    bracket(row.delta_m, 1),
                    bracket(row.against_mean),
                    pm(row.gap, 1),
                    rate_of(found.choices[setting][name]),
                    f"{row.parameters:,}",
                    f"{row.step_ms:.2f}",
                ]
            )
    columns = ["setting", "method", "left, %", "right, %", "Δm, %", "less mean's, points"]
    columns += ["training − test, points", "rate", "parameters", "step, ms"]
    return "\n".join(
        [
            markdown(columns, lines),
            "",
            *(line for said in _verdicts(found, every) for line in (said, "")),
            *(f"- {note}" for note in _notes(found, plan, settings)),
            "",
        ]
    )


def below_alone(row: Row) -> str:
    """Whether some task ends below its own network."""
    worse = [task for task, value in row.against_alone.items() if value.high < 0]
    better = [task for task, value in row.against_alone.items() if value.low > 0]
    said = [f"{word} {' and '.join(t)}" for word, t in (("below", worse), ("above", better)) if t]
    return ", ".join(said) or "no difference shown"


def verdicts_of(every: Mapping[str, dict[str, Row]]) -> dict[str, str]:
    """By claim: holds, does not hold or inconclusive; without a claim that lacks a method."""
    said = {}
    if MEAN in every[BASE]:
        # what is claimed is that one of two tasks ends below: none may end above for the contrary
        values = every[BASE][MEAN].against_alone.values()
        worse, neither = any(v.high < 0 for v in values), all(v.low > 0 for v in values)
        verdict = "holds" if worse else "does not hold" if neither else "inconclusive"
        said |= {"PC-01": verdict, "CA-01": verdict}
    shared = [every[name] for name in ARCHITECTURES if name in every]
    if all(PCGRAD in methods for methods in shared):
        said["PC-07"] = all_above(methods[PCGRAD].against_mean for methods in shared)
    if all(GRADNORM in methods for methods in shared):
        against = [row.gradnorm_above for methods in shared for row in methods.values()]
        alone = [value for m in shared for value in m[GRADNORM].against_alone.values()]
        above = all_above([*against, *alone])
        whole = all(set(RULES) <= set(methods) for methods in shared)
        # of "other weightings" all that are here, not those that `--rules` has left
        said["GN-26"] = "inconclusive" if above == "holds" and not whole else above
    return {claim: verdict for claim, verdict in said.items() if verdict}


CLAIMS = {
    "PC-01": "joint training can end below separate networks",
    "CA-01": "by the mean loss a task often ends worse than alone",
    "PC-07": "PCGrad adds to the gain of every architecture",
    "GN-26": "GradNorm is more accurate than separate networks and other weightings, in every "
    "architecture",
}


def _verdicts(found: Found, every: Mapping[str, dict[str, Row]]) -> list[str]:
    """What the corrected intervals say."""
    lines = [
        f"**{claim}, {CLAIMS[claim]} — {verdict}** here."
        for claim, verdict in verdicts_of(every).items()
    ]
    joint = {name: methods[MEAN] for name, methods in every.items() if MEAN in methods}
    if joint:
        by_setting = "; ".join(f"{name}: {below_alone(row)}" for name, row in joint.items())
        lines.append(f"**Mean loss against one task alone, by task** — {by_setting}.")
        gaps = "; ".join(f"{name}: {bracket(row.gap_above, 1)}" for name, row in joint.items())
        lines.append(
            "**GN-01, one network for both** — its gap between training and test accuracy less "
            f"that of two separate ones, points: {gaps}. Processor time of a step over that of the "
            f"two: {', '.join(f'{name} {_time(every[name]):.2f}' for name in joint)}."
        )
    if WIDE in joint and BASE in every:
        less = paired(both(found.runs[WIDE], MEAN, "test"), both(found.runs[BASE], "alone", "test"))
        lines.append(
            f"**Capacity** — one network twice as wide less two separate ones of half its width, "
            f"mean accuracy of both tasks, points: {bracket(less)}."
        )
    return lines


def _time(methods: Mapping[str, Row]) -> float:
    return methods[MEAN].step_ms / sum(methods[name].step_ms for name in ALONE.values())


def _notes(found: Found, plan: Plan, settings: Mapping[str, Any]) -> list[str]:
    """How the numbers were taken."""
    rules = len(plan.methods) - len(ALONE)
    return [
        f"On {settings['images']}; batches of {settings['batch']}, {settings['epochs']} epochs "
        f"(twice as long: {2 * settings['epochs']}), {settings['optimizer']}. Accuracy on test "
        f"pairs: mean ± standard error over {len(plan.seeds)} seeds, which fix pairs, first "
        "weights and the order of batches, the same for every method.",
        "Δm: mean relative loss of accuracy against the two networks of the same seed and setting "
        "that learnt one task alone; lower is better.",
        "Brackets are Student's t intervals, paired by seed, with Bonferroni's correction: 95 % "
        f"for all {rules} rules, or all {max(rules - 1, 0)} rivals of the mean, of a setting "
        "together; by task for the two.",
        "Cross-stitch networks have a body for each task; the others one for both. Twice as wide: "
        "both stages; of LeNet the fully connected one.",
        *about_rates(plan, found),
        "step: a run's share of the median processor time of a vmapped step on one thread.",
    ]


def figure(found: Found) -> Figure:
    """Accuracy against one task alone, PCGrad's gain and the gap, by setting."""
    every = rows(found)
    fig = Figure(figsize=(12, 1.2 + 0.75 * len(every)), layout="constrained")
    delta, gain, gap = fig.subplots(1, 3)
    names = [name for name in next(iter(every.values())) if name not in ALONE.values()]
    for i, methods in enumerate(every.values()):
        for j, name in enumerate(names):
            shift, colour = 0.7 * ((j + 0.5) / len(names) - 0.5), f"C{j}"
            bar(delta, i + shift, methods[name].delta_m, colour)
            bar(gain, i + shift, methods[name].against_mean, colour)
            bar(gap, i + shift, methods[name].gap_above, colour)
    for j, name in enumerate(names):
        gap.plot([], [], "o", color=f"C{j}", label=name)
    gap.legend(fontsize="small")
    delta.set(xlabel="Δm against one task alone, % (lower is better)")
    gain.set(xlabel="accuracy less the mean loss's, points")
    gap.set(xlabel="training − test accuracy, less that alone, points")
    for ax in (delta, gain, gap):
        ax.set_yticks(range(len(every)), list(every) if ax is delta else [])
        ax.set_ylim(len(every) - 0.5, -0.5)
        ax.axvline(0, color="0.6", lw=1)
        ax.grid(axis="x", alpha=0.3)
    return fig


def numbers_of(found: Found, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for `results.json`."""
    every = rows(found)
    return {
        "settings": dict(settings),
        "plan": plan._asdict(),
        "architectures": {name: SETTINGS[name]._asdict() for name in every},
        "verdicts": verdicts_of(every),
        "problems": {
            setting: {
                name: {
                    "summary": as_dicts(row),
                    "choice": as_dicts(found.choices[setting][name]),
                    "runs": found.runs[setting][name],
                }
                for name, row in methods.items()
            }
            for setting, methods in every.items()
        },
    }
