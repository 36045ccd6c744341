"""Tables in Markdown, intervals in figures, and an experiment's three files."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlfunc.core.files import write_whole

from .cells import plain
from .intervals import Estimate


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


def as_dicts(value: Any) -> Any:
    """Named tuples as dictionaries, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, tuple | list):
        return [as_dicts(each) for each in value]
    return {k: as_dicts(v) for k, v in value.items()} if isinstance(value, dict) else value


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
