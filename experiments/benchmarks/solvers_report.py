"""What became of the solvers' times and certificates: tables and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.record import Row
from experiments.benchmarks.solvers_peers import KINDS, SOLVERS
from mtlfunc.core.files import write_whole


def worst(row: Row, key: str) -> float:
    """The worst of all families of a certificate's entry; NaN where none was solved."""
    found = [family[key] for family in row["families"].values() if key in family]
    values = [value for value in found if not math.isnan(value)]
    return (min(values) if key == "kappa" else max(values)) if values else math.nan


def count(row: Row, key: str) -> int:
    """How many instances of all families were "solved", "failed" or answered by "zero"."""
    return sum(family[key] for family in row["families"].values())


def figure(rows: Sequence[Row], path: Path) -> None:
    """Time of one problem against its worst certified gap, a panel a problem."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    families = len(rows[0]["families"])
    panels = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    axes = panels.subplots(1, len(kinds), sharey=True, squeeze=False)
    colours = {name: f"C{i}" for i, name in enumerate(SOLVERS)}
    for axis, kind in zip(axes[0], kinds, strict=True):
        for row in rows:
            if row["kind"] == kind and row["batch"] == 1 and row["median"]:
                colour = colours[row["solver"]]
                place = 1e6 * row["median"], max(worst(row, "gap"), 1e-18)
                axis.annotate(str(row["tasks"]), place, (5, 4), textcoords="offset points", size=7)
                axis.scatter(
                    *place,
                    s=12 + 14 * math.log2(row["tasks"]),
                    facecolors="none" if count(row, "failed") else colour,
                    edgecolors=colour,
                    alpha=0.75,
                )
        axis.set(xscale="log", yscale="log", xlabel="time of one problem (µs)", title=kind)
        axis.margins(x=0.12)  # for the numbers
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(f"worst normalised gap, {families} families")
    used = {row["solver"] for row in rows}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colours[name], label=name)
        for name in SOLVERS
        if name in used
    ]
    panels.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5,
        frameon=False,
        title="one dot per solver and number of tasks T, which stands at the dot; hollow: some "
        "problems were not solved, and their gaps are left out",
    )
    write_whole(path, lambda file: panels.savefig(file, format="png", dpi=150))
