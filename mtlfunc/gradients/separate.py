"""Rows of separate losses as one matrix of numbers: one pass a loss, in the fewest calls.

They cost a small network more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..core._torch import flatten
from ..core.tree import inner_products
from ..types import Params, Rows
from .layerwise import Place
from .levels import run_backward
from .run import PLAIN


def is_plain(params: Params) -> bool:
    """Whether all leaves are ordinary numbers on the CPU, none a piece of another tensor, of one
    dtype that products keep.
    """
    kinds = set(map(_KIND, params.values()))
    kind, dtype, on_cpu, is_leaf = next(iter(kinds))
    exact = dtype in (torch.float32, torch.float64)
    return len(kinds) == 1 and exact and on_cpu and is_leaf and kind in PLAIN


_KIND = attrgetter("__class__", "dtype", "is_cpu", "is_leaf")


_SMALL = 1 << 20
"""Entries of a matrix that may be held twice for a moment."""


def row_matrix(
    edges: Sequence[GradientEdge | None],
    losses: Tensor,
    params: Params,
    places: Mapping[str, Place],
    shared: Sequence[str],
    others: Sequence[str],
    *,
    scale: Tensor | None = None,
) -> tuple[Tensor, Params]:
    """J `[task, width]` over the shared leaves, side by side, and the others' sums of gradients.

    Nothing is recorded.

    Args:
        edges: the place of each loss in the graph; None for one that no pass enters.
        losses: like them, `[task]`.
        params: plain leaves.
        places: where the graph has them.
        shared: names of those that have rows.
        others: of those that have none.
        scale: `[task]`, multiplies the losses first; None is 1.
    """
    every = tuple([places[name] for name in (*shared, *others)])
    leaves = [params[name] for name in shared]
    width = sum([leaf.numel() for leaf in leaves])
    one, nowhere = losses.new_ones(()), [None] * len(every)
    sums: dict[str, Tensor] = {}
    # small rows are stacked, in fewer calls; large ones are written where they stay
    matrix = leaves[0].new_empty(len(edges), width) if len(edges) * width > _SMALL else None
    rows = [one] * len(edges) if matrix is None else list(matrix.unbind())
    for task, edge in enumerate(edges):
        cotangent = one if scale is None else scale[task]
        found = nowhere if edge is None else detached(run_backward(edge, cotangent, every))
        pairs = zip(leaves, found, strict=False)
        parts = [torch.zeros_like(x) if grad is None else grad for x, grad in pairs]
        if sum([x.numel() for x in parts]) != width:  # `cat` would write elsewhere
            raise RuntimeError(
                "params: the .data of a parameter got another shape after the forward pass; "
                "compute the losses anew"
            )
        if matrix is None:
            rows[task] = flatten(parts)
        else:
            torch.cat([x.flatten() for x in parts], out=rows[task])
        for name, grad in zip(others, found[len(leaves) :], strict=True):
            if grad is not None:
                sums[name] = sums[name] + grad if name in sums else grad
        del found, parts  # the next pass takes their memory
    for name in others:
        if name not in sums:
            sums[name] = torch.zeros_like(params[name])
    return torch.stack(rows) if matrix is None else matrix, sums


def detached(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Without a graph: somebody's own backward may return a parameter."""
    return [x.detach() if x is not None and x.requires_grad else x for x in grads]


def gramian_of(matrix: Tensor) -> Tensor:
    """J Jᵀ, symmetric to the last bit."""
    gramian = inner_products(matrix, matrix)
    return (gramian + gramian.mT).mul_(0.5)


def rows_of(matrix: Tensor, params: Params, names: Sequence[str]) -> Rows:
    """Views of J, leaf by leaf: `{name: [task, *shape]}`."""
    shapes = [params[name].shape for name in names]
    parts = matrix.split_with_sizes([shape.numel() for shape in shapes], 1)
    return {
        name: part if len(shape) == 1 else part.view(len(matrix), *shape)
        for name, shape, part in zip(names, shapes, parts, strict=True)
    }
