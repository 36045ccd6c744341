"""The verdicts of the reproductions on pages: docs/claims.md, and what others show of them."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

from docs import record
from docs.blocks import marked, paragraph
from paper_repro.__main__ import reproductions
from paper_repro.claims import DECISIONS, KINDS, LEDGER, PAPERS, ROWS
from paper_repro.report import bounds, of_record, standins
from paper_repro.report.cache import key
from paper_repro.report.decisions import Row
from paper_repro.report.findings import Settings
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
    """How a verdict of record is made, and how many hang on something."""
    runs = record.runs()
    machines = "; ".join(f"{name}: {run.machine}, {run.day}" for name, run in runs.items())
    hung = {x: sum(bool(claim.get(x)) for claim in claims.values()) for x in MARKS}
    first = paragraph(
        f"""A verdict is taken from the largest run that decides. If a question has a run at the
        papers' own sizes (`--full`, hours: [times](benchmarks.md)) and it decides, it is that one.
        Otherwise it is the default run. Where the default run says otherwise the column *hangs on*
        has its verdict: compare a default run of yours with that, and on other rows with the
        verdict. Other random numbers (`--draw 1`), processors and
        arithmetics mark the row and never outvote it. {hung["runs"]} verdicts hang on the run,
        {hung["bounds"]} on a [threshold](#thresholds), and in {hung["numbers"]} of the rows a
        number leaves its interval on another processor; the column *hangs on* says which. A dash:
        nothing was found, or no other run of it is kept. Numbers: `docs/record/` ({machines});
        those of `--full` are in `paper_repro/full.json`, each question with its day, and
        none where a question has changed since."""
    )
    compared = []
    for name in record.PROCESSORS:
        if name in runs:
            both, same, ends, left = record.compared(name, runs)
            compared.append(
                f"""{name}: of {both:,} numbers {same:,} are the same to five digits; of {ends} with
                an interval {left} leave it"""
            )
    second = paragraph(f"""Next to the default run, number by number. {"; ".join(compared)}.""")
    return f"{first}\n\n{second}"


MARKS = ("runs", "bounds", "numbers")


def standing() -> dict[str, dict]:
    """The verdicts of record, by id."""
    return with_standins(record.claims())


def with_standins(claims: dict[str, dict]) -> dict[str, dict]:
    """The same, with the stand-ins of today: `python -m experiments.standins` may be younger."""
    for row in ROWS:
        if row.kind == "data/RL":
            claims[row.id]["verdict"] = standins.verdict(row)
        elif row.kind == "not here":
            claims[row.id]["verdict"] = "not testable here"
    return claims


def judged_counts(claims: dict[str, dict]) -> dict[str, int]:
    """Claims by what was judged: those with a verdict on what the sentence speaks of and on
    made-up problems instead of its data, as `holds` and `holds, stand-in`, and the sums.
    """
    found: Counter[str] = Counter({"all": len(claims)})
    for name, claim in claims.items():
        verdict = claim["verdict"]
        if verdict in record.STRENGTH or verdict == "inconclusive":
            kind = ", stand-in" if LEDGER[name].instead else ""
            found[f"{verdict}{kind}"] += 1
            found[f"judged{kind}"] += 1
        else:
            found["not judged"] += 1
    return found


def verdict_counts(claims: dict[str, dict]) -> str:
    """Claims by paper and verdict, as a Markdown table; `67 + 2`: two of them on stand-ins."""
    found = {
        paper: Counter(
            (claim["verdict"], bool(LEDGER[name].instead))
            for name, claim in claims.items()
            if LEDGER[name].paper == paper
        )
        for paper in PAPERS
    }
    lines = [f"| text | claims | {' | '.join(VERDICTS)} |", "|---" * (2 + len(VERDICTS)) + "|"]
    for paper, counted in [*found.items(), ("", sum(found.values(), Counter()))]:
        name = f"[{PAPERS[paper]}](claims.md#{anchor(PAPERS[paper])})" if paper else "all"
        cells = [cell_of(counted[verdict, False], counted[verdict, True]) for verdict in VERDICTS]
        lines.append(f"| {name} | {counted.total()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell_of(own: int, on_standins: int) -> str:
    if on_standins:
        return f"{own} + {on_standins}"
    return str(own) if own else "–"


def anchor(heading: str) -> str:
    """Where a heading is on a page of Markdown: lower case, hyphens for blanks, no punctuation."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


PICTURES = {
    "pcgrad": "pcgrad.figure1-figure1.png",
    "mgda": "mgda.counterexample-trajectories.png",
    "cagrad": "cagrad.toy_cusps-trajectories.png",
    "gradnorm": "gradnorm.regression-curves.png",
    "gradnorm-rates": "gradnorm.regression-rates.png",
    "since": "since.overlap-overlap.png",
}
"""Figures of every paper's page and of docs/benchmarks.md, in the folder of the default run."""


def write_verdicts() -> None:
    """docs/claims.md, and the verdicts of record with which runs are compared."""
    (ROOT / "docs" / "claims.md").write_text(claims_page(standing()), encoding="utf-8")
    text = json.dumps(record.claims(), indent=1, ensure_ascii=False)
    of_record.PATH.write_text(f"{text}\n", encoding="utf-8")


def keep_runs(claims: dict[str, dict], others: dict[str, dict]) -> None:
    """docs/record/ and docs/reproductions/: the numbers of two runs and the pictures of one."""
    for name, picture in PICTURES.items():
        keep_picture(REPRODUCTIONS / picture, name)
    record.keep("default", claims)
    record.keep("draw 1", others)


def keep_questions(folder: Path) -> None:
    """docs/record/ and docs/reproductions/: numbers and pictures of single questions that ran.

    Raises:
        SystemExit: where a decision of today lacks a number that it asks for.
    """
    claims = judged(folder)
    for name, claim in claims.items():
        if claim["configuration"]:
            try:
                DECISIONS[name].verdict(claim["measured"])
            except LookupError as error:
                raise SystemExit(f"{folder}: {name} is of other code: {error}") from error
    record.keep_questions(claims)
    for name, picture in PICTURES.items():
        if (folder / picture).exists():
            keep_picture(folder / picture, name)


def keep_picture(path: Path, name: str) -> None:
    folder = ROOT / "docs" / "reproductions"
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    captions[name] = check_figure(path)
    shutil.copy(path, folder / f"{name}.png")
    text = json.dumps(captions, indent=1, ensure_ascii=False)
    (folder / "captions.json").write_text(f"{text}\n", encoding="utf-8")


def of_default() -> dict[str, dict]:
    """Numbers and settings of the default run, by claim, as they are kept."""
    run = record.read("default")
    assert run is not None
    return {x: {"measured": run.numbers[x], "where": run.where[x]} for x in run.numbers}


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
the field since 2020, with a verdict. `python -m paper_repro` writes a `report.html` with the
numbers behind each and with figures;
`python -m paper_repro --only GN-21` runs what decides one;
`python -m paper_repro figure --list` names figures that take options of yours. A
dash in the last column: no
reproduction decides it. *stand-in: …* is a verdict on made-up problems where the text speaks of
other data. *holds only when* says when. Written by `python docs/results.py claims`.
"""


STAND_IN = "stand-in: "
PART = "holds only when"


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
            "| id | claim | kind | verdict | hangs on | decided by |",
            "|---|---|---|---|---|---|",
        ]
        for row in ROWS:
            if row.paper == paper:
                claim = claims[row.id]
                verdict = shown(row, claim["verdict"])
                if claim["verdict"] == PART:
                    verdict += f": {claim['when']}"
                cells = [row.id, row.statement, row.kind, verdict]
                cells += [
                    of_record.marks({**claim, "when": ""}) or "–",
                    f"`{row.module}`" if row.module else "–",
                ]
                parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
        table = standins.table(row for row in ROWS if row.paper == paper)
        parts += [standins.ABOUT, table, ""] if table else []
    return "\n".join([*parts, thresholds(claims)])


def thresholds(claims: dict[str, dict]) -> str:
    """Every bound that no mathematics gives, its reason, and the verdicts that hang on it."""
    lines = ["| what | bound | reason | verdicts that half or twice would change |"]
    lines.append("|---|---|---|---|")
    rows = [(x.name, f"{x:g}", x.reason) for x in bounds.TABLE]
    rows.append(("rounding", "1e-5 or less", "of identities in float64, each as the row says"))
    for name, value, reason in rows:
        hung = [i for i, claim in claims.items() if f"{name} (" in claim.get("bounds", "")]
        lines.append(f"| {name} | {value} | {reason} | {', '.join(hung) or '–'} |")
    about = paragraph(
        """Bounds of the decisions that no mathematics gives. Each verdict was worked out again at
        half and at twice of every bound it asks for, counted from 0, or from 1 for ratios and for
        shares near 1. A row that would change is marked: it hangs on the bound."""
    )
    return "\n".join(["## Thresholds\n", about, "", *lines, ""])


def claims_block(claims: dict[str, dict]) -> str:
    """The page's part on the claims."""
    where = """`a + b`: a sentences judged on what they speak of, and b on made-up problems in place
        of data that are not here. Every claim in a sentence, with its verdict:
        [docs/claims.md](claims.md). The numbers and figures behind them:
        `paper_repro/out/report.html`, after `python -m paper_repro`."""
    other = [i for i, x in record.claims().items() if x["default"] not in ("", x["verdict"])]
    said = ", ".join(other) or "none"
    line = f"""**Claims of the papers**, by verdict of record: the default run's, or a larger run's
        where one decides. The default run says otherwise on {said}; what it says there is on
        [the claims' page](claims.md):"""
    return marked("claims", paragraph(line), verdict_counts(claims), paragraph(where))
