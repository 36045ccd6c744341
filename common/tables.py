"""Tables in Markdown, intervals in figures, and an experiment's three files."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlfunc.core.files import write_whole

from .cells import plain
from .intervals import Estimate, verdicts
from .progress import say
from .study import Found


def markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose columns are also aligned in plain text."""
    cells = [list(names), *map(list, lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    text = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in cells
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def bar(ax: Axes, place: float, value: Estimate | None, colour: str, hollow: bool = False) -> None:
    """A mean with its interval, lying; nothing for None or a failed run."""
    if value is not None and math.isfinite(value.mean):
        reach = [[value.mean - value.low], [value.high - value.mean]]
        face = "white" if hollow else colour
        ax.errorbar(value.mean, place, xerr=reach, fmt="o", ms=5, color=colour, mfc=face, capsize=3)


def _panel(
    ax: Axes, title: str, each: Mapping[str, Estimate | None], colours: Mapping[str, str]
) -> None:
    """A mean with its interval for every name, the first on top."""
    for i, (name, value) in enumerate(each.items()):
        bar(ax, float(i), value, colours.get(name, "C0"))
    ax.set_yticks(range(len(each)), list(each))
    ax.set(xlabel=title, ylim=(len(each) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.3)


def intervals(panels: Mapping[str, Mapping[str, Estimate | None]]) -> Figure:
    """A panel a title: a mean with its interval for every name."""
    most = max(len(each) for each in panels.values())
    fig = Figure(figsize=(4.6 * len(panels), 1.2 + 0.3 * most), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, each) in zip(axes, panels.items(), strict=True):
        _panel(ax, title, each, {})
        if any(value is not None and value.low <= 0 for value in each.values()):
            ax.axvline(0, color="0.6", lw=1)
    return fig


def write_png(figure: Figure, path: Path) -> None:
    """A figure for a page."""
    write_whole(path, partial(figure.savefig, dpi=110, format="png"))


def side_by_side(
    panels: Mapping[str, Mapping[str, Estimate | None]], colours: Mapping[str, str]
) -> Figure:
    """As `intervals`, of the same names in the same order in all panels, four in a row."""
    rows, names = -(-len(panels) // 4), len(next(iter(panels.values())))
    fig = Figure(figsize=(13, rows * (0.8 + 0.17 * names)), layout="constrained")
    axes = fig.subplots(rows, 4, sharey=True, squeeze=False).flat
    for ax, (title, each) in zip(axes, panels.items(), strict=False):
        _panel(ax, title, each, colours)
        ax.axvline(0, color="0.6", lw=1)
    return fig


def said(
    what: str, values: Mapping[str, Estimate | None], *, lower_is_better: bool = True
) -> list[str]:
    """What intervals say in a line and an empty one; none where there is nothing to compare."""
    known = {name: value for name, value in values.items() if value is not None}
    groups = verdicts(known, lower_is_better=lower_is_better)
    line = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items())
    return [f"**{what}** — {line}.", ""] if line else []


def page(
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    before: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Markdown: a table, what it shows, how it was taken."""
    listed = [f"- {note}" for note in notes]
    return "\n".join([markdown(columns, lines), "", *before, *listed, ""])


def by_method(rows: Mapping[str, Any], found: Found, problem: str = "") -> dict[str, Any]:
    """For `results.json`: every method's row, choice and runs on a problem."""
    choices, runs = found.choices[problem], found.runs[problem]
    return {
        name: {"summary": as_dicts(row), "choice": as_dicts(choices[name]), "runs": runs[name]}
        for name, row in rows.items()
    }


def as_dicts(value: Any) -> Any:
    """Named tuples as dictionaries, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, tuple | list):
        return [as_dicts(each) for each in value]
    return {k: as_dicts(v) for k, v in value.items()} if isinstance(value, dict) else value


def report(
    folder: Path, numbers: dict[str, Any], table: str, figures: Mapping[str, Figure]
) -> None:
    """The table on the terminal first, so that a full disk does not lose it; then the files."""
    say(f"\n{table}", sys.stdout)
    paths = write_report(folder, numbers, table, figures)
    say(f"written: {', '.join(map(str, paths))}", sys.stdout)


def write_report(
    folder: Path, numbers: dict[str, Any], table: str, figures: Mapping[str, Figure]
) -> list[Path]:
    """`results.json`, `table.md` and a PNG per figure, each written atomically; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Any] = {
        "results.json": json.dumps(plain(numbers), indent=1, ensure_ascii=False) + "\n",
        "table.md": table.rstrip() + "\n",
    }
    for name, figure in figures.items():
        contents[f"{name}.png"] = partial(figure.savefig, dpi=130, format="png")
    for file, content in contents.items():
        write_whole(folder / file, content)
    return [folder / file for file in contents]
