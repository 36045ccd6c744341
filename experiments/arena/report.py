"""From a result to a page and a JSON file."""

import math
from pathlib import Path
from typing import Any

from common.tables import as_dicts, markdown, write_report
from mtlfunc.studies.arena import MEASURES, STATIC, Result

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
    """results.json and table.md, each written atomically."""
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
    return write_report(out, as_dicts(content), page(result, settings), {})


def page(result: Result, settings: dict[str, Any]) -> str:
    """The whole study as a page in Markdown."""
    table = result.table()
    parts = [
        "# The arena\n\nEvery rule on small problems with known answers, against constant weights "
        f"that were searched for. {'; '.join(f'{name} {x}' for name, x in settings.items())}.",
        markdown(list(table.columns), table.values.tolist()),
        "\n".join(f"- {note}" for note in result.notes()),
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
