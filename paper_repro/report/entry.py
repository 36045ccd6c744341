"""Parts of the page: a claim with all that stands behind it, a figure, a question's code."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import quote

from ..claims import DECISIONS, LEDGER
from . import of_record, standins
from .decisions import Decision
from .findings import QUICK, TENTH, Settings
from .layout import INDEXED
from .results import check_figure, picture_cuts, picture_size
from .said import said

SHOWN = 6
"""Numbers of a claim that the page shows at once; the others unfold."""
ROOT = Path(__file__).parents[2]


class Question(Protocol):
    """What an entry names of the question that decided its claim."""

    @property
    def name(self) -> str: ...
    @property
    def figures(self) -> list[Path]: ...
    @property
    def path(self) -> Path: ...


def escaped(text: Any) -> str:
    return html.escape(str(text))


def slug(text: str) -> str:
    """A text as an id or a class."""
    return re.sub(r"[^\w.-]+", "-", text)


def typeset(text: str) -> str:
    """Text as HTML: `code`, and indices and powers of single letters."""
    parts = re.split(r"`([^`]*)`", escaped(text))
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"<code>{part}</code>"
        else:
            parts[i] = INDEXED.sub(_marked, part)
    return "".join(parts)


def _marked(found: re.Match[str]) -> str:
    base, index, power = found.groups()
    low, high = f"<sub>{index}</sub>" if index else "", f"<sup>{power}</sup>" if power else ""
    return f"{base}{low}{high}"


def listed(ids: Iterable[str]) -> str:
    return ", ".join(f'<a href="#{x}">{x}</a>' for x in ids)


def article(claim: dict[str, Any], question: Question | None, last: dict[str, str]) -> str:
    """A row of claims.json with its verdict, numbers, reasons, figures and command; its
    configuration too where it is not the last run's.
    """
    identifier, verdict = claim["id"], claim["verdict"]
    parts = [
        f'<h4><a href="#{identifier}">{identifier}</a> '
        f'<span class="verdict {slug(verdict)}">{escaped(verdict)}</span> '
        f'<span class="kind">{escaped(claim["kind"])}</span></h4>'
        f"{paper_and_here(claim)}"
    ]
    if claim["configuration"] or claim["verdict"] == "stand-in":
        parts.append(f"{_of_record(claim)}{_reasons(claim['where'])}{_numbers(claim['measured'])}")
    if claim["configuration"] and claim["configuration"] != last:
        own = ", ".join(f"{name} {value}" for name, value in claim["configuration"].items())
        parts.append(f'<p class="notice">From another run: {escaped(own)}.</p>')
    if question is not None:
        if question.figures:
            links = ", ".join(
                f'<a href="#figure-{slug(path.stem)}">{escaped(path.stem.partition("-")[2])}</a>'
                for path in question.figures
            )
            parts.append(f"<p>Figures: {links}.</p>")
        command = escaped(command_of(identifier, claim["configuration"]))
        parts.append(f'<p>Run again: <code class="command">{command}</code></p>')
        link = f'<a href="#code-{slug(question.name)}">{_shown(question.path)}</a>'
        parts.append(f"<p>Measured and decided in <code>{link}</code>.</p>")
    return f'<article id="{identifier}">{"".join(parts)}</article>'


def paper_and_here(claim: dict[str, Any], found: str = "") -> str:
    """What the text claims, and what came out here: `found`, or what its numbers say."""
    identifier = claim["id"]
    # some rows of the others are a later text's, or of this project
    text = "The paper" if identifier.startswith(("PC-", "CA-", "GN-")) else "The claim"
    found = found or _found(claim, DECISIONS.get(identifier))
    return (
        f"<p><strong>{text}:</strong> {typeset(claim['claim'])}</p>"
        f"<p><strong>Here:</strong> {typeset(found).removesuffix('.')}.</p>"
    )


def _found(claim: dict[str, Any], decision: Decision | None) -> str:
    if claim["verdict"] == "stand-in":
        return "; ".join(map(standins.said, standins.of(LEDGER[claim["id"]])))
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
    if kept is None or "budget" in claim["configuration"]:
        return ""
    marks = of_record.marks(kept)
    if kept["verdict"] == claim["verdict"] and not marks:
        return ""
    runs = f" ({typeset(marks)})" if marks else ""
    return f'<p class="notice">Of record: {escaped(kept["verdict"])}{runs}.</p>'


def _reasons(text: str) -> str:
    """Where and how it was measured, and, on a line of its own, what would have made it fail."""
    measured, said, fails = text.partition("Said beforehand: ")
    return f"<p>{typeset(measured)}</p>" + (f"<p>{said}{typeset(fails)}</p>" if said else "")


def command_of(identifier: str, configuration: Mapping[str, str]) -> str:
    """The command that decides a claim again as a run of this configuration did."""
    usual, words = Settings(), ["python -m paper_repro"]
    if configuration["sizes"] != "reduced":
        words.append("--full")
    if configuration.get("budget", "").startswith(f"{TENTH:g} "):
        words.append("--tenth")
    elif "budget" in configuration:
        usual = QUICK
        words.append("--quick")
    if configuration["seeds"] != str(usual.seeds):
        words.append(f"--seeds {configuration['seeds']}")
    if "draw" in configuration:
        words.append(f"--draw {configuration['draw']}")
    if configuration["device"] != "cpu":
        words.append(f"--device {configuration['device']}")
    return " ".join([*words, f"--only {identifier}"])


def _numbers(measured: dict[str, float]) -> str:
    """A row a number; a mean and the two ends of its interval make one."""
    rows = []
    for name, value in measured.items():
        low, high = measured.get(f"{name}, low"), measured.get(f"{name}, high")
        if low is not None and high is not None:
            shown = f"<td>{value:.3g}</td><td>[{low:.3g}, {high:.3g}]</td>"
        elif not name.endswith((", low", ", high")):
            shown = f"<td>{value:.4g}</td><td></td>"
        else:
            continue
        rows.append(f'<tr><th scope="row">{typeset(name)}</th>{shown}</tr>')
    text = _table(rows[:SHOWN])
    if rows[SHOWN:]:
        more = f"<summary>{len(rows) - SHOWN} more numbers</summary>{_table(rows[SHOWN:])}"
        text += f"<details>{more}</details>"
    return text


def _table(rows: list[str]) -> str:
    return f'<div class="scroll"><table class="numbers">{"".join(rows)}</table></div>'


def title(module: ModuleType) -> str:
    """A reproduction's question: the first line of its docstring."""
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def code(name: str, path: Path) -> str:
    """A question's source."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    text = "\n".join(f"{number:>4}  {line}".rstrip() for number, line in lines)
    return (
        f'<details id="code-{slug(name)}"><summary><code>{_shown(path)}</code></summary>'
        f'<pre class="scroll">{escaped(text)}</pre></details>'
    )


def _shown(path: Path) -> str:
    """A source's path from the project's folder; nothing of the machine."""
    return escaped(path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name)


def figure(path: Path, *, embedded: bool) -> str:
    """A figure and its caption; linked, with its vector drawing, or in the page."""
    caption, (width, height) = typeset(check_figure(path)), picture_size(path)
    if embedded:
        data = base64.b64encode(path.read_bytes()).decode()
        source, links = f"data:image/png;base64,{data}", ""
    else:
        source, vector = quote(path.name), path.with_suffix(".svg")
        links = f' <a href="{source}">PNG</a>'
        if vector.exists():
            links += f' <a href="{quote(vector.name)}">SVG</a>'
    strips = columns(picture_cuts(path), width, height)
    where, once = "", 'loading="lazy"'
    if strips and embedded:  # one copy in the page is enough
        where = ' class="cut"'
        once = f'onload="{SHARED}"'
    elif strips:
        where = f' class="cut" style="--picture: url({source})"'
    return (
        f'<figure id="figure-{slug(path.stem)}"{where}><div class="scroll"><img '
        f'alt="{escaped(path.stem)}" src="{source}" width="{width}" height="{height}" '
        f"{once}></div>{strips}<figcaption>{caption}{links}</figcaption></figure>"
    )


SHARED = "this.closest('figure').style.setProperty('--picture', 'url(' + this.src + ')')"


def columns(cuts: Sequence[float], width: int, height: int) -> str:
    """The columns of a picture below each other, which a narrow screen shows in its place."""
    if not cuts:
        return ""
    found = []
    for left, right in pairwise([0.0, *cuts, 1.0]):
        share = right - left
        found.append(
            f'<div style="aspect-ratio: {share * width:.0f} / {height}; background-size: '
            f'{100 / share:.2f}% 100%; background-position: {100 * left / (1 - share):.2f}% 0">'
            "</div>"
        )
    return f'<div class="columns" aria-hidden="true">{"".join(found)}</div>'
