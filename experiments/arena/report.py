"""From a result to figures, a page and a JSON file."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.tables import as_dicts, markdown, write_report
from mtlfunc.studies.arena import MEASURES, STATIC, Result


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


def write(result: Result, settings: dict[str, Any], out: Path) -> list[Path]:
    """results.json, table.md and the figure, each written atomically."""
    figure, caption = ranks(result)
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
    return write_report(out, as_dicts(content), page(result, settings, caption), {"ranks": figure})


def page(result: Result, settings: dict[str, Any], caption: str) -> str:
    """The whole study as a page in Markdown."""
    table = result.table()
    parts = [
        "# The arena\n\nEvery rule on small problems with known answers, against constant weights "
        f"that were searched for. {'; '.join(f'{name} {x}' for name, x in settings.items())}.",
        markdown(list(table.columns), table.values.tolist()),
        "\n".join(f"- {note}" for note in result.notes()),
        f"![ranks](ranks.png)\n\n{caption}",
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
