"""The verdicts of the reproductions on pages: docs/claims.md, and what others show of them."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

from docs import record
from docs.blocks import marked, paragraph
from paper_repro.__main__ import reproductions
from paper_repro.claims import KINDS, LEDGER, PAPERS, ROWS
from paper_repro.report import of_record, standins
from paper_repro.report.cache import key
from paper_repro.report.findings import Settings
from paper_repro.report.ledger import Row
from paper_repro.report.results import (
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


def check_draw(claims: dict[str, dict], others: dict[str, dict]) -> None:
    """Raises SystemExit where two runs differ in more than the draw."""
    check_code(REPRODUCTIONS, Settings())
    check_code(REPRODUCTIONS / "draw-1", Settings(draw=1))
    for name, claim in claims.items():
        here, there = claim["configuration"], dict(others[name]["configuration"])
        if there.pop("draw", "1") != "1" or here != there:
            raise SystemExit(f"{name}: {here} and {there} differ in more than the draw")


def hanging(claims: dict[str, dict]) -> str:
    """How many verdicts of record hang on the run."""
    runs = [run for run in map(record.read, record.NAMES) if run]
    machines = "; ".join(sorted({f"{run.machine}, {run.day}" for run in runs}))
    count = sum(bool(claim["runs"]) for claim in claims.values())
    return paragraph(
        f"""The verdict is that of record: the weakest that the default run, a run with other
        random numbers (`--draw 1`), a run whose arithmetic rounds otherwise and one on
        another processor or a device, if there are these, and the papers' own sizes
        (`--full`, hours: [times](benchmarks.md)) give; a run that cannot decide gives way to a
        larger one. {count} verdicts hang on the run; their rows say what each says. Numbers:
        `docs/record/`
        ({machines})."""
    )


def standing() -> dict[str, dict]:
    """The verdicts of record, by id."""
    return with_standins(record.claims())


def with_standins(claims: dict[str, dict]) -> dict[str, dict]:
    """The same, with the stand-ins of today: `python -m experiments.standins` may be younger."""
    for row in ROWS:
        if row.kind == "data/RL":
            claims[row.id]["verdict"] = "stand-in" if standins.of(row) else "not testable here"
        elif row.kind == "not here":
            claims[row.id]["verdict"] = "not testable here"
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
    "pcgrad": "pcgrad.figure1-figure1.png",
    "mgda": "mgda.cost_of_gradients-bound.png",
    "cagrad": "cagrad.toy_cusps-trajectories.png",
    "gradnorm": "gradnorm.regression-curves.png",
    "cross_paper": "cross_paper.auxiliaries-auxiliaries.png",
    "since": "since.overlap-overlap.png",
}
"""The figure at the top of every paper's page, in the folder of the default run."""


def write_verdicts() -> None:
    """docs/claims.md, and the verdicts of record with which runs are compared."""
    (ROOT / "docs" / "claims.md").write_text(claims_page(standing()), encoding="utf-8")
    text = json.dumps(record.claims(), indent=1, ensure_ascii=False)
    of_record.PATH.write_text(f"{text}\n", encoding="utf-8")


def keep_runs(claims: dict[str, dict], others: dict[str, dict]) -> None:
    """docs/record/ and docs/reproductions/: the numbers of two runs and the pictures of one."""
    folder = ROOT / "docs" / "reproductions"
    folder.mkdir(exist_ok=True)
    captions = {}
    for name, picture in PICTURES.items():
        captions[name] = check_figure(REPRODUCTIONS / picture)
        shutil.copy(REPRODUCTIONS / picture, folder / f"{name}.png")
    text = json.dumps(captions, indent=1, ensure_ascii=False)
    (folder / "captions.json").write_text(f"{text}\n", encoding="utf-8")
    record.keep("default", claims)
    record.keep("draw 1", others)


def keep_arithmetic(folder: Path) -> None:
    """docs/record/: the numbers of a run whose sums and products round otherwise.

    Raises:
        SystemExit: where it or the default run is of other code, where it rounds as that one does,
            so that GradNorm's training ends at the same numbers, or where it had other budgets.
    """
    check_code(REPRODUCTIONS, Settings())
    check_code(folder, Settings())
    default, claims = judged(), judged(folder)
    if claims["GN-21"]["measured"] == default["GN-21"]["measured"]:
        raise SystemExit(f"{folder}: GN-21 has the default run's numbers: its arithmetic was used")
    for name, claim in claims.items():
        if steps_of(claim) != steps_of(default[name]):
            raise SystemExit(
                f"{folder}: {name} took other numbers of steps than the default run; was there a "
                "C++ compiler, and a cache of its own? See the command in docs/results.py"
            )
    record.keep("other arithmetic", claims, "ATEN_CPU_CAPABILITY=default, MKL_CBWR=COMPATIBLE")


def keep_device(folder: Path) -> None:
    """docs/record/: the numbers of a run on a device.

    It may be of another machine and torch than the default run, so its code is not compared.

    Raises:
        SystemExit: where it ran on a CPU, or had other budgets than the default run.
    """
    default, claims = judged(), judged(folder)
    ran = {name: claim for name, claim in claims.items() if claim["configuration"]}
    found = {(c["configuration"]["device"], c["configuration"]["torch"]) for c in ran.values()}
    if len(found) != 1 or next(iter(found))[0] == "cpu":
        raise SystemExit(f"{folder}: expected a run on one device, with --device cuda")
    for name, claim in ran.items():
        if steps_of(claim) != steps_of(default[name]):
            raise SystemExit(f"{folder}: {name} took other numbers of steps than the default run")
    ((device, version),) = found
    record.keep("device", claims, machine=f"{device}, torch {version}")


def steps_of(claim: dict) -> dict[str, float]:
    """Of a claim's numbers, how many steps were taken: fewer without a compiler."""
    measured = claim["measured"]
    return {x: measured[x] for x in measured if x == "steps" or x.startswith("steps on ")}


CLAIMS = """# The claims of the papers, and what became of them

Every definition, theorem, experiment and number of four texts in a sentence, and some sentences of
the field since 2022, with a verdict. `python -m paper_repro` writes a `report.html` with the
numbers and the figure behind each;
`python -m paper_repro --only GN-21` runs what decides one;
`python -m paper_repro figure --list` names figures that take options of yours. A
dash in the last column: no
reproduction decides it. *stand-in: …* is a verdict on made-up problems where the text speaks of
other data. Written by `python docs/results.py claims`.
"""


STAND_IN = "stand-in: "


def shown(row: Row, verdict: str) -> str:
    """A verdict; of a claim about data that made-up problems stand in for, as that."""
    return f"{STAND_IN}{verdict}" if row.instead else verdict


def claims_page(claims: dict[str, dict]) -> str:
    """docs/claims.md: a line for every claim, of `standing`."""
    kinds = (f"- **{kind}**: {meaning}" for kind, meaning in KINDS.items())
    parts = [CLAIMS, *kinds, "", hanging(claims), ""]
    for paper, title in PAPERS.items():
        parts += [
            f"## {title}\n",
            "| id | claim | kind | verdict | if runs differ | decided by |",
            "|---|---|---|---|---|---|",
        ]
        for row in ROWS:
            if row.paper == paper:
                claim = claims[row.id]
                cells = [row.id, row.statement, row.kind, shown(row, claim["verdict"])]
                cells += [claim.get("runs") or "–", f"`{row.module}`" if row.module else "–"]
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
