"""What a device's benchmark found, kept with the day of every number, as tables of a page.

gpu.json next to this file keeps the rows. `take_over` puts those of a newer run in their place;
what that run did not reach stays, under its own day.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from experiments.benchmarks.gpu_cases import ENDED, size
from experiments.benchmarks.record import VERSION, Row, markdown, read
from mtlfunc.core.files import write_whole

KEPT = Path(__file__).parent / "gpu.json"
SPLIT = {"times": ", batch "}  # what stands before the column of a case
TITLES = {
    "steps": """Steps: milliseconds of a plain step, the others in units of it; the peak beyond
        what was held before in brackets""",
    "launches": "Launches of the steps",
    "routes": "Rows of a trunk, forward included, in units of a plain step",
    "weightings": """K weightings of samples: Gramian and combination, in units of a plain step; the
        peak beyond what was held before, in brackets""",
    "capture": "Captured steps, MLP 16-64-64, in units of an eager plain step",
    "lanes": "Whole trainings side by side, captured",
    "compiler": "A step under `torch.compile`, MLP 16-64-64, in units of an eager plain step",
    "times": "The kernel of the active set, µs a call, replayed",
    "kernel": "Worst certified gap of the kernel, hard families",
    "gramian": "Gramians",
    "toy": "CAGrad's toy",
    "tests": "The tests that need a device",
}
PIVOTED = ("steps", "launches", "routes", "weightings", "compiler", "times")


def cell_of(row: Row) -> tuple[str, str]:
    return row["part"], row["case"]


def take_over(path: Path, kept: Path = KEPT) -> None:
    """Keep the rows of a run on a device in the place of older ones.

    Args:
        path: of the run's gpu.json.
        kept: of the file of rows.

    Raises:
        SystemExit: without full-sized rows of a CUDA device.
    """
    rows = read(path)
    new = [r for r in rows if r["settings"].get("device") == "cuda" and not r["settings"]["tiny"]]
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
    if row["value"] is None:
        return "cannot"
    value = row["value"]
    said = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{said} {row['unit'] if unit else ''}".strip()


def _short(row: Row) -> str:
    value = measured(row, unit=False)
    held = [f"{row['launches']:,}"] if row.get("launches") else []
    held += [size(row["memory"])] if row.get("memory") else []
    return value + (f" ({', '.join(held)})" if held else "")


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
    cells = [
        [
            case,
            *(_short(line[column]) if column in line else "–" for column in columns),
            "; ".join(sorted({taken(row) for row in line.values()})),
        ]
        for case, line in lines.items()
    ]
    return markdown("", ["case", *heads, "taken"], cells)


def listed(rows: Iterable[Row]) -> str:
    """A line for every row."""
    cells = ([r["case"], measured(r), r["note"].replace("|", "/"), taken(r)] for r in rows)
    return markdown("", ["case", "measured", "", "taken"], cells).replace("|  |", "| |", 1)


def captured(rows: list[Row]) -> str:
    """Captured rules in one line, those that cannot by name, and the rest as it is."""
    each = [row for row in rows if row["unit"] == "eager plain steps"]
    failing = [row for row in rows if row["value"] is None]
    others = [row for row in rows if row not in each and row not in failing]
    if not each:
        return listed(rows)
    low, high = (f(each, key=lambda row: row["value"]) for f in (min, max))
    note = f"{low['case']} {low['value']:.2f} to {high['case']} {high['value']:.2f}, equal to eager"
    value = sorted(row["value"] for row in each)[len(each) // 2]
    about = {"unit": "of an eager plain step, median", "value": value, "note": note}
    whole = each[-1] | about | {"case": f"{len(each)} configurations of rules"}
    return listed([whole, *failing, *others])


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
        own = [
            row for row in rows if row["part"] == part and row["case"] not in (ENDED, "peak memory")
        ]
        if not own:
            continue
        # ratios of two contenders stand in the columns, and in what is missed
        shown = [row for row in own if " / " not in row["case"] or part not in PIVOTED]
        if part in PIVOTED:
            lines = pivot(shown, SPLIT.get(part, ": "))
        else:
            lines = captured(shown) if part == "capture" else listed(shown)
        found += [f"*{' '.join(title.split())}*:", lines]
    return found
