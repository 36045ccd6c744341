"""Pictures of rules, gradients and runs. Functions draw on matplotlib Axes and return them; nothing
is shown, and rcParams stay as they are.

Losses fall along -d: a task's rate is g_t·d, and where it is negative a step along -d raises that
loss. Tensors (any device) and arrays are both taken. matplotlib is imported when a figure is drawn,
not with the package.
"""

# matplotlib costs more to import than all else here but torch: only a figure
# needs it

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

from ..analysis.diagnostics import cosines, stationarity
from ..analysis.pareto import Front, hypervolume, non_dominated
from ..core import random
from ..rules import stateless
from ..rules.common import BY_HAND
from ..rules.functional import aggregate
from ..types import Geometry, Info, Rule, Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:  # a name for annotations that are read at run time
    Axes = Any

Array = Tensor | np.ndarray | Sequence[Any]
AnyRule = Rule | Callable[..., Tensor]
"""A rule, or a function from a Gramian `[task, task]` (and losses `[task]`) to weights `[task]`, as
`mtlfunc.stateless` takes it.
"""
QUANTITIES = ("direction", "length", "rate 1", "rate 2")

# Okabe and Ito: told apart by colour-blind readers and on a grey print, the more so with a marker
# each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CONE = "#56b4e9"
RISES = -1e-6  # a relative rate below this is a loss that rises; above it, rounding of a rate of 0


def portrait(
    rule: AnyRule,
    show: Sequence[str] = QUANTITIES,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    ratios: tuple[float, float] = (0.01, 100.0),
    cells: tuple[int, int] = (90, 81),
    losses: Array | None = None,
    key: int = 0,
    steps: int = 1,
    colorbar: bool = True,
    **kwargs: Any,
) -> np.ndarray:
    """What a rule does with two tasks, over the angle between their gradients and the ratio of
    their lengths; hatched where a loss rises.

    All Gramians go through the rule in one `vmap`; a rule that cannot be vmapped is called on one
    after the other, with a progress bar. Every quantity is free of the gradients' common scale; the
    pictures are the whole rule if it is positively homogeneous. g₀ is the mean gradient.

    Args:
        rule: any rule, or a function as `mtlfunc.stateless` takes.
        show: which panels. `"direction"`: angle of d from g₁ towards g₂, as a share of the angle
            between them: 0 is along g₁, 1 along g₂. `"length"`: ‖d‖/‖g₀‖. `"rate 1"`, `"rate 2"`:
            g_t·d / (‖g_t‖‖g₀‖), 0 on the black line.
        ax: as many Axes as panels; None makes a figure.
        ratios: smallest and largest ‖g₂‖/‖g₁‖.
        cells: number of angles (between 0° and 180°) and of ratios.
        losses: `[2]`, for rules that read them; None is ones.
        key: seed of random rules, the same at every point.
        steps: how often the rule is updated on the same Gramian before its weights are read, >= 1:
            rules with state settle.
        colorbar: one under each panel.
        **kwargs: of `Axes.pcolormesh`.

    Returns:
        the Axes `[panel]`. The first collection of each is the mesh.

    Raises:
        ValueError: for a panel or limits that do not exist, another number of Axes, or weights of
            another shape than `[2]`. Weights that are not finite leave grey cells and a warning.
    """
    from matplotlib.colors import LogNorm, Normalize

    if isinstance(show, str) or not show or not set(show) <= set(QUANTITIES):
        raise ValueError(
            f"show: expected a sequence of {', '.join(map(repr, QUANTITIES))}, got {show!r}"
        )
    if not 0 < ratios[0] < ratios[1] < math.inf:
        raise ValueError(f"ratios: expected 0 < smallest < largest, got {ratios}")
    if min(cells) < 2:
        raise ValueError(f"cells: expected at least 2 angles and 2 ratios, got {cells}")
    # Cell centres: the degenerate angles 0° and 180° are edges and never evaluated.
    angle_edges, ratio_edges = (
        np.linspace(0, 180, cells[0] + 1),
        np.geomspace(*ratios, cells[1] + 1),
    )
    angles, middles = (
        (angle_edges[1:] + angle_edges[:-1]) / 2,
        np.sqrt(ratio_edges[1:] * ratio_edges[:-1]),
    )
    values = _portrait(rule, angles, middles, _losses(losses, 2), key, steps)
    panels = _row_of_axes(ax, len(show))

    look = {
        "direction": (
            "direction",
            "direction of $d$",
            "PuOr",
            Normalize(0, 1),
            {0: "$g_1$", 0.5: "bisector", 1: "$g_2$"},
        ),
        "length": (
            "length",
            r"length $\|d\| / \|g_0\|$",
            "BrBG_r",
            LogNorm(0.1, 10),
            {0.1: "0.1", 1: "1", 10: "10"},
        ),
        "rate 1": (
            "task 1",
            r"rate $g_1{\cdot}d \,/\, \|g_1\|\|g_0\|$",
            "RdBu",
            Normalize(-1, 1),
            {-1: "−1", 0: "0", 1: "1"},
        ),
        "rate 2": (
            "task 2",
            r"rate $g_2{\cdot}d \,/\, \|g_2\|\|g_0\|$",
            "RdBu",
            Normalize(-1, 1),
            {-1: "−1", 0: "0", 1: "1"},
        ),
    }
    for name, panel in zip(show, panels, strict=True):
        title, label, cmap, norm, ticks = look[name]
        shown = np.ma.masked_invalid(values[name])
        mesh = panel.pcolormesh(
            angle_edges,
            ratio_edges,
            shown,
            **{"cmap": cmap, "norm": norm, "rasterized": True} | kwargs,
        )
        panel.set_facecolor("0.75")
        worst = (
            values[name]
            if name.startswith("rate")
            else np.minimum(values["rate 1"], values["rate 2"])
        )
        _mark_rises(panel.contourf, panel.contour, (angles, middles), worst)
        panel.axvline(90, color="0.25", linewidth=0.8, linestyle=":")
        panel.set(title=title, xlabel=r"$\angle(g_1, g_2)$ [°]", ylabel=r"$\|g_2\| / \|g_1\|$")
        panel.set(yscale="log", xlim=(0, 180), ylim=ratios, xticks=[0, 90, 180])
        panel.set_xticks([45, 135], minor=True)
        if colorbar:
            below, above = (
                bool((shown < mesh.norm.vmin - 1e-9).any()),
                bool((shown > mesh.norm.vmax + 1e-9).any()),
            )
            extend = (
                "both" if below and above else "min" if below else "max" if above else "neither"
            )
            bar = panel.figure.colorbar(
                mesh, ax=panel, location="bottom", label=label, extend=extend
            )
            if "norm" not in kwargs:
                bar.set_ticks(list(ticks), labels=list(ticks.values()))
                bar.ax.minorticks_off()
    return panels


