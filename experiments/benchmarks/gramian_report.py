"""What became of the Gramians' times: bars, tables and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.record import Row
from mtlfunc.core.files import write_whole


def find(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that were timed and have these entries."""
    return [
        row
        for row in rows
        if "fastest" in row and all(row[key] == value for key, value in wanted.items())
    ]


def peers(rows: Sequence[Row]) -> list[Row]:
    """The rows of what is not ours, mean gradients aside."""
    return [
        row
        for row in rows
        if not row["method"].startswith("ours") and row["quantity"] != "gradient"
    ]


class Bar(NamedTuple):
    """What the layerwise engine is for."""

    family: str
    tasks: int
    batch: int
    device: str
    quantity: str
    method: str
    others: tuple[str, ...]  # against the best of these
    limit: float  # the most of theirs that it may be
    what: str = "time"


TORCHJD = ("TorchJD autojac", "TorchJD autogram")
BARS = [
    Bar("mlp-sample", 1, 128, "cpu", "gramian", "ours, auto", ("mean gradient",), 2.0),
    Bar("mlp-sample", 1, 128, "cpu", "gramian", "ours, auto", ("TorchJD autogram",), 1 / 50),
    Bar("mlp-task", 40, 128, "cpu", "gramian", "ours, auto", ("TorchJD autogram",), 0.5),
    Bar("mlp-task", 40, 128, "cpu", "gramian", "ours, auto", ("loop",), 0.5),
    Bar("resnet18", 4, 8, "cpu", "gramian", "ours, auto", ("loop", "vmap(vjp)", *TORCHJD), 1.05),
    *(
        Bar(family, tasks, batch, "cpu", quantity, f"ours, auto{stacked}", ("loop",), 1.3)
        for family, tasks, batch in (("decoders", 4, 8), ("own-inputs", 8, 64))
        for quantity in ("gramian", "step")
        for stacked in ("", ", stacked")
    ),
    *(
        Bar(
            f"{way}-{width}-sample",
            1,
            256,
            "cpu",
            "gramian",
            "ours, auto",
            ("mean gradient",),
            most,
        )
        for way, width, most in (
            ("jets", 128, 7.0),
            ("jets", 256, 3.5),
            ("autograd", 128, 12.0),
            ("autograd", 256, 6.0),
        )
    ),
    Bar("resnet18", 40, 64, "cuda", "gramian", "ours, auto", TORCHJD, 1.0),
    Bar("resnet18", 40, 64, "cuda", "gramian", "ours, auto", TORCHJD, 0.35, "memory"),
]


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every bar of which both sides were measured."""
    found = []
    for bar in BARS:
        case = find(rows, family=bar.family, tasks=bar.tasks, batch=bar.batch, device=bar.device)
        mine = find(case, quantity=bar.quantity, method=bar.method)
        against = [
            row
            for row in case
            if row["method"] in bar.others and row["quantity"] in (bar.quantity, "gradient")
        ]
        if mine and against:
            keys = ("memory",) * 2 if bar.what == "memory" else ("median", "fastest")
            best = min(against, key=lambda row, key=keys[1]: row[key])
            found.append(
                {
                    "case": f"{mine[0]['case']}, {bar.device}, {bar.quantity}",
                    "method": bar.method,
                    "against": best["method"],
                    "what": bar.what,
                    "median": mine[0][keys[0]] / best[keys[0]],
                    "fastest": mine[0][keys[1]] / best[keys[1]],
                    "limit": bar.limit,
                }
            )
    return found


def tables(rows: Sequence[Row], machine: str) -> str:
    """Markdown of rows that were taken under the settings that `machine` describes."""
    lines = ["# Gramians of task and sample gradients", "", machine, ""]
    lines += [
        "Ratios of medians, in brackets of the fastest calls. A step: the Gramian and the "
        "gradient that weights combine. TorchJD runs at its defaults.",
        "",
    ]
    bars = against_bars(rows)
    if bars:
        lines += [
            "## Against its bars",
            "",
            "| case | method | against | what | ratio | at most | |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {bar['case']} | {bar['method']} | {bar['against']} | {bar['what']} | "
            f"{bar['median']:.3g} ({bar['fastest']:.3g}) | {bar['limit']:.3g} "
            f"| {'holds' if bar['fastest'] <= bar['limit'] else 'missed'} |"
            for bar in bars
        ]
        lines.append("")
    for name, device in dict.fromkeys((row["case"], row["device"]) for row in rows):
        case = [row for row in rows if (row["case"], row["device"]) == (name, device)]
        lines += [
            f"## {name}, {device}",
            "",
            "| quantity | method | ms | × mean gradient | × fastest peer | peak MiB | error "
            "float32 | error float64 |",
            "|---|---|---|---|---|---|---|---|",
            *(f"| {' | '.join(_cells(row, case))} |" for row in case),
            "",
        ]
    return "\n".join(lines)


def _cells(row: Row, case: Sequence[Row]) -> list[str]:
    """A line of a case's table."""
    cells = [row["quantity"], row["method"]]
    if "failed" in row:
        return [*cells, f"cannot: {row['failed'].splitlines()[0].split(': ')[0]}", *[""] * 5]
    floor = find(case, quantity="gradient")
    others = peers(find(case, quantity=row["quantity"]))
    cells.append(f"{1e3 * row['median']:.3g} ({1e3 * row['fastest']:.3g})")
    for best in (
        floor[0] if floor else None,
        min(others, key=lambda other: other["fastest"], default=None),
    ):
        ratios = [row[key] / best[key] for key in ("median", "fastest")] if best else None
        cells.append(f"{ratios[0]:.3g} ({ratios[1]:.3g})" if ratios else "")
    errors = [row.get(key, math.nan) for key in ("error", "error64")]
    return [
        *cells,
        f"{row['memory'] / 2**20:.3g}",
        *("" if math.isnan(off) else f"{off:.1e}" for off in errors),
    ]


