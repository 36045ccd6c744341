"""Rows and Gramian of tasks that read slices of their own, from one backward pass for all of them.

The pullback of the losses' sum then holds every task's deltas, each in its slice, just as one of
per-sample losses holds every sample's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..core.tree import inner_products
from ..types import Params, Rows
from .backward import Backward, target
from .layerwise import SampledGroup, Slices, sample_block, sample_factors


def linearize_slices(
    slices: Slices,
    backward: Backward,
    cotangents: Tensor,
    mix: Tensor | None,
    others: Sequence[str],
    dtype: torch.dtype | None,
) -> tuple[Rows, Tensor, Params]:
    """One backward pass.

    Args:
        slices: how.
        backward: the open graph.
        cotangents: of the losses `[task]`.
        mix: C [row, task] of the rows; None is the tasks themselves.
        others: leaves whose gradient of the cotangents' sum of losses is wanted.
        dtype: of the Gramian's accumulation; None is the parameters' own, at least float32.

    Returns:
        rows `{name: [row, *shape]}` where they are kept, the Gramian [row, row], and the others'
        gradient.
    """
    uses, tasks = slices.plan.uses, len(cotangents)
    targets = [
        target(use.edge, lambda use=use: cotangents.new_zeros(use.shape, dtype=use.dtype))
        for use in uses
    ]
    targets += [backward.leaf(name) for name in others]
    found = backward(backward.root, cotangents, targets)
    heads = dict(zip(others, found[len(uses) :], strict=True))
    sure = cotangents.new_ones((), dtype=torch.bool)
    where = [((layout, sure),) for layout in slices.layouts]
    wide = dtype or torch.promote_types(next(iter(backward.params.values())).dtype, torch.float32)
    parts: list[Tensor] = []
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    with nullcontext() if backward.record else torch.no_grad():
        every = slices.plan.split(where), slices.plan.split(found)
        for (group, form), mine, deltas in zip(slices.plan.tapped, *every, strict=True):
            each = SampledGroup(group, mine, [delta[None] for delta in deltas], tasks)
            if not slices.rows:
                factors = sample_factors(each, form, wide)
                parts.append(sample_block(group, form, factors, factors, wide))
                continue
            rows = each.rows(wide)
            parts.append(inner_products(rows, rows))
            part = group.uses[0].part
            pieces.setdefault(part.leaf, []).append((part.span[0] if part.span else 0, rows))
        gramian = torch.stack(parts).sum(0)
        gramian = 0.5 * (gramian + gramian.mT)
        if mix is not None:
            gramian = mix.to(wide) @ gramian @ mix.to(wide).mT
        kept = {
            name: rows_of_leaf(backward.params[name], part, mix) for name, part in pieces.items()
        }
    if slices.rows:
        leaves = {name: backward.params[name] for name in slices.plan.rows}
        kept |= {
            name: torch.zeros_like(leaf).expand(len(gramian), *leaf.shape)
            for name, leaf in leaves.items()
        }
    return kept, gramian, heads


def rows_of_leaf(leaf: Tensor, pieces: list[tuple[int, Tensor]], mix: Tensor | None) -> Tensor:
    """Rows of a leaf [row, *shape] from those of its parts, each with its place on the first axis;
    zero where no call used it.
    """
    width = leaf[0].numel() if leaf.ndim else 1
    parts, at = [], 0
    for start, rows in sorted(pieces, key=lambda piece: piece[0]):
        if start * width > at:
            parts.append(rows.new_zeros(len(rows), start * width - at))
        parts.append(rows)
        at = start * width + rows.shape[1]
    if at < leaf.numel():
        parts.append(parts[-1].new_zeros(len(parts[-1]), leaf.numel() - at))
    rows = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    rows = rows if mix is None else mix.to(rows.dtype) @ rows
    return rows.reshape(len(rows), *leaf.shape).to(leaf.dtype)
