"""What pictures share: arguments as arrays, Axes, colours, and a rule at many Gramians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ..core import random
from ..core.checks import check_count, expect_answer
from ..core.expect import expect_of_gramian
from ..core.progress import progress_bar
from ..rules.common import as_rule
from ..types import Geometry, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:  # a name for annotations that are read at run time
    Axes = Any

Array = Tensor | np.ndarray | Sequence[Any]
# a rule, or a function from a Gramian `[task, task]` (and losses `[task]`) to weights `[task]`
AnyRule = Rule | Callable[..., Tensor]
# Okabe and Ito: distinct for colour-blind readers and on a grey print, the more so with a marker
# each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RISES = -1e-6  # a relative rate below this is a loss that rises; above it, rounding of a rate of 0


def weights_of(rule: AnyRule, gramians: Tensor, losses: Tensor, key: int, steps: int) -> Tensor:
    """Weights `[n, task]` of a fresh rule, keyed as in `mtlfunc.weights`, after `steps` updates."""
    check_count(steps, "steps")
    made, root, count = as_rule(rule), random.key(key), gramians.shape[-1]
    expect_of_gramian(made)

    def weights_at(gramian: Tensor) -> Tensor:
        share, present = torch.full_like(losses, 1 / count), torch.ones(count, dtype=torch.bool)
        geometry = Geometry(losses, gramian, share, present, {})
        state, weights = made.init(losses, random.fold_in(root, 1)), losses
        for _ in range(steps):
            weights, state = expect_answer(made.update(geometry, state))
        if not isinstance(weights, Tensor) or weights.shape != (count,):
            kind = type(weights).__name__
            what = f"shape {list(weights.shape)}" if isinstance(weights, Tensor) else kind
            raise ValueError(f"rule: expected weights of shape [{count}], one a task, got {what}")
        return weights.detach().to(gramian)

    return evaluate_points(weights_at, gramians, "rule")


def evaluate_points(f: Callable[[Tensor], Tensor], points: Tensor, what: str) -> Tensor:
    """`f` at all points by one vmap, or by a loop, which raises without vmap's text around it."""
    try:
        return vmap(f)(points)
    except Exception:
        return torch.stack([f(point) for point in progress_bar(points, desc=what)])


def mark_rises(
    fill: Callable[..., Any], line: Callable[..., Any], place: tuple[Any, ...], rate: np.ndarray
) -> None:
    """Hatches where a rate is negative, and a line where it is 0, by contours at `place`."""
    rate = np.ma.masked_invalid(rate)
    if not rate.count() or rate.min() >= RISES:
        return
    levels = [float(rate.min()) - 1, RISES]
    hatched = fill(*place, rate, levels=levels, colors="none", hatches=["////"])
    hatched.set(edgecolor="0.3", linewidth=0)
    if rate.max() > RISES:
        line(*place, rate, levels=[RISES], colors="black", linewidths=1.2, linestyles="solid")


def array_of(value: Array, name: str, shape: tuple[Any, ...]) -> np.ndarray:
    """A finite float64 array whose shape is made of sizes, None for any, tuples of choices, and "*"
    for an axis that may be missing; or an error that names the argument.
    """
    given = value.detach().cpu().double() if isinstance(value, Tensor) else value
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        got = f"got a {type(value).__name__} that cannot be one; pass a field of it, such as"
        cure = "info.gramian, or of a loop's steps torch.stack([info.weights for info in infos])"
        raise ValueError(f"{name}: expected one array of numbers, {got} {cure}") from error
    whole = [None if size == "*" else size for size in shape]
    forms = [[size for size in shape if size != "*"], whole]

    def fits(form: list[Any]) -> bool:
        return len(form) == array.ndim and all(
            s is None or n in (s if isinstance(s, tuple) else (s,))
            for n, s in zip(array.shape, form, strict=True)
        )

    if not any(map(fits, forms)) or array.size == 0:
        texts = dict.fromkeys(f"[{', '.join(map(_size, form))}]" for form in forms)
        expected = f"{name}: expected numbers of shape {' or '.join(texts)}"
        raise ValueError(f"{expected}, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        cure = "leave them out, or find where the run diverged"
        raise ValueError(f"{name}: NaN or infinite entries, the first at {first}; {cure}")
    return array


def dtype_of(value: Array) -> torch.dtype:
    """A tensor's or an array's own, if it is one of less than 64 bits; else float64."""
    own = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return own.get(str(getattr(value, "dtype", "")).removeprefix("torch."), torch.float64)


def _size(size: int | tuple[int, ...] | None) -> str:
    return " or ".join(map(str, size)) if isinstance(size, tuple) else str(size or "n")


def losses_of(losses: Array | None, count: int) -> Tensor:
    """Losses `[count]`, ones for None."""
    given = np.ones(count) if losses is None else losses
    return torch.from_numpy(array_of(given, "losses", (count,)))


def names_of(names: Sequence[str] | None, count: int, stem: str = "task") -> list[str]:
    """The names given, or "task 1", "task 2", …"""
    if names is None:
        return [f"{stem} {i + 1}" for i in range(count)]
    if isinstance(names, str) or len(names) != count:
        raise ValueError(f"names: expected {count} strings, got {names!r}")
    return list(names)


def rules_of(rules: AnyRule | Mapping[str, AnyRule] | None) -> dict[str, AnyRule]:
    """Rules by name."""
    if rules is None or isinstance(rules, Mapping):
        return dict(rules or {})
    return {"rule" if isinstance(rules, Rule) else getattr(rules, "__name__", "rule"): rules}


def cycle(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th series."""
    marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[i % len(COLOURS)], "marker": marker}


def row_of_axes(ax: Any, count: int) -> np.ndarray:
    """The Axes given, as many as panels, or a new figure's."""
    if ax is None:
        from matplotlib import pyplot as plt

        size = (2.4 * count, 3.0)
        return plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)[1][0]
    panels = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(panels) != count:
        raise ValueError(f"ax: expected as many Axes as panels, {count}, got {len(panels)}")
    for panel in panels:
        _check_axes(panel)
    return panels


def _check_axes(panel: Any) -> None:
    """Raise unless one can draw on it."""
    if not hasattr(panel, "get_xlim"):
        kind = type(panel).__name__
        raise TypeError(f"ax: expected matplotlib Axes, as plt.gca() gives, got {kind}")


def axes_of(ax: Axes | None, solid: bool = False) -> Any:
    """The Axes given, or the current ones; for three dimensions a new figure's."""
    panel: Any = ax
    if ax is None:
        from matplotlib import pyplot as plt

        if solid or not plt.get_fignums():
            # so that legends and colour bars next to the Axes stay in the picture
            plt.figure(layout="constrained")
        panel = plt.gcf().add_subplot(projection="3d") if solid else plt.gca()
    _check_axes(panel)
    if solid:
        if not hasattr(panel, "set_zlim"):
            how = 'figure.add_subplot(projection="3d")'
            raise ValueError(f"ax: expected three-dimensional Axes; make them with {how}")
        panel.locator_params(nbins=4)
    return panel


def format_short(number: float) -> str:
    """Two digits that count."""
    text = f"{number:.1e}".replace("e+0", "e").replace("e-0", "e-")
    if number == 0 or 1e-3 <= abs(number) < 1e5:
        text = np.format_float_positional(number, 2, fractional=False, trim="-")
    return text.replace("-", "−")
