"""What a device's benchmark found, kept with the day of every number, as tables of a page.

gpu.json next to this file keeps the rows. `take_over` puts those of a newer run in their place;
what that run did not reach stays, under its own day.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from experiments.benchmarks.gpu_cases import size
from experiments.benchmarks.record import VERSION, Row, markdown, read
from mtlfunc.core.files import write_whole

KEPT = Path(__file__).parent / "gpu.json"
TITLES = {
    "steps": """Steps: milliseconds of a plain step, the others in units of it; the peak beyond
        what was held before in brackets""",
    "weightings": """K weightings of samples: Gramian and combination, in units of a plain step; the
        peak beyond what was held before, in brackets""",
    "capture": "Captured steps, MLP 16-64-64, in units of an eager plain step",
    "lanes": "Whole trainings side by side, captured",
    "times": "The kernel of the active set, µs a call, replayed",
    "kernel": "Worst certified gap of the kernel, hard families",
    "gramian": "Gramians",
    "tests": "The tests that need a device",
}
PIVOTED = {**dict.fromkeys(("steps", "weightings"), ": "), "times": ", batch "}
"""Parts with a line a case, and what stands before the column in the name of a measurement."""


def cell_of(row: Row) -> tuple[str, str]:
    return row["part"], row["case"]


def take_over(path: Path, kept: Path = KEPT) -> None:
    """Keep the rows of a run on a device, a gpu.json, in the place of older ones. Raises SystemExit
    without full-sized rows of a CUDA device.
    """
    new = [
        r for r in read(path) if r["settings"].get("device") == "cuda" and not r["settings"]["tiny"]
    ]
    if not new:
        raise SystemExit(f"{path} has no rows of a CUDA device in full size")
    anew = {cell_of(row) for row in new}
    # and what had failed as a whole
    anew |= {(part, case.rpartition(": ")[0]) for part, case in anew}
    old = [row for row in read(kept) if cell_of(row) not in anew]
    write_whole(kept, json.dumps({"version": VERSION, "rows": [*old, *new]}, indent=1) + "\n")


def taken(row: Row) -> str:
    """Where and when."""
    about = row["settings"]
    return f"{about['GPU'].removeprefix('NVIDIA ')}, {row['day']}, torch {about['torch']}"


def measured(row: Row, *, unit: bool = True) -> str:
    """A value with its unit; `cannot` where it failed."""
    value = row["value"]
    if value is None:
        return "cannot"
    said = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{said} {row['unit'] if unit else ''}".strip()


def pivot(rows: Iterable[Row], separator: str) -> str:
    """A line for every case, with a column for each thing that was measured of it."""
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        case, found, column = row["case"].rpartition(separator)
        # a case that failed as a whole has no column of its own
        lines.setdefault(case or column, {})[column if found else "all"] = row
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    columns.sort(key=lambda column: int(column) if column.isdigit() else 0)
    heads = [f"{separator.strip(' :,')} {column}".strip() for column in columns]

    def cell(row: Row | None) -> str:
        if row is None:
            return "–"
        held = row.get("memory")
        return measured(row, unit=False) + (f" ({size(held)})" if held else "")

    cells = [
        [
            case,
            *(cell(line.get(column)) for column in columns),
            "; ".join(sorted({taken(row) for row in line.values()})),
        ]
        for case, line in lines.items()
    ]
    return markdown("", ["case", *heads, "taken"], cells)


def listed(rows: Iterable[Row]) -> str:
    """A line for every row."""
    cells = ([r["case"], measured(r), r["note"].replace("|", "/"), taken(r)] for r in rows)
    return markdown("", ["case", "measured", "", "taken"], cells).replace("|  |", "| |", 1)


def captured(rows: list[Row]) -> list[Row]:
    """Captured rules in one row, then what cannot be captured, and the rest as it is."""
    each = sorted((r for r in rows if r["unit"] == "eager plain steps"), key=lambda r: r["value"])
    if not each:
        return rows
    low, high = each[0], each[-1]
    note = f"{low['case']} {low['value']:.2f} to {high['case']} {high['value']:.2f}, equal to eager"
    about = {"unit": "of an eager plain step, median", "value": each[len(each) // 2]["value"]}
    last = next(row for row in reversed(rows) if row in each)
    whole = last | about | {"case": f"{len(each)} configurations of rules", "note": note}
    rest = sorted((row for row in rows if row not in each), key=lambda r: r["value"] is not None)
    return [whole, *rest]


def missed(rows: Iterable[Row]) -> list[str]:
    """What is above what it should be at most."""
    return [
        f"{row['case']}: {measured(row)}, at most {row['target']:.3g}"
        for row in rows
        if row["target"] is not None and (row["value"] is None or row["value"] > row["target"])
    ]


def tables(rows: list[Row]) -> list[str]:
    """Every part under a title of its own."""
    found = []
    for part, title in TITLES.items():
        own = [row for row in rows if row["part"] == part]
        if own and part in PIVOTED:
            # ratios of two contenders stand in the columns, and in what is missed
            table = pivot((row for row in own if " / " not in row["case"]), PIVOTED[part])
        elif own:
            table = listed(captured(own) if part == "capture" else own)
        else:
            continue
        found += [f"*{' '.join(title.split())}*:", table]
    return found
