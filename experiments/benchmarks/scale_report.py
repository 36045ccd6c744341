"""Times that grow with a size: a table and a figure, in units of what was timed next to them."""

from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.record import Row, markdown
from mtlfunc.core.files import write_whole

CURVES = {
    "mgda": ("MGDA's problem", "tasks"),
    "cagrad": ("CAGrad's problem", "tasks"),
    "upgrad": ("UPGrad's T problems", "tasks"),
    "tasks": ("Gramian, 10⁶ parameters", "tasks"),
    "parameters": ("Gramian, 4 tasks", "parameters"),
    "samples": ("Gramian of samples, 10⁵ parameters", "samples"),
    "lanes": ("study of a CAGrad run", "lanes"),
}
"""What a curve shows, and what grows along it."""
COLOURS = {"ours": "C0", "ours, a step": "C9", "by hand": "C7", "TorchJD": "C1", "cvxpy": "C2"}


def units(rows: Sequence[Row]) -> dict[tuple[str, int, str], float]:
    """Times by curve, size and way, in units of the size's own unit."""
    unit = {(row["curve"], row["size"]): row["seconds"] for row in rows if row["way"] == "unit"}
    return {
        (row["curve"], row["size"], row["way"]): row["seconds"] / unit[row["curve"], row["size"]]
        for row in rows
        if row["seconds"] is not None
    }


def table(rows: Sequence[Row], line: str) -> str:
    """Markdown: a line a size, every way's time in units; then the worst error of each curve."""
    found, lines = units(rows), []
    for row in rows:
        if row["way"] == "unit":
            times = [found.get((row["curve"], row["size"], way)) for way in COLOURS]
            cells = [CURVES[row["curve"]][0], f"{row['size']:,}", f"{1e3 * row['seconds']:.3g}"]
            cells += ["–" if time is None else f"{time:.3g}" for time in times]
            lines.append(cells)
    errors: dict[str, dict[str, float]] = {}
    for row in rows:
        if "error" in row:
            worst = errors.setdefault(CURVES[row["curve"]][0], {})
            worst[row["way"]] = max(worst.get(row["way"], 0.0), row["error"])
    said = [
        f"{title}: {', '.join(f'{way} {error:.0e}' for way, error in worst.items())}"
        for title, worst in errors.items()
    ]
    page = markdown(line, ["what", "size", "unit, ms", *COLOURS], lines)
    return f"{page}\n\nWorst errors. {'; '.join(said)}.\n"


def figure(rows: Sequence[Row], path: Path) -> None:
    """A panel a curve, all axes logarithmic and those of time alike."""
    from matplotlib.figure import Figure

    found = units(rows)
    curves = [name for name in CURVES if any(row["curve"] == name for row in rows)]
    across = min(4, len(curves))
    down = -(-len(curves) // across)
    panels = Figure(figsize=(2.9 * across, 3.0 * down + 0.5), layout="constrained")
    grid = panels.subplots(down, across, squeeze=False, sharey=True)
    handles = {}
    for axis, name in zip(grid.flat, curves, strict=False):
        for way, colour in COLOURS.items():
            points = sorted((n, t) for (c, n, w), t in found.items() if (c, w) == (name, way))
            if points:
                style = "-o" if way.startswith("ours") else "--s"
                drawn = axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4)
                handles.setdefault(way, drawn[0])
        axis.axhline(1, color="0.5", linewidth=0.8)
        title, what = CURVES[name]
        axis.set(xscale="log", yscale="log", xlabel=what)
        axis.set_title(title, fontsize="medium")
        axis.grid(alpha=0.25)
    for axis in grid.flat[len(curves) :]:
        axis.axis("off")
    for axis in grid[:, 0]:
        axis.set_ylabel("mean gradients (studies: runs alone)", fontsize="small")
    named = [way for way in COLOURS if way in handles]
    panels.legend(
        [handles[way] for way in named], named, loc="outside lower center", ncols=5, frameon=False
    )
    write_whole(path, lambda file: panels.savefig(file, format="png", dpi=150))
