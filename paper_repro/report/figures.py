"""The look of the figures: `style.mplstyle`, in force while a reproduction runs, and plain axes.

Colours are those of the style's cycle by their names, C0 to C6, so that they are chosen in one
place. A method keeps its colour from one paper to the next.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike

from .intervals import Interval, half_width

STYLE = Path(__file__).with_name("style.mplstyle")
METHOD_COLOURS = {
    "mean": "#444444",
    "MGDA": "C0",
    "CAGrad": "C1",
    "GradNorm": "C2",
    "PCGrad": "C3",
    "MGDA-UB": "C4",
}


def axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Canvas, list[Axes]]:
    """A canvas of `size` inches and its panels, row by row."""
    canvas = Canvas(figsize=size, layout="constrained")
    panels = [canvas.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for panel in panels:
        panel.grid()
    return canvas, panels


def band(
    panel: Axes,
    times: np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str | None = None,
    *,
    dash: str = "-",
    geometric: bool = False,
    alpha: float = 0.25,
) -> None:
    """Mean over seeds of `values[time, seed]` and its 95 % band; `geometric`: of logarithms."""
    back = np.exp if geometric else np.asarray
    values = np.log(values) if geometric else values
    middle, half = values.mean(1), half_width(values)
    panel.plot(times, back(middle), dash, color=colour, label=label)
    panel.fill_between(
        times, back(middle - half), back(middle + half), color=colour, alpha=alpha, linewidth=0
    )


def beside_one(panel: Axes, ratio: Interval, y: float) -> None:
    """A ratio with its interval at height y: blue below 1, vermillion above, grey across."""
    colour = "C0" if ratio.high < 1 else "C1" if ratio.low > 1 else "#777777"
    panel.errorbar(
        [ratio.mean],
        [y],
        xerr=[[ratio.mean - ratio.low], [ratio.high - ratio.mean]],
        color=colour,
        marker="o",
    )


def plain_ticks(axis: Any) -> None:
    """Ticks of a log axis as plain numbers, a few of each decade."""
    for setter in (axis.set_major_formatter, axis.set_minor_formatter):
        setter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1246" else "")


def arrow(
    panel: Axes, start: ArrayLike, end: ArrayLike, colour: str, style: str = "-", width: float = 2.0
) -> None:
    """An arrow between two points of the plane."""
    (a, b), (x, y) = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": width}
    panel.annotate("", (x, y), (a, b), arrowprops=look)
