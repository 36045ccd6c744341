"""Pictures of rules and gradients.

Losses fall along -d: a task's rate is g_t·d, and where it is negative a step along -d raises that
loss. Tensors (any device) and arrays are both taken. Functions draw on matplotlib Axes and return
them; nothing is shown, and rcParams stay as they are.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..analysis.diagnostics import cosines, stationarity
from ..studies.lattice import simplex_lattice
from ._common import (
    COLOURS,
    AnyRule,
    Array,
    Axes,
    array_of,
    axes_of,
    cycle,
    dtype_of,
    evaluate_points,
    format_short,
    losses_of,
    mark_rises,
    names_of,
    row_of_axes,
    rules_of,
    weights_of,
)

QUANTITIES = ("direction", "length", "rate 1", "rate 2")


def portrait(
    rule: AnyRule, show: Sequence[str] = QUANTITIES,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None, *,
    ratios: tuple[float, float] = (0.01, 100.0), cells: tuple[int, int] = (90, 81),
    losses: Array | None = None, key: int = 0, steps: int = 1, **kwargs: Any,
) -> np.ndarray:  # fmt: skip
    """What a rule does with two tasks, over the angle and the ratio of lengths of their gradients.

    All Gramians go through the rule in one `vmap`; a rule that cannot be vmapped is called on one
    after the other, with a progress bar. Quantities are free of the gradients' common scale: the
    whole rule if it is positively homogeneous. g₀ is the mean gradient. Hatched: a loss rises.

    Args:
        rule: any rule, or a function as `mtlfunc.stateless` takes.
        show: which panels. `"direction"`: angle of d from g₁ towards g₂, as a share of the angle
            between them: 0 is along g₁, 1 along g₂. `"length"`: ‖d‖/‖g₀‖. `"rate 1"`, `"rate 2"`:
            g_t·d / (‖g_t‖‖g₀‖), 0 on the black line.
        ax: as many Axes as panels; None makes a figure.
        ratios: smallest and largest ‖g₂‖/‖g₁‖, > 0.
        cells: number of angles (between 0° and 180°) and of ratios, >= 2.
        losses: `[2]`, for rules that read them; None is ones.
        key: seed of random rules, the same at every point.
        steps: updates on one Gramian before its weights are read, >= 1: rules with state settle.
        **kwargs: of `Axes.pcolormesh`.

    Returns:
        the Axes `[panel]`. The first collection of each is the mesh. Weights that are not finite
        leave grey cells and a warning.

    Raises:
        ValueError: for a panel or limits that do not exist, another number of Axes, or weights of
            another shape than `[2]`.

    Examples:
        >>> import mtlfunc as mf
        >>> from matplotlib.figure import Figure
        >>> panels = portrait(mf.mgda(), ["length"], Figure().add_subplot(), cells=(3, 3))
        >>> panels[0].collections[0].get_array().shape
        (3, 3)
    """
    if isinstance(show, str) or not show or not set(show) <= set(QUANTITIES):
        known = ", ".join(map(repr, QUANTITIES))
        raise ValueError(f"show: expected a sequence of {known}, got {show!r}")
    if not 0 < ratios[0] < ratios[1] < math.inf:
        raise ValueError(f"ratios: expected 0 < smallest < largest, got {ratios}")
    if not isinstance(cells, Sequence) or len(cells) != 2 or min(cells) < 2:
        raise ValueError(f"cells: expected (angles, ratios), at least 2 of each, got {cells}")
    # Cell centres: the degenerate angles 0° and 180° are edges and never evaluated.
    angle_edges = np.linspace(0, 180, cells[0] + 1)
    ratio_edges = np.geomspace(*ratios, cells[1] + 1)
    angles = (angle_edges[1:] + angle_edges[:-1]) / 2
    middles = np.sqrt(ratio_edges[1:] * ratio_edges[:-1])
    values = _quantities(rule, angles, middles, losses_of(losses, 2), key, steps)
    panels = row_of_axes(ax, len(show))
    lowest = np.minimum(values["rate 1"], values["rate 2"])
    for name, panel in zip(show, panels, strict=True):
        title, label, style, ticks = _panel_style(name)
        shown = np.ma.masked_invalid(values[name])
        style = style | {"rasterized": True} | kwargs
        mesh = panel.pcolormesh(angle_edges, ratio_edges, shown, **style)
        panel.set_facecolor("0.75")
        rate = values[name] if name.startswith("rate") else lowest
        mark_rises(panel.contourf, panel.contour, (angles, middles), rate)
        panel.axvline(90, color="0.25", linewidth=0.8, linestyle=":")
        panel.set(title=title, xlabel=r"$\angle(g_1, g_2)$ [°]", ylabel=r"$\|g_2\| / \|g_1\|$")
        panel.set(yscale="log", xlim=(0, 180), ylim=ratios, xticks=[0, 90, 180])
        panel.set_xticks([45, 135], minor=True)
        below = bool((shown < mesh.norm.vmin - 1e-9).any())
        above = bool((shown > mesh.norm.vmax + 1e-9).any())
        ends = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
        words = {} if "norm" in kwargs else ticks
        _bar(mesh, panel, words, label=label, extend=ends[below, above])
    return panels


def _panel_style(name: str) -> tuple[str, str, dict[str, Any], dict[float, str]]:
    """Title, label, style and ticks of a panel of the portrait."""
    from matplotlib.colors import LogNorm, Normalize

    if name == "direction":
        style = {"cmap": "PuOr", "norm": Normalize(0, 1)}
        return name, "direction of $d$", style, {0.0: "$g_1$", 0.5: "bisector", 1.0: "$g_2$"}
    if name == "length":
        style = {"cmap": "BrBG_r", "norm": LogNorm(0.1, 10)}
        return name, r"length $\|d\| / \|g_0\|$", style, {0.1: "0.1", 1.0: "1", 10.0: "10"}
    style = {"cmap": "RdBu", "norm": Normalize(-1, 1)}
    label = r"rate $g_T{\cdot}d \,/\, \|g_T\|\|g_0\|$".replace("T", name[-1])
    return f"task {name[-1]}", label, style, {-1.0: "−1", 0.0: "0", 1.0: "1"}


def _bar(image: Any, panel: Any, words: dict[Any, str], **kwargs: Any) -> None:
    """A colour bar below the Axes; with words instead of its numbers, if there are any."""
    bar = panel.figure.colorbar(image, ax=panel, location="bottom", **kwargs)
    if words:
        bar.set_ticks(list(words), labels=list(words.values()))
        bar.ax.minorticks_off()


def _quantities(
    rule: AnyRule, angles: np.ndarray, ratios: np.ndarray, losses: Tensor, key: int, steps: int
) -> dict[str, np.ndarray]:
    """The four quantities `[ratio, angle]`, from g₁ = (1/√r, 0) and g₂ = √r (cos φ, sin φ)."""
    axes = torch.from_numpy(ratios), torch.from_numpy(np.deg2rad(angles))
    ratio, phi = torch.cartesian_prod(*axes).unbind(-1)
    first = torch.stack([ratio.rsqrt(), torch.zeros_like(ratio)], -1)
    second = torch.stack([phi.cos(), phi.sin()], -1) * ratio.sqrt()[:, None]
    rows = torch.stack([first, second], 1)  # [point, task, 2]
    weights = weights_of(rule, rows @ rows.mT, losses, key, steps)
    bad = ~weights.isfinite().all(-1)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        where = f"{phi[at].rad2deg():.4g}° and ‖g₂‖/‖g₁‖ = {ratio[at]:.3g}"
        said = f"NaN or infinite weights at {int(bad.sum())} of {len(bad)} points"
        warnings.warn(f"rule: {said}, first at {where}; drawn grey", stacklevel=3)
    d = (weights[:, None] @ rows)[:, 0]
    mean = rows.mean(1).norm(dim=-1)
    length = d.norm(dim=-1) / mean
    share = torch.atan2(d[:, 1], d[:, 0]) / phi
    rates = (rows @ d[..., None])[..., 0] / (rows.norm(dim=-1) * mean[:, None])
    found = zip(QUANTITIES, (share.where(length > 1e-9, math.nan), length, *rates.mT), strict=True)
    return {name: x.reshape(len(ratios), len(angles)).numpy() for name, x in found}


def simplex(
    gramian: Array, rules: AnyRule | Mapping[str, AnyRule] | None = None, ax: Axes | None = None, *,
    value: str | Callable[[Tensor], Tensor] = "worst", names: Sequence[str] | None = None,
    resolution: int = 60, losses: Array | None = None, key: int = 0, **kwargs: Any,
) -> Axes:  # fmt: skip
    """The weights of three tasks as a triangle, coloured by a function of the direction d = Jᵀw.

    The shortest d is a star, each rule's answer a marker. Hatched where d raises a loss. Thin lines
    are levels of ‖Jᵀw‖, which MGDA minimises. The legend says how long the star's direction is, or
    that the point is Pareto stationary: then no direction lowers all losses.

    Args:
        gramian: G `[3, 3]`.
        rules: a rule, or several by name; weights are divided by their sum, which must be positive.
            Negative weights lie outside the triangle.
        ax: None is the current Axes.
        value: colour. `"worst"`: min_t cos∠(g_t, d). `"length"`: ‖d‖ over the longest gradient's.
            Or a function from weights `[3]` to a number; integers 0, 1, 2, … are drawn as
            categories.
        names: of the tasks, at the corners where their weight is 1.
        resolution: steps along each side, >= 2.
        losses: `[3]`, for rules that read them; None is ones.
        key: seed of random rules.
        **kwargs: of `Axes.tripcolor`.

    Returns:
        the Axes.

    Raises:
        ValueError: for a Gramian of another shape or with NaN, names of another length, or weights
            whose sum is not positive.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> ax = simplex(torch.eye(3), ax=Figure().add_subplot(), names=list("abc"), resolution=4)
        >>> [text.get_text() for text in ax.texts[:3]]
        ['a', 'b', 'c']
    """
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    g = torch.from_numpy(array_of(gramian, "gramian", (3, 3)))
    given = g.to(dtype_of(gramian))  # what is rounding in it is not a length
    names = names_of(names, 3)
    if not callable(value) and value not in ("worst", "length"):
        expected = '"worst", "length" or a function of the weights [3]'
        raise ValueError(f"value={value!r}: expected {expected}")
    if resolution < 2:
        raise ValueError(f"resolution: expected at least 2 steps along each side, got {resolution}")
    w = simplex_lattice(resolution, 3)
    worst, length = _worst_and_length(g, w)
    longest = g.diagonal().amax().clamp_min(0).sqrt()
    drawn = worst if value == "worst" else length / longest.where(longest > 0, 1.0)
    drawn = _evaluate_value(value, w) if callable(value) else drawn
    answers = {
        name: _place(rule, given, losses_of(losses, 3).to(given), key, f"rules[{name!r}]")
        for name, rule in rules_of(rules).items()
    }
    panel = axes_of(ax)
    mesh = Triangulation(*barycentric(w.numpy()).T)
    image = _fill(panel, mesh, w, value, drawn, kwargs)
    # the levels of one gradient three times would all be its length
    if float(length.max() - length.min()) > 1e-9 * float(longest):
        levels = np.linspace(float(length.min()), float(length.max()), 8)[1:-1]
        panel.tricontour(mesh, length.numpy(), levels=levels, colors="0.35", linewidths=0.6)
    mark_rises(panel.tricontourf, panel.tricontour, (mesh,), worst.numpy())
    panel.plot(*barycentric(np.eye(3)[[0, 1, 2, 0]]).T, color="black", linewidth=1)
    _ternary_ticks(panel, names)
    _answers(panel, given, answers)
    texts = {"worst": r"$\min_t\ \cos\angle(g_t, d)$", "length": r"$\|d\| / \max_t \|g_t\|$"}
    text = "value" if callable(value) else texts[value]
    count = 0 if drawn.is_floating_point() else int(drawn.max()) + 1
    words = {i: str(i) for i in range(count)}
    few = None if count else MaxNLocator(4)
    _bar(image, panel, words, label=text, ticks=few, shrink=0.7, pad=0.02)
    return panel


def _worst_and_length(g: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The least cosine of a gradient with d = Jᵀw, and ‖d‖, at weights `[n, 3]`."""
    lengths = g.diagonal().clamp_min(0).sqrt()
    length = (w @ g * w).sum(-1).clamp_min(0).sqrt()
    # A gradient of length 0 has rate 0 along every d, and d = 0 raises nothing.
    scale = lengths * length[:, None]
    longest = lengths.amax().where(lengths.amax() > 0, 1.0)
    cosine = w @ g / scale.where(scale > 0, 1.0)
    return cosine.where(scale > 1e-12 * longest**2, 0.0).amin(-1), length


