"""The look of the figures: `style.mplstyle`, in force while a reproduction runs, and plain axes.

Colours are those of the style's cycle by their names, C0 to C6, so that they are chosen in one
place. A method keeps its colour from one paper to the next.
"""

import contextlib
import itertools
import math
import re
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
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import BboxBase
from numpy.typing import ArrayLike

from .intervals import Interval, half_width

STYLE = Path(__file__).with_name("style.mplstyle")
_MORE: ContextVar[Mapping[str, Any]] = ContextVar("more", default=MappingProxyType({}))
_INDEX = "[A-Za-z0-9α-ωΑ-Ω]+"
INDEXED = re.compile(
    # a letter, or one of few words, with an index, a power or both; no part of a code's name
    r"(?<![^\W\d_])((?:[^\W\d_]|∇|max|min|target)[\u0303\u0304]?)"
    rf"(?:_({_INDEX}))?(?:\^([-−+]?{_INDEX}))?"
    r"(?![A-Za-z_^])"
)
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
    """Mean over seeds of `values[time, seed]` and its 95 % band; `geometric`: of logarithms.

    A t interval knows nothing of what a share or a cosine can be: `within` ends the band there.
    """
    back = np.exp if geometric else np.asarray
    values = np.log(values) if geometric else values
    middle, half = values.mean(1), half_width(values)
    panel.plot(times, back(middle), dash, color=colour, label=label)
    low, high = (np.clip(back(middle + sign * half), *within) for sign in (-1, 1))
    panel.fill_between(times, low, high, color=colour, alpha=alpha, linewidth=0)


def beside_one(panel: Axes, ratio: Interval, y: float) -> None:
    """A ratio with its interval at height y: blue below 1, vermillion above, grey across.

    What has no interval, as where a run diverged, is said in its row.
    """
    if not all(map(math.isfinite, ratio)):
        across = panel.get_yaxis_transform()  # from the left edge to the right one, at height y
        panel.text(0.02, y, "not a number: runs diverged", transform=across, va="center")
        return
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


def _tick(canvas: Canvas) -> None:
    """On log axes of less than a decade, where there would be one number or none, more of them.

    Ticks with names of their own stay: what is drawn there need not be at its number. An axis on
    which nothing is drawn, as where all runs diverged, keeps the linear one's limits, down to 0 or
    below, which have no logarithm.
    """
    for panel in canvas.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if axis.get_scale() != "log" or isinstance(axis.get_major_locator(), FixedLocator):
                continue
            low, high = axis.get_view_interval()
            if min(low, high) <= 0:
                high = max(low, high, 0.0) or 1.0
                axis.axes.set(**{f"{axis.axis_name}lim": (high / 10, high)})
            if len(numbers_of(axis)) > 1:
                continue
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            for locator in (LogLocator(subs=(1, 2, 5)), MaxNLocator(4), MaxNLocator(8)):
                axis.set_major_locator(locator)
                if len(numbers_of(axis)) > 1:
                    break


def _thin(axis: Any) -> bool:
    """Fewer numbers on an axis on which they run into each other; whether there are fewer."""
    if isinstance(axis.get_major_locator(), FixedLocator) or not axis.get_visible():
        return False
    low, high = sorted(axis.get_view_interval())
    ticks = [x for x in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if x.label1.get_text()]
    boxes = [x.label1.get_window_extent() for x in ticks if low <= x.get_loc() <= high]
    apart = 0.2 * rcParams["font.size"] * axis.figure.dpi / 72
    crowded = any(a.padded(apart).overlaps(b) for a, b in itertools.combinations(boxes, 2))
    count = len(numbers_of(axis))
    if not crowded or count < 3:
        return False
    if axis.get_scale() == "log" and axis.axis_name in "xy":
        axis.set_minor_formatter(NullFormatter())
        if len(numbers_of(axis)) < 2:  # there was no power of ten
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_major_locator(MaxNLocator(count - 2))
    else:
        axis.set_major_locator(MaxNLocator(count - 2))
    return len(numbers_of(axis)) < count


def _say_where_nothing_is(panel: Axes) -> None:
    """In words on a panel whose lines have no finite number, as where all runs diverged."""
    lines = [x for x in panel.get_lines() if x.get_transform() is panel.transData]
    if lines and not any(np.isfinite(np.asarray(x.get_ydata(), float)).any() for x in lines):
        said = "no finite number to draw"
        panel.text(0.5, 0.5, said, transform=panel.transAxes, ha="center", va="center")


def numbers_of(axis: Any) -> list[str]:
    """The numbers along an axis, between its ends."""
    low, high = sorted(axis.get_view_interval())
    found = []
    for minor in (False, True):
        ticks = axis.get_ticklocs(minor=minor)
        formatter = axis.get_minor_formatter() if minor else axis.get_major_formatter()
        labels = formatter.format_ticks(ticks)
        found += [x for x, at in zip(labels, ticks, strict=True) if x and low <= at <= high]
    return found


