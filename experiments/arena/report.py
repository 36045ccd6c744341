"""From a result to a page and a JSON file."""

import math
from pathlib import Path
from typing import Any

import pandas

from common.tables import as_dicts, markdown, write_report
from mtlfunc.studies.arena import MEASURES, Result


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
    records = pandas.DataFrame(result.records()).set_index("problem").sort_values("rank")
    for name, problem in result.problems.items():
        rows = records.loc[[name]].dropna(axis=1, how="all").map(_short)
        parts.append(f"## {name}\n\n{problem.text}\n\n")
        parts[-1] += markdown([*map(str, rows.columns)], rows.values.tolist())
    return "\n\n".join(parts)


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.3g}"
