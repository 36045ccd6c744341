"""Compiled kernels as operators of torch: one call for a whole `vmap`, nested ones included.

An operator lies below autograd and takes detached tensors only, so that no transform can take a
wrong derivative from it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def leading_shape(inputs: Iterable[tuple[Tensor | None, int]]) -> torch.Size:
    """The batch axes of tensors of given ranks, broadcast; None has none."""
    shapes = [x.shape[: x.ndim - rank] for x, rank in inputs if x is not None]
    longest = max(shapes, key=len)
    same = all(shape == longest or not shape for shape in shapes)
    return longest if same else torch.broadcast_shapes(*shapes)


def flatten_batch(x: Tensor, lead: torch.Size, rank: int) -> Tensor:
    """One batch axis of length 1, where all problems share x, or of the whole batch."""
    core = x.shape[x.ndim - rank :]
    if x.numel() == core.numel():
        return x.detach().reshape(1, *core)
    return x.detach().expand(*lead, *core).reshape(lead.numel(), *core)


def register_batching(library: torch.library.Library, name: str, ranks: Sequence[int]) -> None:
    """Let `vmap` hand a whole batch to the operator `mtlfunc::name`.

    Args:
        library: where the operator is defined.
        name: of the operator; its answers have the batch axes first.
        ranks: of its first arguments, tensors or None, without batch axes; other arguments are
            passed on as they are.
    """

    def batched(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        inputs = list(zip(arguments, in_dims, ranks, strict=False))
        depth = max(x.ndim - rank - (dim is not None) for x, dim, rank in inputs if x is not None)

        def front(x: Tensor, dim: int | None, rank: int) -> Tensor:
            moved = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
            filled = (1,) * (depth + 1 + rank - moved.ndim)
            return moved.reshape(len(moved), *filled, *moved.shape[1:])

        tensors = [None if x is None else front(x, dim, rank) for x, dim, rank in inputs]
        answers = getattr(torch.ops.mtlfunc, name)(*tensors, *arguments[len(ranks) :])
        return answers, (0,) * len(answers)

    torch.library.register_vmap(f"mtlfunc::{name}", batched, lib=library)
