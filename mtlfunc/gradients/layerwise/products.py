"""Nodes that multiply by a parameter, or look it up: products, convolutions, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import broadcast, shift
from .uses import Operand, Reader, Unread, Use, signed


def right(other: str, scale: str | None = None) -> Reader:
    """out[p, o] = Σ_a x[p, a] w[a, o], with the same leading axis everywhere or none."""

    def read(operand: Operand) -> Use:
        x, factor = operand.saved(other), _scale_of(operand, scale)
        *lead, a, o = operand.shape
        positions = operand.out[:-1]

        def fixed() -> Tensor:
            return x.movedim(0, 1)[:, None] if lead else x.reshape(*positions, 1, 1, a)

        def varied(delta: Tensor) -> Tensor:
            delta = delta if factor == 1 else factor * delta
            return delta.movedim(1, 2)[:, :, None] if lead else delta[..., None, None, :]

        def fold(rows: Tensor) -> Tensor:
            return rows.mT if lead else rows[:, 0].mT

        sizes = (1, lead[0] if lead else 1, a, o)
        op = "linear" if operand.views else "matmul"
        axes = (1,) if lead else range(len(positions))
        layout = operand.matrix(turned=True) or ("right",)
        return operand.use(op, "outer", axes, sizes, fixed, varied, fold, layout)

    return read


def left(other: str, scale: str | None = None) -> Reader:
    """out[o, p] = Σ_a w[o, a] x[a, p], with the same leading axis everywhere or none."""

    def read(operand: Operand) -> Use:
        operand = operand._replace(top=operand.node)
        x, factor = operand.saved(other), _scale_of(operand, scale)
        *lead, o, a = operand.shape

        def fixed() -> Tensor:
            return x.movedim(2, 0)[:, None] if lead else x.mT[:, None, None]

        def varied(delta: Tensor) -> Tensor:
            delta = delta if factor == 1 else factor * delta
            return delta.movedim(3, 1)[:, :, None] if lead else delta.mT[:, :, None, None]

        def fold(rows: Tensor) -> Tensor:
            return rows if lead else rows[:, 0]

        sizes = (1, lead[0] if lead else 1, a, o)
        axes, layout = (len(lead) + 1,), operand.matrix(turned=False) or ("left",)
        return operand.use("matmul", "outer", axes, sizes, fixed, varied, fold, layout)

    return read


def _scale_of(operand: Operand, name: str | None) -> float:
    return 1.0 if name is None else float(getattr(operand.node, f"_saved_{name}"))


def vector(operand: Operand) -> Use:
    """out[p] = Σ_a x[p, a] w[a]"""
    x = operand.saved("self")
    return operand.use(
        "matmul",
        "outer",
        (0,),
        (1, 1, operand.shape[0], 1),
        lambda: x[:, None, None],
        lambda delta: delta[..., None, None, None],
        lambda rows: rows[:, 0, 0],
        ("vector",),
    )


def added(operand: Operand) -> Use:
    """What a product of matrices is added to."""
    beta = operand.node._saved_beta
    if beta == operand.node._saved_alpha == 1 and operand.shape == operand.out[-1:]:
        return shift(operand, "linear", 1)
    operand = operand._replace(top=operand.node)
    return broadcast(operand, "add", lambda delta: beta * delta)


def convolution(operand: Operand) -> Use:
    return _transposed(operand) if operand.node._saved_transposed else _direct(operand)


def _direct(operand: Operand) -> Use:
    node, x, shape = operand.node, operand.saved("input"), operand.shape
    space, groups = len(shape) - 2, node._saved_groups
    geometry = _geometry(node, space)
    inner, a, o = math.prod(operand.out[2:]), math.prod(shape[1:]), shape[0] // groups

    def fixed() -> Tensor:
        return _windows(x, groups, shape[2:], *geometry)

    def varied(delta: Tensor) -> Tensor:
        return delta.reshape(*delta.shape[:2], groups, o, inner).permute(0, 1, 4, 2, 3)

    sizes, op = (inner, groups, a, o), f"conv{space}d"
    return operand.use(op, "outer", (0,), sizes, fixed, varied, operand.shaped, ("conv",))


def _transposed(operand: Operand) -> Use:
    node, x, shape = operand.node, operand.saved("input"), operand.shape
    space, groups = len(shape) - 2, node._saved_groups
    geometry = _geometry(node, space)
    inner, a, o = math.prod(x.shape[2:]), shape[0] // groups, math.prod(shape[1:])

    def fixed() -> Tensor:
        return x.reshape(len(x), groups, a, inner).permute(0, 3, 1, 2)

    def varied(delta: Tensor) -> Tensor:
        windows = _windows(delta.flatten(0, 1), groups, shape[2:], *geometry, keep=x.shape[2:])
        return windows.unflatten(0, delta.shape[:2])

    def fold(rows: Tensor) -> Tensor:
        return operand.shaped(rows.mT)

    sizes, op = (inner, groups, a, o), f"conv_transpose{space}d"
    return operand.use(op, "outer", (0,), sizes, fixed, varied, fold, ("transposed",))


def _geometry(node: Any, space: int) -> tuple[tuple[int, ...], ...]:
    """Stride, padding and dilation, a number an axis."""
    saved = map(tuple, (node._saved_stride, node._saved_padding, node._saved_dilation))
    return tuple(each * space if len(each) == 1 else each for each in saved)


def channels(operand: Operand) -> Use:
    """The bias of a convolution."""
    name = "conv_transpose" if operand.node._saved_transposed else "conv"
    space = len(operand.out) - 2
    return shift(operand, f"{name}{space}d", 1, channel=1)


def embedding(operand: Operand) -> Use:
    node, indices = operand.node, operand.saved("indices")
    if node._saved_scale_grad_by_freq or node._saved_sparse:
        raise Unread("an embedding with sparse gradients, or scaled by frequency, reads it")
    skipped = signed(node._saved_padding_idx)  # -1 is none

    def varied(delta: Tensor) -> Tensor:
        kept = delta
        if skipped >= 0:
            kept = torch.where((indices == skipped)[..., None], 0.0, delta)
        return kept[..., None, None, :]

    return _look_up(operand, "embedding", indices, varied)


def index(operand: Operand) -> Use:
    """Rows picked by one tensor of indices along the first axis."""
    first, *rest = operand.several("indices")
    counts = first is not None and first.dtype in (torch.int64, torch.int32)  # bytes are a mask
    if first is None or not counts or any(x is not None for x in rest):
        raise Unread("an index along other axes than the first, or a mask, reads it")
    return _picked(operand, first)


def index_select(operand: Operand) -> Use:
    if operand.node._saved_dim % len(operand.shape):
        raise Unread("an index along another axis than the first reads it")
    return _picked(operand, operand.saved("index"))


def _picked(operand: Operand, indices: Tensor) -> Use:
    if len(operand.shape) < 2:
        raise Unread("an index into a vector reads it")
    indices = indices % operand.shape[0]

    def varied(delta: Tensor) -> Tensor:
        return delta.flatten(1 + indices.ndim)[..., None, None, :]

    return _look_up(operand, "index", indices, varied)


def _look_up(operand: Operand, op: str, indices: Tensor, varied: Callable[[Tensor], Tensor]) -> Use:
    count, *rest = operand.shape

    def fold(rows: Tensor) -> Tensor:
        return operand.shaped(rows[:, 0].mT)

    axes, sizes = range(indices.ndim), (1, 1, count, math.prod(rest))
    return operand.use(op, "lookup", axes, sizes, lambda: indices, varied, fold)


def _windows(
    x: Tensor, groups: int, kernel: Any, stride: Any, padding: Any, dilation: Any, keep: Any = None
) -> Tensor:
    """The windows of a convolution: [N, C, *space] to [N, position, group, channel and entry]."""
    pads = [n for each in reversed(padding) for n in (each, each)]
    x = F.pad(x, pads) if any(pads) else x
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        if keep is not None:
            x = x.narrow(axis, 0, keep[axis - 2])
    space = len(kernel)
    # Copied with the positions last: one entry of neighbouring windows also lies together in x.
    inner, outer = range(2 + space, 2 + 2 * space), range(2, 2 + space)
    entries, places = x.shape[1] // groups * math.prod(kernel), math.prod(x.shape[2 : 2 + space])
    windows = x.permute(0, 1, *inner, *outer).reshape(len(x), groups, entries, places)
    return windows.permute(0, 3, 1, 2)
