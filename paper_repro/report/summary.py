"""Verdicts counted, and what a run decided as text for the terminal."""

import textwrap
from collections.abc import Iterable
from typing import Any

from ..claims import PAPERS
from . import of_record
from .results import VERDICTS, Results


def counts(claims: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Number of claims by paper and verdict."""
    found = {paper: dict.fromkeys(VERDICTS, 0) for paper in PAPERS}
    for claim in claims:
        found[claim["id"].split("-")[0]][claim["verdict"]] += 1
    return found


def table(results: Results, modules: Iterable[str]) -> str:
    """What these modules decided, where the record has it otherwise, and the papers' counts."""
    claims, modules, record = results.claims(), set(modules), of_record.kept()
    lines, larger, other = [], [], []
    for claim in claims:
        if claim["module"] in modules and claim["configuration"]:
            text = textwrap.wrap(claim["claim"], 100)
            lines.append(f"{claim['id']:<7}{claim['verdict']:<18}{text[0]}")
            lines.extend(" " * 25 + more for more in text[1:])
            kept = record.get(claim["id"])
            if kept is None or "budget" in claim["configuration"]:
                continue
            reduced = claim["configuration"]["sizes"] == "reduced"
            alike = (kept["default"] if reduced else "") or kept["verdict"]
            if claim["verdict"] != alike:
                other.append(f"{claim['id']:<7}{claim['verdict']}; kept: {alike}")
            elif alike != kept["verdict"]:
                larger.append(f"{claim['id']:<7}{alike}; of record: {kept['verdict']}")
    lines.append("")
    if larger:
        said = "As the default run that is kept, but the verdict of record is a larger run's"
        lines += [f"{said} (docs/claims.md):", *larger, ""]
    if other:
        lines += ["Otherwise than what is kept of this size (docs/claims.md):", *other, ""]
    for paper, found in counts(claims).items():
        shown = ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count)
        lines.append(f"{paper:<4}{shown}")
    return "\n".join(lines)
