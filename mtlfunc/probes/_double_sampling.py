"""Two or three independent batches a step: an unbiased Gramian of stochastic gradients (MoDo,
SDMGrad).
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from ..core.checks import check_option, check_params, everyone
from ..core.tree import map_params, select
from ..gradients.linearize import Linear, check_chunk_size, linearize
from ..types import Batch, Geometry, LossesFn, Params, Probe, Select, State, TaskGradients
from ._jacobian import Heads
from .common import first_losses
from .groups import Groups, combine_groups, gramians, partition


def double_sampling(
    shared: Select = "*",
    *,
    groups: Groups | None = None,
    heads: Heads = "plain",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Probe:
    """G = J₁J₂ᵀ from independent batches, whose expectation is E[J]E[J]ᵀ: one batch's JJᵀ adds the
    gradient noise's covariance to it.

    The batch of a step is a tuple of batches, drawn independently: `(first, second)`, and the
    combination is of the rows' mean (J₁ + J₂)/2; or `(first, second, third)`, and it is of J₃,
    independent of the weights too, at the price of one forward and one backward pass.

    Args:
        shared, groups, chunk_size, gramian_dtype: as in `mtlfunc.jacobian`.
        heads: as there, from the mean of two batches or from the third.

    Returns:
        a probe whose Gramian `[task, task]` is **not symmetric** and whose diagonal may be
        negative: for `mtlfunc.modo` and `mtlfunc.sdmgrad`; rules that need JJᵀ refuse it by
        `geometry.extra["second_losses"]`, the second batch's. Losses are those of the batches
        combined; aux is a tuple, one for each batch.

    Raises:
        ValueError: as in `mtlfunc.jacobian`.
        TypeError: for a batch that is not a tuple of two or three.

    Source:
        Chen et al. 2023 (MoDo), eqs. 2.9a–b: two batches and their mean, with a third as the
        official code's option; Xiao et al. 2023 (SDMGrad), Algorithm 1: three. LibMTL steps on the
        third for both, and leaves SDMGrad's decoders with the sum over three batches.
    """
    check_chunk_size(chunk_size)
    check_option(heads, "heads", get_args(Heads))
    if heads == "weighted" and groups is not None:
        raise ValueError(
            'heads="weighted": with groups there is one weight a group and task, and none for '
            'the heads; use "plain" or "own"'
        )

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        check_params(params)
        names = select(params, shared)
        losses = torch.stack(
            [
                first_losses(losses_fn, params, one, names, hint=True)
                for one in stepped_on(_several(batch))
            ]
        ).mean(0)
        blocks = () if groups is None else partition(names, groups)
        return torch.stack([losses] * len(blocks)) if blocks else losses, ()

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        names = select(params, shared)
        blocks = () if groups is None else tuple(partition(names, groups).values())
        share = {"plain": lambda count: 1 / count, "own": lambda count: 1.0, "weighted": None}[
            heads
        ]

        def at(batch: Batch, rows: bool) -> Linear:
            return linearize(
                losses_fn,
                params,
                batch,
                shared=names if rows else (),
                heads=share if rows else None,
                chunk_size=chunk_size,
            )

        batches = _several(batch)
        first, second = at(batches[0], True), at(batches[1], True)
        every = [first, second] if len(batches) == 2 else [first, second, at(batches[2], False)]
        stepped = stepped_on(every)
        losses = torch.stack([linear.losses for linear in stepped]).mean(0)
        gramian = gramians(first.rows, second.rows, names, blocks, gramian_dtype)
        geometry = Geometry(
            losses, gramian, first.preference, everyone(losses), {"second_losses": second.losses}
        )

        def gradient(linear: Linear, weights: Tensor) -> Params:
            if linear.rows:
                grads = combine_groups(weights, linear.rows, blocks) | linear.heads
                left = tuple(name for name in params if name not in grads)
                return grads | (linear.pullback(weights, left) if left else {})
            # The third batch: one pass for every way of weighing its losses.
            others = tuple(name for name in params if name not in names)
            grads: Params = {}
            for own, members in (
                zip(weights.unbind(0), blocks, strict=True) if blocks else [(weights, names)]
            ):
                grads |= linear.pullback(own, members)
            count = len(linear.losses)
            on_heads = (
                weights
                if heads == "weighted"
                else torch.full_like(linear.losses, 1 / count if heads == "plain" else 1.0)
            )
            return grads | (linear.pullback(on_heads, others) if others else {})

        def combined(weights: Tensor) -> Params:
            grads = [gradient(linear, weights) for linear in stepped]
            mean = grads[0] if len(grads) == 1 else map_params(lambda a, b: 0.5 * (a + b), *grads)
            return {name: mean[name] for name in params}

        aux = tuple(linear.aux for linear in every)
        return TaskGradients(losses, geometry, combined, () if aux[0] == () else aux), state

    return Probe(init, update)


def _several(batch: Batch) -> tuple[Any, ...]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        found = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(
            "batch: double_sampling takes two or three independent batches a step, (first, "
            f"second) or (first, second, third), got {found}"
        )
    return tuple(batch)


def stepped_on(several: Any) -> Any:
    """Those of two or three that the step is made of: both, or the third."""
    return several if len(several) == 2 else several[2:]
