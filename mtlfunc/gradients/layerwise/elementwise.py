"""Nodes that add a parameter or multiply by it entry by entry: biases, norms, broadcasts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .uses import Operand, Reader, Unread, Use

Summand = Callable[[Tensor], Tensor]
"""From Δ [row, *shape of the output] to δ_p ∘ s_p, of the same shape."""


def broadcast(operand: Operand, op: str, summand: Summand, layout: tuple[str, ...] = ()) -> Use:
    """The leaf is broadcast to the output's shape.

    An axis of the output counts positions where the leaf has none, or has length 1 there and the
    output has not.
    """
    out, shape = operand.out, operand.shape
    offset = len(out) - len(shape)
    if offset < 0:
        raise Unread("its shape is not the output's")
    matched = [axis for axis in range(offset, len(out)) if shape[axis - offset] == out[axis]]
    axes = [axis for axis in range(len(out)) if axis not in matched]
    order = [1 + axis for axis in (*axes, *matched)]

    def varied(delta: Tensor) -> Tensor:
        moved = summand(delta).permute(0, *order)
        return moved.reshape(*moved.shape[: 1 + len(axes)], 1, 1, -1)

    def fold(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *shape)

    sizes = (1, 1, 1, math.prod(shape))
    return operand.use(op, "local", axes, sizes, None, varied, fold, layout)


def _same(delta: Tensor) -> Tensor:
    return delta


def _add(operand: Operand) -> Use:
    alpha = operand.node._saved_alpha if operand.at == 1 else 1
    return broadcast(operand, "add", _same if alpha == 1 else lambda delta: alpha * delta)


def _sub(operand: Operand) -> Use:
    alpha = operand.node._saved_alpha
    return broadcast(operand, "sub", _same if operand.at == 0 else lambda delta: -alpha * delta)


def _mul(operand: Operand) -> Use:
    other = operand.saved("other" if operand.at == 0 else "self")
    return broadcast(operand, "mul", lambda delta: delta * other)


def _div(operand: Operand) -> Use:
    other = operand.saved("other")
    return broadcast(operand, "div", lambda delta: delta / other)


def _expand(operand: Operand) -> Use:
    return broadcast(operand, "expand", _same)


def shift(operand: Operand, op: str, count: int, channel: int | None = None) -> Use:
    """An addition along the last `count` axes of the output, or its axis `channel`."""
    return _local(operand, op, _same, count, channel, ("shift",))


def _local(
    operand: Operand,
    op: str,
    summand: Summand,
    count: int,
    channel: int | None,
    layout: tuple[str, ...] = (),
) -> Use:
    """The leaf spans the last `count` axes of the output, or its axis `channel`, after which all
    axes are inner positions.
    """
    out, shape = operand.out, operand.shape
    axes = tuple(range(len(out) - count)) if channel is None else (0,)
    inner = 1 if channel is None else math.prod(out[2:])

    def varied(delta: Tensor) -> Tensor:
        summands = summand(delta)
        if channel is None:
            return summands.flatten(-count)[..., None, None, :]
        return summands.reshape(*summands.shape[:3], inner).mT[..., None, :]

    def fold(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *shape)

    sizes = (inner, 1, 1, math.prod(shape))
    return operand.use(op, "local", axes, sizes, None, varied, fold, layout)


def _layer_norm(operand: Operand) -> Use:
    count = len(operand.node._saved_normalized_shape)
    if operand.at == 2:
        return shift(operand, "layer_norm", count)
    x, rstd = operand.saved("input"), operand.saved("result2")
    return _local(
        operand, "layer_norm", lambda delta: delta * _standardised(x, rstd, count), count, None
    )


def _rms_norm(operand: Operand) -> Use:
    count = len(operand.node._saved_normalized_shape)
    x, rstd = operand.saved("input"), operand.saved("result1")
    return _local(
        operand,
        "rms_norm",
        lambda delta: delta * _standardised(x, rstd, count, centred=False),
        count,
        None,
    )


def _standardised(x: Tensor, rstd: Tensor, count: int, *, centred: bool = True) -> Tensor:
    """x less its mean over the last axes, times `rstd`.

    The node's own statistics are not differentiated by torch: they give no more than the number
    that it added to the variance.
    """
    dims, wide = list(range(-count, 0)), x.to(rstd.dtype)
    wide = wide - wide.mean(dims, keepdim=True) if centred else wide
    variance = wide.square().mean(dims, keepdim=True)
    least = (rstd.square().reciprocal() - variance).detach()
    return wide * (variance + least).rsqrt()


def _group_norm(operand: Operand) -> Use:
    node = operand.node
    if operand.at == 2:
        return shift(operand, "group_norm", 1, channel=1)
    x, groups, eps = operand.saved("input"), node._saved_group, node._saved_eps

    def summand(delta: Tensor) -> Tensor:
        return delta * F.group_norm(x, groups, None, None, eps)

    return _local(operand, "group_norm", summand, 1, 1)


def _batch_norm(operand: Operand) -> Use:
    node = operand.node
    if operand.at == 2:
        return shift(operand, "batch_norm", 1, channel=1)
    x, training = operand.saved("input"), node._saved_training
    mean, var = (None, None) if training else map(operand.saved, ("running_mean", "running_var"))
    eps = node._saved_epsilon if "Cudnn" in node.name() else node._saved_eps

    def summand(delta: Tensor) -> Tensor:
        return delta * F.batch_norm(x, mean, var, None, None, training, 0.0, eps)

    return _local(operand, "batch_norm", summand, 1, 1)


ELEMENTWISE: dict[str, Reader] = {
    "AddBackward0:0": _add,
    "AddBackward0:1": _add,
    "SubBackward0:0": _sub,
    "SubBackward0:1": _sub,
    "MulBackward0:0": _mul,
    "MulBackward0:1": _mul,
    "DivBackward0:0": _div,
    "ExpandBackward0:0": _expand,
    "NativeLayerNormBackward0:1": _layer_norm,
    "NativeLayerNormBackward0:2": _layer_norm,
    "FusedRmsNormBackward0:1": _rms_norm,
    "NativeGroupNormBackward0:1": _group_norm,
    "NativeGroupNormBackward0:2": _group_norm,
    "NativeBatchNormBackward0:1": _batch_norm,
    "NativeBatchNormBackward0:2": _batch_norm,
    "CudnnBatchNormBackward0:1": _batch_norm,
    "CudnnBatchNormBackward0:2": _batch_norm,
}
