"""Ratios of the benchmarks by version: those of the tables as they stand are kept under the version
of the package whenever `python docs/results.py` writes a table.
"""

import json
from pathlib import Path
from statistics import median

import mtlfunc as mf
from docs.blocks import marked, paragraph, part, row_of
from experiments.benchmarks import gpu_report, record
from mtlfunc.core.files import write_whole

KEPT = gpu_report.KEPT.parent / "versions.json"
MGDA, SAMPLES = "min-norm (MGDA) | 32", "MLP 3×512, 128 samples"
OVER = "mf.Balancer / shortest loop"
WEIGHTINGS = "64 weightings of 128 samples, MLP 3×512 / plain step"
Ratios = dict[str, float]


def today() -> dict[str, Ratios]:
    """The ratios of the tables as they stand, by device."""
    page = (Path(__file__).parent / "benchmarks.md").read_text(encoding="utf-8")

    def cell(block: str, row: str, column: str) -> float:
        return float(row_of(part(page, block), row)[column].split(" ")[0].replace(",", ""))

    def steps() -> Ratios:
        lines = part(page, "steps").splitlines()
        rows = [line.split(" | ")[0][2:] for line in lines if line.startswith("| ")]
        return {f"step, {name} / shortest loop": cell("steps", name, OVER) for name in rows[1:]}

    peer = cell("solvers", MGDA, "TorchJD, defaults")
    cpu = {
        "MGDA's problem of 32 tasks / TorchJD's": cell("solvers", MGDA, "`active_set`") / peer,
        f"Gramian, {SAMPLES} / mean gradient": cell("gramians", SAMPLES, "ours, auto"),
        WEIGHTINGS: cell("weightings", "MLP 3 × 512, 128 samples | 64", "mf.Balancer"),
    }
    rows = record.read(gpu_report.KEPT)
    captured = [row["value"] for row in rows if row["unit"] == "eager plain steps"]
    device = {"captured step, median rule / eager plain step": median(captured)}
    for row in rows:
        case, _, what = row["case"].rpartition(": ")
        if what == f"{OVER}, time":
            device[f"step, {case} / shortest loop"] = row["value"]
        if row["case"] == "MLP 3 × 512, 128 samples, K = 64: mf.Balancer":
            device[WEIGHTINGS] = row["value"]
    found = {"CPU": cpu | steps(), "H100": device}
    return {on: {name: float(f"{x:.3g}") for name, x in each.items()} for on, each in found.items()}


def kept() -> dict[str, dict[str, Ratios]]:
    """By version and device."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def keep() -> None:
    """Put today's under this version."""
    known = kept() | {mf.__version__: today()}
    write_whole(KEPT, json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def block() -> str:
    """The table between its markers."""
    known = kept()
    columns = [(version, on) for version, found in known.items() for on in found]
    lines = [f"| time of ours / of | {' | '.join(f'{version}, {on}' for version, on in columns)} |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(name for version, on in columns for name in known[version][on]):
        cells = [known[version][on].get(name, "–") for version, on in columns]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    said = """**By version**: the ratios of the tables as they were when a version was made. Lower
        is better; compare columns of one device."""
    return marked("versions", paragraph(said), "\n".join(lines))
