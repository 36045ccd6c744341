"""Stand-ins: what studies on data of ours say where a claim is about data that are not here.

The numbers are those of `python -m experiments.standins`, which writes `standins.json`.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.cells import filled

from . import images
from .decisions import Row

ABOUT = """Other data: published numbers, what real images show, and what studies on data of ours
show, on their own seeds and on fresh ones. Gains are paired by seed; above 0 they speak for the
claim; brackets are 95 % intervals, widened for the number of rivals.
"""

PATH = Path(__file__).parent.parent / "standins.json"


@functools.cache
def kept() -> dict[str, Any]:
    """`studies` by name, and `stand-ins`, a list of claims' criteria with their runs by seeds."""
    return filled(json.loads(PATH.read_text(encoding="utf-8")))


def of(row: Row) -> list[dict[str, Any]]:
    """A claim's stand-ins; none for a row that needs no data, or says why nothing stands in."""
    return [each for each in kept()["stand-ins"] if each["claim"] == row.id]


def verdict(row: Row) -> str:
    """Of a row that needs data: that on real images if they ran."""
    found = images.verdict(row.id)
    if found != images.NOT_RUN:
        return found
    return "stand-in" if of(row) else "not testable here"


def said(found: dict[str, Any]) -> str:
    """A stand-in in a sentence without its full stop: verdict, on what, on which seeds."""
    verdicts = {seeds: run["verdict"] for seeds, run in found["runs"].items()}
    study = kept()["studies"][found["study"]]
    where = f"{study['on']} (`{study['command']}`)"
    if len(set(verdicts.values())) == 1:
        return (
            f"stand-in: {next(iter(verdicts.values()))} on {where}, seeds {' and '.join(verdicts)}"
        )
    each = "; ".join(f"{verdict} on seeds {seeds}" for seeds, verdict in verdicts.items())
    return f"stand-in: {each}, on {where}"


def measured(found: dict[str, Any]) -> str:
    """The gain that decides, by seeds, and what stands next to a published level."""
    parts = []
    for seeds, run in found["runs"].items():
        name, gain = run["decisive"], run["gains"][run["decisive"]]
        count = f"of {len(run['gains'])} gains this decides, " if len(run["gains"]) > 1 else ""
        parts.append(
            f"seeds {seeds}: {count}{name} {gain['mean']:+.3g} [{gain['low']:+.3g}, "
            f"{gain['high']:+.3g}]"
        )
        levels = {key: level["mean"] for key, level in run["levels"].items()}
        for ours in (key for key in levels if key.endswith(", cagrad")):
            others = [value for key, value in levels.items() if key != ours]
            parts.append(
                f"{ours} {levels[ours]:.3g}, others {min(others):.3g} to {max(others):.3g}"
            )
    return "; ".join(parts)


def _shown(row: Row) -> Iterator[tuple[str, str, str]]:
    """What is said of a claim, when it holds and what was measured: on real images, then on each of
    its stand-ins.
    """
    if row.id in images.CRITERIA:
        yield images.said(row.id), images.CRITERIA[row.id].holds, images.measured(row.id)
    for found in of(row):
        yield said(found), found["holds"], measured(found)


def sentence(row: Row) -> str:
    """All of a claim's stand-ins, with numbers, and what decides the published claim."""
    each = [f"{text}. It holds if {holds}; {numbers}" for text, holds, numbers in _shown(row)]
    text = ". ".join([*each, f"The published claim takes {row.needs}"])
    return text[0].upper() + text[1:]


def table(rows: Iterable[Row]) -> str:
    """Published next to measured, a line per stand-in, as Markdown; "" where no row needs data."""
    heads = "claim", "published", "here", "holds if", "measured", "decides the published one"
    lines = [
        [f"**{row.id}**", row.published or "without numbers", *shown, row.needs]
        for row in rows
        if row.kind == "data/RL"
        for shown in [*_shown(row)] or [("not testable here", "–", "–")]
    ]
    return markdown([heads, *lines]) if lines else ""


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    first, *others = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [first, ["---"] * len(first), *others])


def agreement() -> str:
    """What the studies' runs on their own seeds and on fresh ones say, as Markdown."""
    lines = [["study", "seeds", "verdicts"]]
    for name, study in kept()["studies"].items():
        mine = [row for row in kept()["stand-ins"] if row["study"] == name]
        verdicts = {x["claim"]: [run["verdict"] for run in x["runs"].values()] for x in mine}
        changed = [f"{claim}: {' → '.join(x)}" for claim, x in verdicts.items() if x[0] != x[-1]]
        said = "; ".join(changed) or f"{len(mine)}, none changed"
        lines.append([f"`{study['command']}`", " and ".join(mine[0]["runs"]), said])
    return markdown(lines)
