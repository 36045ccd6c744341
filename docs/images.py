"""What `python -m experiments.multimnist --data FOLDER` found, for docs/benchmarks.md."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.blocks import bullets, day, listed, marked, paragraph, replaced
from paper_repro.report.images import BASE

ROOT = Path(__file__).parent.parent
FIGURES = {
    "multimnist": "Loss of accuracy against two networks, gain on the mean loss, and the gap "
    "between training and test accuracy, of every rule in plain hard sharing",
    "accuracies": "Gains of every rule on the mean loss for the left and the right image, with "
    "95 % intervals, one at a time",
    "fronts": "Test losses of four fronts at five preferences each",
}


def block(name: str, left: Path, seen: dict[str, str]) -> str:
    """The study's tables, sentences, notes and figures."""
    parts = (left / "table.md").read_text(encoding="utf-8").strip().split("\n\n")
    return marked(
        name,
        f"Taken until {day(left / 'table.md')}.",
        *map(_wrapped, parts),
        *(f"![{seen[figure]}]({name}-{figure}.png)" for figure in seen),
    )


def _block(kind: str) -> str:
    return "images" if kind == "mnist" else f"images-{kind}"


def _wrapped(part: str) -> str:
    if part.startswith("|"):
        return part
    return bullets(listed(part)) if part.startswith("- ") else paragraph(part)


def write(left: Path, found: Mapping[str, Any]) -> None:
    """The block of the study's set, and the figures that it drew.

    Args:
        left: the study's folder, which may have figures of an earlier study too.
        found: its results.
    """
    page = ROOT / "docs" / "benchmarks.md"
    name = _block(found["settings"]["set"])
    drawn = {"accuracies": BASE in found["problems"], "fronts": bool(found["fronts"])}
    seen = {figure: said for figure, said in FIGURES.items() if drawn.get(figure, True)}
    page.write_text(replaced(page.read_text(), name, block(name, left, seen)))
    for figure in seen:
        shutil.copy(left / f"{figure}.png", page.parent / f"{name}-{figure}.png")
