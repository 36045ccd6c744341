"""Gramians G = J Jᵀ of task and sample gradients, accumulated leaf by leaf; the matrix J is never formed."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import check_params
from .gradients import check_chunk_size, linearize, losses_alone
from .tree import dot, select
from .types import Batch, LossesFn, Params, Rows, Select

Engine = Literal["auto", "rows"]


def check_engine(engine: str) -> None:
    if engine not in ("auto", "rows"):
        raise ValueError(f'engine={engine!r}: expected "auto" or "rows"')


def task_gramian(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, " task"], Float[Tensor, "task task"]]:
    """Losses and the Gramian of the tasks' gradients.

    Args:
        losses_fn: `(params, batch) -> losses`, a vector `[task]` or a tuple or dict of T scalars.
        params, batch: where to differentiate.
        shared: which parameters to sum over, a glob on their names or a predicate.
        engine: `"rows"` differentiates every task; `"auto"` chooses, today always `"rows"`.
        chunk_size: None keeps all T rows until the end. A number k keeps two chunks of k rows at any time and pays for it with
            about T/2k times as many backward passes, and a forward pass for each chunk.
        gramian_dtype: the dtype of the accumulation; None is the rows' own, at least float32. float64 is worth its cost near Pareto
            stationarity, where float32 Gramians are noise.

    Returns: losses `[task]` and G `[task, task]`.

    Raises: ValueError if `shared` matches nothing; TypeError or ValueError for losses or parameters of the wrong kind.

    >>> task_gramian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))[1].tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    """
    check_params(params)
    check_engine(engine)
    names = select(params, shared)
    alone = losses_alone(losses_fn)
    if chunk_size is None:
        linear = linearize(alone, params, batch, shared=names)
        return linear.losses, dot(linear.rows, linear.rows, names, gramian_dtype)
    check_chunk_size(chunk_size)

    def chunk(start: int) -> tuple[Tensor, Rows]:
        def mix(count: int) -> tuple[Tensor, Tensor]:
            matrix = torch.eye(count, device=device)[start : start + chunk_size]
            return matrix, matrix.new_ones(len(matrix))

        linear = linearize(alone, params, batch, shared=names, mix=mix, chunk_size=chunk_size)
        return linear.losses, linear.rows

    device = params[names[0]].device
    losses, first = chunk(0)
    starts = range(0, losses.shape[0], chunk_size)
    blocks: dict[tuple[int, int], Tensor] = {}
    for i in starts:
        rows = chunk(i)[1] if i else first
        first = {}  # or three chunks would be alive
        blocks[i, i] = dot(rows, rows, names, gramian_dtype)
        for j in starts[i // chunk_size + 1 :]:
            blocks[i, j] = dot(rows, chunk(j)[1], names, gramian_dtype)
            blocks[j, i] = blocks[i, j].mT
    return losses, torch.cat([torch.cat([blocks[i, j] for j in starts], 1) for i in starts])


def sample_gramian(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    engine: Engine = "auto",
    gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*entry"], Float[Tensor, "n n"]]:
    """Losses and the Gramian of per-sample (and per-task) gradients.

    Args:
        losses_fn: `(params, batch) -> [sample]` or `[sample, task]`; entry i depends on sample i alone.
        params, batch, shared, engine, gramian_dtype: as in `task_gramian`.

    Returns: the losses as they came and the Gramian `[n, n]` over the flattened losses.
    """

    def flat(params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = losses_fn(params, batch)
        if not isinstance(losses, Tensor) or losses.ndim not in (1, 2):
            raise ValueError(
                f"losses_fn: expected [sample] or [sample, task], got {list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__}"
            )
        return losses.flatten(), losses

    check_params(params)
    check_engine(engine)
    names = select(params, shared)
    linear = linearize(flat, params, batch, shared=names)
    return linear.aux, dot(linear.rows, linear.rows, names, gramian_dtype)
