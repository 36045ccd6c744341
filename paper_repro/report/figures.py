"""The look of the figures: `style.mplstyle`, in force while a reproduction runs, and plain axes.

Colours are those of the style's cycle by their names, C0 to C6, so that they are chosen in one
place. A method keeps its colour from one paper to the next.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

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