def _portrait(
    rule: AnyRule, angles: np.ndarray, ratios: np.ndarray, losses: Tensor, key: int, steps: int
) -> dict[str, np.ndarray]:
    """The four quantities `[ratio, angle]`, from gradients g₁ = (1/√r, 0) and g₂ = √r (cos φ, sin
    φ).
    """
    phi, ratio = torch.from_numpy(np.deg2rad(angles)), torch.from_numpy(ratios)
    phi, ratio = (
        phi.expand(len(ratio), -1).reshape(-1),
        ratio[:, None].expand(-1, len(phi)).reshape(-1),
    )
    first = torch.stack([ratio.rsqrt(), torch.zeros_like(ratio)], -1)
    second = torch.stack([phi.cos(), phi.sin()], -1) * ratio.sqrt()[:, None]
    rows = torch.stack([first, second], 1)  # [point, task, 2]
    weights = _weights(rule, rows @ rows.mT, losses, key, steps)
    bad = ~weights.isfinite().all(-1)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        where = f"{phi[at].rad2deg():.4g}° and ‖g₂‖/‖g₁‖ = {ratio[at]:.3g}"
        warnings.warn(
            f"rule: NaN or infinite weights at {int(bad.sum())} of {len(bad)} points, first at "
            f"{where}; drawn grey",
            stacklevel=3,
        )
    d = (weights[:, None] @ rows)[:, 0]
    mean = rows.mean(1).norm(dim=-1)
    length = d.norm(dim=-1) / mean
    share = torch.atan2(d[:, 1], d[:, 0]) / phi
    rates = (rows @ d[..., None])[..., 0] / (rows.norm(dim=-1) * mean[:, None])
    found = {
        "direction": share.where(length > 1e-9, math.nan),
        "length": length,
        "rate 1": rates[:, 0],
        "rate 2": rates[:, 1],
    }
    return {name: x.reshape(len(ratios), len(angles)).numpy() for name, x in found.items()}


def _weights(rule: AnyRule, gramians: Tensor, losses: Tensor, key: int, steps: int) -> Tensor:
    """Weights `[n, task]` of a fresh rule after `steps` updates on each of the Gramians `[n, task,
    task]`; keys as in `mtlfunc.weights`.
    """
    if steps < 1:
        raise ValueError(f"steps: expected a number of updates >= 1, got {steps}")
    made = rule if isinstance(rule, Rule) else stateless(rule)
    root = random.key(key)
    count = gramians.shape[-1]

    def one(gramian: Tensor) -> Tensor:
        geometry = Geometry(
            losses,
            gramian,
            torch.full_like(losses, 1 / count),
            torch.ones_like(losses, dtype=torch.bool),
            {BY_HAND: losses},
        )
        state, weights = made.init(losses, random.fold_in(root, 1)), losses
        for _ in range(steps):
            weights, state = made.update(geometry, state)
        if not isinstance(weights, Tensor) or weights.shape != (count,):
            what = (
                f"shape {list(weights.shape)}"
                if isinstance(weights, Tensor)
                else type(weights).__name__
            )
            raise ValueError(f"rule: expected weights of shape [{count}], one a task, got {what}")
        return weights.detach().to(gramian)

    return _map(one, gramians, "rule")


def _map(f: Callable[[Tensor], Tensor], points: Tensor, what: str) -> Tensor:
    """f at all points: in one vmapped call, or in a loop if it does not vmap. What is wrong with f
    itself then raises there, without vmap's tale.
    """
    try:
        return vmap(f)(points)
    except Exception:
        return torch.stack([f(point) for point in tqdm(points, leave=False, desc=what)])


def _mark_rises(
    fill: Callable[..., Any], line: Callable[..., Any], place: tuple[Any, ...], rate: np.ndarray
) -> None:
    """Hatches where a rate is negative, and the line where it is zero; `fill` and `line` draw
    contours at `place`.
    """
    rate = np.ma.masked_invalid(rate)
    if not rate.count() or rate.min() >= RISES:
        return
    fill(*place, rate, levels=[float(rate.min()) - 1, RISES], colors="none", hatches=["////"]).set(
        edgecolor="0.3", linewidth=0
    )
    if rate.max() > RISES:
        line(*place, rate, levels=[RISES], colors="black", linewidths=1.2, linestyles="solid")


