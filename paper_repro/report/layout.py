"""A canvas's text: indices as such, nothing over data, no line longer than its panel."""

import itertools
import math
import re
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import BboxBase

_INDEX = "[A-Za-z0-9α-ωΑ-Ω]+"
INDEXED = re.compile(
    # a letter, or one of few words, with an index, a power or both; no part of a code's name
    r"(?<![^\W\d_])((?:[^\W\d_]|∇|max|min|target)[\u0303\u0304]?)"
    rf"(?:_({_INDEX}))?(?:\^([-−+]?{_INDEX}))?"
    r"(?![A-Za-z_^])"
)


def fit(canvas: Canvas) -> None:
    """Set a canvas's text: indices as such, nothing over data, no line longer than its panel.
    Legends go above their panels, where nothing is drawn whatever the numbers are. The layout gives
    labels room across their lines and none along them, so that a label longer than its panel would
    run into its neighbour or off the canvas: it is broken into lines. What is drawn afterwards
    stays where it was laid out. One that has been set stays as it is.
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


def _tick(canvas: Canvas) -> None:
    """On log axes of less than a decade, where there would be one number or none, more of them.
    Ticks with names of their own stay: what is drawn there need not be at its number.
    """
    for panel in canvas.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if axis.get_scale() != "log" or isinstance(axis.get_major_locator(), FixedLocator):
                continue
            if len(numbers_of(axis)) < 2:
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_major_locator(MaxNLocator(5, min_n_ticks=3))


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
    heights = [np.asarray(x.get_ydata(), float) for x in lines]
    heights = [y for y in heights if y.size]  # a line without a point is a legend's entry
    if heights and not any(np.isfinite(y).any() for y in heights):
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
    """A panel's legend above it, in as many columns as there is room for; `again` also places one
    that is not wider. Whether it is another one: narrower than before, unless placed again.
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
    """A text in the fewest lines that fit, of about one length; formulas stay whole. Whether it was
    changed: more lines than words there are not.
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
