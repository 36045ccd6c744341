"""How a figure looks in a paper: its width, letters, style, panels and scales."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import colors, font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

from .figures import in_style, more_style, panels_of
from .layout import fit, place_of, titles
from .options import Impossible

POINTS = {"column": 8.0, "page": 8.0, "talk": 16.0}
WIDTHS = {"column": 3.25, "page": 6.75, "talk": 12.0}
"""Inches, of one column and of the page of most journals, and of what a slide has room for."""
NARROWEST = 1.5
"""Inches of a panel with its labels in 8 points, from which two stand side by side."""
LOWEST, HIGHEST = 0.62, {"column": 1.05, "page": 1.05, "talk": 0.7}
"""A panel's height with its labels, as a share of its width, before legends are added."""
FLATTEST = 0.6
"""The least height of a panel without its labels, as a share of its width."""
WIDE = 3.5
"""Inches, in 8 points: a wider panel is as high as one of these."""


class Look(NamedTuple):
    """What a figure's drawing has of one's own; nothing of it changes a number."""

    size: tuple[float, float] | None = None  # inches
    preset: str | None = None  # one of `WIDTHS`
    style: Mapping[str, Any] | None = None  # parameters of matplotlib
    panels: tuple[int, ...] = ()  # from 1; all without any
    log: tuple[str, ...] = ()  # of x and y

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """While the figure is drawn and written."""
        more = {**letters(POINTS.get(self.preset or "")), **(self.style or {})}
        with more_style(more), in_style():
            yield


def letters(points: float | None) -> dict[str, Any]:
    """The style's sizes for letters of `points`, and lines that go with them."""
    if points is None:
        return {}
    small = points * 11 / 12
    sizes = dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), points)
    sizes |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), small)
    share = points / 12
    lines = {"lines.linewidth": 1.8, "lines.markersize": 5, "errorbar.capsize": 3}
    lines |= {"axes.linewidth": 0.8, "grid.linewidth": 0.8, "patch.linewidth": 1.0}
    lines |= {f"{axis}tick.{part}": size for axis in "xy" for part, size in TICKS.items()}
    return sizes | {name: share * size for name, size in lines.items()}


TICKS = {"major.size": 3.5, "minor.size": 2.0, "major.width": 0.8, "minor.width": 0.6}


def style_of(name: str) -> Mapping[Any, Any]:
    """The parameters of a style, a file or one that matplotlib knows. Raises Impossible."""
    if name in style.library:
        return style.library[name]
    try:
        return mpl.rc_params_from_file(name, fail_on_error=True, use_default_template=False)
    except (OSError, ValueError, KeyError) as error:
        raise Impossible(f"{name} is not a style of matplotlib ({error})") from error


def family(font: str) -> dict[str, Any]:
    """Letters of that font. Raises Impossible where matplotlib does not find it."""
    try:
        font_manager.findfont(font, fallback_to_default=False)
    except ValueError as error:
        raise Impossible(f"matplotlib does not find {font!r} on this machine") from error
    return {"font.family": font}


def cycle(text: str) -> dict[str, Any]:
    """Lines of these colours, or of a palette. Raises Impossible for what matplotlib has not."""
    given: list[Any] = [x.strip() for x in text.split(",") if x.strip()]
    if text in mpl.color_sequences:
        given = [*mpl.color_sequences[text]]
    elif text in mpl.colormaps and not colors.is_color_like(text):  # as gray is
        given = [*mpl.colormaps[text](np.linspace(0, 0.9, 7))]
    wrong = [colour for colour in given if not colors.is_color_like(colour)]
    if wrong:
        raise Impossible(f"{wrong[0]!r} is no colour or palette of matplotlib")
    return {"axes.prop_cycle": cycler("color", given)} if given else {}