def simplex(
    gramian: Array,
    rules: AnyRule | Mapping[str, AnyRule] | None = None,
    ax: Axes | None = None,
    *,
    value: str | Callable[[Tensor], Tensor] = "worst",
    names: Sequence[str] | None = None,
    label: str | None = None,
    resolution: int = 60,
    losses: Array | None = None,
    key: int = 0,
    colorbar: bool = True,
    **kwargs: Any,
) -> Axes:
    """The weights of three tasks as a triangle: a function of d = Jᵀw in colour, the shortest d as
    a star, each rule's answer as a marker.

    Hatched where d raises a loss. Thin lines are levels of ‖Jᵀw‖, which MGDA minimises. The legend
    says how long the star's direction is, or that the point is Pareto stationary: then no direction
    lowers all losses.

    Args:
        gramian: G `[3, 3]`.
        rules: a rule, or several by name; weights are divided by their sum, which must be positive.
            Negative weights lie outside the triangle.
        value: colour. `"worst"`: min_t cos∠(g_t, d). `"length"`: ‖d‖ over the longest gradient's.
            Or a function from weights `[3]` to a number; integers 0, 1, 2, … are drawn as
            categories.
        names: of the tasks, at the corners where their weight is 1.
        label: of the colour bar.
        resolution: steps along each side.
        losses: `[3]`, for rules that read them; None is ones. key: seed of random rules.
        colorbar: draw one.
        **kwargs: of `Axes.tripcolor`.

    Raises:
        ValueError: for a Gramian of another shape or with NaN, names of another length, or weights
            whose sum is not positive.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, to_rgb
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    g = torch.from_numpy(_array(gramian, "gramian", (3, 3)))
    names = _names(names, 3)
    if not callable(value) and value not in ("worst", "length"):
        raise ValueError(
            f'value={value!r}: expected "worst", "length" or a function of the weights [3]'
        )
    if resolution < 2:
        raise ValueError(f"resolution: expected at least 2 steps along each side, got {resolution}")
    steps = [
        (i, j, resolution - i - j) for i in range(resolution + 1) for j in range(resolution + 1 - i)
    ]
    w = torch.tensor(steps, dtype=torch.float64) / resolution
    lengths = g.diagonal().clamp_min(0).sqrt()
    longest = lengths.amax().where(lengths.amax() > 0, 1.0)
    length = (w @ g * w).sum(-1).clamp_min(0).sqrt()
    # A gradient of length 0 has rate 0 along every d, and d = 0 raises nothing.
    scale = lengths * length[:, None]
    worst = torch.where(scale > 1e-12 * longest**2, w @ g / scale.where(scale > 0, 1.0), 0.0).amin(
        -1
    )
    if callable(value):
        drawn = _map(value, w, "value")
        if drawn.shape != (len(w),):
            raise ValueError(
                f"value: expected one number for weights [3], got shape {list(drawn.shape[1:])}"
            )
        if not bool(drawn.isfinite().all()) or (
            not drawn.is_floating_point() and bool((drawn < 0).any())
        ):
            raise ValueError(
                "value: expected finite numbers, or integers >= 0 as categories, at all weights "
                "of the simplex"
            )
    else:
        drawn = worst if value == "worst" else length / longest

    answers = {
        name: _place(rule, g, _losses(losses, 3), key, f"rules[{name!r}]")
        for name, rule in _named(rules).items()
    }
    panel = _axes(ax)
    mesh = Triangulation(*_barycentric(w.numpy()).T)
    style: dict[str, Any] = {"shading": "gouraud", "rasterized": True, "cmap": "viridis"}
    text = label or {
        "worst": r"$\min_t\ \cos\angle(g_t, d)$",
        "length": r"$\|d\| / \max_t \|g_t\|$",
    }.get(value if isinstance(value, str) else "", "value")
    categories = not drawn.is_floating_point()
    count = int(drawn.max()) + 1 if categories else 0
    if categories:
        # Pale, so that lines and markers show. A triangle has the category of its middle.
        colours = [0.45 + 0.55 * np.array(to_rgb(COLOURS[i % len(COLOURS)])) for i in range(count)]
        middles = w[torch.from_numpy(mesh.triangles).long()].mean(1)
        assert callable(value)
        style |= {
            "cmap": ListedColormap(colours),
            "norm": BoundaryNorm(np.arange(count + 1) - 0.5, count),
            "shading": "flat",
            "edgecolors": "face",
        }
        image = panel.tripcolor(
            mesh, facecolors=_map(value, middles, "value").double().numpy(), **style | kwargs
        )
    else:
        style |= {"cmap": "RdBu", "norm": Normalize(-1, 1)} if value == "worst" else {}
        image = panel.tripcolor(mesh, drawn.double().numpy(), **style | kwargs)
    if float(length.max()) > float(length.min()):
        panel.tricontour(
            mesh,
            length.numpy(),
            levels=np.linspace(float(length.min()), float(length.max()), 8)[1:-1],
            colors="0.35",
            linewidths=0.6,
        )
    _mark_rises(panel.tricontourf, panel.tricontour, (mesh,), worst.numpy())
    panel.plot(*_barycentric(np.eye(3)[[0, 1, 2, 0]]).T, color="black", linewidth=1)
    _ternary_ticks(panel, names)

    shortest = stationarity(g)
    verdict = (
        "Pareto stationary"
        if bool(shortest.stationary)
        else rf"$\|d\|$ = {float(shortest.length):.3g}"
    )
    _point(
        panel,
        shortest.weights,
        marker="*",
        markersize=15,
        color="white",
        label=f"min-norm point:\n{verdict}",
        zorder=6,
    )
    for i, (name, answer) in enumerate(answers.items()):
        _point(panel, answer, **_cycle(i), markersize=6, label=name, zorder=7 + i)
    panel.legend(
        loc="upper left",
        bbox_to_anchor=(0.78, 1.04),
        frameon=False,
        handletextpad=0.4,
        borderaxespad=0,
    )
    if colorbar:
        bar = panel.figure.colorbar(
            image,
            ax=panel,
            label=text,
            location="bottom",
            shrink=0.7,
            pad=0.02,
            ticks=None if categories else MaxNLocator(4),
        )
        if categories:
            bar.set_ticks(
                range(count), labels=names if count == 3 else [str(i) for i in range(count)]
            )
            bar.ax.minorticks_off()
    return panel


def _place(rule: AnyRule, gramian: Tensor, losses: Tensor, key: int, name: str) -> Tensor:
    """A rule's weights `[3]`, scaled to sum 1."""
    answer = _weights(rule, gramian[None], losses, key, 1)[0]
    if not bool(answer.isfinite().all()) or float(answer.sum()) <= 0:
        raise ValueError(
            f"{name}: weights {answer.tolist()} have no positive sum and so no place in the "
            "simplex; draw its direction with cone"
        )
    return answer / answer.sum()


def _barycentric(weights: np.ndarray) -> np.ndarray:
    """Points `[n, 2]` of weights `[n, 3]`: task 1 left, task 2 right, task 3 on top."""
    return weights @ np.array([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])


def _point(panel: Axes, weights: Tensor, **kwargs: Any) -> None:
    panel.plot(
        *_barycentric(weights.numpy()[None]).T,
        linestyle="none",
        markeredgecolor="black",
        markeredgewidth=0.8,
        **kwargs,
    )