STYLES = {
    "loop": ("C7", "s"),
    "vmap(vjp)": ("C5", "v"),
    "vmap(grad)": ("C6", "<"),
    "Opacus": ("C8", "P"),
    "BackPACK": ("C9", "X"),
    "TorchJD autojac": ("C1", "D"),
    "TorchJD autogram": ("C3", "^"),
    "ours, auto": ("C0", "o"),
    "ours, layerwise": ("C2", "d"),
    "ours, rows": ("C4", ">"),
}


def figure(rows: Sequence[Row], path: Path) -> None:
    """Time against one mean gradient, a line a case."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    measured = [row for row in rows if row["quantity"] != "gradient"]
    cases = list(dict.fromkeys((row["case"], row["device"], row["quantity"]) for row in measured))
    panel = Figure(figsize=(10, 1.6 + 0.36 * len(cases)), layout="constrained")
    axis = panel.subplots()
    used = set()
    for line, (name, device, quantity) in enumerate(cases):
        floor = find(rows, case=name, device=device, quantity="gradient")
        for row in find(rows, case=name, device=device, quantity=quantity):
            if row["method"] in STYLES and floor:
                colour, marker = STYLES[row["method"]]
                front = row["method"] == "ours, auto"
                axis.scatter(
                    row["fastest"] / floor[0]["fastest"],
                    line,
                    c=colour,
                    marker=marker,
                    s=60 if front else 34,
                    zorder=3 if front else 2,
                    alpha=0.85,
                )
                used.add(row["method"])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="time / time of one mean gradient (fastest)", ylim=(len(cases) - 0.5, -0.5))
    names = [f"{name}, {device}{' (step)' * (kind == 'step')}" for name, device, kind in cases]
    axis.set_yticks(range(len(cases)), names)
    axis.grid(alpha=0.25, which="both", axis="x")
    axis.grid(alpha=0.25, axis="y")
    handles = [
        Line2D([], [], color=c, marker=m, linestyle="", label=name)
        for name, (c, m) in STYLES.items()
        if name in used
    ]
    panel.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    write_whole(path, lambda file: panel.savefig(file, format="png", dpi=150))
