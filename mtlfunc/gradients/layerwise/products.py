"""Calls that multiply by a parameter, or look it up: products, convolutions, embeddings; and cuts.

Each reader has the signature of the call that it reads, after the known parts and the call's
output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Part, Parts, UnknownCall, Use, use_of
from .elementwise import add, shift


def _linear(
    parts: Parts, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Iterator[Use]:
    if (part := parts.part(weight)) is not None and weight.ndim == 2:
        yield _product(part, "linear", out, input)
    if (
        bias is not None
        and bias.shape == out.shape[-1:]
        and (part := parts.local_part(bias)) is not None
    ):
        yield shift(part, "linear", out, 1)


def _matmul(parts: Parts, out: Tensor, input: Tensor, other: Tensor) -> Iterator[Use]:
    part = parts.part(other)
    if part is None or parts.part(input) is not None or other.ndim != 2:
        raise UnknownCall
    yield _product(part._replace(transposed=not part.transposed), "matmul", out, input)


def _addmm(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Iterator[Use]:
    if beta != 1 or alpha != 1:
        raise UnknownCall
    if parts.part(mat2) is not None:
        yield from _matmul(parts, out, mat1, mat2)
    if parts.local_part(input) is not None:
        yield from add(parts, out, input, mat1)


class _Letters(NamedTuple):
    """The letters of an einsum of a leaf with another tensor, by what they count."""

    mine: str  # all of the leaf's
    group: list[str]  # in both operands and the output
    a: list[str]  # in both operands, summed
    o: list[str]  # in the leaf and the output
    position: list[str]  # in the other operand and the output
    other: str
    after: str


def _letters(equation: str, leaf_first: bool) -> _Letters:
    before, after = equation.replace(" ", "").split("->")
    first, second = before.split(",")
    mine, other = (first, second) if leaf_first else (second, first)
    if (
        any(len(set(s)) < len(s) for s in (mine, other, after))
        or not set(mine) <= set(other + after)
        or not set(other) <= set(mine + after)
    ):
        raise UnknownCall
    return _Letters(
        mine,
        [s for s in mine if s in other and s in after],
        [s for s in mine if s in other and s not in after],
        [s for s in mine if s not in other],
        [s for s in after if s not in mine],
        other,
        after,
    )


def _einsum(parts: Parts, out: Tensor, equation: Any, *operands: Any) -> Iterator[Use]:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        raise UnknownCall
    which = [parts.part(x) is not None for x in operands]
    if "." in equation or "->" not in equation or sum(which) != 1:
        raise UnknownCall
    leaf, x = operands if which[0] else operands[::-1]
    part = parts.part(leaf)
    assert part is not None
    mine, group, a, o, position, other, after = _letters(equation, which[0])
    size = dict(zip(other + after, (*x.shape, *out.shape), strict=True))
    every = zip(mine + other + after, (*leaf.shape, *x.shape, *out.shape), strict=True)
    # a letter of length 1 that was broadcast
    if part.transposed or any(size[s] != length for s, length in every):
        raise UnknownCall
    sizes = [math.prod(size[s] for s in some) for some in (group, a, o)]
    read = [other.index(s) for s in (*position, *group, *a)]
    written = [1 + after.index(s) for s in (*position, *group, *o)]
    order, places = [*group, *o, *a], [size[s] for s in position]

    def fixed() -> Tensor:
        return x.to(out.dtype).permute(read).reshape(*places, 1, sizes[0], sizes[1])

    def varied(delta: Tensor) -> Tensor:
        return delta.permute(0, *written).reshape(len(delta), *places, 1, sizes[0], sizes[2])

    def fold(rows: Tensor) -> Tensor:
        unfolded = rows.reshape(len(rows), *(size[s] for s in order))
        return unfolded.permute(0, *(1 + order.index(s) for s in mine))

    axes = tuple(after.index(s) for s in position)
    turned = tuple(mine.index(s) for s in order)
    yield use_of(part, "einsum", "outer", out, (x,), axes, (1, *sizes), fixed, varied, fold, turned)


def _conv(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Iterator[Use]:
    space = weight.ndim - 2
    if input.ndim != weight.ndim:
        raise UnknownCall
    kernel, channels = weight.shape[2:], weight.shape[0]
    stride, dilation = _as_tuple(stride, space), _as_tuple(dilation, space)
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
        ]
        before, after = [n // 2 for n in total], [n - n // 2 for n in total]
    else:
        before = after = _as_tuple(padding, space)
    if (part := parts.part(weight)) is not None and not part.transposed:
        inner, a, o = math.prod(out.shape[2:]), math.prod(weight.shape[1:]), channels // groups

        def fixed() -> Tensor:
            return _windows(input.to(out.dtype), groups, kernel, stride, before, after, dilation)

        def varied(delta: Tensor) -> Tensor:
            return delta.reshape(*delta.shape[:2], groups, o, inner).permute(0, 1, 4, 2, 3)

        yield use_of(
            part,
            f"conv{space}d",
            "outer",
            out,
            (input,),
            (0,),
            (inner, groups, a, o),
            fixed,
            varied,
            lambda rows: rows.reshape(len(rows), *weight.shape),
        )
    if (part := parts.local_part(bias)) is not None:
        yield shift(part, f"conv{space}d", out, 1, channel=1)


def _conv_transpose(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Iterator[Use]:
    space = weight.ndim - 2
    if input.ndim != weight.ndim:
        raise UnknownCall
    kernel = weight.shape[2:]
    stride, dilation, pad = (
        _as_tuple(stride, space),
        _as_tuple(dilation, space),
        _as_tuple(padding, space),
    )
    if (part := parts.part(weight)) is not None and not part.transposed:
        inner, a, o = math.prod(input.shape[2:]), len(weight) // groups, math.prod(weight.shape[1:])

        def fixed() -> Tensor:
            return input.to(out.dtype).reshape(len(input), groups, a, inner).permute(0, 3, 1, 2)

        def varied(delta: Tensor) -> Tensor:
            return _windows(
                delta.flatten(0, 1), groups, kernel, stride, pad, pad, dilation, input.shape[2:]
            ).unflatten(0, delta.shape[:2])

        yield use_of(
            part,
            f"conv_transpose{space}d",
            "outer",
            out,
            (input,),
            (0,),
            (inner, groups, a, o),
            fixed,
            varied,
            lambda rows: rows.mT.reshape(len(rows), *weight.shape),
        )
    if (part := parts.local_part(bias)) is not None:
        yield shift(part, f"conv_transpose{space}d", out, 1, channel=1)


def _embedding(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Iterator[Use]:
    part = parts.part(weight)
    if part is None or part.transposed or max_norm is not None or scale_grad_by_freq or sparse:
        raise UnknownCall
    skipped = None if padding_idx is None else padding_idx % len(weight)

    def varied(delta: Tensor) -> Tensor:
        kept = delta if skipped is None else torch.where((input == skipped)[..., None], 0.0, delta)
        return kept[..., None, None, :]

    axes = tuple(range(out.ndim - 1))
    yield use_of(
        part,
        "embedding",
        "lookup",
        out,
        (input,),
        axes,
        (1, 1, *weight.shape),
        lambda: input,
        varied,
        lambda rows: rows[:, 0].mT,
    )


def _transpose(parts: Parts, out: Tensor, input: Tensor, *dims: int) -> Iterator[Use]:
    part = parts.part(input)
    if part is not None and input.ndim == 2 and (not dims or {d % 2 for d in dims} == {0, 1}):
        parts.cut(out, part._replace(transposed=not part.transposed))
    yield from ()


def _split(
    parts: Parts, out: Any, tensor: Tensor, split_size_or_sections: Any, dim: int = 0
) -> Iterator[Use]:
    part = parts.part(tensor)
    if part is not None and part == Part(part.leaf) and dim % tensor.ndim == 0:
        start = 0
        for piece in out:
            parts.cut(piece, Part(part.leaf, (start, start + len(piece))))
            start += len(piece)
    yield from ()


def _product(part: Part, op: str, out: Tensor, x: Tensor) -> Use:
    """x @ Wᵀ."""
    axes = tuple(range(out.ndim - 1))
    sizes = 1, 1, x.shape[-1], out.shape[-1]

    def fold(rows: Tensor) -> Tensor:
        return rows[:, 0].mT if part.transposed else rows[:, 0]

    def fixed() -> Tensor:
        return x.to(out.dtype)[..., None, None, :]

    return use_of(
        part,
        op,
        "outer",
        out,
        (x,),
        axes,
        sizes,
        fixed,
        lambda delta: delta[..., None, None, :],
        fold,
        (part.transposed,),
        "product",
    )


def _as_tuple(value: Any, count: int) -> tuple[int, ...]:
    return (
        (value,) * count
        if isinstance(value, int)
        else tuple(value) * (count if len(value) == 1 else 1)
    )


def _windows(
    x: Tensor,
    groups: int,
    kernel: Any,
    stride: Any,
    before: Any,
    after: Any,
    dilation: Any,
    keep: Any = None,
) -> Tensor:
    """Every window that a convolution sees: [N, C, *space] to [N, position, group, channel and
    entry of the window].
    """
    pads = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
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


_aten: Any = torch.ops.aten
_CALLS: tuple[tuple[Callable[..., Iterator[Use]], tuple[Any, ...]], ...] = (
    (_linear, (F.linear, _aten.linear)),
    (_matmul, (torch.matmul, Tensor.matmul, _aten.matmul, torch.mm, Tensor.mm, _aten.mm)),
    (_addmm, (torch.addmm, Tensor.addmm, _aten.addmm)),
    (_einsum, (torch.einsum, _aten.einsum)),
    (_embedding, (F.embedding,)),  # torch.embedding takes the weight first
    (_transpose, (torch.t, Tensor.t, torch.transpose, Tensor.transpose)),
    (_transpose, (Tensor.T.__get__, Tensor.mT.__get__)),  # pyright: ignore
    (_split, (torch.split, Tensor.split, torch.chunk, Tensor.chunk)),
    (_conv, (F.conv1d, F.conv2d, F.conv3d, _aten.conv1d, _aten.conv2d, _aten.conv3d)),
    (_conv_transpose, (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)),
)

PRODUCTS = {call: reader for reader, calls in _CALLS for call in calls}
"""By the function itself: another of the same name is another function."""
