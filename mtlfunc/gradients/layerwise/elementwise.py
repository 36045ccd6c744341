"""Nodes that add a parameter or multiply by it entry by entry: biases, norms, broadcasts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .uses import Operand, Unread, Use

Summand = Callable[[Tensor], Tensor]
"""From Δ [row, *shape of the output] to δ_p ∘ s_p, of the same shape."""


def broadcast(operand: Operand, op: str, summand: Summand) -> Use:
    """The leaf is broadcast to the output's shape.

    An axis of the output counts positions where the leaf has none, or has length 1 there alone.
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

    return operand.use(op, "local", axes, (1, 1, 1, math.prod(shape)), None, varied, operand.shaped)


def _same(delta: Tensor) -> Tensor:
    return delta


def add(operand: Operand) -> Use:
    alpha = operand.node._saved_alpha if operand.at == 1 else 1
    return broadcast(operand, "add", _same if alpha == 1 else lambda delta: alpha * delta)


def sub(operand: Operand) -> Use:
    alpha = operand.node._saved_alpha
    return broadcast(operand, "sub", _same if operand.at == 0 else lambda delta: -alpha * delta)


def mul(operand: Operand) -> Use:
    other = operand.saved("other" if operand.at == 0 else "self")
    return broadcast(operand, "mul", lambda delta: delta * other)


def div(operand: Operand) -> Use:
    other = operand.saved("other")
    return broadcast(operand, "div", lambda delta: delta / other)


def expand(operand: Operand) -> Use:
    return broadcast(operand, "expand", _same)


def shift(operand: Operand, op: str, count: int, channel: int | None = None) -> Use:
    """An addition along the last `count` axes of the output, or its axis `channel`."""
    return _local(operand, op, _same, count, channel, "shift")


def _local(
    operand: Operand, op: str, summand: Summand, count: int, channel: int | None, *layout: str
) -> Use:
    """The leaf spans the output's last `count` axes, or its `channel`, before inner positions."""
    out = operand.out
    axes = tuple(range(len(out) - count)) if channel is None else (0,)
    inner = 1 if channel is None else math.prod(out[2:])

    def varied(delta: Tensor) -> Tensor:
        summands = summand(delta)
        if channel is None:
            return summands.flatten(-count)[..., None, None, :]
        return summands.reshape(*summands.shape[:3], inner).mT[..., None, :]

    sizes = (inner, 1, 1, math.prod(operand.shape))
    return operand.use(op, "local", axes, sizes, None, varied, operand.shaped, layout)


def layer_norm(operand: Operand) -> Use:
    if operand.at == 2:
        return shift(operand, "layer_norm", len(operand.node._saved_normalized_shape))
    return _scale(operand, "layer_norm", "result2", centred=True)


def rms_norm(operand: Operand) -> Use:
    return _scale(operand, "rms_norm", "result1", centred=False)


def _scale(operand: Operand, op: str, deviation: str, *, centred: bool) -> Use:
    """δ times x less its mean over the last axes, times `rstd`.

    The node's own statistics are not differentiated by torch: they give no more than the number
    that it added to the variance.
    """
    x, rstd = operand.saved("input"), operand.saved(deviation)
    count = len(operand.node._saved_normalized_shape)

    def summand(delta: Tensor) -> Tensor:
        return delta * _normalized(x, rstd, list(range(-count, 0)), centred=centred)

    return _local(operand, op, summand, count, None)


def _normalized(x: Tensor, rstd: Tensor, dims: list[int], *, centred: bool) -> Tensor:
    wide = x.to(rstd.dtype)
    wide = wide - wide.mean(dims, keepdim=True) if centred else wide
    variance = wide.square().mean(dims, keepdim=True)
    least = (rstd.square().reciprocal() - variance).detach()
    return wide * (variance + least).rsqrt()


def group_norm(operand: Operand) -> Use:
    if operand.at == 2:
        return shift(operand, "group_norm", 1, channel=1)
    x, rstd, groups = operand.saved("input"), operand.saved("result2"), operand.node._saved_group

    def summand(delta: Tensor) -> Tensor:
        grouped = x.reshape(len(x), groups, -1)
        normal = _normalized(grouped, rstd.unsqueeze(-1), [-1], centred=True)
        return delta * normal.reshape(x.shape)

    return _local(operand, "group_norm", summand, 1, 1)


def batch_norm(operand: Operand) -> Use:
    node = operand.node
    if operand.at == 2:
        return shift(operand, "batch_norm", 1, channel=1)
    x, training = operand.saved("input"), node._saved_training
    mean, var = (None, None) if training else map(operand.saved, ("running_mean", "running_var"))
    eps = node._saved_epsilon if "Cudnn" in node.name() else node._saved_eps

    def summand(delta: Tensor) -> Tensor:
        return delta * F.batch_norm(x, mean, var, None, None, training, 0.0, eps)

    return _local(operand, "batch_norm", summand, 1, 1)
