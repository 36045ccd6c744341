"""The verdicts of the reproductions on pages: docs/claims.md, and what others show of them."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

from docs.blocks import marked, paragraph
from experiments.benchmarks import full
from paper_repro.__main__ import reproductions
from paper_repro.claims import KINDS, LEDGER, PAPERS, ROWS
from paper_repro.report import standins
from paper_repro.report.cache import key
from paper_repro.report.findings import Settings
from paper_repro.report.ledger import Row
from paper_repro.report.results import (
    NOT_RUN,
    VERDICTS,
    Unreadable,
    check_figure,
    read_claims,
    read_runs,
)

ROOT = Path(__file__).parent.parent
REPRODUCTIONS = ROOT / "paper_repro" / "out"


def judged(folder: Path = REPRODUCTIONS) -> dict[str, dict]:
    """Rows of claims.json by id; those of a run of the default's sizes alone."""
    path = folder / "claims.json"
    try:
        rows = read_claims(path, {row.module for row in ROWS})
    except Unreadable as error:
        raise SystemExit(f"{path} {error}") from error
    claims = {claim["id"]: claim for claim in rows}
    if list(claims) != list(LEDGER):
        raise SystemExit(f"{path}: not the ledger's claims; run python -m paper_repro again")
    ran = [claim for claim in claims.values() if claim["configuration"]]
    other = [
        claim["id"]
        for claim in ran
        if "budget" in claim["configuration"] or claim["configuration"]["sizes"] != "reduced"
    ]
    if other:
        raise SystemExit(
            f"{path}: {len(other)} claims, {other[0]} first, are not of the default run; run "
            "python -m paper_repro again"
        )
    return with_standins(claims)


def check_code(folder: Path, settings: Settings) -> None:
    """Raises SystemExit where a question's results are not of the code and libraries of today."""
    modules = reproductions()
    try:
        runs = read_runs(folder / "runs.json", list(modules))
    except Unreadable as error:
        raise SystemExit(f"{folder / 'runs.json'} {error}") from error
    stale = [
        name for name in modules if runs.get(name, {}).get("key") != key(modules[name], settings)
    ]
    if stale:
        raise SystemExit(
            f"{folder}: {len(stale)} questions, {stale[0]} first, are of other code; run python -m "
            "paper_repro and python -m paper_repro --draw 1 again"
        )


def hanging(claims: dict[str, dict]) -> str:
    """The verdicts that other random numbers change, of a run with `--draw 1`."""
    others = judged(REPRODUCTIONS / "draw-1")
    check_code(REPRODUCTIONS, Settings())
    check_code(REPRODUCTIONS / "draw-1", Settings(draw=1))
    for name, claim in claims.items():
        here, there = claim["configuration"], dict(others[name]["configuration"])
        if there.pop("draw", "1") != "1" or here != there:
            raise SystemExit(f"{name}: {here} and {there} differ in more than the draw")
    rows = [
        f"- {name}: {claim['verdict']}, with other numbers {others[name]['verdict']}"
        for name, claim in claims.items()
        if claim["verdict"] != others[name]["verdict"]
    ]
    decided = sum(bool(claim["configuration"]) for claim in claims.values())
    said = paragraph(
        f"""With other random numbers (`python -m paper_repro --draw 1`) {len(rows)} of {decided}
        verdicts change: they are near a threshold."""
    )
    return marked("draws", said, *(["\n".join(rows)] if rows else []))


def hanging_as_it_stands() -> str:
    """The same part of docs/claims.md."""
    page = (ROOT / "docs" / "claims.md").read_text()
    found = re.search("<!-- draws -->.*<!-- end of draws -->", page, re.DOTALL)
    return found[0] if found else ""


def enlarged(claims: dict[str, dict]) -> str:
    """The verdicts that the papers' own sizes change, of the last runs with `--full`."""
    answers = full.read().values()
    others = {name: verdict for answer in answers for name, verdict in answer.verdicts.items()}
    rows = [
        f"- {name}: {claims[name]['verdict']}, with `--full` {others[name]}"
        for name in LEDGER
        if name in others and others[name] != claims[name]["verdict"]
    ]
    missing = [row.id for row in ROWS if row.module and row.id not in others]
    said = f"""With the papers' own sizes and more draws (`python -m paper_repro --full`, hours:
        [times](benchmarks.md)) {len(rows)} of {len(others)} verdicts change"""
    if missing:
        said += f"""; the numbers of the last such run are not enough to decide
            {", ".join(missing)} as today"""
    return marked("sizes", paragraph(f"{said}."), *(["\n".join(rows)] if rows else []))


def standing() -> dict[str, dict]:
    """The verdicts that docs/claims.md has, by id."""
    cells = (line.split(" | ") for line in (ROOT / "docs" / "claims.md").read_text().splitlines())
    found = {
        row[0].removeprefix("| "): {"verdict": row[3].removeprefix(STAND_IN)}
        for row in cells
        if len(row) == 5
    }
    return with_standins({row.id: found.get(row.id, {"verdict": NOT_RUN}) for row in ROWS})


