"""Tables with intervals, where Gauss-Newton loses, and the fields and errors as pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from common.intervals import Estimate, estimate, paired
from common.study import Choice
from common.tables import markdown

from .methods import METHODS
from .problems import HARD, PROBLEMS
from .run import MARKS, Settings

Runs = Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]
COLOURS = {name: f"C{i}" for i, name in enumerate(METHODS)} | {"Gauss-Newton": "black"}
OURS = "Gauss-Newton"
PICTURED = ("Adam", "L-BFGS", OURS)


class Results(NamedTuple):
    runs: Runs  # by problem and method, one entry a seed
    choices: Mapping[str, Mapping[str, tuple[Choice, ...]]]
    seeds: tuple[int, ...]
    tuning: tuple[int, ...]
    settings: Settings
    clock: str


def digits(run: dict[str, Any]) -> float:
    """log10 of the error at the end; NaN for a run that failed."""
    return -run["score"] if math.isfinite(run["score"]) else math.nan


def errors(runs: Sequence[dict[str, Any]]) -> Estimate:
    """Of log10 of the error at the end, over seeds."""
    return estimate([digits(run) for run in runs])


def shown(value: Estimate) -> str:
    """The geometric mean, and the factor to either end of its interval."""
    if not math.isfinite(value.mean):
        return "failed"
    factor = 10 ** min(value.high - value.mean, 300.0)  # of two seeds it may leave the floats
    return f"{10**value.mean:.1e} ×/÷ {factor:.2g}"


def table(results: Results) -> str:
    """A row a problem, a column a method."""
    methods = [name for name in METHODS if any(name in row for row in results.runs.values())]
    lines = []
    for problem, row in results.runs.items():
        found = {name: errors(runs) for name, runs in row.items()}
        means = {name: x.mean for name, x in found.items() if math.isfinite(x.mean)}
        best = min(means, key=means.__getitem__) if means else ""
        cells = [shown(found[name]) if name in found else "–" for name in methods]
        cells = [f"**{x}**" if name == best else x for name, x in zip(methods, cells, strict=True)]
        lines.append([problem, *cells])
    return markdown(("problem", *methods), lines)


def against(row: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, list[str]]:
    """The other methods by whether Gauss-Newton's error is lower or higher than theirs; intervals
    of all comparisons on a problem hold together. A method that failed on some seed has the higher.
    """
    groups: dict[str, list[str]] = {"higher": [], "open": [], "lower": []}
    others = [name for name in row if name != OURS]
    ours = [digits(run) for run in row[OURS]]
    for name in others:
        theirs = [digits(run) for run in row[name]]
        failed = [any(map(math.isnan, each)) for each in (ours, theirs)]
        if any(failed):
            said = "open" if all(failed) else "higher" if failed[0] else "lower"
        else:
            less = paired(ours, theirs, len(others))
            said = "open" if less.open else "lower" if less.high < 0 else "higher"
        groups[said].append(name)
    return groups


def words(results: Results) -> list[str]:
    """Where Gauss-Newton loses, before where it wins."""
    rows = {problem: row for problem, row in results.runs.items() if OURS in row}
    found = {problem: against(row) for problem, row in rows.items() if len(row) > 1}
    if not found:
        return []

    def listed(group: str) -> str:
        parts = [f"{p} ({', '.join(x[group])})" for p, x in found.items() if x[group]]
        return "; ".join(parts) or "nowhere"

    return [
        f"**Where Gauss-Newton loses**: its error is higher than that of the methods in brackets "
        f"on: {listed('higher')}. No difference is shown on: {listed('open')}. It is lower on: "
        f"{listed('lower')}."
    ]


def notes(results: Results) -> list[str]:
    """How the numbers were taken."""
    grids: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for name in dict.fromkeys(name for row in results.runs.values() for name in row):
        grids.setdefault((METHODS[name].setting, METHODS[name].grid), []).append(name)
    said = "; ".join(
        f"{setting} of {', '.join(f'{x:g}' for x in grid)} for {', '.join(names)}"
        for (setting, grid), names in grids.items()
    )
    edge = [
        f"{name} on {problem}"
        for problem, row in results.choices.items()
        for name, choices in row.items()
        if choices[0].edge
    ]
    settings = results.settings
    return [
        f"Relative L2 error after {settings.seconds:g} s of {results.clock} a run, geometric mean "
        f"over seeds {results.seeds[0]} to {results.seeds[-1]} with the factor to either end of "
        "Student's 95 % interval; bold is the lowest mean. Only whole steps within the time count; "
        "making the network and looking at the error are not counted.",
        f"Each method has its best setting on {len(results.tuning)} other "
        f"seed{'s' if len(results.tuning) > 1 else ''}: {said}. While the best lies at an edge, "
        "the next value beyond is tried, at most three times"
        + (f"; still at the edge: {', '.join(edge)}." if edge else "; none is at the edge still."),
        "Networks have two hidden layers of 32 tanh in float64 (few weights: of 8), Glorot's first "
        "weights, inputs in [-1, 1], periodic ones as a sine and a cosine. The residuals of values "
        "count 10 times. Everyone has the same points, 300 unless a row says otherwise, and "
        "derivatives by `mf.physics.laplacian`. Learning rates are constant.",
        "Adam, L-BFGS and Gauss-Newton take the sum of the terms; the rules weigh the terms and "
        "step by Adam. SPRING is Gauss-Newton with momentum 0.9; both take the best of eight step "
        "lengths. SOAP is left out: no library of it is a dependency here.",
        "Problems: "
        + "; ".join(f"{p}: {HARD.get(p) or PROBLEMS[p].about}" for p in results.runs)
        + ".",
    ]


def page(results: Results) -> str:
    """Markdown: where it loses, numbers, notes."""
    lines = "\n".join(f"- {note}" for note in notes(results))
    return "\n\n".join([*words(results), table(results), lines])


def numbers_of(results: Results, settings: dict[str, Any]) -> dict[str, Any]:
    """All runs but their fields."""
    runs = {
        problem: {
            name: [{k: v for k, v in run.items() if k != "field"} for run in each]
            for name, each in row.items()
        }
        for problem, row in results.runs.items()
    }
    chosen = {
        problem: {name: choices[0]._asdict() for name, choices in row.items()}
        for problem, row in results.choices.items()
    }
    return {"settings": settings, "chosen": chosen, "runs": runs}


def figures(results: Results) -> dict[str, Figure]:
    """Errors over time, and fields with their errors."""
    fields = _fields(results)
    return {"errors": _errors(results)} | ({"fields": fields} if fields else {})


def _errors(results: Results) -> Figure:
    count = len(results.runs)
    columns = min(3, count)
    rows = -(-count // columns)
    drawn = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.6), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False).flatten()
    seconds = results.settings.seconds * (1 + np.arange(MARKS)) / MARKS
    for ax, (problem, row) in zip(axes, results.runs.items(), strict=False):
        for name, runs in row.items():
            each = np.array([run["errors"] for run in runs])
            look = "-" if name in (OURS, "SPRING", "L-BFGS") else "--"
            middle = np.exp(np.log(each).mean(0))
            ax.plot(seconds, middle, look, color=COLOURS[name], lw=1.4, label=name)
            ax.fill_between(seconds, each.min(0), each.max(0), color=COLOURS[name], alpha=0.1)
        ax.set(yscale="log", title=problem)
        ax.grid(alpha=0.3)
    for ax in axes[count:]:
        ax.remove()
    drawn.supxlabel(f"seconds of {results.clock}")
    drawn.supylabel("relative L2 error")
    lines = {str(line.get_label()): line for ax in drawn.axes for line in ax.get_lines()}
    drawn.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=8, fontsize=8)
    return drawn


def _fields(results: Results) -> Figure | None:
    """The solution, and how far the first seed's networks are from it."""
    names = [
        problem
        for problem, row in results.runs.items()
        if problem not in HARD and len(PROBLEMS[problem].box) == 2 and {*PICTURED} <= {*row}
        if all(np.isfinite(row[name][0]["field"]).all() for name in PICTURED)
    ]
    if not names:
        return None
    drawn = Figure(figsize=(12, 2.5 * len(names)), layout="constrained")
    axes = drawn.subplots(len(names), 1 + len(PICTURED), squeeze=False)
    for (first, *others), problem in zip(axes, names, strict=True):
        x, u = (leaf.numpy() for leaf in PROBLEMS[problem].solution(results.settings.grid))
        evolves = "start" in PROBLEMS[problem].faces
        across, up = (x[:, 1], x[:, 0]) if evolves else x.T
        row = {name: np.array(results.runs[problem][name][0]["field"]) for name in PICTURED}
        off = {name: np.abs(field - u).clip(1e-12) for name, field in row.items()}
        top = max(value.max() for value in off.values())
        norm = LogNorm(max(top * 1e-6, min(np.median(x) for x in off.values()) / 10), top)
        shaded = _shade(first, across, up, u, cmap="RdBu_r")
        drawn.colorbar(shaded, ax=first)
        first.set(title="u", ylabel=f"{problem}\n{'x' if evolves else 'y'}")
        for ax, (name, value) in zip(others, off.items(), strict=True):
            shaded = _shade(ax, across, up, value, cmap="viridis", norm=norm)
            ax.set(title=f"|error|, {name}")
        drawn.colorbar(shaded, ax=others)
        for ax in (first, *others):
            ax.set_xlabel("t" if evolves else "x")
    return drawn


def _shade(ax: Any, across: np.ndarray, up: np.ndarray, value: np.ndarray, **look: Any) -> Any:
    """Values on a grid, whichever coordinate is the faster one."""
    rows, columns = np.unique(up, return_inverse=True), np.unique(across, return_inverse=True)
    whole = np.full((len(rows[0]), len(columns[0])), np.nan)
    whole[rows[1], columns[1]] = value
    return ax.pcolormesh(columns[0], rows[0], whole, shading="nearest", **look)
