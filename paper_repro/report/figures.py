"""The look of the figures: `style.mplstyle`, in force while a reproduction runs, and plain axes.

Colours are those of the style's cycle by their names, C0 to C6, so that they are chosen in one
place. A method keeps its colour from one paper to the next.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from matplotlib import colormaps, rcParams, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike

from .intervals import half_width

STYLE = Path(__file__).with_name("style.mplstyle")
_MORE: ContextVar[Mapping[str, Any]] = ContextVar("more", default=MappingProxyType({}))
METHOD_COLOURS = {
    "mean": "#444444",
    "MGDA": "C0",
    "CAGrad": "C1",
    "GradNorm": "C2",
    "PCGrad": "C3",
    "MGDA-UB": "C4",
}


@contextlib.contextmanager
def more_style(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Parameters of matplotlib that go over the style's, while a figure is drawn and written."""
    token = _MORE.set(parameters)
    try:
        yield
    finally:
        _MORE.reset(token)


def in_style() -> AbstractContextManager[None]:
    """The style, with what goes over it, in force: a line has the colours of its drawing's time."""
    return style.context([STYLE, dict(_MORE.get())])


def axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Canvas, list[Axes]]:
    """A canvas of `size` inches and its panels, row by row."""
    canvas = Canvas(figsize=size, layout="constrained")
    panels = [canvas.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for panel in panels:
        panel.grid()
    return canvas, panels


def panels_of(canvas: Canvas) -> list[Axes]:
    """Without colour bars."""
    return [panel for panel in canvas.axes if not hasattr(panel, "_colorbar")]


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
    within: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Mean over seeds of `values[time, seed]` and its 95 % band; `geometric`: of logarithms. A t
    interval knows nothing of what a share or a cosine can be: `within` ends the band there.
    """
    back = np.exp if geometric else np.asarray
    values = np.log(values) if geometric else values
    middle, half = values.mean(1), half_width(values)
    panel.plot(times, back(middle), dash, color=colour, label=label)
    low, high = (np.clip(back(middle + sign * half), *within) for sign in (-1, 1))
    panel.fill_between(times, low, high, color=colour, alpha=alpha, linewidth=0)


def plain_ticks(axis: Any) -> None:
    """Ticks of a log axis as plain numbers, a few of each decade."""
    for setter in (axis.set_major_formatter, axis.set_minor_formatter):
        setter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1246" else "")


def shades(count: int) -> list[Any]:
    """A colour a line: the style's own, or of more than seven lines those of a map, in order."""
    if count <= 7:
        return [f"C{i}" for i in range(count)]
    return [colormaps["viridis"](0.9 * i / (count - 1)) for i in range(count)]


def name_lines(panel: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Names at the right ends of lines, without overlaps; call it when the axis has its limits.
    `ends` are of each line the last value, its name and its colour; one that diverged has no end.
    The names' places, at least `room` from each other, are the nearest to the lines: less what each
    has below it these are an isotonic regression.
    """
    from sklearn.isotonic import isotonic_regression  # half a second

    def height(end: tuple[float, str, Any]) -> float:
        point = panel.transData.transform((panel.get_xlim()[0], end[0]))
        return float(panel.transAxes.inverted().transform(point)[1])

    ends = sorted((end for end in ends if np.isfinite(end[0])), key=height)
    if not ends:
        return
    room = min(0.075, 1 / len(ends))
    below = room * np.arange(len(ends))
    apart = isotonic_regression([*map(height, ends)] - below) + below
    apart = apart.clip(None, 1 - room / 2 - below[::-1])
    for y, (_, name, colour) in zip(apart, ends, strict=True):
        look = {"color": colour, "va": "center", "fontsize": rcParams["legend.fontsize"]}
        panel.text(1.02, y, name, transform=panel.transAxes, **look)


def arrow(
    panel: Axes, start: ArrayLike, end: ArrayLike, colour: str, style: str = "-", width: float = 2.0
) -> None:
    """An arrow between two points of the plane."""
    (a, b), (x, y) = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": width}
    panel.annotate("", (x, y), (a, b), arrowprops=look)


def _svg(canvas: Canvas, file: BinaryIO, text: Mapping[str, str]) -> None:
    dots = canvas.dpi
    FigureCanvasSVG(canvas).print_svg(file, metadata={**text, "Date": None})
    canvas.dpi = dots  # which it leaves at its own


def _pdf(canvas: Canvas, file: BinaryIO, text: Mapping[str, str]) -> None:
    subject = {"Title": text["Title"], "Subject": text["Description"], "CreationDate": None}
    FigureCanvasPdf(canvas).print_pdf(file, metadata=subject)


FORMS: dict[str, Callable[[Canvas, BinaryIO, Mapping[str, str]], None]] = {
    "png": lambda canvas, file, text: FigureCanvasAgg(canvas).print_png(file, metadata=dict(text)),
    "svg": _svg,
    "pdf": _pdf,
}
"""Writes a canvas that has been set (`fit`); savefig would lay it out a second time."""
