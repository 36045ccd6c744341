"""What a reader sees of an output folder: report.html, and a table for the terminal."""

import base64
import html
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..claims import PAPERS, ROWS
from .results import VERDICTS, Results, check_figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; border-bottom: 2px solid #999; padding-bottom: .3rem; }
h3 { margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem;
  border-bottom: 1px solid #ddd; }
th { background: #f4f4f4; }
table.claims td:nth-child(2), table.claims td:nth-child(4), table.claims td:nth-child(5) {
  width: 27%; }
td.id, td.verdict { white-space: nowrap; }
td.id { font-weight: 600; }
table.counts { width: auto; }
table.counts td:not(:first-child) { text-align: right; }
.holds { color: #00674c; }
.holds-only-when { color: #8a5a00; }
.does-not-hold { color: #a83f00; }
.inconclusive, .not-testable-here, .not-run { color: #555; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; }
ul { margin: 0; padding-left: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
"""

SHOWN = 6
"""Numbers of a claim that the page shows at once; the others unfold."""


def page(results: Results, titles: dict[str, str]) -> str:
    """report.html, whole: figures are in it.

    Args:
        results: of an output folder.
        titles: the reproductions' questions, by their names.

    Returns:
        HTML with every claim under its paper, and those of one reproduction beside its figures.
    """
    settings = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in results.configuration.items()
    )
    claims = results.claims()
    parts = [
        "<h1>The papers re-run</h1><p>Every claim with its verdict, found by the reproductions or "
        "still open. The last run's configuration:</p>"
        f"<dl>{settings}</dl>{_counts(claims)}"
    ]
    for paper, title in PAPERS.items():
        parts.append(f'<h2 id="{paper}">{html.escape(title)}</h2>')
        parts += _section(paper, results.folder, claims, titles)
    head = f'<meta charset="utf-8"><title>The papers re-run</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _section(
    paper: str, folder: Path, claims: list[dict[str, Any]], titles: dict[str, str]
) -> list[str]:
    """A paper's reproductions with figures and claims, then its other claims."""
    parts = []
    own = [claim for claim in claims if _paper(claim) == paper]
    for module, title in titles.items():
        if _home(module, claims) != paper:
            continue
        figures = sorted(folder.glob(f"{module}-*.png"))
        rows = [claim for claim in own if claim["module"] == module]
        if figures or any(claim["configuration"] for claim in rows):
            parts.append(f'<h3 id="{module}">{html.escape(title)}</h3>')
            parts += [*map(_embedded, figures), _table(rows)]
            own = [claim for claim in own if claim["module"] != module]
    elsewhere = [claim for claim in own if claim["configuration"]]
    if elsewhere:
        links = ", ".join(
            f'<a href="#{module}">{module}</a>'
            for module in dict.fromkeys(claim["module"] for claim in elsewhere)
        )
        parts.append(f"<h3>Decided beside another paper's figures: {links}</h3>{_table(elsewhere)}")
    rest = [claim for claim in own if not claim["configuration"]]
    if rest:
        parts.append(f"<h3>Not decided</h3>{_table(rest)}")
    return parts


def _home(module: str, claims: list[dict[str, Any]]) -> str:
    """The paper whose figures a module draws: that of most of its claims."""
    papers = [row.paper for row in ROWS if row.module == module] or [
        _paper(claim) for claim in claims if claim["configuration"] and claim["module"] == module
    ]
    return Counter(papers).most_common(1)[0][0] if papers else next(iter(PAPERS))


def _counts(claims: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{verdict}</th>" for verdict in VERDICTS)
    rows = []
    for paper, found in counts(claims).items():
        cells = "".join(f"<td>{count or '–'}</td>" for count in found.values())
        rows.append(f'<tr><td><a href="#{paper}">{html.escape(PAPERS[paper])}</a></td>{cells}</tr>')
    return f'<table class="counts"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


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


def counts(claims: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Number of claims by paper and verdict."""
    found = {paper: dict.fromkeys(VERDICTS, 0) for paper in PAPERS}
    for claim in claims:
        found[_paper(claim)][claim["verdict"]] += 1
    return found


def _paper(claim: dict[str, Any]) -> str:
    return claim["id"].split("-")[0]


def _table(claims: list[dict[str, Any]]) -> str:
    titles = ("id", "claim", "verdict", "measured", "why, and where")
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(map(_row, claims))
    return f'<table class="claims"><tr>{head}</tr>{rows}</table>' if claims else ""


def _row(claim: dict[str, Any]) -> str:
    numbers = _numbers(claim["measured"])
    shown, rest = "".join(numbers[:SHOWN]), "".join(numbers[SHOWN:])
    unfold = f"<summary>{len(numbers) - SHOWN} more</summary><ul>{rest}</ul>"
    more = f"<details>{unfold}</details>" if rest else ""
    text = {name: html.escape(claim[name]) for name in ("id", "claim", "verdict", "where")}
    style = claim["verdict"].replace(" ", "-")
    return (
        f'<tr><td class="id">{text["id"]}</td><td>{text["claim"]}</td>'
        f'<td class="verdict {style}">{text["verdict"]}</td>'
        f"<td><ul>{shown}</ul>{more}</td><td>{text['where']}</td></tr>"
    )


def _numbers(measured: dict[str, float]) -> list[str]:
    """One list item a number; a mean and the two ends of its interval make one."""
    items = []
    for name, value in measured.items():
        low, high = measured.get(f"{name}, low"), measured.get(f"{name}, high")
        if low is not None and high is not None:
            items.append(f"<li>{html.escape(name)}: {value:.3g} [{low:.3g}, {high:.3g}]</li>")
        elif not name.endswith((", low", ", high")):
            items.append(f"<li>{html.escape(name)}: {value:.4g}</li>")
    return items


def _embedded(path: Path) -> str:
    caption, data = check_figure(path), base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
