"""From outcomes to a table, a JSON file and a figure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import mtlfunc as mf
from experiments.common.intervals import Estimate, bracket, estimate, pm
from experiments.common.tables import markdown, write_report

from .study import BATCH, MEASURE_EVERY, TASKS, Outcome

ALONE = {task: f"{task} alone" for task in TASKS}


class Row(NamedTuple):
    """A rule in numbers; all paired over seeds. None where there is nothing to compare with."""

    rule: str
    accuracy: dict[str, Estimate]  # by task, in per cent
    delta_m: Estimate | None  # against one task alone, per cent; lower is better
    against_mean: Estimate | None  # delta_m less that of equal weights, percentage points
    rate: str
    at_edge: bool
    conflict: Estimate | None  # per cent of the measurements
    step_ms: float


def delta_m(outcome: Outcome, outcomes: dict[str, Outcome]) -> list[float]:
    """Δm of every seed against the two networks of the same seed that learnt one task alone."""
    alone = {task: outcomes[ALONE[task]].test[task] for task in TASKS}
    higher: dict[str, bool] = dict.fromkeys(TASKS, True)
    return [
        mf.diagnostics.delta_m(
            {task: outcome.test[task][seed] for task in TASKS},
            {task: alone[task][seed] for task in TASKS},
            higher,
        )
        for seed in range(len(outcome.test[TASKS[0]]))
    ]


def rows(outcomes: dict[str, Outcome]) -> list[Row]:
    """One row for each finished method, in the order in which they ran (the baselines first)."""
    result = []
    equal = delta_m(outcomes["mean"], outcomes) if "mean" in outcomes else None
    for name, outcome in outcomes.items():
        both = set(outcome.test) == set(TASKS)
        delta = delta_m(outcome, outcomes) if both else None
        result.append(
            Row(
                rule=name,
                accuracy={
                    task: estimate([100 * x for x in values])
                    for task, values in outcome.test.items()
                },
                delta_m=None if delta is None else estimate(delta),
                against_mean=None
                if delta is None or equal is None or name == "mean"
                else estimate([a - b for a, b in zip(delta, equal, strict=True)]),
                rate=f"{outcome.rates[outcome.best]:g}",
                at_edge=outcome.best in (0, len(outcome.rates) - 1),
                conflict=None
                if outcome.conflict is None
                else estimate([100 * x for x in outcome.conflict]),
                step_ms=outcome.step_ms,
            )
        )
    return result


def table(outcomes: dict[str, Outcome]) -> str:
    """Markdown: the numbers, what they show, and how they were taken."""
    found = rows(outcomes)
    names = ["rule", "left, %", "right, %", "Δm, %", "Δm − Δm(mean)", "best rate"]
    lines = []
    for row in found:
        lines.append(
            [
                row.rule,
                *(pm(row.accuracy.get(task)) for task in TASKS),
                bracket(row.delta_m),
                bracket(row.against_mean),
                row.rate + (" (edge)" if row.at_edge else ""),
                pm(row.conflict, 1),
                f"{row.step_ms:.1f}",
            ]
        )
    said = verdicts([row for row in found if row.delta_m])
    notes = _notes(outcomes, [row.rule for row in found if row.at_edge])
    numbers = markdown([*names, "conflict, %", "step, ms"], lines)
    return "\n".join([numbers, "", *said, "", *(f"- {note}" for note in notes), ""])


def _notes(outcomes: dict[str, Outcome], edges: Sequence[str]) -> list[str]:
    """How the numbers were taken."""
    first = next(iter(outcomes.values()))
    seeds, rates = len(first.curve), len(first.rates)
    beyond = (
        f"**At the edge of the grid: {', '.join(edges)}**; a better rate may lie beyond it."
        if edges
        else "No best rate lies at the edge of the grid."
    )
    notes = [
        f"Test accuracy and conflict: mean ± standard error over {seeds} seeds, {first.steps} "
        f"steps of {BATCH} pairs each. A seed fixes the division of the images, the pairs, the "
        "initial values and the order of batches, the same for every rule.",
        "Δm: mean relative loss of accuracy against the two networks of the same seed that "
        "learnt one task alone, with its 95 % interval; lower is better. The next column is "
        "paired in the same way with equal weights. All networks have one trunk size, so that "
        "two tasks share what one has to itself.",
        f"Rates: each method at its best of {', '.join(f'{rate:g}' for rate in first.rates)} "
        f"(Adam) by mean validation accuracy after the last epoch. {beyond}",
        "Conflict: share of steps with g_left·g_right < 0 over the whole trunk, measured every "
        f"{MEASURE_EVERY} steps at the point and on the batch of the step that follows, with one "
        "and the same Gramian for every rule, whatever its own probe measures. It is taken at the "
        "method's own best rate and depends on the rate, too (results.json has all rates).",
        f"Step: median wall time of one vmapped step, {seeds} seeds × {rates} rates = "
        f"{seeds * rates} runs at once, without the measurements of conflict and the validation. "
        "Compare these only if the machine was otherwise idle.",
    ]
    if "cagrad-fast" in outcomes:
        notes.append(
            "cagrad-fast: with two tasks one is drawn and the other is all the rest, so its rows "
            "are CAGrad's in random order and the answer is the same."
        )
    return notes


def verdicts(compared: Sequence[Row]) -> list[str]:
    """What the intervals say, and how many there are."""
    if not compared:
        return ["No rule has finished yet."]

    def sorted_out(against: str, pick: Callable[[Row], Estimate | None]) -> list[str]:
        values = {row.rule: value for row in compared if (value := pick(row))}
        groups = {
            "better": [rule for rule, value in values.items() if value.high < 0],
            "worse": [rule for rule, value in values.items() if value.low > 0],
            "no difference shown (the interval includes 0)": [
                rule for rule, value in values.items() if value.low <= 0 <= value.high
            ],
        }
        said = [f"{verdict}: {', '.join(rules)}" for verdict, rules in groups.items() if rules]
        return [f"**Against {against}** — {'; '.join(said)}."] if said else []

    lines = sorted_out("one task alone", lambda row: row.delta_m) + sorted_out(
        "equal weights", lambda row: row.against_mean
    )
    count = sum((row.delta_m is not None) + (row.against_mean is not None) for row in compared)
    caution = (
        f"Each interval is at 95 % by itself, without correction for there being {count}: "
        "if nothing differed, about one in twenty would still miss 0."
    )
    return [line for part in [*lines, caution] for line in (part, "")][:-1]


def figure(outcomes: dict[str, Outcome]) -> Figure:
    """Test accuracy, Δm, validation curves and conflict by method."""
    found = rows(outcomes)
    rules = [row for row in found if row.delta_m]
    colours = {row.rule: f"C{i}" for i, row in enumerate(found)}
    fig = Figure(figsize=(12, 8.5), layout="constrained")
    (accuracy, delta), (curves, conflict) = fig.subplots(2, 2)

    _dots(accuracy, found, lambda row: row.accuracy.get("left"), colours, shift=-0.12, marker="o")
    _dots(accuracy, found, lambda row: row.accuracy.get("right"), colours, shift=0.12, marker="s")
    accuracy.plot([], [], "o", color="0.3", label="left digit")
    accuracy.plot([], [], "s", color="0.3", label="right digit")
    accuracy.legend()
    seeds = len(next(iter(outcomes.values())).curve)
    spread = f"accuracy, % (mean and 95 % interval, {seeds} seeds)"
    accuracy.set(title="Test accuracy", xlabel=spread)

    _dots(delta, rules, lambda row: row.delta_m, colours, shift=-0.12, marker="o")
    _dots(delta, rules, lambda row: row.against_mean, colours, shift=0.12, marker="D", hollow=True)
    delta.plot([], [], "o", color="0.3", label="Δm against one task alone, %")
    delta.plot([], [], "D", color="0.3", mfc="white", label="Δm less that of equal weights, points")
    delta.axvline(0, color="0.6", lw=1)
    delta.legend(loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=2, fontsize="small")
    delta.set(
        title="Relative loss of accuracy (lower is better)",
        xlabel="per cent (paired over seeds, 95 % interval)",
    )

    _curves(curves, outcomes, colours)

    _dots(conflict, rules, lambda row: row.conflict, colours)
    conflict.set(
        title="Conflicting steps, one Gramian over the trunk for all",
        xlabel="steps with g_left·g_right < 0, % (mean and 95 % interval)",
    )
    return fig


def _curves(ax: Axes, outcomes: dict[str, Outcome], colours: dict[str, str]) -> None:
    for name, outcome in outcomes.items():
        epochs = range(1, len(outcome.curve[0]) + 1)
        bands = [estimate([100 * x for x in column]) for column in zip(*outcome.curve, strict=True)]
        dashed = "--" if len(outcome.test) == 1 else "-"
        means, colour = [band.mean for band in bands], colours[name]
        ax.plot(epochs, means, dashed, marker=".", color=colour, label=name)
        low, high = ([b.mean + sign * b.error for b in bands] for sign in (-1, 1))
        ax.fill_between(epochs, low, high, color=colour, alpha=0.12, lw=0)
    ax.legend(ncols=2, loc="lower right")
    ax.set(
        title="Validation accuracy at the chosen rate",
        xlabel="epoch",
        ylabel="accuracy, % (mean over tasks ± standard error)",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _dots(
    ax: Axes,
    found: Sequence[Row],
    pick: Callable[[Row], Estimate | None],
    colours: dict[str, str],
    *,
    shift: float = 0.0,
    marker: str = "o",
    hollow: bool = False,
) -> None:
    for place, row in enumerate(found):
        value = pick(row)
        if value is not None:
            reach = [[value.mean - value.low], [value.high - value.mean]]
            colour = colours[row.rule]
            ax.errorbar(
                value.mean,
                place + shift,
                xerr=reach,
                fmt=marker,
                color=colour,
                mfc="white" if hollow else colour,
                capsize=3,
            )
    ax.set_yticks(range(len(found)), [row.rule for row in found])
    ax.set_ylim(max(len(found), 1) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)


def write(outcomes: dict[str, Outcome], settings: dict[str, object], folder: Path) -> list[Path]:
    """Numbers, table and figure, each file whole; their paths."""
    methods = {
        row.rule: outcomes[row.rule]._asdict() | {"summary": _plain(row)} for row in rows(outcomes)
    }
    numbers = {"settings": settings, "methods": methods}
    return write_report(folder, numbers, table(outcomes), {"digits": figure(outcomes)})


def _plain(row: Row) -> dict[str, object]:
    def plain(value: object) -> object:
        if isinstance(value, Estimate):
            return value._asdict()
        return (
            {key: plain(entry) for key, entry in value.items()}
            if isinstance(value, dict)
            else value
        )

    return {name: plain(value) for name, value in row._asdict().items() if name != "rule"}