def with_standins(claims: dict[str, dict]) -> dict[str, dict]:
    """The same, with the stand-ins of today: `python -m experiments.standins` may be younger."""
    for row in ROWS:
        if row.kind == "data/RL":
            claims[row.id]["verdict"] = "stand-in" if standins.of(row) else "not testable here"
    return claims


def verdict_counts(claims: dict[str, dict]) -> str:
    """Claims by paper and verdict, as a Markdown table."""
    found = {
        paper: Counter(
            claim["verdict"] for name, claim in claims.items() if LEDGER[name].paper == paper
        )
        for paper in PAPERS
    }
    lines = [f"| text | claims | {' | '.join(VERDICTS)} |", "|---" * (2 + len(VERDICTS)) + "|"]
    for paper, counted in [*found.items(), ("", sum(found.values(), Counter()))]:
        name = f"[{PAPERS[paper]}](claims.md#{anchor(PAPERS[paper])})" if paper else "all"
        lines.append(
            f"| {name} | {counted.total()} | "
            f"{' | '.join(str(counted[verdict] or '–') for verdict in VERDICTS)} |"
        )
    return "\n".join(lines)


def anchor(heading: str) -> str:
    """Where a heading is on a page of Markdown: lower case, hyphens for blanks, no punctuation."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


PICTURES = {
    "pcgrad": "pcgrad.figure1-conditions.png",
    "mgda": "mgda.cost_of_gradients-bound.png",
    "cagrad": "cagrad.toy_cusps-trajectories.png",
    "gradnorm": "gradnorm.regression-curves.png",
    "cross_paper": "cross_paper.auxiliaries-auxiliaries.png",
    "since": "since.overlap-overlap.png",
}
"""The figure at the top of every paper's page, in the folder of the default run."""


def keep_numbers(claims: dict[str, dict]) -> None:
    """docs/measured.json and docs/reproductions/: what the papers' pages show of the run."""
    folder = ROOT / "docs" / "reproductions"
    folder.mkdir(exist_ok=True)
    captions = {}
    for name, picture in PICTURES.items():
        captions[name] = check_figure(REPRODUCTIONS / picture)
        shutil.copy(REPRODUCTIONS / picture, folder / f"{name}.png")
    kept = {
        name: {
            "where": claim["where"],
            "measured": {key: float(f"{x:.6g}") for key, x in claim["measured"].items()},
        }
        for name, claim in claims.items()
        if claim["configuration"]
    }
    text = json.dumps({"claims": kept, "captions": captions}, indent=1, ensure_ascii=False)
    (ROOT / "docs" / "measured.json").write_text(text + "\n", encoding="utf-8")


CLAIMS = """# The claims of the papers, and what became of them

Every definition, theorem, experiment and number of four texts in a sentence, and some sentences of
the field since 2022, with the verdict of the default run of `python -m paper_repro`; its
`report.html` has the numbers and the figure behind each, `python -m paper_repro --only GN-21` runs
what decides one. A dash in the last column: no reproduction decides it. *stand-in: …* is a verdict
on made-up problems where the text speaks of other data. A verdict speaks of the configuration
that was run, which `report.html` names. Written by `python docs/results.py claims`.
"""


STAND_IN = "stand-in: "


def shown(row: Row, verdict: str) -> str:
    """A verdict; of a claim about data that made-up problems stand in for, as that."""
    return f"{STAND_IN}{verdict}" if row.instead else verdict


def claims_page(claims: dict[str, dict], draws: str) -> str:
    """docs/claims.md: a line for every claim."""
    kinds = (f"- **{kind}**: {meaning}" for kind, meaning in KINDS.items())
    parts = [CLAIMS, *kinds, "", draws, "", enlarged(claims), ""]
    for paper, title in PAPERS.items():
        parts += [
            f"## {title}\n",
            "| id | claim | kind | verdict | decided by |",
            "|---|---|---|---|---|",
        ]
        for row in ROWS:
            if row.paper == paper:
                cells = [row.id, row.statement, row.kind, shown(row, claims[row.id]["verdict"])]
                cells.append(f"`{row.module}`" if row.module else "–")
                parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
        table = standins.table(row for row in ROWS if row.paper == paper)
        parts += [standins.ABOUT, table, ""] if table else []
    return "\n".join(parts)


def claims_block(claims: dict[str, dict]) -> str:
    """The page's part on the claims."""
    where = """Every claim in a sentence, with its verdict: [docs/claims.md](claims.md). The numbers
        and figures behind them: `paper_repro/out/report.html`, after `python -m paper_repro`."""
    return marked("claims", verdict_counts(claims), paragraph(where))
