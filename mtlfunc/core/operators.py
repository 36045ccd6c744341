"""Kernels and loops as operators of torch: one call for a whole `vmap`, nested ones included.

An operator lies below autograd and takes detached tensors: no transform can derive it wrongly.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .transforms import inside_transform

_LIBRARY = torch.library.Library("mtlfunc", "DEF")


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


def define(
    schema: str,
    kernel: Callable[..., Any],
    ranks: Sequence[int],
    empty: Callable[..., tuple[Tensor, ...]] | None = None,
    devices: Sequence[str] = ("CPU", "CUDA"),
) -> Callable[..., Any]:
    """Make the operator `torch.ops.mtlfunc.NAME`, to which `vmap` hands a whole batch; return what
    calls it, or the kernel itself where no transform is active and nothing compiles.

    Args:
        schema, kernel: its name, arguments and answers, batch axes first; and what it does.
        ranks: of its first arguments, tensors or None, without batch axes. `vmap` gives each tensor
            all batch axes, of length 1 where it is shared; other arguments come as they are.
        empty: for compilers, answers without values, from the batch axes and the arguments.
        devices: where it runs.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    operator = getattr(torch.ops.mtlfunc, name)
    for device in devices:
        _LIBRARY.impl(name, kernel, device)

    def batched(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        inputs = list(zip(arguments, in_dims, ranks, strict=False))
        depth = max(x.ndim - rank - (dim is not None) for x, dim, rank in inputs if x is not None)

        def front(x: Tensor, dim: int | None, rank: int) -> Tensor:
            moved = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
            filled = (1,) * (depth + 1 + rank - moved.ndim)
            return moved.reshape(len(moved), *filled, *moved.shape[1:])

        tensors = [None if x is None else front(x, dim, rank) for x, dim, rank in inputs]
        answers = operator(*tensors, *arguments[len(ranks) :])
        return answers, (0,) * len(answers)

    torch.library.register_vmap(f"mtlfunc::{name}", batched, lib=_LIBRARY)
    if empty is not None:

        def fake(*arguments: Any) -> tuple[Tensor, ...]:
            return empty(leading_shape(zip(arguments, ranks, strict=False)), *arguments)

        torch.library.register_fake(f"mtlfunc::{name}", fake, lib=_LIBRARY)

    def call(*arguments: Any) -> Any:
        direct = not torch.compiler.is_compiling() and not inside_transform()
        return (kernel if direct else operator)(*arguments)

    return call
