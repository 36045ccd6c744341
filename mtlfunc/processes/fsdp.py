"""Rows of parameters whose gradients arrive by hooks: those of a module under `fully_shard`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import held, shard_like
from ..core.tree import combine
from ..types import Params, Rows
from .forward import split_output
from .linearize import Linear


def linearize_hooked(
    out: Any,
    leaves: Params,
    *,
    shared: tuple[str, ...],
    heads: Callable[[int], float | None] | None = None,
    rows: bool = True,
) -> Linear:
    """As `linearize_losses`, by one `backward` a loss, of which `.grad` is read and put back.

    `torch.autograd.grad` would miss what the hooks do: gather the weights, and reduce and scatter
    their gradients.

    Args:
        out: losses in any form, with their graph.
        leaves: the module's parameters.
        shared: names of those whose rows are wanted.
        heads: from T, the weight of every task in the gradient of the other leaves; None leaves
            those to `pullback`.
        rows: whether rows are wanted; else there is one pass a call of `pullback`.
    """
    losses, scalars, aux = split_output(out)
    each = scalars or losses.unbind()
    count = len(each)
    every = [_passed(loss, leaves) for loss in each] if rows else []
    # all leaves' rows, since every pass brings them
    rows_of = {name: torch.stack([one[name] for one in every]) for name in leaves if rows}
    share = heads(count) if heads and rows else None
    others = {name: row for name, row in rows_of.items() if name not in shared}
    alike = losses.detach().new_ones(count)
    on_heads = {} if share is None else _mixed(share * alike, others, leaves)

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(leaves)) -> Params:
        if rows_of:
            return _mixed(weights, {name: rows_of[name] for name in names}, leaves)
        found = _passed((weights.to(losses.dtype) @ losses), leaves)
        return {name: found[name] for name in names}

    kept = {name: rows_of[name] for name in shared} if rows else {}
    value = losses.detach()
    return Linear(value, value, alike / count, kept, None, on_heads, pullback, aux)


def _mixed(weights: Tensor, rows: Rows, leaves: Params) -> Params:
    """Weighted sums of rows, each process's of what it holds."""
    sums = combine(weights, {name: held(row) for name, row in rows.items()})
    return {name: shard_like(local, leaves[name]) for name, local in sums.items()}


def _passed(loss: Tensor, leaves: Params) -> Params:
    """One backward pass: what it adds to `.grad`, which stays as it was."""
    kept = {name: leaf.grad for name, leaf in leaves.items()}
    try:
        for leaf in leaves.values():
            leaf.grad = None
        loss.backward(retain_graph=True)
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach()
            for name, leaf in leaves.items()
        }
    finally:
        for name, leaf in leaves.items():
            leaf.grad = kept[name]