def _ternary_ticks(panel: Axes, names: Sequence[str]) -> None:
    """Corner names, and every quarter of a task's weight on the side that leads to its corner."""
    panel.set(xlim=(-0.1, 1.1), ylim=(-0.15, math.sqrt(3) / 2 + 0.1), aspect="equal")
    panel.axis("off")
    for corner, shift, align, rise in (
        (0, -0.07, "left", "top"),
        (1, -0.07, "right", "top"),
        (2, 0.03, "center", "bottom"),
    ):
        x, y = _barycentric(np.eye(3)[corner])
        panel.text(
            x + {0: -0.08, 1: 0.08, 2: 0}[corner], y + shift, names[corner], ha=align, va=rise
        )
    out = {
        0: (-0.018, 0.01, "right", "bottom"),
        1: (0.0, -0.025, "center", "top"),
        2: (0.018, 0.01, "left", "bottom"),
    }
    for task, origin in ((0, 2), (1, 0), (2, 1)):
        dx, dy, align, rise = out[task]
        for share in (0.25, 0.5, 0.75):
            x, y = _barycentric(share * np.eye(3)[task] + (1 - share) * np.eye(3)[origin])
            panel.plot([x, x + dx / 2], [y, y + dy / 2], color="black", linewidth=0.8)
            panel.text(x + dx, y + dy, f"{share:g}", ha=align, va=rise, fontsize="x-small")


def cone(
    gradients: Array,
    rules: AnyRule | Mapping[str, AnyRule] | None = None,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    losses: Array | None = None,
    key: int = 0,
    **kwargs: Any,
) -> Axes:
    """Task gradients as arrows, their convex hull, the cone {d: g_t·d >= 0 for all t} of directions
    that raise no loss, and rules' directions.

    There is no cone to draw where only d = 0 raises no loss.

    Args:
        gradients: J `[task, 2]` or `[task, 3]`.
        rules: a rule, or several by name. The legend names, after an arrow, the tasks whose loss a
            direction raises.
        ax: None is the current Axes in two dimensions, a new figure in three.
        names: of the tasks, beside the tips.
        losses: `[task]`, for rules that read them; None is ones. key: seed of random rules.
        **kwargs: of the directions' `Axes.plot`.

    Returns:
        the Axes; in three dimensions the cone is cut off at the Axes' box.

    Raises:
        ValueError: for gradients of another shape or with NaN, names of another length,
            two-dimensional Axes for three dimensions.
    """
    from matplotlib.patches import Polygon
    from matplotlib.patheffects import withStroke

    rows = _array(gradients, "gradients", (None, (2, 3)))
    names = _names(names, len(rows))
    solid = rows.shape[1] == 3
    jacobian = torch.from_numpy(rows)
    given = _losses(losses, len(rows))
    directions = {
        name: _direction(rule, jacobian, given, key) for name, rule in _named(rules).items()
    }
    drawn = np.concatenate(
        [np.zeros((1, rows.shape[1])), rows, *(d[None] for d in directions.values())]
    )
    low, high = drawn.min(0), drawn.max(0)
    size = float((high - low).max()) or 1.0
    spare = np.maximum(0.18 * size, (0.6 * size - (high - low)) / 2)
    low, high = low - spare, high + spare
    panel = _axes(ax, solid)
    panel.set(
        xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=r"$\theta_1$", ylabel=r"$\theta_2$"
    )
    if solid:
        panel.set(zlim=(low[2], high[2]), zlabel=r"$\theta_3$")
        panel.set_box_aspect(high - low, zoom=0.85)
        _draw_solid(panel, rows, low, high)
    else:
        panel.set_aspect("equal")
        box = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
        wedge = _clip(box, _units(rows), slack=1e-9 * size)
        patch = {
            "facecolor": CONE,
            "alpha": 0.25,
            "edgecolor": CONE,
            "label": "no loss rises",
            "zorder": 1,
        }
        if np.abs(wedge).max(initial=0) > 1e-6 * size:
            panel.add_patch(Polygon(wedge, **patch))
        panel.add_patch(
            Polygon(
                _outline(rows),
                facecolor="0.5",
                alpha=0.3,
                edgecolor="0.4",
                label="convex hull",
                zorder=2,
            )
        )
        zero = np.zeros(len(rows))
        panel.quiver(
            zero,
            zero,
            *rows.T,
            angles="xy",
            scale_units="xy",
            scale=1,
            color="0.2",
            width=0.01,
            zorder=3,
        )
    origin, lengths = np.zeros((1, rows.shape[1])), np.linalg.norm(rows, axis=1)
    for i, (name, d) in enumerate(directions.items()):
        raised = [names[t] for t in np.flatnonzero(rows @ d < RISES * lengths * lengths.max())]
        label = rf"{name} (${{\uparrow}}$ {', '.join(raised)})" if raised else name
        style = {
            **_cycle(i),
            "markevery": [1],
            "markersize": 6,
            "linewidth": 1.5,
            "label": label,
            "zorder": 5 + i,
        }
        panel.plot(*np.concatenate([origin, d[None]]).T, **style | kwargs)
    for row, name in zip(rows, names, strict=True):
        tip = row + 0.08 * size * row / (np.linalg.norm(row) or 1.0)
        panel.text(
            *tip,
            name,
            ha="center",
            va="center",
            zorder=20,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
    panel.legend(
        loc="upper left", bbox_to_anchor=(0.95, 1.1) if solid else (1.0, 1.0), frameon=False
    )
    return panel


def _direction(rule: AnyRule, jacobian: Tensor, losses: Tensor, key: int) -> np.ndarray:
    made = rule if isinstance(rule, Rule) else stateless(rule)
    return aggregate(made, jacobian, losses, key).detach().numpy()


def _draw_solid(panel: Any, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """The cone's faces, the hull and the gradients in three dimensions."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    faces = _cone_faces(rows, low, high)
    if faces:
        panel.add_collection3d(
            Poly3DCollection(
                faces,
                facecolor=CONE,
                alpha=0.25,
                edgecolor=CONE,
                linewidth=0.8,
                label="no loss rises",
            )
        )
    hull = [rows[list(facet)] for facet in _facets(rows)]
    panel.add_collection3d(
        Poly3DCollection(
            hull, facecolor="0.5", alpha=0.35, edgecolor="0.4", linewidth=0.8, label="convex hull"
        )
    )
    zero = np.zeros(len(rows))
    panel.quiver(zero, zero, zero, *rows.T, color="0.2", arrow_length_ratio=0.1, linewidth=1.5)


def _cone_faces(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """Polygons `[corner, 3]` that bound {d: g_t·d >= 0 for all t}.

    The box ends the cone, and before it a plane across its axis: the shortest combination of unit
    gradients, which vanishes with the cone's inside.
    """
    unit, size = _units(rows), float((high - low).max())
    ends = [(np.eye(3), low), (-np.eye(3), -high)]
    if len(unit):
        axis = stationarity(torch.from_numpy(unit @ unit.T)).weights.numpy() @ unit
        if np.linalg.norm(axis) > 1e-6:
            ends.append((-axis[None], -np.linalg.norm(axis) * np.linalg.norm(rows, axis=1).max()))
    faces = []
    for normal in unit:
        # A square in the plane g_t·d = 0, cut by the other tasks' half-spaces.
        basis = np.linalg.svd(normal[None])[2][1:]
        face = _clip(
            4 * size * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ basis,
            unit,
            slack=1e-9 * size,
        )
        for normals, offsets in ends:
            face = _clip(face, normals, offsets)
        if np.abs(face).max(initial=0) > 1e-6 * size:
            faces.append(face)
    return faces


def _units(rows: np.ndarray) -> np.ndarray:
    """Directions `[n, dim]` of the rows that are not zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1.0))[lengths[:, 0] > 0]


