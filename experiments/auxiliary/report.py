"""From runs to a table and a JSON file."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.intervals import Estimate, against, all_above, bracket, estimate, paired, pm
from common.study import Found, Plan, about_rates, rate_of
from common.tables import by_method, page, said

from .tasks import MAIN
from .train import ALONE, RULES

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
    # the main task alone is a rival
    less, above = against(test, MEAN), against(test, CAGRAD)
    result = {}
    for name, each in runs.items():
        learnt = each[0]["weights"]
        descends = {t: estimate([100 * run["descends"][t] for run in each]) for t in learnt}
        result[name] = Row(
            accuracy=estimate(test[name]),
            against_mean=less.get(name),
            cagrad_above=paired(test[CAGRAD], test[name], len(above)) if name in above else None,
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
            line = [problem.split()[0], name, pm(row.accuracy), bracket(row.against_mean, 1)]
            line += [bracket(row.cagrad_above, 1), pm(row.weights[MAIN], 3)]
            line.append("–" if row.descends is None else pm(row.descends[MAIN], 1))
            lines.append([*line, rate_of(found.choices[problem][name]), f"{row.step_ms:.1f}"])
    columns = ["labels", "method", "accuracy, %", "less mean's", "CAGrad's less its"]
    columns += ["weight on the main task", "main task falls, % of steps", "rate", "step, ms"]
    notes = _notes(found, plan, settings)
    return page(columns, lines, _verdicts(every, settings), notes)


def _verdicts(every: Mapping[str, dict[str, Row]], settings: Mapping[str, Any]) -> list[str]:
    """What the corrected intervals say."""
    lines = []
    for problem, methods in every.items():
        lines += said(
            f"{problem}, against the mean loss of all tasks",
            {name: row.against_mean for name, row in methods.items()},
            lower_is_better=False,
        )
    best, neglect = highest(every), neglected(every)
    where = f"on {settings['images']}, with {', '.join(settings['auxiliaries'])}"
    here = " — stand-in" if settings["data"] is None else ""
    claims = {
        f"CA-36, CAGrad has the highest accuracy for every number of labels{here}": best,
        "CA-37, MGDA neglects the main task and falls far below the baseline": neglect,
    }
    for claim, verdict in claims.items():
        lines += [f"**{claim}: {verdict}** {where}.", ""] if verdict else []
    return lines


def highest(every: Mapping[str, dict[str, Row]]) -> str:
    """Whether CAGrad is above every rival in every problem; "" without CAGrad or a rival. It holds
    against all rules alone, not against those that `--rules` has left.
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


def _notes(found: Found, plan: Plan, settings: Mapping[str, Any]) -> list[str]:
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


def numbers_of(found: Found, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for `results.json`."""
    every = rows(found)
    return {
        "settings": dict(settings),
        "plan": plan._asdict(),
        "CA-36": highest(every),
        "CA-37": neglected(every),
        "problems": {
            problem: by_method(methods, found, problem) for problem, methods in every.items()
        },
    }
