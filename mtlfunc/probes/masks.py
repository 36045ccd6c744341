"""Edits of the rows coordinate by coordinate: `mask=` of `mtlfunc.jacobian`, for rule `mean()`."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import random
from ..core.expect import expect_function
from ..core.transforms import values_readable
from ..types import Rows, constructor

EditRows = Callable[[Tensor, Rows], Rows]
"""From a key and rows `{name: [task, *shape]}` to edited ones."""


@constructor
def graddrop(
    leak: float | Float[Tensor, " task"] = 0.0, f: Callable[[Tensor], Tensor] | None = None
) -> EditRows:
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
    told, readable = torch.as_tensor(leak), not isinstance(leak, Tensor) or values_readable(leak)
    if readable and (told.ndim > 1 or not bool(((told >= 0) & (told <= 1)).all())):
        raise ValueError(f"leak: expected a number in [0, 1], or one a task, got {told.tolist()}")
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
            share = torch.as_tensor(leak, dtype=row.dtype, device=row.device)
            if share.ndim and len(share) != len(row):
                raise ValueError(f"leak: expected one a task, {len(row)}, got {len(share)}")
            passes = share.reshape(-1, *(1,) * (row.ndim - 1))
            edited[name] = (passes + (1 - passes) * kept) * row
        return edited

    return mask
