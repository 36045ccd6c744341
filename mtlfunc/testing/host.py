"""NumPy functions inside torch: opaque to derivatives, and a loop over the batch under `vmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.operators import flatten_batch, leading_shape


def call_numpy(
    name: str, f: Callable[..., tuple[np.ndarray, ...]], ranks: Sequence[int], *tensors: Tensor
) -> tuple[Tensor, ...]:
    """The answers of a NumPy function of one problem, for one problem or a batch under `vmap`.

    Args:
        name: what errors call it.
        f: takes float64 arrays and returns several, of the same shapes and dtypes for each problem.
        ranks: of the tensors, without batch axes.
        *tensors: what `f` is given.

    Returns:
        tensors on the device of the first one. A derivative through them raises RuntimeError.
    """
    return _Call.apply(name, f, ranks, *tensors)  # pyright: ignore[reportReturnType]


class _Call(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(
        name: str, f: Callable[..., tuple[np.ndarray, ...]], ranks: Sequence[int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = list(zip(tensors, ranks, strict=True))
        lead = leading_shape(inputs)
        flat = (flatten_batch(x.to("cpu", torch.float64), lead, rank) for x, rank in inputs)
        arrays = [x.expand(lead.numel(), *x.shape[1:]).numpy() for x in flat]
        answers = (torch.from_numpy(np.stack(x)) for x in zip(*map(f, *arrays), strict=True))
        return tuple(x.reshape((*lead, *x.shape[1:])).to(tensors[0].device) for x in answers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name = inputs[0]
        ctx.mark_non_differentiable(*(x for x in output if x.dtype == torch.bool))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        name, f, ranks, *tensors = args
        moved = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims[3:], strict=True)
        ]
        answers = call_numpy(name, f, ranks, *moved)
        return answers, (0,) * len(answers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{ctx.name} has no derivative here; detach its inputs")

    jvp = backward
