"""What `python -m experiments.multimnist --data FOLDER` found, for docs/benchmarks.md."""

import shutil
from pathlib import Path

from docs.blocks import day, marked, paragraph, replaced

ROOT = Path(__file__).parent.parent
FIGURES = {
    "multimnist": "Loss of accuracy against two networks, gain on the mean loss, and the gap "
    "between training and test accuracy, of every rule",
    "accuracies": "Accuracy of the left and the right image, of every rule",
    "fronts": "Test losses of four fronts at five preferences each",
}


def block(left: Path, seen: dict[str, str]) -> str:
    """The study's tables, sentences, notes and figures."""
    parts = (left / "table.md").read_text(encoding="utf-8").strip().split("\n\n")
    return marked(
        "images",
        f"Taken until {day(left / 'table.md')}.",
        *map(_wrapped, parts),
        *(f"![{seen[name]}](images-{name}.png)" for name in seen),
    )


def _wrapped(part: str) -> str:
    if part.startswith("|"):
        return part
    if part.startswith("- "):
        each = part.removeprefix("- ").split("\n- ")
        return "\n".join(paragraph(line, "- ", "  ") for line in each)
    return paragraph(part)


def write(left: Path) -> None:
    """The block and the figures that the study drew."""
    page = ROOT / "docs" / "benchmarks.md"
    seen = {name: said for name, said in FIGURES.items() if (left / f"{name}.png").exists()}
    page.write_text(replaced(page.read_text(), "images", block(left, seen)))
    for name in seen:
        shutil.copy(left / f"{name}.png", page.parent / f"images-{name}.png")