def _evaluate_value(value: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """The caller's function at all weights `[n, 3]`."""
    drawn = evaluate_points(value, w, "value")
    if drawn.shape != (len(w),):
        got = list(drawn.shape[1:])
        raise ValueError(f"value: expected one number for weights [3], got shape {got}")
    negative = not drawn.is_floating_point() and bool((drawn < 0).any())
    if negative or not bool(drawn.isfinite().all()):
        expected = "finite numbers, or integers >= 0 as categories"
        raise ValueError(f"value: expected {expected}, at all weights of the simplex")
    return drawn


def _fill(
    panel: Any, mesh: Any, w: Tensor, value: Any, drawn: Tensor, kwargs: dict[str, Any]
) -> Any:
    """The colours of the triangle: a smooth map, or one colour a category."""
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, to_rgb

    if drawn.is_floating_point():
        style = {"shading": "gouraud", "rasterized": True, "cmap": "viridis"}
        if isinstance(value, str) and value == "worst":
            style |= {"cmap": "RdBu", "norm": Normalize(-1, 1)}
        return panel.tripcolor(mesh, drawn.double().numpy(), **style | kwargs)
    # Pale, so that lines and markers show. A triangle has the category of its middle.
    count = int(drawn.max()) + 1
    colours = [0.45 + 0.55 * np.array(to_rgb(COLOURS[i % len(COLOURS)])) for i in range(count)]
    middles = w[torch.from_numpy(mesh.triangles).long()].mean(1)
    levels = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    style = {"cmap": ListedColormap(colours), "norm": levels, "shading": "flat"}
    style |= {"edgecolors": "face", "rasterized": True}
    categories = evaluate_points(value, middles, "value").double().numpy()
    return panel.tripcolor(mesh, facecolors=categories, **style | kwargs)


def _answers(panel: Any, gramian: Tensor, answers: dict[str, Tensor]) -> None:
    """The star of the shortest direction, a marker a rule, and the legend."""
    shortest = stationarity(gramian)
    length = rf"$\|d\|$ = {float(shortest.length):.3g}"
    verdict = "Pareto stationary" if bool(shortest.stationary) else length
    label = f"min-norm point:\n{verdict}"
    star = {"marker": "*", "markersize": 15, "color": "white", "label": label, "zorder": 6}
    _point(panel, shortest.weights, **star)
    for i, (name, answer) in enumerate(answers.items()):
        _point(panel, answer, **cycle(i), markersize=6, label=name, zorder=7 + i)
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.78, 1.04)}
    panel.legend(frameon=False, handletextpad=0.4, borderaxespad=0, **where)


