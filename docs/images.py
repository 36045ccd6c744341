"""What `python -m experiments.multimnist --data FOLDER` found, for docs/benchmarks.md."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.intervals import against
from common.judge import BOTH, accuracies
from docs.blocks import bullets, day, listed, marked, paragraph, part, replaced
from paper_repro.report.images import BASE, SETS

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


def sentences(kept: Mapping[str, dict[str, Any]], page: str) -> list[str]:
    """Of the README: which rules are shown to differ from the mean loss on which set in hard
    sharing, all intervals of a set together, and which of these had their best rate at the edge, as
    the page's table says; how many do so in other settings, those of a setting together, which are
    other networks and amounts of training.
    """
    shown, count, elsewhere, others, settings = [], 0, [], 0, []
    for kind, found in kept.items():
        for setting, tests in found["accuracies"].items():
            own = accuracies(setting, tests)[setting]
            del own[BOTH]
            rivals = against(own, "mean")
            sides = {
                name: "better" if gain.low > 0 else "worse"
                for name, gain in rivals.items()
                if gain.low > 0 or gain.high < 0
            }
            if setting != BASE:
                others += len(rivals)
                settings.append(SETS[kind])
                elsewhere += [f"{name} is {side}" for name, side in sides.items()]
                continue
            count += len(rivals)
            edges = {name: _edge(part(page, _block(kind)), name) for name in sides}
            shown += [f"{n} is {side} on {SETS[kind]}{edges[n]}" for n, side in sides.items()]
    seeds = " and ".join(dict.fromkeys(str(len(found["seeds"])) for found in kept.values()))
    said = [
        f"""On real images, with one trunk and {seeds} seeds, {len(shown)} of {count} comparisons
        with the mean loss {_show(shown)}{_those(shown)}."""
    ]
    if others:
        each = [f"{x} {elsewhere.count(x)} times" for x in sorted({*elsewhere})]
        each = [x.replace(" 1 times", " once") for x in each]
        said.append(
            f"""In {len(settings)} other settings of {" and ".join(dict.fromkeys(settings))},
            {len(elsewhere)} of {others}
            {_show(elsewhere).removesuffix(" a difference")} one{_those(each)}."""
        )
    return said


def _show(shown: list[str]) -> str:
    return f"show{'s' if len(shown) == 1 else ''} a difference"


def _those(shown: list[str]) -> str:
    return ": " + ", ".join(shown) if shown else ""


def _edge(table: str, rule: str) -> str:
    row = re.search(rf"^\| {BASE} +\| {re.escape(rule)} +\|.*$", table, re.MULTILINE)
    edge = " (at an end of the learning rates)"
    return edge if row and "(edge)" in row[0] else ""
