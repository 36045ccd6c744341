"""Sets of loss vectors, lower is better: non-dominated points, hypervolumes, fronts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core._torch import tree_map
from ..core.batching import evaluate
from ..core.checks import (
    check_count,
    check_dtype,
    check_finite,
    check_tensor,
    inside_transform,
    is_pair,
    values_readable,
)
from ..core.progress import progress_bar
from ..testing.host import call_numpy

__all__ = ["Front", "front", "hypervolume", "non_dominated", "preferences"]


def __dir__() -> list[str]:  # for completion: public names alone
    return sorted(__all__)


def non_dominated(points: Float[Tensor, "point task"]) -> Bool[Tensor, " point"]:
    """Points that no other point dominates: none is as low in every task and lower in one.

    Equal points do not dominate each other, so that duplicates of a non-dominated point are all
    kept. A point that ties in one task and is higher in another is dominated.

    Args:
        points: losses `[point, task]`, lower is better.

    Returns:
        a mask `[point]`. Under `vmap` a point that is not finite counts as dominated and dominates
        nothing.

    Raises:
        ValueError: for no points, no tasks, or NaN and infinity where they can be seen.

    Source:
        moocore, whose own mask would call a point with NaN non-dominated.

    Examples:
        >>> non_dominated(torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
        [True, True, False, True]
    """
    _check_points(points, "points")
    return _mask(points)


def hypervolume(
    points: Float[Tensor, "point task"], reference: Float[Tensor, " task"]
) -> Float[Tensor, ""]:
    """Volume that the points dominate below the reference, λ(∪_p Π_t [p_t, r_t]): higher is better.

    Args:
        points: losses `[point, task]`, dominated ones too; one that is not below the reference in
            every task adds nothing.
        reference: r `[task]`, worse than all that matters: the same one for all sets that are
            compared.

    Returns:
        a 0-d float64 tensor, not differentiable. Exact, in time that grows quickly beyond four
        tasks (31 at most). Under `vmap` NaN where a number is NaN or infinite.

    Raises:
        ValueError: for no points, a reference of another length, NaN or infinity.
        RuntimeError: where a derivative is taken.

    Source:
        Zitzler and Thiele 1998, as implemented by moocore.

    Examples:
        >>> float(hypervolume(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([3.0, 3.0])))
        3.0
    """
    _check_points(points, "points")
    check_tensor(reference, "reference", "[task]")
    if reference.shape != points.shape[1:]:
        expected, got = list(points.shape[1:]), list(reference.shape)
        raise ValueError(f"reference: expected shape {expected}, one entry a task, got {got}")
    check_finite(reference, "reference")

    def volume(points: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray]:
        from moocore import hypervolume  # only sets of losses need it

        finite = np.isfinite(points).all() and np.isfinite(reference).all()
        return (np.asarray(hypervolume(points, ref=reference) if finite else math.nan),)

    return call_numpy("pareto: hypervolume", volume, (2, 1), points, reference)[0]


def preferences(
    divisions: int, tasks: int, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "point task"]:
    """An even grid of the simplex: all (k_1, …, k_T)/divisions with integers k_t >= 0.

    Args:
        divisions: steps along an edge, >= 1; the k_t sum to it.
        tasks: T >= 1.
        dtype: of the result; None is torch's default.

    Returns:
        preferences `[n, task]`, n = C(divisions + T - 1, T - 1), each summing to 1, in
        lexicographic order; for two tasks divisions + 1 of them. Those inside the simplex are `p[(p
        > 0).all(1)]`.

    Raises:
        ValueError: for fewer than one division or task.
        TypeError: for a dtype that is not floating.

    Source:
        Das and Dennis 1998, the simplex lattice.

    Examples:
        >>> preferences(2, 2).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    check_count(divisions, "divisions")
    check_count(tasks, "tasks")
    check_dtype(dtype, "dtype")
    # A composition of `divisions` into T parts is a choice of T - 1 bars among divisions + T - 1
    # places.
    places = itertools.combinations(range(divisions + tasks - 1), tasks - 1)
    bars = torch.tensor(list(places), dtype=torch.float64)
    first = bars.new_full((len(bars), 1), -1.0)
    last = bars.new_full((len(bars), 1), divisions + tasks - 1.0)
    parts = bars.diff(dim=1, prepend=first, append=last) - 1
    return (parts / divisions).to(dtype or torch.get_default_dtype())


class Front(NamedTuple):
    """Where the runs of `front` ended."""

    preferences: Float[Tensor, "point task"]
    losses: Float[Tensor, "point objective"]
    non_dominated: Bool[Tensor, " point"]  # False for a run that diverged
    aux: Any  # what `train` returned next to the losses, stacked; () without it


def front(
    train: Callable[[Tensor], Any],
    preferences: Float[Tensor, "point task"],
    *,
    points_at_once: int | None = None,
) -> Front:
    """One training run for every preference, all vmapped, and which ends are non-dominated.

    For long runs that should survive an interruption there is `mtlfunc.grid(lambda run:
    train(p[run]), {"run": torch.arange(len(p))}, points_at_once=…, path=…)`.

    Args:
        train: `(preference [task]) -> losses [objective]`, or `(losses, aux)` with a pytree of
            tensors: a pure function that keeps the rules of `torch.func.vmap`, from its own start
            to its last step.
        preferences: `[n, task]`, entries >= 0 with positive sums, such as `preferences(divisions,
            tasks)`.
        points_at_once: how many runs go together; None is all, 1 a plain loop, for a `train` that
            cannot be vmapped.

    Returns:
        preferences, losses `[n, objective]`, the mask of non-dominated ends, and aux. A diverged
        run stays in, as NaN, and its mask is False.

    Raises:
        ValueError: for preferences or losses of the wrong shape.
        RuntimeError: where `train` cannot be vmapped.

    Examples:
        >>> e = torch.eye(2)  # Σ w_t ½‖θ - e_t‖² is least at θ = Σ w_t e_t
        >>> found = front(lambda w: 0.5 * (w @ e - e).square().sum(1), preferences(4, 2))
        >>> found.losses[2].tolist(), found.non_dominated.all().item()
        ([0.25, 0.25], True)
    """
    _check_points(preferences, "preferences")
    if values_readable(preferences) and not (
        bool((preferences >= 0).all()) and bool((preferences.sum(1) > 0).all())
    ):
        raise ValueError("preferences: expected entries >= 0 with a positive sum in every row")
    check_count(points_at_once, "points_at_once", none=True)

    def run(preference: Tensor) -> tuple[Tensor, Any]:
        out = train(preference)
        losses, aux = out if is_pair(out) else (out, ())
        is_tensor = isinstance(losses, Tensor)
        if is_tensor and losses.is_floating_point() and losses.ndim == 1 and len(losses):
            return losses, aux
        shape = f"{losses.dtype} of shape {list(losses.shape)}" if is_tensor else ""
        got = shape or type(losses).__name__
        raise ValueError(
            f"train: expected floating losses [objective], or (losses, aux), got {got}"
        )

    chunks = preferences.split(points_at_once or len(preferences))
    quiet = len(chunks) == 1 or inside_transform() or torch.compiler.is_compiling()
    shown = chunks if quiet else progress_bar(chunks, desc="front")
    found = [evaluate(run, chunk, len(chunk), "train") for chunk in shown]
    losses, aux = tree_map(lambda *parts: torch.cat(parts), *found)
    return Front(preferences, losses, _mask(losses), aux)


def _check_points(points: Tensor, name: str) -> None:
    check_tensor(points, name, "[point, task]")
    if points.ndim != 2 or 0 in points.shape:
        got = f"shape {list(points.shape)}; batch with torch.func.vmap"
        raise ValueError(f"{name}: expected at least one point, [point, task], got {got}")
    if values_readable(points) and not bool(points.isfinite().all()):
        bad = (~points.isfinite()).any(1).nonzero().flatten().tolist()
        cure = f"leave them out with {name}[{name}.isfinite().all(1)]"
        raise ValueError(f"{name}: NaN or infinite entries in rows {bad}; {cure}")


def _mask(points: Tensor) -> Tensor:
    def mask(points: np.ndarray) -> tuple[np.ndarray]:
        from moocore import is_nondominated  # only sets of losses need it

        kept = np.all(np.isfinite(points), 1)
        if kept.any():
            kept[kept] = is_nondominated(points[kept], keep_weakly=True)
        return (kept,)

    return call_numpy("pareto: non_dominated", mask, (2,), points.detach())[0]
