"""Calls that add a parameter or multiply by it entry by entry: biases, norms, broadcasts.

Each reader has the signature of the call that it reads, after the known parts and the call's
output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Part, Parts, UnknownCall, Use, use_of


def _layer_norm(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Use]:
    count = len(normalized_shape)
    if (part := parts.part(weight)) is not None:
        yield _scale(
            part,
            "layer_norm",
            out,
            input,
            lambda: F.layer_norm(input, normalized_shape, None, None, eps),
            count,
        )
    if (part := parts.local_part(bias)) is not None:
        yield shift(part, "layer_norm", out, count)


def _rms_norm(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Iterator[Use]:
    if (part := parts.part(weight)) is not None:
        yield _scale(
            part,
            "rms_norm",
            out,
            input,
            lambda: F.rms_norm(input, normalized_shape, None, eps),
            len(normalized_shape),
        )


def _group_norm(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Use]:
    if (part := parts.part(weight)) is not None:
        yield _scale(
            part,
            "group_norm",
            out,
            input,
            lambda: F.group_norm(input, num_groups, None, None, eps),
            1,
            channel=1,
        )
    if (part := parts.local_part(bias)) is not None:
        yield shift(part, "group_norm", out, 1, channel=1)


def _batch_norm(
    parts: Parts,
    out: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Iterator[Use]:
    if (part := parts.part(weight)) is not None:
        frozen = not training and running_mean is not None and running_var is not None
        mean, var = (running_mean, running_var) if frozen else (None, None)

        def normalized() -> Tensor:
            return F.batch_norm(input, mean, var, None, None, not frozen, momentum, eps)

        use = _scale(part, "batch_norm", out, input, normalized, 1, channel=1)
        yield use._replace(
            inputs=use.inputs + tuple((x, x._version) for x in (mean, var) if x is not None)
        )
    if (part := parts.local_part(bias)) is not None:
        yield shift(part, "batch_norm", out, 1, channel=1)


def add(parts: Parts, out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Iterator[Use]:
    yield from _broadcast_calls(
        parts,
        "add",
        out,
        (input, other),
        lambda delta, i: delta if i == 0 or alpha == 1 else alpha * delta,
        (),
    )


def _sub(parts: Parts, out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Iterator[Use]:
    yield from _broadcast_calls(
        parts, "sub", out, (input, other), lambda delta, i: delta if i == 0 else -alpha * delta, ()
    )


def _mul(parts: Parts, out: Tensor, input: Any, other: Any) -> Iterator[Use]:
    both = (input, other)
    yield from _broadcast_calls(
        parts,
        "mul",
        out,
        both,
        lambda delta, i: delta * both[1 - i],
        tuple(x for x in both if isinstance(x, Tensor)),
    )


def shift(part: Part, op: str, out: Tensor, count: int, channel: int | None = None) -> Use:
    return _local_call(part, op, out, (), lambda delta: delta, count, channel, ("shift",))


def _scale(
    part: Part,
    op: str,
    out: Tensor,
    x: Tensor,
    normalized: Callable[[], Tensor],
    count: int,
    channel: int | None = None,
) -> Use:
    return _local_call(part, op, out, (x,), lambda delta: delta * normalized(), count, channel)


def _local_call(
    part: Part,
    op: str,
    out: Tensor,
    inputs: tuple[Tensor, ...],
    summand: Callable[[Tensor], Tensor],
    count: int,
    channel: int | None,
    layout: tuple[str, ...] = (),
) -> Use:
    """The leaf spans the last `count` axes of the output, or its axis `channel`, after which all
    axes are inner positions.
    """
    if part.transposed:
        raise UnknownCall
    shape = out.shape[out.ndim - count :] if channel is None else out.shape[channel : channel + 1]
    size = math.prod(shape)
    axes = tuple(range(out.ndim - count)) if channel is None else (0,)
    inner = 1 if channel is None else math.prod(out.shape[2:])

    def varied(delta: Tensor) -> Tensor:
        summands = summand(delta)
        if channel is None:
            return summands.reshape(*summands.shape[: summands.ndim - count], 1, 1, size)
        return summands.reshape(*summands.shape[:3], inner).mT[..., None, :]

    return use_of(
        part,
        op,
        "local",
        out,
        inputs,
        axes,
        (inner, 1, 1, size),
        None,
        varied,
        lambda rows: rows.reshape(len(rows), *shape),
        layout,
    )


def _broadcast_calls(
    parts: Parts,
    op: str,
    out: Any,
    operands: tuple[Any, Any],
    summand: Callable[[Tensor, int], Tensor],
    inputs: tuple[Tensor, ...],
) -> Iterator[Use]:
    for i, leaf in enumerate(operands):
        part, other = parts.part(leaf), operands[1 - i]
        if part is None:
            continue
        if part.transposed or parts.part(other) is not None or not isinstance(out, Tensor):
            raise UnknownCall
        # An axis of the output counts positions where the leaf has none, or has length 1 there and
        # the output has not.
        offset = out.ndim - leaf.ndim
        matched = [
            axis for axis in range(offset, out.ndim) if leaf.shape[axis - offset] == out.shape[axis]
        ]
        axes = tuple(axis for axis in range(out.ndim) if axis not in matched)
        shape = leaf.shape

        def varied(
            delta: Tensor, i: int = i, axes: tuple[int, ...] = axes, matched: list[int] = matched
        ) -> Tensor:
            moved = summand(delta, i).permute(0, *(1 + axis for axis in (*axes, *matched)))
            return moved.reshape(*moved.shape[: 1 + len(axes)], 1, 1, -1)

        def fold(rows: Tensor, shape: torch.Size = shape) -> Tensor:
            return rows.reshape(len(rows), *shape)

        others = tuple(x for x in inputs if x is not leaf)
        yield use_of(
            part, op, "local", out, others, axes, (1, 1, 1, leaf.numel()), None, varied, fold
        )


_CALLS: tuple[tuple[Callable[..., Iterator[Use]], tuple[Any, ...]], ...] = (
    (_layer_norm, (F.layer_norm, torch.layer_norm)),
    (_rms_norm, (F.rms_norm, torch.rms_norm)),
    (_group_norm, (F.group_norm, torch.group_norm)),
    (_batch_norm, (F.batch_norm,)),  # torch.batch_norm takes the scale first
    (add, (torch.add, Tensor.add)),
    (_sub, (torch.sub, Tensor.sub)),
    (_mul, (torch.mul, Tensor.mul)),
)

ELEMENTWISE = {call: reader for reader, calls in _CALLS for call in calls}
