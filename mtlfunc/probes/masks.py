"""Edits of the rows coordinate by coordinate: `mask=` of `mtlfunc.jacobian`, for rule `mean()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import random
from ..core.checks import check_count, values_readable
from ..core.expect import expect_function
from ..display import functions_shown
from ..types import Rows, constructor

EditRows = Callable[[Tensor, Rows], Rows]
"""From a key and rows `{name: [task, *shape]}` to edited ones."""


@functions_shown
class Mask(NamedTuple):
    """An edit of the rows, and whether it needs every task's: an absent one's are zeros."""

    edit: EditRows
    needs_all: bool = False

    def __call__(self, key: Tensor, rows: Rows, /) -> Rows:
        return self.edit(key, rows)


@constructor
def graddrop(
    leak: float | Float[Tensor, " task"] = 0.0, f: Callable[[Tensor], Tensor] | None = None
) -> Mask:
    """In every coordinate keep the entries of one sign, the positive one with probability P.

    P = ½(1 + Σ_t g_t / Σ_t|g_t|). The draw depends on the key and the names of the leaves, not on
    the order in which they come.

    Args:
        leak: ℓ in [0, 1], one for all or one per task `[task]`: that share of each entry passes in
            any case.
        f: monotone from [0, 1] to [0, 1], applied to P; None is the identity.

    Returns:
        a mask for `mtlfunc.jacobian(..., mask=graddrop())`: row t becomes (ℓ_t + (1 - ℓ_t)M_t)∘g_t,
        with one uniform number a coordinate for all tasks. With rule `mean()` the direction is the
        **mean** of these rows: g when all tasks share one gradient g; `reduction="sum"` gives the
        paper's sum. Where tasks disagree, entries of the sign that is kept are not made up for
        those dropped: in expectation the mean over tasks of P·g⁺ + (1 - P)·g⁻. Absent tasks' zero
        rows change nothing.

    Raises:
        ValueError: for leaks outside [0, 1]; of another length, at a step.

    Source:
        Chen et al. 2020, Algorithm 1, lines 10–15, on parameters as TorchJD has it. The paper's
        layer and LibMTL act on the shared representation instead, multiplied by its sign and summed
        over the batch. Ties P = U keep the negative entries here, so that U = 0 drops none where
        all are negative.

    Examples:
        >>> rows = {"x": torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, 0.0]])}
        >>> graddrop()(random.key(0), rows)["x"].tolist()
        [[1.0, -2.0, 3.0], [2.0, -1.0, 0.0]]
    """
    if not isinstance(leak, Tensor) or values_readable(leak):
        _check_leak(torch.as_tensor(leak))
    if f is not None:
        expect_function(f, "f", "purity")

    def mask(key: Tensor, rows: Rows) -> Rows:
        edited = {}
        position = {name: i for i, name in enumerate(sorted(rows))}
        for name, row in rows.items():
            total, size = row.sum(0), row.abs().sum(0)
            purity = 0.5 * (1 + total / size.where(size != 0, 1.0))
            dtype = torch.promote_types(row.dtype, torch.float32)
            u = random.uniform(random.fold_in(key, position[name]), tuple(row.shape[1:]), dtype)
            positive = (purity if f is None else f(purity)) > u
            kept = torch.where(row > 0, positive, ~positive).to(row.dtype)
            passes = _per_row(leak, row)
            edited[name] = (passes + (1 - passes) * kept) * row
        return edited

    return Mask(mask)


@constructor
def trimmed_mean(k: int) -> Mask:
    """In every coordinate drop the k largest and the k smallest of the tasks' entries.

    Args:
        k: how many at either end, >= 0.

    Returns:
        a mask for `mtlfunc.jacobian(..., mask=trimmed_mean(k))`: dropped entries become 0 and the
        others are multiplied by T/(T - 2k), so that with rule `mean()` the direction is the mean of
        those kept; g when all tasks share one gradient g. Every task must be present (`jacobian`
        refuses it together with `present=`): an absent one's zeros would be ranked with the others.

    Raises:
        ValueError: for k < 0; at a step, for fewer than 2k + 1 tasks.

    Source:
        Yin et al. 2018, Definition 2. As TorchJD's TrimmedMean.

    Examples:
        >>> rows = {"x": torch.tensor([[1.0], [9.0], [2.0]])}
        >>> trimmed_mean(1)(random.key(0), rows)["x"].tolist()
        [[0.0], [0.0], [6.0]]
    """
    check_count(k, "k", 0)

    def mask(key: Tensor, rows: Rows) -> Rows:
        edited = {}
        for name, row in rows.items():
            count = row.shape[0]
            if count <= 2 * k:
                raise ValueError(
                    f"k: dropping {k} entries at either end needs at least {2 * k + 1} tasks, "
                    f"but there are {count}"
                )
            rank = row.argsort(0).argsort(0)
            kept = ((rank >= k) & (rank < count - k)).to(row.dtype)
            # multiplied: NaN and infinity, which rank highest, must not vanish
            edited[name] = row * (kept * (count / (count - 2 * k)))
        return edited

    return Mask(mask, needs_all=True)


def _check_leak(leak: Tensor) -> None:
    if leak.ndim > 1 or not bool(((leak >= 0) & (leak <= 1)).all()):
        raise ValueError(f"leak: expected a number in [0, 1], or one a task, got {leak.tolist()}")


def _per_row(leak: float | Tensor, row: Tensor) -> Tensor:
    """The leak, shaped to multiply rows `[task, *shape]`."""
    leak = torch.as_tensor(leak, device=row.device).to(row.dtype)
    if leak.ndim and leak.shape[0] != row.shape[0]:
        raise ValueError(f"leak: expected one a task, {row.shape[0]}, got {leak.shape[0]}")
    return leak.reshape(-1, *(1,) * (row.ndim - 1))
