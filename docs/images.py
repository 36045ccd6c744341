"""What `python -m experiments.multimnist --data FOLDER` found, for docs/benchmarks.md."""

import shutil
from pathlib import Path
from typing import Any

from common.intervals import against
from docs.blocks import bullets, day, listed, marked, paragraph, replaced

ROOT = Path(__file__).parent.parent
FIGURES = {
    "multimnist": "Loss of accuracy against two networks, gain on the mean loss, and the gap "
    "between training and test accuracy, of every rule in plain hard sharing",
    "accuracies": "Accuracy of the left and the right image, of every rule",
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


def _wrapped(part: str) -> str:
    if part.startswith("|"):
        return part
    return bullets(listed(part)) if part.startswith("- ") else paragraph(part)


def write(left: Path, kind: str) -> None:
    """The block of the study's set, "mnist" say, and the figures that it drew."""
    page = ROOT / "docs" / "benchmarks.md"
    name = "images" if kind == "mnist" else f"images-{kind}"
    seen = {figure: said for figure, said in FIGURES.items() if (left / f"{figure}.png").exists()}
    page.write_text(replaced(page.read_text(), name, block(name, left, seen)))
    for figure in seen:
        shutil.copy(left / f"{figure}.png", page.parent / f"{name}-{figure}.png")


def sentence(found: dict[str, Any]) -> str:
    """Of the README: which rules are shown to differ from the mean loss, all intervals together."""
    base = found["accuracies"]["hard sharing"]
    rules = [name for name, each in base.items() if len(each) > 1]  # not the networks of one task
    own = {
        name: [sum(x) / len(x) for x in zip(*base[name].values(), strict=True)] for name in rules
    }
    rivals = against(own, "mean")
    shown = [name for name, gain in rivals.items() if gain.low > 0 or gain.high < 0]
    seeds, epochs = len(found["seeds"]), found["settings"]["epochs"]
    return (
        f"**MultiMNIST from the published MNIST** ({epochs} epochs, {seeds} seeds, each rule at "
        f"its own rate): of {len(rivals)} rules {', '.join(shown) or 'none'} "
        f"{'are' if len(shown) > 1 else 'is'} shown to differ from the mean loss."
    )