def _clip(
    polygon: np.ndarray, normals: np.ndarray, offsets: np.ndarray | float = 0.0, slack: float = 0.0
) -> np.ndarray:
    """The part of a convex polygon `[n, dim]` where normal·x >= offset for all normals `[k, dim]`
    (Sutherland and Hodgman 1974).
    """
    for normal, offset in zip(normals, np.broadcast_to(offsets, len(normals)), strict=True):
        height = polygon @ normal - offset + slack
        kept = []
        for i in range(len(polygon)):
            j = (i + 1) % len(polygon)
            if height[i] >= 0:
                kept.append(polygon[i])
            if (height[i] > 0 > height[j]) or (height[i] < 0 < height[j]):
                kept.append(
                    polygon[i] + height[i] / (height[i] - height[j]) * (polygon[j] - polygon[i])
                )
        polygon = np.array(kept).reshape(-1, polygon.shape[1])
    return polygon


def _facets(points: np.ndarray) -> list[tuple[int, ...]]:
    """Sets of dim points `[n, dim]` with all others on one side: the facets of the convex hull, if
    n > dim; else all points at once.
    """
    count, dim = points.shape
    if count <= dim:
        return [tuple(range(count))]
    found = []
    for chosen in itertools.combinations(range(count), dim):
        edges = points[list(chosen[1:])] - points[chosen[0]]
        normal = np.array([-edges[0, 1], edges[0, 0]]) if dim == 2 else np.cross(*edges)
        height = (points - points[chosen[0]]) @ normal
        slack = 1e-12 * np.abs(points).max() * np.linalg.norm(normal)
        if (height >= -slack).all() or (height <= slack).all():
            found.append(chosen)
    return found


