"""From a result to figures, a page and a JSON file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from common.tables import as_dicts, markdown, write_report
from mtlfunc.studies.arena import MEASURES, STATIC, Result, normalize_losses

PICTURED = ("mean", "mgda", "pcgrad", "cagrad", STATIC)
"""Drawn on the fronts, beside the user's."""


def ranks(result: Result) -> tuple[Figure, str]:
    measures = [by for by in MEASURES if result.ranks(by)]
    figure = Figure(
        figsize=(5.2 * len(measures), 1.6 + 0.26 * len(result.rules)), layout="constrained"
    )
    for i, by in enumerate(measures):
        result.plot(figure.add_subplot(1, len(measures), i + 1), by)
    apart = [
        f"{result.critical_difference(by):.1f} ({by})"
        for by in measures
        if math.isfinite(result.critical_difference(by))
    ]
    return figure, (
        "Average ranks, 1 is best, of every rule and (orange) the mean and the static search, at "
        "the learning rate that is best by this measure on other seeds. Thick: 95 % over seeds, "
        "the choice of the learning rate included; thin: over problems, where there are enough. "
        + (
            f"Ranks must lie more than {', '.join(apart)} apart for two rules to differ, all "
            "pairs taken together."
            if apart
            else "There are too few problems to tell rules apart on others."
        )
    )


def scores(result: Result) -> tuple[Figure, str]:
    """A map of how much better or worse than the mean every rule does, as a share of the mean's
    score.
    """
    order, names = [rank.rule for rank in result.ranks()], list(result.cells)
    table = np.array(
        [[float(result.reported(name, rule).mean()) for name in names] for rule in order]
    )
    against = (
        np.array([float(result.reported(name, "mean").mean()) for name in names])
        if "mean" in order
        else np.full(len(names), np.nan)
    )
    with np.errstate(invalid="ignore"):
        share = 100 * (table / against - 1)
    figure = Figure(
        figsize=(3.4 + 0.95 * len(names), 1.8 + 0.26 * len(order)), layout="constrained"
    )
    ax = figure.add_subplot()
    image = ax.imshow(
        np.where(np.isfinite(share), share.clip(-100, 100), np.nan),
        cmap="PuOr",
        norm=TwoSlopeNorm(0, -100, 100),
        aspect="auto",
    )
    ax.set_facecolor("#999999")
    for (i, j), value in np.ndenumerate(table):
        shade = abs(share[i, j]) if np.isfinite(share[i, j]) else 0
        ax.text(
            j,
            i,
            f"{value:.3f}" if np.isfinite(value) else "failed",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shade > 65 else "black",
        )
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(order)), order)
    figure.colorbar(image, ax=ax, label="against the mean's score, % (clipped)", shrink=0.8)
    return (
        figure,
        "Mean scores by problem, best average rank on top; colour: how much lower (orange) or "
        "higher (purple) than the mean's score. Grey: failed.",
    )


def fronts(result: Result, mine: tuple[str, ...]) -> tuple[Figure, str] | None:
    """Where the runs end, on the problems with two losses and a known front."""
    names = [
        name
        for name in result.cells
        if (front := result.problems[name].front) is not None
        and front.shape[1] == 2
        and len(front) > 1
    ]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.9 * rows + 0.5), layout="constrained")
    shown = [
        rule
        for rule in (*PICTURED, *mine)
        if rule in result.rules and any(not result.status(name, rule) for name in names)
    ]
    for i, name in enumerate(names):
        ax: Axes = figure.add_subplot(rows, columns, i + 1)
        problem = result.problems[name]
        assert problem.front is not None
        ax.plot(
            *normalize_losses(problem, problem.front).T.numpy(),
            color="0.7",
            linewidth=3,
            label="Pareto front",
        )
        for j, rule in enumerate(shown):
            final = normalize_losses(
                problem,
                result.cells[name][rule].losses[
                    result.chosen(name, rule), result.settings.tuning :
                ],
            )
            ax.plot(
                *final.T.numpy(),
                MARKERS[j % len(MARKERS)],
                color=f"C{j}",
                markersize=6,
                alpha=0.7,
                label=rule,
                fillstyle="none",
            )
        ax.set(
            title=name,
            xlabel="score of loss 1",
            ylabel="score of loss 2",
            xlim=(-0.08, 1.35),
            ylim=(-0.08, 1.35),
        )
        ax.grid(alpha=0.25)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return (
        figure,
        "Where the runs of the reporting seeds end, at each rule's own learning rate by mean "
        "score; points beyond 1.35 are not shown.",
    )


MARKERS = "sD^ov<>P*X"


DETAILS = {
    "rank": "rank",
    "lr": "learning rate",
    "mean": "mean score",
    "mean less mean's": "less the mean's",
    f"mean less {STATIC}'s": "less the static search's",
    "worst": "worst score",
    "front": "distance to front",
    "step, ms": "ms per step",
}
"""Columns of a problem's table, by their names in a record."""


def write(result: Result, settings: dict[str, Any], mine: tuple[str, ...], out: Path) -> list[Path]:
    """results.json, table.md and the figures, each written atomically."""
    drawn = fronts(result, mine)
    figures = {"ranks": ranks(result), "scores": scores(result)}
    figures |= {"fronts": drawn} if drawn else {}
    if not drawn:
        (out / "fronts.png").unlink(missing_ok=True)
    content = {
        "settings": settings,
        "problems": {name: problem.text for name, problem in result.problems.items()},
        "notes": result.notes(),
        "ranks": {by: result.ranks(by) for by in MEASURES},
        "critical difference": {
            by: result.critical_difference(by) for by in MEASURES if result.ranks(by)
        },
        "records": {by: result.records(by) for by in MEASURES},
    }
    pictures = {name: figure for name, (figure, _) in figures.items()}
    return write_report(out, as_dicts(content), page(result, settings, figures), pictures)


def page(result: Result, settings: dict[str, Any], figures: dict[str, tuple[Figure, str]]) -> str:
    """The whole study as a page in Markdown."""
    table = result.table()
    parts = [
        "# The arena\n\nEvery rule on small problems with known answers, against constant weights "
        f"that were searched for. {'; '.join(f'{name} {x}' for name, x in settings.items())}.",
        markdown(list(table.columns), table.values.tolist()),
        "\n".join(f"- {note}" for note in result.notes()),
        *(f"![{name}]({name}.png)\n\n{caption}" for name, (_, caption) in figures.items()),
    ]
    records = result.records()
    for name, problem in result.problems.items():
        rows = sorted((x for x in records if x["problem"] == name), key=lambda x: x["rank"])
        shown = {key: head for key, head in DETAILS.items() if any(key in row for row in rows)}
        lines = [[row["rule"], *(_number(row, key) for key in shown)] for row in rows]
        head = f"## {name}\n\n{problem.text}"
        parts.append(f"{head}\n\n{markdown(['rule', *shown.values()], lines)}")
    return "\n\n".join(parts)


def _number(row: dict[str, Any], key: str) -> str:
    """A mean with its interval where there is one; empty where it is not finite."""
    value, low, high = (row.get(name, math.nan) for name in (key, f"{key}, low", f"{key}, high"))
    if not math.isfinite(value):
        return ""
    return f"{value:.3g}" + (f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) else "")
