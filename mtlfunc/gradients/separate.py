"""Rows of separate losses as one matrix of numbers: one pass a loss, in the fewest calls.

They cost a small network more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..core._torch import times_each, undefined_grad
from ..core.tree import inner_products
from ..types import Params, Rows
from .layerwise import Place
from .levels import run_backward
from .run import PLAIN


def is_plain(params: Params) -> bool:
    """Whether all leaves are ordinary numbers on the CPU, of one dtype that products keep."""
    kinds = set(map(attrgetter("__class__", "dtype", "is_cpu"), params.values()))
    kind, dtype, on_cpu = next(iter(kinds))
    exact = dtype in (torch.float32, torch.float64)
    return len(kinds) == 1 and exact and on_cpu and kind in PLAIN


def row_matrix(
    edges: Sequence[GradientEdge | None],
    losses: Tensor,
    params: Params,
    places: Mapping[str, Place],
    shared: Sequence[str],
    others: Sequence[str],
    *,
    scale: Tensor | None = None,
    freed: Tensor | None = None,
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
        freed: the losses `[task]` with their graph, which the last pass frees.
    """
    every = tuple([places[name] for name in (*shared, *others)])
    leaves = [params[name] for name in shared]
    matrix = leaves[0].new_empty(len(edges), sum([leaf.numel() for leaf in leaves]))
    one, sums, nowhere = losses.new_ones(()), dict[str, Tensor](), [None] * len(every)
    last = max([task for task, edge in enumerate(edges) if edge is not None], default=None)
    for task, edge in enumerate(edges):
        cotangent = one if scale is None else scale[task]
        if edge is None:
            found = nowhere
        elif freed is not None and task == last:
            # Undefined gradients enter the other losses, for which nodes compute nothing: the pass
            # visits, and frees, the graph of all.
            nothing = undefined_grad()(freed)
            given = cotangent, nothing.detach()
            found = detached(run_backward((edge, nothing), given, every, keep=False))
        else:
            found = detached(run_backward(edge, cotangent, every))
        parts = zip(leaves, found, strict=False)
        row = [x.new_zeros(x.numel()) if grad is None else grad.flatten() for x, grad in parts]
        torch.cat(row, out=matrix[task])
        for name, grad in zip(others, found[len(leaves) :], strict=True):
            if grad is not None:
                sums[name] = sums[name] + grad if name in sums else grad
        del found, row  # the next pass takes their memory
    for name in others:
        if name not in sums:
            sums[name] = torch.zeros_like(params[name])
    return matrix, sums


def detached(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Without a graph: somebody's own backward may return a parameter."""
    return [x.detach() if x is not None and x.requires_grad else x for x in grads]


def times(share: float, grads: Params) -> Params:
    """Gradients of the other leaves by each task's weight on them."""
    if share == 1.0 or not grads:
        return grads
    return dict(zip(grads, times_each(list(grads.values()), share), strict=True))


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
