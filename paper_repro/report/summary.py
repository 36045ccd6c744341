"""Verdicts counted, and what a run decided as text for the terminal."""

import textwrap
from collections.abc import Iterable
from typing import Any

from ..claims import PAPERS
from .results import VERDICTS, Results


def counts(claims: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Number of claims by paper and verdict."""
    found = {paper: dict.fromkeys(VERDICTS, 0) for paper in PAPERS}
    for claim in claims:
        found[paper_of(claim)][claim["verdict"]] += 1
    return found


def paper_of(claim: dict[str, Any]) -> str:
    """The letters that its id starts with."""
    return claim["id"].split("-")[0]


def table(results: Results, modules: Iterable[str]) -> str:
    """What these modules decided, and the counts of every paper, as text."""
    claims, modules, lines = results.claims(), set(modules), []
    for claim in claims:
        if claim["module"] in modules and claim["configuration"]:
            text = textwrap.wrap(claim["claim"], 100)
            lines.append(f"{claim['id']:<7}{claim['verdict']:<18}{text[0]}")
            lines.extend(" " * 25 + more for more in text[1:])
    lines.append("")
    for paper, found in counts(claims).items():
        shown = ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count)
        lines.append(f"{paper:<4}{shown}")
    return "\n".join(lines)