def _outline(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of points `[n, 2]`, in order."""
    corners = points[sorted(set(itertools.chain.from_iterable(_facets(points))))]
    centred = corners - corners.mean(0)
    return corners[np.argsort(np.arctan2(centred[:, 1], centred[:, 0]), kind="stable")]


def heatmap(
    gramian: Array,
    ax: Axes | None = None,
    *,
    cosine: bool = False,
    names: Sequence[str] | None = None,
    annotate: bool | None = None,
    colorbar: bool = True,
    **kwargs: Any,
) -> Axes:
    """A Gramian, or the cosines between gradients, as colours centred on 0: red pairs conflict.

    Args:
        gramian: G `[task, task]`.
        cosine: draw G_ij / (‖g_i‖‖g_j‖) in [-1, 1] instead; grey where a gradient is zero.
        names: of the tasks.
        annotate: write the numbers; None does for up to 10 tasks.
        colorbar: draw one.
        **kwargs: of `Axes.imshow`; `norm=matplotlib.colors.SymLogNorm(...)` for lengths that differ
            by orders of magnitude.

    Raises:
        ValueError: for a matrix that is not square or not finite, or names of another length.
    """

    g = _array(gramian, "gramian", (None, None))
    if g.shape[0] != g.shape[1]:
        raise ValueError(
            f"gramian: expected a square matrix [task, task], got shape {list(g.shape)}; G = J @ "
            "J.T of gradients J [task, param]"
        )
    names = _names(names, len(g))
    shown = cosines(torch.from_numpy(g)).numpy() if cosine else g
    panel = _axes(ax)
    limit = 1.0 if cosine else float(np.abs(g).max()) or 1.0
    style: dict[str, Any] = {"cmap": "RdBu"} | (
        {} if "norm" in kwargs else {"vmin": -limit, "vmax": limit}
    )
    image = panel.imshow(np.ma.masked_invalid(shown), **style | kwargs)
    panel.set_facecolor("0.75")
    slanted = max(map(len, names)) > 2 and max(map(len, names)) * len(names) > 24
    size = {"fontsize": "xx-small" if len(g) > 20 else "small" if len(g) > 10 else "medium"}
    panel.set_xticks(
        range(len(g)),
        names,
        **size,
        **({"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}),
    )
    panel.set_yticks(range(len(g)), names, **size)
    if annotate is None:
        annotate = len(g) <= 10
    if annotate:
        size = {"fontsize": "medium" if len(g) <= 4 else "small" if len(g) <= 6 else "x-small"}
        for (i, j), number in np.ndenumerate(shown):
            if np.isfinite(number):
                red, green, blue, _ = image.cmap(image.norm(number))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                panel.text(
                    j,
                    i,
                    f"{number:.2f}".replace("-", "−") if cosine else _short(number),
                    ha="center",
                    va="center",
                    color="w" if dark else "k",
                    **size,
                )
    if colorbar:
        panel.figure.colorbar(
            image, ax=panel, label=r"$\cos\angle(g_i, g_j)$" if cosine else r"$g_i \cdot g_j$"
        )
    return panel


def _short(number: float) -> str:
    """Two digits that count."""
    plain = number == 0 or 1e-3 <= abs(number) < 1e5
    text = (
        np.format_float_positional(number, 2, fractional=False, trim="-")
        if plain
        else f"{number:.1e}".replace("e+0", "e").replace("e-0", "e-")
    )
    return text.replace("-", "−")


def weights(
    record: Array | Info,
    ax: Axes | None = None,
    *,
    steps: Array | None = None,
    names: Sequence[str] | None = None,
    band: float = 0.8,
    ylabel: str = "weight",
    **kwargs: Any,
) -> Axes:
    """Weights over time, one line a task; over seeds, their mean and a band of quantiles, which the
    mean may leave where a few seeds are far out.

    Args:
        record: `[step, task]` or `[seed, step, task]`, or the `Info` that `mtlfunc.rollout`
            recorded, whose weights are taken.
        steps: `[step]`, where they were recorded; None is 0, 1, 2, …
        names: of the tasks.
        band: share of the seeds, in (0, 1], between the band's lower and upper quantile; 1 is all
            of them.
        ylabel: say what it is if you draw losses or rates.
        **kwargs: of `Axes.plot`.

    Raises:
        ValueError: for other shapes, NaN, or a share outside (0, 1].
    """

    values = _array(
        record.weights if isinstance(record, Info) else record, "record", ("*", None, None)
    )
    if not 0 < band <= 1:
        raise ValueError(f"band: expected a share of the seeds in (0, 1], got {band}")
    names = _names(names, values.shape[-1])
    x = (
        np.arange(values.shape[-2])
        if steps is None
        else _array(steps, "steps", (values.shape[-2],))
    )
    panel = _axes(ax)
    for task, name in enumerate(names):
        runs = values[..., task].reshape(-1, len(x))
        look: dict[str, Any] = {
            "color": _cycle(task)["color"],
            "linestyle": ("-", "--", "-.", ":")[task // len(COLOURS) % 4],
            "label": name,
        }
        (line,) = panel.plot(x, runs.mean(0), **look | kwargs)
        if len(runs) > 1:
            low, high = np.quantile(runs, [(1 - band) / 2, (1 + band) / 2], axis=0)
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    panel.set(xlabel="step", ylabel=ylabel)
    panel.margins(x=0)
    panel.legend(frameon=False)
    return panel


def trajectories(
    landscape: Callable[[Tensor], Tensor],
    paths: Array | Mapping[str, Array],
    ax: Axes | None = None,
    *,
    pareto_set: Array | None = None,
    extent: tuple[float, float, float, float] | None = None,
    resolution: int = 121,
    label: str = "mean loss",
    colorbar: bool = True,
    **kwargs: Any,
) -> Axes:
    """Paths of two parameters over contours of a function: white dots are starts, crosses ends,
    small black dots the Pareto set.

    Args:
        landscape: from a point `[2]` (float64) to a number, or to losses `[task]`, whose mean is
            drawn.
        paths: `[run, step, 2]` or `[step, 2]`; or several by name, each of these shapes.
            `mtlfunc.rollout` records from after the first step on: put the start in front.
        pareto_set: `[n, 2]`.
        extent: left, right, bottom, top; None holds all that is drawn, with a margin.
        resolution: points along each side of the grid.
        label: of the colour bar.
        colorbar: draw one.
        **kwargs: of `Axes.contourf`. By default levels are quantiles over the grid, so that valleys
            and cliffs both show.

    Raises:
        ValueError: for other shapes, or NaN in a path (cut it where it diverged) or on the
            landscape.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    several = paths if isinstance(paths, Mapping) else {"": paths}
    given = {
        name: _array(path, f"paths[{name!r}]" if name else "paths", ("*", None, 2))
        for name, path in several.items()
    }
    runs = {name: path.reshape(-1, *path.shape[-2:]) for name, path in given.items()}
    if not runs:
        raise ValueError("paths: expected at least one path [run, step, 2], got an empty dict")
    optimal = None if pareto_set is None else _array(pareto_set, "pareto_set", (None, 2))
    if extent is None:
        drawn = np.concatenate(
            [path.reshape(-1, 2) for path in runs.values()] + ([] if optimal is None else [optimal])
        )
        low, high = drawn.min(0), drawn.max(0)
        margin = 0.1 * np.where(high > low, high - low, max(float((high - low).max()), 1.0))
        left, bottom, right, top = (float(side) for side in (*(low - margin), *(high + margin)))
    else:
        left, right, bottom, top = extent
    if resolution < 2:
        raise ValueError(
            f"resolution: expected at least 2 points along each side, got {resolution}"
        )
    if not (left < right and bottom < top):
        raise ValueError(f"extent: expected left < right and bottom < top, got {extent}")
    x, y = np.linspace(left, right, resolution), np.linspace(bottom, top, resolution)
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
    values = _map(landscape, grid, "landscape").detach()
    z = values.reshape(len(grid), -1).mean(-1).reshape(resolution, resolution).numpy()
    if not np.isfinite(z).all():
        raise ValueError(
            "landscape: NaN or infinite values on the grid; clamp it, or pass an extent where it "
            "is finite"
        )
    panel = _axes(ax)
    # Without this, a landscape that spans orders of magnitude is one colour nearly everywhere.
    levels = np.unique(np.quantile(z, np.linspace(0, 1, 13)))
    style: dict[str, Any] = {"cmap": ListedColormap(colormaps["Greys_r"](np.linspace(0.4, 1, 256)))}
    if len(levels) > 1 and not {"levels", "norm"} & kwargs.keys():
        style |= {"levels": levels, "norm": BoundaryNorm(levels, 256)}
    filled = panel.contourf(x, y, z, **style | kwargs)
    if optimal is not None:
        panel.plot(
            *optimal.T,
            "o",
            color="black",
            markersize=2.5,
            markeredgewidth=0,
            label="Pareto set",
            zorder=2,
        )
    for i, (name, path) in enumerate(runs.items()):
        colour = _cycle(i)["color"]
        for run, points in enumerate(path):
            panel.plot(
                *points.T,
                color=colour,
                linewidth=1.4,
                label=(name or None) if run == 0 else None,
                zorder=3,
            )
        panel.plot(
            *path[:, 0].T, "o", color="white", markeredgecolor="black", markersize=4.5, zorder=4
        )
        panel.plot(
            *path[:, -1].T,
            "X",
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.8,
            markersize=8,
            zorder=5 + i,
        )
    panel.set(xlim=(left, right), ylim=(bottom, top), xlabel=r"$\theta_1$", ylabel=r"$\theta_2$")
    if colorbar:
        bar = panel.figure.colorbar(
            filled, ax=panel, location="bottom", label=label, format=lambda value, _: _short(value)
        )
        bar.ax.minorticks_off()
        if "levels" in style and "levels" not in kwargs:
            bar.set_ticks(levels[::3])
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return panel


def front(
    points: Array | Front,
    ax: Axes | None = None,
    *,
    true: Array | None = None,
    reference: Array | None = None,
    names: Sequence[str] | None = None,
    label: str | None = None,
    **kwargs: Any,
) -> Axes:
    """Losses of several solutions: filled the non-dominated ones, faint and hollow the others. Call
    it again on the same Axes to compare.

    Args:
        points: `[n, 2]` or `[n, 3]`, lower is better; or a `Front` of `mtlfunc.pareto`, whose
            diverged runs are left out.
        ax: None is the current Axes for two objectives, a new figure for three.
        true: `[k, 2]` or `[k, 3]`, points of the true front.
        reference: `[2]` or `[3]`; the same in every call. The hypervolume HV stands in the legend;
            for two objectives the region is shaded.
        names: of the objectives.
        label: of the points in the legend.
        **kwargs: of the non-dominated points' `Axes.plot`.

    Raises:
        ValueError: for other shapes, NaN, or two-dimensional Axes for three objectives.
    """

    if isinstance(points, Front):
        points = points.losses[points.losses.isfinite().all(-1)]
    losses = _array(points, "points", (None, (2, 3)))
    count = losses.shape[1]
    names = _names(names, count, "loss of task")
    known = None if true is None else _array(true, "true", (None, count))
    corner = None if reference is None else _array(reference, "reference", (count,))
    solid = count == 3
    panel = _axes(ax, solid)
    earlier = sum(line.get_label().startswith("_dominated") for line in panel.get_lines())  # pyright: ignore[reportAttributeAccessIssue]
    best = non_dominated(torch.from_numpy(losses)).numpy()
    if known is not None:
        panel.plot(
            *known.T,
            linestyle="none",
            marker=".",
            markersize=3,
            color="0.55",
            label="true front",
            zorder=1,
        )
    kept, rest = losses[best], losses[~best]
    kept = kept[np.lexsort(kept.T[::-1])]
    title = label or "non-dominated"
    if corner is not None:
        title += (
            f", HV = {float(hypervolume(torch.from_numpy(losses), torch.from_numpy(corner))):#.4g}"
        )
    style: dict[str, Any] = {
        "label": title,
        "markersize": 5,
        "linewidth": 1.2,
        "zorder": 4,
        **_cycle(earlier),
    }
    style |= {"linestyle": "none"} if solid else {"drawstyle": "steps-post"}
    (line,) = panel.plot(*kept.T, **style | kwargs)
    colour = line.get_color()
    panel.plot(
        *rest.T,
        linestyle="none",
        marker=line.get_marker(),
        markerfacecolor="none",
        color=colour,
        alpha=0.5,
        markersize=5,
        label="_dominated",
        zorder=3,
    )
    if corner is not None:
        if not solid:
            panel.fill_between(
                *_region(kept, corner).T,
                corner[1],
                step="post",
                color=colour,
                alpha=0.15,
                linewidth=0,
                zorder=0,
            )
        if not any(line.get_label() == "_reference" for line in panel.get_lines()):
            mark: dict[str, Any] = {
                "linestyle": "none",
                "marker": "+",
                "markersize": 9,
                "markeredgewidth": 1.5,
                "color": "black",
                "zorder": 5,
            }
            panel.plot(*corner[:, None], **mark, label="_reference")
            panel.text(*corner, "reference   ", ha="right", va="center")
    panel.set(xlabel=names[0], ylabel=names[1])
    if solid:
        panel.set(zlabel=names[2])
        panel.set_box_aspect(None, zoom=0.82)  # pyright: ignore[reportCallIssue]
    # the reference point is in the corner
    where = (
        {"loc": "upper right", "bbox_to_anchor": (1.0, 0.9)}
        if corner is not None and not solid
        else {}
    )
    panel.legend(framealpha=0.8, edgecolor="none", fancybox=False, **where)
    return panel


def _region(kept: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Corners `[n, 2]` of the staircase under the region that non-dominated points `[n, 2]`,
    sorted, dominate up to `corner` `[2]`.
    """
    inside = kept[(kept < corner).all(1)]  # points outside add nothing
    last = [[corner[0], inside[-1, 1] if len(inside) else corner[1]]]
    return np.concatenate([inside, last])


def gap(
    curves: Mapping[str, Solution | Sequence[Solution] | tuple[Array, Array]],
    ax: Axes | None = None,
    *,
    xlabel: str = "iterations",
    band: float = 0.8,
    **kwargs: Any,
) -> Axes:
    """Duality gap against iterations (or time), both logarithmic: one line a solver; over problems,
    their median and the band of a share of them.

    A gap of 0 has no logarithm: it is drawn, hollow, a decade below the smallest positive number of
    all curves.

    Args:
        curves: by name, one of a list of `Solution`s, one for each budget of steps, of one problem
            or of a batch of them (gap `[problem]`); one `Solution` stacked over budgets (gap
            `[budget]` or `[budget, problem]`); a pair (x `[budget]`, gap `[budget]` or `[budget,
            problem]`), for instance with seconds as x.
        xlabel: say so if x is a time.
        band: share of the problems, in (0, 1], between the band's quantiles.
        **kwargs: of `Axes.plot`.

    Raises:
        ValueError: for other shapes, NaN, negative gaps, x <= 0, or no curves.

    Examples:
        >>> import mtlfunc as mf
        >>> from matplotlib.figure import Figure
        >>> problem = mf.solvers.min_norm(torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 3.0]]))
        >>> ax = gap({"line-search": [mf.solvers.frank_wolfe(k)(problem) for k in (1, 2, 4, 8)]}, Figure().add_subplot())
        >>> ax.get_lines()[0].get_xdata().tolist()
        [1.0, 2.0, 4.0, 8.0]
    """

    if not curves:
        raise ValueError("curves: expected at least one, by name, got none")
    if not 0 < band <= 1:
        raise ValueError(f"band: expected a share of the problems in (0, 1], got {band}")
    found = {name: _curve(curve, name) for name, curve in curves.items()}
    positive = np.concatenate([gaps[gaps > 0] for _, gaps in found.values()])
    floor = float(positive.min()) / 10 if positive.size else np.finfo(np.float64).eps
    panel = _axes(ax)
    for i, (name, (x, gaps)) in enumerate(found.items()):
        middle = np.median(gaps, 1)
        none = middle <= 0
        (line,) = panel.plot(
            x,
            np.where(none, floor, middle),
            **{**_cycle(i), "markersize": 5, "label": name} | kwargs,
        )
        if none.any():
            panel.plot(
                x[none],
                np.full(none.sum(), floor),
                linestyle="none",
                marker=line.get_marker(),
                color=line.get_color(),
                markerfacecolor="white",
                markersize=5,
            )
        if gaps.shape[1] > 1:
            low, high = np.quantile(gaps, [(1 - band) / 2, (1 + band) / 2], axis=1)
            panel.fill_between(
                x,
                np.maximum(low, floor),
                np.maximum(high, floor),
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
    panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="duality gap")
    panel.legend(frameon=False)
    return panel


def _curve(curve: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """x `[budget]` and gaps `[budget, problem]` of one entry of `curves`."""
    where = f"curves[{name!r}]"
    if isinstance(curve, Solution):
        x, gaps = curve.steps, curve.gap
    elif (
        isinstance(curve, Sequence)
        and len(curve)
        and all(isinstance(item, Solution) for item in curve)
    ):
        x, gaps = (
            torch.stack([item.steps for item in curve]),
            torch.stack([item.gap for item in curve]),
        )
    elif isinstance(curve, tuple) and len(curve) == 2:
        x, gaps = curve
    else:
        raise ValueError(
            f"{where}: expected a Solution, a list of Solutions or a pair (x, gap), got "
            f"{type(curve).__name__}"
        )
    gaps = _array(gaps, f"gap of {where}", (None, "*"))
    x = _array(x, f"x of {where}", (len(gaps), "*")).reshape(len(gaps), -1).mean(1)
    if (x <= 0).any() or (gaps < 0).any():
        raise ValueError(
            f"{where}: a logarithmic axis needs x > 0 and gaps >= 0, got x from {x.min():g} and "
            f"gaps from {gaps.min():g}"
        )
    return x, gaps.reshape(len(gaps), -1)


def _array(value: Array, name: str, shape: tuple[Any, ...]) -> np.ndarray:
    """A finite float64 array of a shape: sizes, None for any, a tuple of choices, "*" for an axis
    that may be missing.
    """
    array = np.asarray(
        value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=np.float64
    )
    forms = [
        [size for size in shape if size != "*"],
        [None if size == "*" else size for size in shape],
    ]

    def fits(form: list[Any]) -> bool:
        return len(form) == array.ndim and all(
            s is None or n in (s if isinstance(s, tuple) else (s,))
            for n, s in zip(array.shape, form, strict=True)
        )

    if not any(map(fits, forms)) or array.size == 0:
        texts = [
            ", ".join(
                "n" if s is None else " or ".join(map(str, s)) if isinstance(s, tuple) else str(s)
                for s in form
            )
            for form in forms
        ]
        raise ValueError(
            f"{name}: expected numbers of shape "
            f"{' or '.join(f'[{text}]' for text in dict.fromkeys(texts))}, got shape "
            f"{list(array.shape)}"
        )
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(
            f"{name}: NaN or infinite entries, the first at {first}; leave them out, or find "
            "where the run diverged"
        )
    return array


def _losses(losses: Array | None, count: int) -> Tensor:
    return (
        torch.ones(count, dtype=torch.float64)
        if losses is None
        else torch.from_numpy(_array(losses, "losses", (count,)))
    )


def _names(names: Sequence[str] | None, count: int, stem: str = "task") -> list[str]:
    if names is None:
        return [f"{stem} {i + 1}" for i in range(count)]
    if isinstance(names, str) or len(names) != count:
        raise ValueError(f"names: expected {count} strings, got {names!r}")
    return list(names)


def _named(rules: AnyRule | Mapping[str, AnyRule] | None) -> dict[str, AnyRule]:
    if rules is None:
        return {}
    if isinstance(rules, Mapping):
        return dict(rules)
    return {"rule" if isinstance(rules, Rule) else getattr(rules, "__name__", "rule"): rules}


def _cycle(i: int) -> dict[str, str]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
    }


def _row_of_axes(ax: Any, count: int) -> np.ndarray:
    if ax is None:
        from matplotlib import pyplot as plt

        return plt.subplots(
            1, count, figsize=(2.4 * count, 3.0), layout="constrained", squeeze=False
        )[1][0]
    panels = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(panels) != count:
        raise ValueError(f"ax: expected as many Axes as panels, {count}, got {len(panels)}")
    return panels


def _axes(ax: Axes | None, solid: bool = False) -> Any:
    """The Axes given, or the current ones; for three dimensions a new figure's."""
    panel: Any = ax
    if ax is None:
        from matplotlib import pyplot as plt

        if solid or not plt.get_fignums():
            # so that legends and colour bars beside the Axes stay in the picture
            plt.figure(layout="constrained")
        panel = plt.gcf().add_subplot(projection="3d") if solid else plt.gca()
    if solid:
        if not hasattr(panel, "set_zlim"):
            raise ValueError(
                "ax: expected three-dimensional Axes; make them with "
                'figure.add_subplot(projection="3d")'
            )
        panel.locator_params(nbins=4)
    return panel
