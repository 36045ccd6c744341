"""report.html: contents, a table of all claims that filters, and each claim with its evidence."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..claims import LEDGER, PAPERS, ROWS
from .decisions import KINDS
from .entry import article, code, escaped, figure, listed, paper_and_here, slug, title, typeset
from .results import VERDICTS, Results
from .said import filled
from .summary import counts, paper_of

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
ORDER = {row.id: number for number, row in enumerate(ROWS)}
MEANING = {
    "holds": "as stated, in the configuration that was run",
    "holds only when": "in a part of it; the row says which",
    "does not hold": "the numbers lie on the other side",
    "inconclusive": "they settle neither",
    "stand-in": "other data stand in for the claim's; the row says what they show",
    "not testable here": "it needs data or benchmarks that are not here",
    "not run": "nothing has decided it yet",
}


class Asked(NamedTuple):
    """A question that has left something, as the page shows it."""

    name: str
    title: str
    paper: str  # whose section has its figures
    figures: list[Path]
    claims: list[dict[str, Any]]  # decided by it, of whatever paper, in the ledger's order
    path: Path  # its source
    notice: str = ""  # where its results are not those of today's code and settings


def page(
    results: Results,
    modules: Mapping[str, ModuleType],
    keys: Mapping[str, str],
    *,
    single_file: bool = False,
) -> str:
    """The page of an output folder: every claim under its paper, next to the figures of what
    decided it, in the page or linked. `keys` are what results depend on today, by reproduction.
    """
    claims = results.claims()
    asked = questions(results, claims, modules, keys)
    settings = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>"
        for name, value in results.configuration.items()
    )
    parts = [
        "<header><h1>The papers re-run</h1><p>What four texts on several tasks and the field since "
        "claim, and what came out when it was run: every claim with its verdict, its numbers, its "
        "figures, the source that decides it and the command that runs it again.</p></header>",
        f'<section id="findings"><h2>Findings</h2>{_findings(claims)}{_counts(claims)}{_legend()}'
        f"<details><summary>The last run</summary><dl>{settings}</dl></details></section>",
        _contents(claims, asked),
        f'<main><section id="claims"><h2>All claims</h2>{_filter()}{_all(claims, asked)}</section>',
    ]
    for paper, heading in PAPERS.items():
        section = _section(paper, claims, asked, results.configuration, single_file=single_file)
        parts.append(f'<section id="{paper}"><h2>{escaped(heading)}</h2>{section}</section>')
    parts.append(f"</main><script>{SCRIPT.read_text(encoding='utf-8')}</script>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>The papers re-run</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def questions(
    results: Results,
    claims: list[dict[str, Any]],
    modules: Mapping[str, ModuleType],
    keys: Mapping[str, str],
) -> dict[str, Asked]:
    """Those that have left figures or claims, in the papers' order."""
    found = {}
    for name, module in modules.items():
        figures = results.figures(name)
        own = [claim for claim in claims if claim["configuration"] and claim["module"] == name]
        if not figures and not own:
            continue
        run, notice = results.runs.get(name), ""
        if run is None:
            notice = "This question has not come to its end; some of what is here may be older."
        elif run["key"] != keys[name]:
            notice = (
                "Found by an earlier run, of other code, settings or libraries; the source below "
                "is today's."
            )
        found[name] = Asked(
            name, title(module), _home(name, own), figures, own, Path(str(module.__file__)), notice
        )
    first = {
        name: min((ORDER[c["id"]] for c in q.claims if paper_of(c) == q.paper), default=len(ORDER))
        for name, q in found.items()
    }
    return {name: found[name] for name in sorted(found, key=lambda name: first[name])}


def _home(name: str, claims: list[dict[str, Any]]) -> str:
    """The paper whose figures a question draws: that of most of its claims."""
    papers = [row.paper for row in ROWS if row.module == name] or [*map(paper_of, claims)]
    return Counter(papers).most_common(1)[0][0] if papers else next(iter(PAPERS))


def _contents(claims: list[dict[str, Any]], asked: Mapping[str, Asked]) -> str:
    parts = ['<li><a href="#claims">All claims</a></li>']
    for paper, heading in PAPERS.items():
        items = [
            f'<li><a href="#{slug(name)}">{typeset(question.title)}</a></li>'
            for name, question in asked.items()
            if question.paper == paper
        ]
        if any(paper_of(claim) == paper and not claim["configuration"] for claim in claims):
            items.append(f'<li><a href="#{paper}-open">Not decided</a></li>')
        parts.append(f'<li><a href="#{paper}">{escaped(heading)}</a><ul>{"".join(items)}</ul></li>')
    return f'<nav id="contents"><h2>Contents</h2><ul>{"".join(parts)}</ul></nav>'


