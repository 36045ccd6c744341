"""Rows of parameters whose gradients arrive by hooks: those of a module under `fully_shard`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import local_part
from ..core.tree import combine
from ..processes import shard_like
from ..types import Params, Rows
from .linearize import Linearization, Request
from .run import Forward


def linearize_by_hooks(forward: Forward, request: Request) -> Linearization:
    """As `linearize`, by one `backward` per loss, of which `.grad` is read and put back.

    `torch.autograd.grad` would miss what the hooks do: gather the weights, and reduce and scatter
    their gradients. The rows are of the tasks themselves, or of weightings of samples.
    """
    losses, leaves, value = forward.losses, forward.params, forward.value
    shared, rows = request.shared, bool(request.shared)
    scale = value.new_ones(len(value)) if request.scale is None else request.scale
    each = losses.scalars or losses.vector.unbind()
    if request.weightings:
        matrix, _ = request.cotangents(value)
        assert matrix is not None
        each, value = (matrix @ losses.vector).unbind(), matrix @ value
        scale, losses = torch.ones_like(value), losses._replace(vector=matrix @ losses.vector)
    every = [_pass_backward(loss, x, leaves) for loss, x in zip(each, scale, strict=True) if rows]
    # all leaves' rows, since every pass brings them
    rows_of = {name: torch.stack([one[name] for one in every]) for name in leaves if rows}
    share = request.heads(len(value)) if request.heads and rows else None
    others = {name: row for name, row in rows_of.items() if name not in shared}
    heads = {} if share is None else _mixed(share * torch.ones_like(value), others, leaves)

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(leaves)) -> Params:
        if rows_of:
            return _mixed(weights, {name: rows_of[name] for name in names}, leaves)
        found = _pass_backward(losses.vector, weights.to(value.dtype) * scale, leaves)
        return {name: found[name] for name in names}

    kept = {name: rows_of[name] for name in shared} if rows else {}
    preference = torch.full_like(value, 1 / len(value))
    mixed = value if request.weightings else request.scaled(value)
    return Linearization(value, mixed, preference, kept, None, heads, pullback, forward.aux)


def _mixed(weights: Tensor, rows: Rows, leaves: Params) -> Params:
    """Weighted sums of rows, each process's of what it holds."""
    sums = combine(weights, {name: local_part(row) for name, row in rows.items()})
    return {name: shard_like(part, leaves[name]) for name, part in sums.items()}


def _pass_backward(loss: Tensor, cotangent: Tensor, leaves: Params) -> Params:
    """One backward pass: what it adds to `.grad`, which stays as it was."""
    kept = {name: leaf.grad for name, leaf in leaves.items()}
    try:
        for leaf in leaves.values():
            leaf.grad = None
        loss.backward(cotangent, retain_graph=True)
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach()
            for name, leaf in leaves.items()
        }
    finally:
        for name, leaf in leaves.items():
            leaf.grad = kept[name]
