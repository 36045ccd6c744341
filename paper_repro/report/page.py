"""The output folder: PNG figures, claims.json with a row for every claim of the ledger, and
report.html, each written whole and then put in place.
"""

import base64
import html
import json
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, get_args

from PIL import Image

from ..claims import KINDS, LEDGER, PAPERS, ROWS, Row
from .findings import Claim, Figure, Finding, Verdict

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 2px solid #999; padding-bottom: .3rem; } h3 { margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border-bottom: 1px solid #ddd; }
th { background: #f4f4f4; } table.claims td:nth-child(2), table.claims td:nth-child(4), table.claims td:nth-child(5) { width: 27%; }
td.id, td.verdict { white-space: nowrap; } td.id { font-weight: 600; } table.counts { width: auto; } table.counts td:not(:first-child) { text-align: right; }
.holds { color: #00674c; } .holds-only-when { color: #8a5a00; } .does-not-hold { color: #a83f00; } .inconclusive, .not-testable-here, .not-run { color: #555; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; color: #444; }
ul { margin: 0; padding-left: 1rem; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { font-weight: 600; } dd { margin: 0; }
"""

SHOWN = 6
"""Numbers of a claim that the page shows at once; the others unfold."""

NOT_RUN = "not run"
VERDICTS: tuple[str, ...] = (*get_args(Verdict), NOT_RUN)


class Report:
    """Keeps a folder in step with what was found; results of modules that are not run again stay."""

    def __init__(self, folder: Path, configuration: dict[str, str], titles: dict[str, str]) -> None:
        self.folder, self.configuration, self.titles = folder, configuration, titles
        folder.mkdir(parents=True, exist_ok=True)
        rows = _read(folder / "claims.json") or []
        self.found: dict[str, dict[str, Any]] = {
            row["id"]: row for row in rows if row["configuration"] and row["id"] in LEDGER
        }
        # of complete ones: their key and what they left
        self.runs: dict[str, dict[str, Any]] = _read(folder / "runs.json") or {}

    def kept(self, module: str, key: str) -> bool:
        """Whether what a complete run with this key left is all still here."""
        run = self.runs.get(module)
        if run is None or run["key"] != key:
            return False
        return all((self.folder / name).is_file() for name in run["figures"]) and all(
            self.found.get(identifier, {}).get("module") == module for identifier in run["claims"]
        )

    def start(self, module: str) -> None:
        """From here to `finish` the folder may hold a mixture of two runs of this module."""
        if self.runs.pop(module, None) is not None:
            self._write_runs()

    def add(self, module: str, finding: Finding) -> None:
        if isinstance(finding, Figure):
            # The caption rides in the PNG, so that a later run of another module can rebuild the
            # page.
            text = {"Title": finding.name, "Description": finding.caption}
            replace_file(
                self.folder / f"{module}-{finding.name}.png",
                lambda file: finding.canvas.savefig(file, format="png", metadata=text),
            )
            return
        if finding.id not in LEDGER:
            raise ValueError(
                f"{module}: there is no claim {finding.id}; give it a row in "
                "paper_repro/_ledger.py, or correct the id"
            )
        row = _blank(LEDGER[finding.id])
        found = {
            "claim": finding.claim,
            "verdict": finding.verdict,
            "measured": finding.measured,
            "where": finding.where,
        }
        self.found[finding.id] = {
            **row,
            **found,
            "module": module,
            "configuration": self.configuration,
        }
        self.write_claims()

    def finish(self, module: str, key: str, findings: Iterable[Finding]) -> None:
        """Drop what an earlier run of this module left and this one, now complete, did not find
        again.
        """
        findings = list(findings)
        ids = {finding.id for finding in findings if isinstance(finding, Claim)}
        names = {
            f"{module}-{finding.name}.png" for finding in findings if isinstance(finding, Figure)
        }
        self.found = {
            identifier: row
            for identifier, row in self.found.items()
            if row["module"] != module or identifier in ids
        }
        for path in self.folder.glob(f"{module}-*.png"):
            if path.name not in names:
                path.unlink()
        self.runs[module] = {"key": key, "claims": sorted(ids), "figures": sorted(names)}
        self.write_claims()
        self._write_runs()

    def claims(self) -> list[dict[str, Any]]:
        """A row for every claim of the ledger: as found, or why it was not."""
        return [self.found.get(row.id) or {**_blank(row), **self._undecided(row)} for row in ROWS]

    def _undecided(self, row: Row) -> dict[str, str]:
        if row.kind in ("data/RL", "not here"):
            return {
                "verdict": "not testable here",
                "where": KINDS[row.kind] + (f": {row.needs}" if row.needs else ""),
            }
        if not row.module:
            return {"verdict": NOT_RUN, "where": "no reproduction decides it yet"}
        return {
            "verdict": NOT_RUN,
            "where": row.needs
            if row.module in self.runs and row.needs
            else f"python -m paper_repro --only {row.module}",
        }

    def write_claims(self) -> None:
        replace_file(
            self.folder / "claims.json",
            lambda file: file.write(
                json.dumps(self.claims(), indent=1, ensure_ascii=False).encode()
            ),
        )

    def _write_runs(self) -> None:
        replace_file(
            self.folder / "runs.json",
            lambda file: file.write(json.dumps(self.runs, indent=1, ensure_ascii=False).encode()),
        )

    def write_page(self) -> None:
        replace_file(self.folder / "report.html", lambda file: file.write(self.page().encode()))

    # ---- the page ----

    def page(self) -> str:
        settings = "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
            for name, value in self.configuration.items()
        )
        parts = [
            "<h1>The papers re-run</h1><p>Every claim with its verdict, found by the "
            "reproductions or still open. The last run's configuration:</p>"
            f"<dl>{settings}</dl>{self._counts()}"
        ]
        claims = self.claims()
        for paper, title in PAPERS.items():
            parts.append(f'<h2 id="{paper}">{html.escape(title)}</h2>')
            own = [claim for claim in claims if _paper(claim) == paper]
            homes = [module for module in self._modules() if self._home(module) == paper]
            for module in homes:
                figures = sorted(self.folder.glob(f"{module}-*.png"))
                rows = [claim for claim in own if claim["module"] == module]
                if figures or any(claim["configuration"] for claim in rows):
                    parts.append(
                        f'<h3 id="{module}">{html.escape(self.titles.get(module, module))}</h3>'
                    )
                    parts.extend(map(_embedded, figures))
                    parts.append(_table(rows))
                    own = [claim for claim in own if claim["module"] != module]
            elsewhere = [claim for claim in own if claim["configuration"]]
            if elsewhere:
                links = ", ".join(
                    f'<a href="#{module}">{module}</a>'
                    for module in dict.fromkeys(claim["module"] for claim in elsewhere)
                )
                parts.append(
                    f"<h3>Decided beside another paper's figures: {links}</h3>{_table(elsewhere)}"
                )
            rest = [claim for claim in own if not claim["configuration"]]
            if rest:
                parts.append(f"<h3>Not decided</h3>{_table(rest)}")
        head = f'<meta charset="utf-8"><title>The papers re-run</title><style>{STYLE}</style>'
        body = "\n".join(parts)
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
        )

    def _modules(self) -> list[str]:
        return list(dict.fromkeys([*self.titles, *(row["module"] for row in self.found.values())]))

    def _home(self, module: str) -> str:
        """The paper whose figures a module draws: that of most of its claims."""
        papers = [row.paper for row in ROWS if row.module == module] or [
            _paper(row) for row in self.found.values() if row["module"] == module
        ]
        return Counter(papers).most_common(1)[0][0] if papers else next(iter(PAPERS))

    def _counts(self) -> str:
        head = "".join(f"<th>{verdict}</th>" for verdict in VERDICTS)
        rows = []
        for paper, found in counts(self.claims()).items():
            cells = "".join(f"<td>{count or '–'}</td>" for count in found.values())
            rows.append(
                f'<tr><td><a href="#{paper}">{html.escape(PAPERS[paper])}</a></td>{cells}</tr>'
            )
        return f'<table class="counts"><tr><th></th>{head}</tr>{"".join(rows)}</table>'

    def table(self, modules: Iterable[str]) -> str:
        """What these modules decided, and the counts of every paper, as text."""
        lines = []
        for claim in self.claims():
            if claim["module"] in modules and claim["configuration"]:
                text = textwrap.wrap(claim["claim"], 100)
                lines.append(f"{claim['id']:<7}{claim['verdict']:<18}{text[0]}")
                lines.extend(" " * 25 + more for more in text[1:])
        lines.append("")
        for paper, found in counts(self.claims()).items():
            lines.append(
                f"{paper:<4}{', '.join(f'{count} {verdict}' for verdict, count in found.items() if count)}"
            )
        return "\n".join(lines)


def counts(claims: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Number of claims by paper and verdict."""
    found = {paper: dict.fromkeys(VERDICTS, 0) for paper in PAPERS}
    for claim in claims:
        found[_paper(claim)][claim["verdict"]] += 1
    return found


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write to a temporary name beside `path`, then put it in place; nothing half-written stays,
    whatever happens.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _blank(row: Row) -> dict[str, Any]:
    """A row of claims.json without a finding; only found ones have a configuration."""
    return {
        "id": row.id,
        "paper": PAPERS[row.paper],
        "kind": row.kind,
        "claim": row.statement,
        "verdict": NOT_RUN,
        "measured": {},
        "where": "",
        "module": row.module,
        "configuration": {},
    }


def _paper(claim: dict[str, Any]) -> str:
    return claim["id"].split("-")[0]


def _table(claims: list[dict[str, Any]]) -> str:
    head = (
        "<tr><th>id</th><th>claim</th><th>verdict</th><th>measured</th><th>why, and where</th></tr>"
    )
    return f'<table class="claims">{head}{"".join(map(_row, claims))}</table>' if claims else ""


def _row(claim: dict[str, Any]) -> str:
    style = claim["verdict"].replace(" ", "-")
    numbers = _numbers(claim["measured"])
    shown, rest = numbers[:SHOWN], numbers[SHOWN:]
    more = (
        f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>"
        if rest
        else ""
    )
    return (
        f'<tr><td class="id">{html.escape(claim["id"])}</td><td>{html.escape(claim["claim"])}</td>'
        '<td class="verdict '
        f'{style}">{html.escape(claim["verdict"])}</td><td><ul>{"".join(shown)}</ul>{more}</td><td>{html.escape(claim["where"])}</td></tr>'
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
    with Image.open(path) as image:
        caption = str(image.info.get("Description", path.stem))
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(path.stem)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