def _place(rule: AnyRule, gramian: Tensor, losses: Tensor, key: int, name: str) -> Tensor:
    """A rule's weights `[3]`, scaled to sum 1."""
    answer = weights_of(rule, gramian[None], losses, key, 1)[0]
    if not bool(answer.isfinite().all()) or float(answer.sum()) <= 0:
        why = "have no positive sum and no place in the simplex"
        raise ValueError(f"{name}: weights {answer.tolist()} {why}")
    return answer / answer.sum()


def barycentric(weights: np.ndarray) -> np.ndarray:
    """Points `[n, 2]` of weights `[n, 3]`: task 1 left, task 2 right, task 3 on top."""
    return weights @ np.array([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])


def _point(panel: Axes, weights: Tensor, **kwargs: Any) -> None:
    at = barycentric(weights.double().numpy()[None]).T
    panel.plot(*at, linestyle="none", markeredgecolor="black", markeredgewidth=0.8, **kwargs)


def _ternary_ticks(panel: Axes, names: Sequence[str]) -> None:
    """Corner names, and every quarter of a task's weight on the side that leads to its corner."""
    panel.set(xlim=(-0.1, 1.1), ylim=(-0.15, math.sqrt(3) / 2 + 0.1), aspect="equal")
    panel.axis("off")
    corners = ((-0.08, -0.07, "left", "top"), (0.08, -0.07, "right", "top"))
    for corner, (across, up, align, rise) in enumerate((*corners, (0, 0.03, "center", "bottom"))):
        x, y = barycentric(np.eye(3)[corner])
        panel.text(x + across, y + up, names[corner], ha=align, va=rise)
    left, right = (-0.018, 0.01, "right", "bottom"), (0.018, 0.01, "left", "bottom")
    for task, out in enumerate((left, (0.0, -0.025, "center", "top"), right)):
        (dx, dy, align, rise), origin = out, (task + 2) % 3
        for share in (0.25, 0.5, 0.75):
            x, y = barycentric(share * np.eye(3)[task] + (1 - share) * np.eye(3)[origin])
            panel.plot([x, x + dx / 2], [y, y + dy / 2], color="black", linewidth=0.8)
            panel.text(x + dx, y + dy, f"{share:g}", ha=align, va=rise, fontsize="x-small")