def arrange(canvas: Canvas, look: Look) -> list[str]:
    """Give a drawn canvas its look and set its text.

    Returns:
        what still overlaps or leaves the canvas, in words.

    Raises:
        Impossible: for a panel that the figure does not have, or a scale that its numbers do not
            have.
    """
    panels = _choose(canvas, look.panels) if look.panels else panels_of(canvas)
    for name in look.log:
        _scale(dict(zip(look.panels or range(1, len(panels) + 1), panels, strict=True)), name)
    if look.preset is None:
        if look.size is not None:
            canvas.set_size_inches(look.size)
        _fit(canvas)
        return clashes(canvas)
    scale = POINTS[look.preset] / 8
    if len(panels) == 1:
        for place in ("left", "center", "right"):  # in a paper the caption says it
            panels[0].set_title("", loc=place)
    for panel in panels:
        if panel.name == "3d":
            _draw_near(panel, scale)
    cells, wrong = [_cell(panel) for panel in panels], []
    several = sum(not cell.alone for cell in cells) or 1
    most = min(several, int(WIDTHS[look.preset] / NARROWEST / scale))
    # as even as it goes: five panels in three and two, not in four and one
    for columns in sorted(
        {-(-several // rows) for rows in range(-(-several // most), several + 1)}
    )[::-1]:
        _flow(panels, cells, columns, look.preset)
        wrong = clashes(canvas)
        if not wrong:
            break
    return wrong


def _draw_near(panel: Any, scale: float) -> None:
    """Few numbers of a surface near it, and the labels near them."""
    panel.set_box_aspect(None, zoom=0.72)
    for axis in (panel.xaxis, panel.yaxis, panel.zaxis):
        axis.labelpad = 12 * (scale - 1) - 1
        axis.set_tick_params(pad=-2)
        if not isinstance(axis.get_major_locator(), FixedLocator):
            axis.set_major_locator(MaxNLocator(3))


def _choose(canvas: Canvas, numbers: Sequence[int]) -> list[Any]:
    """Keep some panels, side by side in this order, and what names their lines."""
    panels = panels_of(canvas)
    beyond = [n for n in numbers if not 1 <= n <= len(panels)]
    if beyond:
        raise Impossible(f"panels: expected 1 to {len(panels)}, got {beyond[0]}")
    kept = [panels[n - 1] for n in numbers]
    for bar in canvas.axes:
        if bar not in panels:
            parents: list[Axes] = bar._colorbar_info["parents"]  # pyright: ignore
            if set(parents) & set(kept):
                parents[:] = [panel for panel in parents if panel in kept]
            else:
                bar._colorbar.remove()  # pyright: ignore
    cells = [_cell(panel) for panel in kept]
    named = [panel for panel in kept if panel.get_legend_handles_labels()[0]]
    if named and not any(panel.get_legend() for panel in kept):
        named[0].legend()
    for panel in set(panels) - set(kept):
        panel.remove()
    grid = canvas.add_gridspec(1, len(kept), width_ratios=[cell.width for cell in cells])
    for i, panel in enumerate(kept):
        panel.set_subplotspec(grid[0, i])
    canvas.set_size_inches(sum(cell.width for cell in cells), max(cell.height for cell in cells))
    return kept


def _scale(panels: Mapping[int, Any], name: str) -> None:
    """A logarithmic axis in every plane panel, by their numbers."""
    if any(panel.name == "3d" for panel in panels.values()):
        raise Impossible(f"log: {name} of a surface in space")
    lows = {i: min(getattr(x, f"{name}axis").get_data_interval()) for i, x in panels.items()}
    if min(lows.values()) <= 0:
        others = ",".join(str(i) for i, low in lows.items() if low > 0)
        cure = f"; choose --panels {others}" if others else ""
        raise Impossible(f"log: some {name} is {min(lows.values()):g}, without logarithm{cure}")
    for panel in panels.values():
        getattr(panel, f"set_{name}scale")("log")


class _Cell(NamedTuple):
    """What a panel had of its canvas."""

    width: float  # inches
    height: float
    alone: bool  # in its row


def _cell(panel: Axes) -> _Cell:
    canvas, spec = panel.figure, panel.get_subplotspec()
    assert isinstance(canvas, Canvas)
    width, height = canvas.get_size_inches()
    if spec is None:
        return _Cell(width, height, True)
    grid = spec.get_gridspec()
    columns = np.array(grid.get_width_ratios() or [1.0] * grid.ncols, float)
    rows = np.array(grid.get_height_ratios() or [1.0] * grid.nrows, float)
    return _Cell(
        float(width * columns[list(spec.colspan)].sum() / columns.sum()),
        float(height * rows[list(spec.rowspan)].sum() / rows.sum()),
        (len(spec.colspan) > 1 or len(spec.rowspan) > 1) or grid.ncols == 1,
    )


def _flow(panels: Sequence[Axes], cells: Sequence[_Cell], columns: int, preset: str) -> None:
    """Panels in rows of `columns`, in a canvas of the preset's width and as high as they need; one
    wider than `WIDE` is as high as one of these.
    """
    canvas, width, wide = panels[0].figure, WIDTHS[preset], WIDE * POINTS[preset] / 8
    assert isinstance(canvas, Canvas)
    rows: list[list[int]] = []
    for i, cell in enumerate(cells):
        if cell.alone or not rows or len(rows[-1]) == columns or cells[rows[-1][-1]].alone:
            rows.append([])
        rows[-1].append(i)
    ends = [width if cells[row[0]].alone else width / columns for row in rows]
    heights = [
        min(end, wide)
        * max(min(max(cells[i].height / cells[i].width, LOWEST), HIGHEST[preset]) for i in row)
        for end, row in zip(ends, rows, strict=True)
    ]
    for _ in range(5):  # what legends and broken lines take of a panel is added to its row
        canvas.set_size_inches(width, sum(heights))
        canvas.set_layout_engine("constrained")
        grid = canvas.add_gridspec(len(rows), columns, height_ratios=heights)
        for k, row in enumerate(rows):
            for j, i in enumerate(row):
                panels[i].set_subplotspec(grid[k, :] if cells[i].alone else grid[k, j])
        for text in (x for panel in canvas.axes for x in _broken(panel)):
            text.set_text(text.get_text().replace("\n", " "))
        _fit(canvas)
        boxes = [place_of(panel) for panel in panels]
        lacks = [
            max(FLATTEST * min(boxes[i].width, wide * canvas.dpi) - boxes[i].height for i in row)
            / canvas.dpi
            for row in rows
        ]
        if max(lacks) <= 0.02:
            break
        heights = [x + max(lack, 0.0) for x, lack in zip(heights, lacks, strict=True)]


def _fit(canvas: Canvas) -> None:
    """Set the text; where the panels lack room, `clashes` says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        fit(canvas)


def _broken(panel: Axes) -> list[Text]:
    """The text that `fit` breaks into lines."""
    legend = panel.get_legend()
    return [
        *(axis.label for axis in panel._axis_map.values()),  # pyright: ignore
        *titles(panel),
        *(legend.get_texts() if legend else ()),
    ]


def clashes(canvas: Canvas) -> list[str]:
    """Text that leaves a canvas that was set, or overlaps other text."""
    canvas.draw_without_rendering()
    room, found = canvas.bbox.padded(0.5), []
    boxes = [(text.get_text(), text.get_window_extent()) for text in _texts(canvas)]
    for said, box in boxes:
        if not (room.contains(*box.p0) and room.contains(*box.p1)):
            found.append(f"{said!r} leaves the canvas")
    for (said, one), (other, two) in combinations(boxes, 2):
        if one.overlaps(two):
            found.append(f"{said!r} overlaps {other!r}")
    for panel in canvas.axes:
        own = {id(text) for text in panel.findobj(Text)}
        inner = panel.get_window_extent().padded(-2)
        for text in _texts(canvas):
            if id(text) not in own and inner.overlaps(text.get_window_extent()):
                found.append(f"{text.get_text()!r} is over another panel")
    return found


def _texts(canvas: Canvas) -> Iterator[Text]:
    """All text that is seen; of an axis the labels of its ticks between its ends."""
    hidden: set[Text] = set()
    for panel in canvas.axes:
        for axis in panel._axis_map.values():  # pyright: ignore
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - slack <= tick.get_loc() <= high + slack or not axis.get_visible():
                    hidden |= {tick.label1, tick.label2}
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden:
            yield text
