"""What became of the rules' times: bars, tables and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.record import Row
from experiments.benchmarks.rules_peers import RULES
from mtlfunc.core.files import write_whole


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every cell that both sides have, with the most that ours may take of TorchJD's time.

    No rule slower than TorchJD's, and PCGrad and GradVac faster by far at T = 32.
    """
    found = []
    for row in rows:
        if "TorchJD" in row:
            single = row["batch"] == 1
            far = row["rule"] in ("pcgrad", "gradvac") and row["tasks"] == 32
            limit = (1 / 20 if single else 1 / 100) if far else 1.0
            ratios = {key: row["ours"][key] / row["TorchJD"][key] for key in ("median", "fastest")}
            found.append(
                {key: row[key] for key in ("rule", "tasks", "batch")} | ratios | {"limit": limit}
            )
    return found


def tables(rows: Sequence[Row], machine: str) -> str:
    """Markdown of rows that were taken under the settings that `machine` describes."""
    lines = [
        "# Every rule, from Gramian to weights",
        "",
        machine,
        "",
        "µs a problem, fastest blocks: ours / TorchJD's at its defaults, in brackets the ratio. "
        "Apart: the distance of the two unit directions, the largest of all T.",
        "",
    ]
    bars = against_bars(rows)
    missed = [bar for bar in bars if bar["fastest"] > bar["limit"]]
    met = f"Of {len(bars)} bars {len(bars) - len(missed)} are met"
    lines += [met + ("; missed:" if missed else "."), ""]
    for bar in missed:
        case = f"{bar['rule']}, T = {bar['tasks']}, batch {bar['batch']:,}"
        lines.append(
            f"- {case}: {bar['fastest']:.3g} of TorchJD's (medians {bar['median']:.3g}), at most "
            f"{bar['limit']:g} wanted"
        )
    for batch in sorted({row["batch"] for row in rows}):
        lines += ["", "## One problem alone" if batch == 1 else f"## {batch:,} at once", ""]
        lines += _table([row for row in rows if row["batch"] == batch])
    return "\n".join([*lines, ""])


def _table(rows: Sequence[Row]) -> list[str]:
    tasks = sorted({row["tasks"] for row in rows})
    lines = [
        f"| rule | TorchJD's, on | {' | '.join(f'T = {count}' for count in tasks)} | apart |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for rule, (_, peer, *_) in RULES.items():
        own = {row["tasks"]: row for row in rows if row["rule"] == rule}
        if own:
            how = " (vmap)" if any(row.get("together") for row in own.values()) else ""
            off = [row["apart"] for row in own.values() if "apart" in row]
            cells = " | ".join(_cell(own.get(count)) for count in tasks)
            name = f"{peer.name}, {peer.takes}{how}" if peer else ""
            lines.append(f"| {rule} | {name} | {cells} | {f'{max(off):.0e}' if off else ''} |")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    mine = f"{row['ours']['fastest']:.3g}"
    if "TorchJD" in row:
        return (
            f"{mine} / {row['TorchJD']['fastest']:.3g} "
            f"({row['ours']['fastest'] / row['TorchJD']['fastest']:.2g})"
        )
    return f"{mine} / {row['failed'].split(':')[0]}" if "failed" in row else mine


def figure(rows: Sequence[Row], path: Path) -> None:
    """Ours over TorchJD's against T, a line per rule, named where it ends."""
    from matplotlib.figure import Figure

    batches = sorted({row["batch"] for row in rows})
    panels = Figure(figsize=(7.2 * len(batches), 8), layout="constrained")
    axes = panels.subplots(1, len(batches), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        _panel(axis, [row for row in rows if row["batch"] == batch], rows)
        title = "one problem alone" if batch == 1 else f"{batch:,} problems at once, time of each"
        axis.set_title(title)
    write_whole(path, lambda file: panels.savefig(file, format="png", dpi=150))


def _panel(axis: Any, rows: Sequence[Row], every: Sequence[Row]) -> None:
    """The lines of one size of batch; `every` row, of all sizes, decides colours and ticks."""
    import matplotlib as mpl

    compared = {row["rule"] for row in every if "TorchJD" in row}
    tasks = sorted({row["tasks"] for row in every})
    ends = []
    for number, rule in enumerate(rule for rule in RULES if rule in compared):
        line = sorted(
            (row["tasks"], row["ours"]["fastest"] / row["TorchJD"]["fastest"])
            for row in rows
            if row["rule"] == rule and "TorchJD" in row
        )
        if line:
            colour = mpl.colormaps["tab10"](number % 10)
            dash = ["-", "--", ":"][number // 10 % 3]
            shape: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.4}
            axis.plot(*zip(*line, strict=True), dash, color=colour, **shape)
            ends.append((line[-1][1], line[-1][0], rule, colour))
    axis.hlines(1, tasks[0] / 1.15, tasks[-1] * 1.1, color="black", linewidth=1.2)
    axis.set(
        xscale="log", yscale="log", xlabel="tasks T", ylabel="time of ours / time of TorchJD's"
    )
    axis.set_xticks(tasks, [str(count) for count in tasks])
    axis.set_xticks([], minor=True)
    room = (tasks[-1] / tasks[0] if len(tasks) > 1 else 2) ** 0.42  # for the names
    axis.set_xlim(tasks[0] / 1.15, tasks[-1] * room)
    axis.grid(alpha=0.25)
    low, high = axis.get_ylim()
    places = _spread([math.log(y / low) / math.log(high / low) for y, *_ in ends], 0.026)
    for (y, x, rule, colour), place in zip(ends, places, strict=True):
        axis.annotate(
            rule,
            (x, y),
            (tasks[-1] * 1.3, low * (high / low) ** place),
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )


def _spread(places: list[float], apart: float) -> list[float]:
    """The places in [0, 1], moved until they differ by that much, in the same order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(500):
        for i in range(len(moved) - 1):
            short = apart - (moved[i + 1] - moved[i])
            if short > 1e-4:
                moved[i], moved[i + 1] = moved[i] - short / 2, moved[i + 1] + short / 2
        moved = [min(max(y, 0.01), 0.99) for y in moved]
    found = list(places)
    for i, y in zip(order, moved, strict=True):
        found[i] = y
    return found