def shades(count: int, own: Sequence[str] = tuple(f"C{i}" for i in range(7))) -> list[Any]:
    """A colour a line, from `own`, the style's; of more lines than it has from a map, in order."""
    if count <= len(own):
        return list(own[:count])
    return [colormaps["viridis"](0.9 * i / (count - 1)) for i in range(count)]


def name_lines(panel: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Names at the right ends of lines, without overlaps; call it when the axis has its limits.

    Args:
        panel: with the lines.
        ends: of each line the last value, its name and its colour.
    """

    def height(value: float) -> float:
        point = panel.transData.transform((panel.get_xlim()[0], value))
        return float(panel.transAxes.inverted().transform(point)[1])

    order = sorted(range(len(ends)), key=lambda i: height(ends[i][0]))
    room = min(0.075, 1 / max(1, len(ends)))
    heights = np.array([height(ends[i][0]) for i in order])
    steps = room * np.arange(len(ends))
    apart = np.maximum.accumulate(heights - steps) + steps  # upwards
    apart = np.minimum(apart, 1 - steps[::-1])  # back below the top
    for i, y in zip(order, apart, strict=True):
        _, name, colour = ends[i]
        look = {"color": colour, "va": "center", "fontsize": rcParams["legend.fontsize"]}
        panel.text(1.02, y, name, transform=panel.transAxes, **look)


def arrow(
    panel: Axes, start: ArrayLike, end: ArrayLike, colour: str, style: str = "-", width: float = 2.0
) -> None:
    """An arrow between two points of the plane."""
    (a, b), (x, y) = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": width}
    panel.annotate("", (x, y), (a, b), arrowprops=look)


def _png(canvas: Canvas, file: BinaryIO, text: Mapping[str, str]) -> None:
    cuts = " ".join(f"{cut:.4f}" for cut in cuts_of(canvas))
    FigureCanvasAgg(canvas).print_png(file, metadata={**text, CUTS: cuts})


CUTS = "Cuts"
"""The name in a PNG of where it may be cut."""
NARROWEST = 0.15
"""Of a canvas: what is narrower stays with what is left of it."""


def cuts_of(canvas: Canvas) -> list[float]:
    """Between a canvas's columns of panels, as shares of its width: for narrow screens.

    Nothing that is drawn, labels and legends among them, crosses one. None in one column.
    """
    spans = [(box.x0, box.x1) for box in (one.get_window_extent() for one in canvas.legends)]
    for panel in canvas.axes:
        bars = [
            bar.ax for child in panel.get_children() if (bar := getattr(child, "colorbar", None))
        ]
        boxes = [box for one in (panel, *bars) if (box := one.get_tightbbox()) is not None]
        spans += [(box.x0, max(other.x1 for other in boxes)) for box in boxes]
    spans.sort()
    width, found, reached = canvas.bbox.width, [0.0], 0.0
    for left, right in spans:
        cut = (reached + left) / 2 / width
        if 0 < reached < left and min(cut - found[-1], 1 - cut) >= NARROWEST:
            found.append(cut)
        reached = max(reached, right)
    return found[1:]


def _svg(canvas: Canvas, file: BinaryIO, text: Mapping[str, str]) -> None:
    dots = canvas.dpi
    FigureCanvasSVG(canvas).print_svg(file, metadata={**text, "Date": None})
    canvas.dpi = dots  # which it leaves at its own


def _pdf(canvas: Canvas, file: BinaryIO, text: Mapping[str, str]) -> None:
    subject = {"Title": text["Title"], "Subject": text["Description"], "CreationDate": None}
    FigureCanvasPdf(canvas).print_pdf(file, metadata=subject)


FORMS: dict[str, Callable[[Canvas, BinaryIO, Mapping[str, str]], None]] = {
    "png": _png,
    "svg": _svg,
    "pdf": _pdf,
}
"""Writes a canvas that has been set (`fit`); savefig would lay it out a second time."""


def fit(canvas: Canvas) -> None:
    """Set a canvas's text: indices as such, nothing over data, no line longer than its panel.

    Legends go above their panels, where nothing is drawn whatever the numbers are. The layout
    gives labels room across their lines and none along them, so that a label longer than its
    panel would run into its neighbour or off the canvas: it is broken into lines. What is drawn
    afterwards stays where it was laid out. One that has been set stays as it is.
    """
    if isinstance(canvas.get_layout_engine(), PlaceHolderLayoutEngine):
        return
    _tick(canvas)
    for panel in canvas.axes:
        _say_where_nothing_is(panel)
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(typeset(text.get_text()))
    first = changed = True
    while changed:  # lines that are added leave the panels smaller
        _lay_out(canvas)
        changed = False
        for panel in canvas.axes:
            if panel.get_legend() is not None:
                changed |= _above(panel, again=first)
        _raise_titles(canvas)
        first = False
        for panel in canvas.axes:
            changed |= any([_thin(panel.xaxis), _thin(panel.yaxis)])
        for panel in canvas.axes:
            if panel.name == "3d":
                continue
            box = place_of(panel)
            changed |= _wrap(panel.xaxis.label, box.width)
            changed |= _wrap(panel.yaxis.label, box.height, upright=True)
            for text in titles(panel):
                changed |= _wrap(text, room_above(panel))
    canvas.set_layout_engine("none")


def _lay_out(canvas: Canvas) -> None:
    """Panels where they will be drawn, at a fraction of what drawing takes."""
    layout = canvas.get_layout_engine()
    if layout is not None:
        layout.execute(canvas)
    for panel in canvas.axes:
        locator: Any = panel.get_axes_locator()
        panel.apply_aspect(locator(panel, None) if locator else None)


def place_of(panel: Axes) -> BboxBase:
    """What the layout gave a panel, in pixels; one with equal axes is smaller, in its middle."""
    if panel.get_axes_locator() is not None:  # a colour bar
        return panel.get_window_extent()
    assert panel.figure is not None
    return panel.get_position(original=True).transformed(panel.figure.transSubfigure)


def room_above(panel: Axes) -> float:
    """Pixels between a panel's left edge, where title and legend begin, and its place's right."""
    return place_of(panel).x1 - panel.get_window_extent().x0


def titles(panel: Axes) -> list[Text]:
    """Its titles with words, at the left, the middle and the right."""
    words = {panel.get_title(loc) for loc in ("left", "center", "right")} - {""}
    return [x for x in panel.get_children() if isinstance(x, Text) and x.get_text() in words]


def typeset(text: str) -> str:
    """Indices and powers, as in w_i or θ^MT, as formulas; those of a formula stay."""
    parts = text.split("$")
    for i in range(0, len(parts), 2):
        parts[i] = INDEXED.sub(_formula, parts[i])
    return "$".join(parts)


def _formula(found: re.Match[str]) -> str:
    base, *marks = found.groups()
    if marks == [None, None]:
        return found[0]
    # letters in a row are a name, not a product
    names = [rf"\mathrm{{{x}}}" if x and len(x) > 1 and x.isalpha() else x for x in (base, *marks)]
    shown = "".join(f"{sign}{{{x}}}" for sign, x in zip("_^", names[1:], strict=True) if x)
    return f"${names[0]}{shown}$"


def _above(panel: Axes, *, again: bool) -> bool:
    """A panel's legend above it, in as many columns as there is room for.

    Args:
        panel: with a legend.
        again: whether to place one again that is not wider.

    Returns:
        Whether it is another one: narrower than before, unless it was placed again.
    """
    found = panel.get_legend()
    assert found is not None
    before, room = found.get_window_extent().width, room_above(panel)
    if not again and before <= room:
        return False
    labels = [text.get_text().replace("\n", " ") for text in found.get_texts()]
    # what the legend draws for a bar with its ends is less than the bar itself
    drawn, names = panel.get_legend_handles_labels()
    handles = (
        drawn
        if [typeset(name) for name in names] == labels
        else [x for x in found.legend_handles if x]
    )
    look = {
        "title": found.get_title().get_text() or None,
        "markerscale": found.markerscale,
        "fontsize": found.get_texts()[0].get_fontsize(),
    }
    look |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0.2}
    columns = len(labels)
    while True:
        placed = panel.legend(
            handles, labels, ncols=columns, frameon=False, columnspacing=1.2, **look
        )
        excess = placed.get_window_extent().width - room
        if excess <= 0 or columns == 1:
            break
        columns -= 1
    for text in placed.get_texts():
        _wrap(text, text.get_window_extent().width - max(0.0, excess))
    return again or placed.get_window_extent().width < before - 1


def _wrap(text: Text, room: float, *, upright: bool = False) -> bool:
    """A text in the fewest lines that fit, of about one length; formulas stay whole.

    Returns:
        Whether it was changed: more lines than words there are not.
    """
    box = text.get_window_extent()
    length = box.height if upright else box.width
    if not text.get_text().strip() or length <= room:
        return False
    words = re.findall(r"(?:\$[^$]*\$|\S)+", text.get_text())
    before = text.get_text().count("\n") + 1
    lines = min(len(words), math.ceil(before * length / max(room, 1.0)))
    most = max(len(" ".join(words)) / lines, *map(len, words))
    wrapped = [words[0]]
    for word in words[1:]:
        if len(wrapped) < lines and len(f"{wrapped[-1]} {word}") > most + len(word) / 2:
            wrapped.append(word)
        else:
            wrapped[-1] += f" {word}"
    changed = len(wrapped) > before
    text.set_text("\n".join(wrapped))
    return changed


def _raise_titles(canvas: Canvas) -> None:
    """Titles above the legends that are above their panels."""
    for panel in canvas.axes:
        found, text = panel.get_legend(), panel.get_title("left")
        if found is not None and text:
            points = found.get_window_extent().height * 72 / canvas.dpi
            panel.set_title(text, loc="left", pad=points + 6)
