"""The output folder: PNG figures, claims.json and report.html, each written whole and then put in place."""

import base64
import html
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ._findings import Claim, Figure, Finding

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; padding-bottom: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border-bottom: 1px solid #ddd; }
th { background: #f4f4f4; } td:nth-child(2), td:nth-child(4), td:nth-child(5) { width: 27%; }
td.id { white-space: nowrap; font-weight: 600; } td.verdict { white-space: nowrap; }
.holds { color: #1a6e2e; } .holds-only-when { color: #8a5a00; } .does-not-hold { color: #a11d1d; } .inconclusive, .not-testable-here { color: #555; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; color: #444; }
ul { margin: 0; padding-left: 1rem; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { font-weight: 600; } dd { margin: 0; }
"""

SHOWN = 6
"""Numbers of a claim that the page shows at once; the others unfold."""


class Report:
    """Keeps a folder in step with what was found; claims of modules that are not run again stay."""

    def __init__(self, folder: Path, configuration: dict[str, str], titles: dict[str, str]) -> None:
        self.folder, self.configuration, self.titles = folder, configuration, titles
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "claims.json"
        self.claims: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def add(self, module: str, finding: Finding) -> None:
        if isinstance(finding, Figure):
            # The caption rides in the PNG, so that a later run of another module can rebuild the page.
            text = {"Title": finding.name, "Description": finding.caption}
            replace_file(self.folder / f"{module}-{finding.name}.png", lambda file: finding.canvas.savefig(file, format="png", dpi=120, metadata=text))
        else:
            row = {**finding._asdict(), "module": module, "configuration": self.configuration}
            same = [i for i, old in enumerate(self.claims) if (old["module"], old["id"]) == (module, finding.id)]
            if same:
                self.claims[same[0]] = row
            else:
                self.claims.append(row)
        self.write()

    def finish(self, module: str, findings: list[Finding]) -> None:
        """Drop what an earlier run of this module left and this one, now complete, did not find again."""
        ids = {finding.id for finding in findings if isinstance(finding, Claim)}
        names = {f"{module}-{finding.name}.png" for finding in findings if isinstance(finding, Figure)}
        self.claims = [claim for claim in self.claims if claim["module"] != module or claim["id"] in ids]
        for path in self.folder.glob(f"{module}-*.png"):
            if path.name not in names:
                path.unlink()
        self.write()

    def write(self) -> None:
        self.claims.sort(key=lambda claim: (claim["module"], claim["id"]))
        replace_file(self.folder / "claims.json", lambda file: file.write(json.dumps(self.claims, indent=1, ensure_ascii=False).encode()))
        replace_file(self.folder / "report.html", lambda file: file.write(self.page().encode()))

    def page(self) -> str:
        modules = list(dict.fromkeys([*self.titles, *(claim["module"] for claim in self.claims)]))
        settings = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in self.configuration.items())
        parts = [f"<h1>The papers re-run</h1><p>Figures and claims found so far; the last run's configuration:</p><dl>{settings}</dl>"]
        for module in modules:
            claims = [claim for claim in self.claims if claim["module"] == module]
            figures = sorted(self.folder.glob(f"{module}-*.png"))
            if not claims and not figures:
                continue
            parts.append(f"<h2>{html.escape(self.titles.get(module, module))}</h2>")
            parts.extend(map(_embedded, figures))
            if claims:
                head = "<tr><th>id</th><th>claim</th><th>verdict</th><th>measured</th><th>where</th></tr>"
                parts.append(f"<table>{head}{''.join(map(_row, claims))}</table>")
        body = "\n".join(parts)
        head = f'<meta charset="utf-8"><title>The papers re-run</title><style>{STYLE}</style>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'

    def table(self) -> str:
        """Claims as text, for the terminal."""
        lines = []
        for claim in self.claims:
            text = textwrap.wrap(claim["claim"], 100)
            lines.append(f"{claim['id']:<7}{claim['verdict']:<18}{text[0]}")
            lines.extend(" " * 25 + more for more in text[1:])
        return "\n".join(lines)


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write to a temporary name beside `path`, then put it in place; nothing half-written stays, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _row(claim: dict[str, Any]) -> str:
    style = claim["verdict"].replace(" ", "-")
    numbers = _numbers(claim["measured"])
    shown, rest = numbers[:SHOWN], numbers[SHOWN:]
    more = f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    return (
        f'<tr><td class="id">{html.escape(claim["id"])}</td><td>{html.escape(claim["claim"])}</td>'
        f'<td class="verdict {style}">{html.escape(claim["verdict"])}</td><td><ul>{"".join(shown)}</ul>{more}</td><td>{html.escape(claim["where"])}</td></tr>'
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
    return f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'
