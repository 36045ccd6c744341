"""Pictures of runs: weights over time, fronts of losses, solvers' gaps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..core.checks import check_count
from ..core.extras import expect_installed
from ..types import Info, Solution
from ._common import COLOURS, Array, Axes, array_of, axes_of, cycle, names_of


def weights(
    record: Array | Info, ax: Axes | None = None, *, steps: Array | None = None,
    names: Sequence[str] | None = None, smooth: int = 1, band: float = 0.8, ylabel: str = "weight",
    **kwargs: Any,
) -> Axes:  # fmt: skip
    """Weights over time, one line a task; over seeds, their mean and a band of quantiles.

    The mean may leave the band where a few seeds are far out. A single step is points with bars.

    Args:
        record: `[step, task]` or `[seed, step, task]`, or stacked `Info`s, whose weights
            are taken. A loop over a vmapped step has its steps first:
            pass `record.weights.movedim(0, 1)`.
        ax: None is the current Axes.
        steps: `[step]`, where they were recorded; None is 0, 1, 2, …
        names: of the tasks; None takes those of a recorded dict of losses. A legend without room
            for more than seven of them has every second one, or fewer.
        smooth: a point is the mean of that many steps up to it, of every seed; 1 is none.
        band: share of the seeds, in (0, 1], between the band's lower and upper quantile; 1 is all
            of them.
        ylabel: say what it is if you draw losses or rates.
        **kwargs: of `Axes.plot`.

    Returns:
        the Axes.

    Raises:
        ValueError: for other shapes, NaN, fewer than 1 step, or a share outside (0, 1].

    Examples:
        >>> from matplotlib.figure import Figure
        >>> record = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
        >>> weights(record, Figure().add_subplot()).get_lines()[0].get_ydata().tolist()
        [0.5, 0.25]
    """
    if isinstance(record, Info):
        if record.weights.ndim > record.losses.ndim:
            got = f"weights of {record.weights.shape[-2]} groups of parameters"
            raise ValueError(f"record: {got}; draw those of one, record.weights[..., g, :]")
        if record.weights.shape == record.losses.shape:  # not of rows that mix tasks
            names = names or list(map(str, record.tasks)) or None
        record = record.weights
    values = array_of(record, "record", ("*", None, None))
    if not 0 < band <= 1:
        raise ValueError(f"band: expected a share of the seeds in (0, 1], got {band}")
    check_count(smooth, "smooth")
    names = names_of(names, values.shape[-1])
    count = values.shape[-2]
    ends = range(1, count + 1)
    values = np.stack([values[..., max(0, i - smooth) : i, :].mean(-2) for i in ends], -2)
    x = np.arange(count) if steps is None else array_of(steps, "steps", (count,))
    panel = axes_of(ax)
    for task, name in enumerate(names):
        runs = values[..., task].reshape(-1, count)
        look: dict[str, Any] = cycle(task) if count == 1 else {"color": cycle(task)["color"]}
        look |= {"linestyle": ("-", "--", "-.", ":")[task // len(COLOURS) % 4], "label": name}
        (line,) = panel.plot(x, runs.mean(0), **look | kwargs)
        if len(runs) > 1:
            low, high = np.quantile(runs, [(1 - band) / 2, (1 + band) / 2], axis=0)
            if count == 1:  # an area needs two steps
                panel.vlines(x, low, high, color=line.get_color(), alpha=0.4)
            else:
                panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    from matplotlib.ticker import MaxNLocator

    if isinstance(locator := panel.xaxis.get_major_locator(), MaxNLocator):
        locator.set_params(integer=steps is None)
    panel.set(xlabel="step", ylabel=ylabel, **({"xticks": x} if count == 1 else {"xmargin": 0}))
    if len(names) <= len(COLOURS):
        panel.legend(frameon=False)
        return panel
    # of many lines next to the Axes, as many as there is room for
    size = panel.figure.dpi / 72 * panel.xaxis.label.get_size()  # of a letter
    width, height = panel.figure.bbox.size / size
    rows, columns = max(2, min(15, int(height / 1.6))), max(1, int(width / 15))
    handles = panel.get_lines()[-len(names) :: -(-len(names) // (rows * columns))]
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "ncols": -(-len(handles) // rows)}
    panel.legend(handles=handles, frameon=False, **beside)
    return panel


def front(
    points: Array, ax: Axes | None = None, *, true: Array | None = None,
    reference: Array | None = None, names: Sequence[str] | None = None, label: str | None = None,
    **kwargs: Any,
) -> Axes:  # fmt: skip
    """Losses of several solutions: filled the non-dominated ones, faint and hollow the others.

    Call it again on the same Axes to compare.

    Args:
        points: `[n, 2]` or `[n, 3]`, lower is better.
        ax: None is the current Axes for two objectives, a new figure for three.
        true: `[k, 2]` or `[k, 3]`, points of the true front.
        reference: `[2]` or `[3]`; the same in every call. The hypervolume HV stands in the legend;
            for two objectives the region is shaded.
        names: of the objectives.
        label: of the points in the legend.
        **kwargs: of the non-dominated points' `Axes.plot`.

    Returns:
        the Axes.

    Raises:
        ValueError: for other shapes, NaN, or two-dimensional Axes for three objectives.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> points = [[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]]
        >>> front(points, Figure().add_subplot()).get_lines()[0].get_xdata().tolist()
        [1.0, 2.0]
    """
    expect_installed("moocore", what="mtlfunc.plot.front")
    import moocore  # only sets of losses need it

    losses = array_of(points, "points", (None, (2, 3)))
    count = losses.shape[1]
    names = names_of(names, count, "loss of task")
    known = None if true is None else array_of(true, "true", (None, count))
    corner = None if reference is None else array_of(reference, "reference", (count,))
    solid = count == 3
    panel = axes_of(ax, solid)
    earlier = sum(line.get_label().startswith("_dominated") for line in panel.get_lines())
    best = moocore.is_nondominated(losses, keep_weakly=True)
    dots: dict[str, Any] = {"linestyle": "none"}
    if known is not None:
        look = {"marker": ".", "markersize": 3, "color": "0.55", "zorder": 1}
        panel.plot(*known.T, **dots | look, label="true front")
    kept, rest = losses[best], losses[~best]
    kept = kept[np.lexsort(kept.T[::-1])]
    title = label or "non-dominated"
    if corner is not None:
        title += f", HV = {moocore.hypervolume(losses, ref=corner):#.4g}"
    style = {"label": title, "markersize": 5, "linewidth": 1.2, "zorder": 4} | cycle(earlier)
    style |= {"linestyle": "none"} if solid else {"drawstyle": "steps-post"}
    (line,) = panel.plot(*kept.T, **style | kwargs)
    look = {"marker": line.get_marker(), "markerfacecolor": "none", "markersize": 5, "zorder": 3}
    look |= {"color": line.get_color(), "alpha": 0.5, "label": "_dominated"}
    panel.plot(*rest.T, **dots | look)
    if corner is not None:
        _reference(panel, kept, corner, line.get_color())
    panel.set(xlabel=names[0], ylabel=names[1])
    if solid:
        panel.set(zlabel=names[2])
        panel.set_box_aspect(None, zoom=0.82)
    # the reference point is in the corner
    beside = corner is not None and not solid
    where = {"loc": "upper right", "bbox_to_anchor": (1.0, 0.9)} if beside else {}
    panel.legend(framealpha=0.8, edgecolor="none", fancybox=False, **where)
    return panel


def _reference(panel: Any, kept: np.ndarray, corner: np.ndarray, colour: Any) -> None:
    """The reference point, once, and the region that the points dominate below it."""
    if len(corner) == 2:
        area = {"step": "post", "color": colour, "alpha": 0.15, "linewidth": 0, "zorder": 0}
        inside = kept[(kept < corner).all(1)]  # what these dominate ends at stairs
        last = [[corner[0], inside[-1, 1] if len(inside) else corner[1]]]
        panel.fill_between(*np.concatenate([inside, last]).T, corner[1], **area)
    if not any(line.get_label() == "_reference" for line in panel.get_lines()):
        look = {"linestyle": "none", "marker": "+", "markersize": 9, "markeredgewidth": 1.5}
        panel.plot(*corner[:, None], **look, color="black", zorder=5, label="_reference")
        panel.text(*corner, "reference   ", ha="right", va="center")


def gap(
    curves: Mapping[str, Solution | Sequence[Solution] | tuple[Array, Array]],
    ax: Axes | None = None,
    *,
    xlabel: str = "iterations",
    band: float = 0.8,
    **kwargs: Any,
) -> Axes:
    """Duality gap against iterations or time, both logarithmic: one line a solver.

    Over problems, their median and the band of a share of them. A gap of 0 has no logarithm: it is
    drawn, hollow, a decade below the smallest positive number of all curves.

    Args:
        curves: by name, one of a list of `Solution`s, one for each budget of steps, of one problem
            or of a batch of them (gap `[problem]`); one `Solution` stacked over budgets (gap
            `[budget]` or `[budget, problem]`); a pair (x `[budget]`, gap `[budget]` or `[budget,
            problem]`), for instance with seconds as x.
        ax: None is the current Axes.
        xlabel: say so if x is a time.
        band: share of the problems, in (0, 1], between the band's quantiles.
        **kwargs: of `Axes.plot`.

    Returns:
        the Axes.

    Raises:
        ValueError: for other shapes, NaN, negative gaps, x <= 0, or no curves.

    Examples:
        >>> import mtlfunc as mf
        >>> from matplotlib.figure import Figure
        >>> gramian = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 3.0]])
        >>> problem = mf.solvers.min_norm(gramian)
        >>> found = [mf.solvers.frank_wolfe(k)(problem) for k in (1, 2, 4, 8)]
        >>> gap({"line-search": found}, Figure().add_subplot()).get_lines()[0].get_xdata().tolist()
        [1.0, 2.0, 4.0, 8.0]
    """
    if not isinstance(curves, Mapping) or not curves:
        got = "none" if isinstance(curves, Mapping) else type(curves).__name__
        raise ValueError(f"curves: expected a dict of at least one, by name, got {got}")
    if not 0 < band <= 1:
        raise ValueError(f"band: expected a share of the problems in (0, 1], got {band}")
    found = {name: _curve(curve, name) for name, curve in curves.items()}
    positive = np.concatenate([gaps[gaps > 0] for _, gaps in found.values()])
    floor = float(positive.min()) / 10 if positive.size else np.finfo(np.float64).eps
    panel = axes_of(ax)
    for i, (name, (x, gaps)) in enumerate(found.items()):
        middle = np.median(gaps, 1)
        none = middle <= 0
        style = cycle(i) | {"markersize": 5, "label": name} | kwargs
        (line,) = panel.plot(x, np.where(none, floor, middle), **style)
        colour = line.get_color()
        if none.any():
            hollow = {"linestyle": "none", "markerfacecolor": "white", "markersize": 5}
            hollow |= {"marker": line.get_marker(), "color": colour}
            panel.plot(x[none], np.full(none.sum(), floor), **hollow)
        if gaps.shape[1] > 1:
            low, high = np.quantile(gaps, [(1 - band) / 2, (1 + band) / 2], axis=1)
            edges = np.maximum(low, floor), np.maximum(high, floor)
            panel.fill_between(x, *edges, color=colour, alpha=0.2, linewidth=0)
    panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="duality gap")
    panel.legend(frameon=False)
    return panel


def _curve(curve: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """x `[budget]` and gaps `[budget, problem]` of one entry of `curves`."""
    where = f"curves[{name!r}]"
    if isinstance(curve, Solution):
        x, gaps = curve.steps, curve.gap
    elif isinstance(curve, Sequence) and curve and {type(x) for x in curve} == {Solution}:
        x, gaps = (torch.stack([getattr(y, name) for y in curve]) for name in ("steps", "gap"))
    elif isinstance(curve, tuple) and len(curve) == 2:
        x, gaps = curve
    else:
        got, pair = type(curve).__name__, "a pair (x, gap)"
        raise ValueError(f"{where}: expected a Solution, a list of Solutions or {pair}, got {got}")
    gaps = array_of(gaps, f"gap of {where}", (None, "*"))
    x = array_of(x, f"x of {where}", (len(gaps), "*")).reshape(len(gaps), -1).mean(1)
    if (x <= 0).any() or (gaps < 0).any():
        got = f"got x from {x.min():g} and gaps from {gaps.min():g}"
        raise ValueError(f"{where}: a logarithmic axis needs x > 0 and gaps >= 0, {got}")
    return x, gaps.reshape(len(gaps), -1)