def _findings(claims: list[dict[str, Any]]) -> str:
    items = [
        f'<li><a href="#{claim["id"]}">{claim["id"]}</a> {_coloured(claim["verdict"])} '
        f"{paper_and_here(claim, _finding(claim))}</li>"
        for claim in claims
        if LEDGER[claim["id"]].finding and claim["configuration"]
    ]
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _finding(claim: dict[str, Any]) -> str:
    """A sentence; none of other numbers, as of an earlier run, nor of a smaller budget."""
    if "budget" not in claim["configuration"]:
        with suppress(LookupError):
            return filled(LEDGER[claim["id"]].finding, claim["measured"])
    return ""


def _counts(claims: list[dict[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{verdict}</th>' for verdict in VERDICTS)
    rows = []
    for paper, found in counts(claims).items():
        cells = "".join(f"<td>{count or '–'}</td>" for count in found.values())
        rows.append(
            f'<tr><th scope="row"><a href="#{paper}">{escaped(PAPERS[paper])}</a></th>{cells}</tr>'
        )
    return (
        f'<div class="scroll"><table class="counts"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _legend() -> str:
    meaning = {**MEANING, **KINDS}
    items = "".join(
        f"<dt>{_coloured(name) if name in MEANING else escaped(name)}</dt><dd>{escaped(text)}</dd>"
        for name, text in meaning.items()
    )
    return (
        f"<details><summary>What verdicts and kinds say</summary><dl>{items}</dl><p>A claim holds "
        "if every number is where it has to be (yes). A number whose interval contains the bound "
        "is open. Of record is the verdict of the largest run that decides; "
        "<code>docs/claims.md</code> lists what each hangs on.</p></details>"
    )


def _coloured(verdict: str) -> str:
    return f'<span class="verdict {slug(verdict)}">{escaped(verdict)}</span>'


def _filter() -> str:
    """Three choices; hidden until the script shows that there is one."""
    choices = {
        "paper": PAPERS,
        "verdict": dict(zip(VERDICTS, VERDICTS, strict=True)),
        "kind": dict(zip(KINDS, KINDS, strict=True)),
    }
    selects = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option>'
        + "".join(
            f'<option value="{escaped(value)}">{escaped(text)}</option>'
            for value, text in values.items()
        )
        + "</select></label>"
        for name, values in choices.items()
    )
    return f'<form id="filter" hidden>{selects}<output></output></form>'


def _all(claims: list[dict[str, Any]], asked: Mapping[str, Asked]) -> str:
    """The table of every claim, in the papers' order; each row leads to its entry."""
    rows = []
    for claim in claims:
        question = asked.get(claim["module"]) if claim["configuration"] else None
        link = f'<a href="#{slug(question.name)}">{escaped(question.name)}</a>' if question else "–"
        rows.append(
            f'<tr data-paper="{paper_of(claim)}" data-verdict="{escaped(claim["verdict"])}" '
            f'data-kind="{escaped(claim["kind"])}">'
            f'<td class="id"><a href="#{claim["id"]}">{claim["id"]}</a></td>'
            f"<td>{_coloured(claim['verdict'])}</td><td>{typeset(claim['claim'])}</td>"
            f"<td>{escaped(claim['kind'])}</td><td>{link}</td></tr>"
        )
    titles = ("id", "verdict", "claim", "kind", "decided by")
    head = "".join(f'<th scope="col">{text}</th>' for text in titles)
    return (
        f'<div class="scroll"><table class="claims"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _section(
    paper: str,
    claims: list[dict[str, Any]],
    asked: Mapping[str, Asked],
    configuration: dict[str, str],
    *,
    single_file: bool,
) -> str:
    """A paper's questions, each with figures, claims and code; then its other claims."""
    parts = []
    for name, question in asked.items():
        own = [claim for claim in question.claims if paper_of(claim) == paper]
        entries = "".join(article(claim, question, configuration) for claim in own)
        if question.paper == paper:
            elsewhere = [claim["id"] for claim in question.claims if paper_of(claim) != paper]
            also = f"<p>It decides {listed(elsewhere)}, too.</p>" if elsewhere else ""
            notice = f'<p class="notice">{escaped(question.notice)}</p>' if question.notice else ""
            drawn = "".join(figure(path, embedded=single_file) for path in question.figures)
            parts.append(
                f'<section id="{slug(name)}"><h3>{typeset(question.title)}</h3>{notice}{also}'
                f"{drawn}{entries}{code(question.name, question.path)}</section>"
            )
        elif own:
            link = f'<a href="#{slug(name)}">{escaped(name)}</a>'
            heading = f"<h3>Decided beside another text's figures: {link}</h3>"
            parts.append(f"<section>{heading}{entries}</section>")
    rest = [c for c in claims if paper_of(c) == paper and not c["configuration"]]
    if rest:
        entries = "".join(article(claim, None, configuration) for claim in rest)
        parts.append(f'<section id="{paper}-open"><h3>Not decided</h3>{entries}</section>')
    return "".join(parts)