def heatmap(
    gramian: Array, ax: Axes | None = None, *, cosine: bool = False,
    names: Sequence[str] | None = None, annotate: bool | None = None, **kwargs: Any,
) -> Axes:  # fmt: skip
    """A Gramian, or the cosines between gradients, as colours centred on 0: red pairs conflict.

    Args:
        gramian: G `[task, task]`.
        ax: None is the current Axes.
        cosine: draw G_ij / (‖g_i‖‖g_j‖) in [-1, 1] instead; grey where a gradient is zero.
        names: of the tasks.
        annotate: write the numbers; None does for up to 8 tasks.
        **kwargs: of `Axes.imshow`; `norm=matplotlib.colors.SymLogNorm(...)` for lengths that differ
            by orders of magnitude.

    Returns:
        the Axes.

    Raises:
        ValueError: for a matrix that is not square or not finite, or names of another length.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> ax = heatmap(torch.tensor([[1.0, -0.5], [-0.5, 4.0]]), Figure().add_subplot())
        >>> [text.get_text() for text in ax.texts]
        ['1', '−0.5', '−0.5', '4']
    """
    g = array_of(gramian, "gramian", (None, None))
    if g.shape[0] != g.shape[1]:
        got = f"got shape {list(g.shape)}; G = J @ J.T of gradients J [task, param]"
        raise ValueError(f"gramian: expected a square matrix [task, task], {got}")
    names, tasks = names_of(names, len(g)), range(len(g))
    shown = cosines(torch.from_numpy(g)).numpy() if cosine else g
    panel = axes_of(ax)
    limit = 1.0 if cosine else float(np.abs(g).max()) or 1.0
    limits = {} if "norm" in kwargs else {"vmin": -limit, "vmax": limit}
    image = panel.imshow(np.ma.masked_invalid(shown), **{"cmap": "RdBu"} | limits | kwargs)
    panel.set_facecolor("0.75")
    widest = max(map(len, names))
    slanted = widest > 2 and widest * len(names) > 24
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    size = {"fontsize": "xx-small" if len(g) > 20 else "small" if len(g) > 10 else "medium"}
    panel.set_xticks(tasks, names, **size, **turn)
    panel.set_yticks(tasks, names, **size)
    if len(g) <= 8 if annotate is None else annotate:
        size = {"fontsize": "medium" if len(g) <= 4 else "small" if len(g) <= 6 else "x-small"}
        for (i, j), number in np.ndenumerate(shown):
            if np.isfinite(number):
                colour = np.array(image.cmap(image.norm(number)))[:3]
                dark = colour @ [0.299, 0.587, 0.114] < 0.5
                text = f"{number:.2f}".replace("-", "−") if cosine else format_short(number)
                panel.text(j, i, text, ha="center", va="center", color="w" if dark else "k", **size)
    label = r"$\cos\angle(g_i, g_j)$" if cosine else r"$g_i \cdot g_j$"
    panel.figure.colorbar(image, ax=panel, label=label)
    return panel
