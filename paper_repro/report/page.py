"""report.html: every claim with what came out, its numbers, its figures and its command."""

import html
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from ..claims import DECISIONS, LEDGER
from . import of_record
from .layout import INDEXED
from .results import Results, check_figure
from .said import filled, said, shown

STYLE = Path(__file__).with_name("page.css")


def page(results: Results, modules: Mapping[str, ModuleType], keys: Mapping[str, str]) -> str:
    """The page of an output folder. `keys` are what results depend on today, by reproduction."""
    claims = results.claims()
    findings = "".join(
        f"<li>{_link(claim)} {_verdict(claim)} {_here(claim, _finding(claim))}</li>"
        for claim in claims
        if LEDGER[claim["id"]].finding and claim["configuration"]
    )
    settings = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>"
        for name, value in results.configuration.items()
    )
    rows = [[_link(claim), _verdict(claim), typeset(claim["claim"])] for claim in claims]
    parts = [
        "<h1>The papers re-run</h1><p>What four texts on several tasks and the field since claim, "
        "and what came out when it was run.</p>",
        f"<dl>{settings}</dl><ul>{findings}</ul>",
        f'<h2 id="claims">All claims</h2>{_table(rows)}',
        *_questions(results, claims, modules, keys),
        '<h2 id="open">Not decided</h2>',
        *(article(claim, [], {}) for claim in claims if not claim["configuration"]),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>The papers re-run</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _questions(
    results: Results,
    claims: list[dict[str, Any]],
    modules: Mapping[str, ModuleType],
    keys: Mapping[str, str],
) -> list[str]:
    """A section for each question that left something."""
    found = []
    for name, module in modules.items():
        figures = results.figures(name)
        own = [claim for claim in claims if claim["configuration"] and claim["module"] == name]
        if not figures and not own:
            continue
        run, notice = results.runs.get(name), ""
        if run is None:
            notice = "This question has not come to its end; some of what is here may be older."
        elif run["key"] != keys[name]:
            notice = "Found by an earlier run, of other code, settings or libraries."
        source = f"{module.__name__.replace('.', '/')}.py"  # nothing of the machine
        found.append(
            f'<h2 id="{name}">{typeset(title(module))}</h2><p class="quiet">{notice} Measured and '
            f"decided in <code>{escaped(source)}</code>.</p>{''.join(map(figure, figures))}"
            f"{''.join(article(claim, figures, results.configuration) for claim in own)}"
        )
    return found


def escaped(text: Any) -> str:
    return html.escape(str(text))


def typeset(text: str) -> str:
    """Text as HTML: `code`, and indices and powers of single letters."""
    parts = re.split(r"`([^`]*)`", escaped(text))
    for i, part in enumerate(parts):
        parts[i] = f"<code>{part}</code>" if i % 2 else INDEXED.sub(_marked, part)
    return "".join(parts)


def _marked(found: re.Match[str]) -> str:
    base, index, power = found.groups()
    low, high = f"<sub>{index}</sub>" if index else "", f"<sup>{power}</sup>" if power else ""
    return f"{base}{low}{high}"


def title(module: ModuleType) -> str:
    """A reproduction's question: the first line of its docstring."""
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def _link(claim: Mapping[str, Any]) -> str:
    return f'<a href="#{claim["id"]}">{claim["id"]}</a>'


def _verdict(claim: Mapping[str, Any]) -> str:
    verdict = claim["verdict"]
    return f'<span class="verdict {verdict.replace(" ", "-")}">{escaped(verdict)}</span>'


def _table(rows: list[list[str]]) -> str:
    lines = "".join(f"<tr><td>{'</td><td>'.join(cells)}</td></tr>" for cells in rows)
    return f'<div class="scroll"><table>{lines}</table></div>'


def article(claim: dict[str, Any], figures: list[Path], last: dict[str, str]) -> str:
    """A row of claims.json with its verdict, numbers, reasons, figures and command; its
    configuration too where it is not the last run's.
    """
    identifier, own = claim["id"], claim["configuration"]
    parts = [
        f'<h4>{_link(claim)} {_verdict(claim)} <span class="quiet">{claim["kind"]}</span></h4>',
        _here(claim, _found(claim)),
    ]
    if own:
        measured, beforehand, fails = claim["where"].partition("Said beforehand: ")
        parts.append(f"<p>{typeset(measured)}</p><p>{beforehand}{typeset(fails)}</p>")
        parts += [_of_record(claim), _numbers(claim["measured"])]
        links = (f'<a href="#{path.stem}">{path.stem}</a>' for path in figures)
        parts.append(f"<p>Figures: {', '.join(links)}.</p>" if figures else "")
        command = f"<code>python -m paper_repro --only {identifier}</code>"
        parts.append(f"<p>Run again, with options as above: {command}</p>")
    if own and own != last:
        said_of = ", ".join(f"{name} {value}" for name, value in own.items())
        parts.append(f'<p class="quiet">From another run: {escaped(said_of)}.</p>')
    return f'<article id="{identifier}">{"".join(parts)}</article>'


def _here(claim: dict[str, Any], found: str) -> str:
    """What the text claims, and what came out here."""
    # some rows of the others are a later text's, or of this project
    text = "The paper" if claim["id"].startswith(("PC-", "CA-", "GN-")) else "The claim"
    return (
        f"<p><strong>{text}:</strong> {typeset(claim['claim'])}</p>"
        f"<p><strong>Here:</strong> {typeset(found).removesuffix('.')}.</p>"
    )


def _finding(claim: dict[str, Any]) -> str:
    """A sentence; what the numbers say of other numbers, as of an earlier run or small budget."""
    if "budget" not in claim["configuration"]:
        with suppress(LookupError):
            return filled(LEDGER[claim["id"]].finding, claim["measured"])
    return _found(claim)


def _found(claim: dict[str, Any]) -> str:
    decision = DECISIONS.get(claim["id"])
    if decision is None or not claim["configuration"]:
        return claim["where"]
    text = said(decision, claim["measured"])
    short = text and "budget" in claim["configuration"]
    if short and decision.verdict(claim["measured"]) != claim["verdict"]:
        text += "; this budget is too small to settle it"
    return text or claim["where"]


def _of_record(claim: dict[str, Any]) -> str:
    """The verdict of record, if it is another one or hangs on something, and on what."""
    kept = of_record.kept().get(claim["id"])
    marks = of_record.marks(kept) if kept else ""
    if not kept or "budget" in claim["configuration"]:
        return ""
    if kept["verdict"] == claim["verdict"] and not marks:
        return ""
    runs = f" ({typeset(marks)})" if marks else ""
    return f'<p class="quiet">Of record: {escaped(kept["verdict"])}{runs}.</p>'


def _numbers(measured: dict[str, float]) -> str:
    """A row a number; a mean and the two ends of its interval make one."""
    rows = [
        [typeset(name), typeset(shown(measured, name))]
        for name in measured
        if not name.endswith((", low", ", high"))
    ]
    return f"<details><summary>{len(rows)} numbers</summary>{_table(rows)}</details>"


def figure(path: Path) -> str:
    """A figure and its caption, with a link to its vector drawing."""
    source, vector = quote(path.name), quote(path.with_suffix(".svg").name)
    image = f'<img alt="{path.stem}" src="{source}" loading="lazy">'
    caption = f'{typeset(check_figure(path))} <a href="{vector}">SVG</a>'
    return f'<figure id="{path.stem}">{image}<figcaption>{caption}</figcaption></figure>'
