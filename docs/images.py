"""What `python -m experiments.multimnist --data FOLDER` found, for docs/benchmarks.md."""

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


class Differences(NamedTuple):
    """How rules differ from the mean loss in one setting on one set, all its intervals together."""

    kind: str
    setting: str
    rivals: int
    shown: dict[str, str]  # by rule that is shown to differ: better or worse


def differences(kind: str, setting: str, tests: Mapping[str, Any]) -> Differences:
    levels = accuracies(setting, tests)[setting]
    del levels[BOTH]
    rivals = against(levels, "mean")
    sides = {n: "better" if x.low > 0 else "worse" if x.high < 0 else "" for n, x in rivals.items()}
    return Differences(kind, setting, len(rivals), {n: side for n, side in sides.items() if side})


def sentences(kept: Mapping[str, dict[str, Any]], page: str) -> list[str]:
    """Of the README: which rules differ from the mean loss on which set in hard sharing, and which
    of these had their best rate at the edge, as the page's table says; how many do so in other
    settings, which are other networks and amounts of training.
    """
    every = [
        differences(kind, setting, tests)
        for kind, found in kept.items()
        for setting, tests in found["accuracies"].items()
    ]
    base, others = ([x for x in every if (x.setting == BASE) == own] for own in (True, False))
    shown = [
        f"{name} is {side} on {SETS[x.kind]}{_edge(part(page, _block(x.kind)), name)}"
        for x in base
        for name, side in x.shown.items()
    ]
    seeds = " and ".join(dict.fromkeys(str(len(found["seeds"])) for found in kept.values()))
    said = [
        f"""On real images, with one trunk and {seeds} seeds, {len(shown)} of
        {sum(x.rivals for x in base)} comparisons with the mean loss {_show(shown)} a
        difference{_those(shown)}."""
    ]
    if others:
        elsewhere = [f"{name} is {side}" for x in others for name, side in x.shown.items()]
        counts = sorted(Counter(elsewhere).items())
        times = [f"{rule} {f'{n} times' if n > 1 else 'once'}" for rule, n in counts]
        sets = " and ".join(dict.fromkeys(SETS[x.kind] for x in others))
        said.append(
            f"""In {len(others)} other settings of {sets}, {len(elsewhere)} of
            {sum(x.rivals for x in others)} {_show(elsewhere)} one{_those(times)}."""
        )
    return said


def _show(shown: list[str]) -> str:
    return "shows" if len(shown) == 1 else "show"


def _those(shown: list[str]) -> str:
    return ": " + ", ".join(shown) if shown else ""


def _edge(table: str, rule: str) -> str:
    row = re.search(rf"^\| {BASE} +\| {re.escape(rule)} +\|.*$", table, re.MULTILINE)
    return " (at the end of its learning rates)" if row and "(edge)" in row[0] else ""
