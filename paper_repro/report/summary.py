"""What a run decided, as text for the terminal, beside what is kept of runs."""

import textwrap
from collections import Counter
from collections.abc import Iterable

from ..claims import PAPERS
from . import of_record
from .results import VERDICTS, Results


def table(results: Results, modules: Iterable[str]) -> str:
    """What these modules decided, where the record has it otherwise, and the papers' counts."""
    claims, modules, record = results.claims(), set(modules), of_record.kept()
    lines, larger, other = [], [], []
    for claim in claims:
        if claim["module"] in modules and claim["configuration"]:
            first, *more = textwrap.wrap(claim["claim"], 100)
            lines.append(f"{claim['id']:<7}{claim['verdict']:<18}{first}")
            lines.extend(" " * 25 + text for text in more)
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
    for paper in PAPERS:
        found = Counter(x["verdict"] for x in claims if x["id"].startswith(f"{paper}-"))
        shown = ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
        lines.append(f"{paper:<4}{shown}")
    return "\n".join(lines)
