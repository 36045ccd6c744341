"""Taps: which calls of one forward pass consumed which parameters, and what a layer's row is made
of.

The gradient of a weight is a sum over positions p (samples, pixels, tokens) of inputs times deltas,
δ = ∂L/∂(the call's output):

    outer    row = Σ_p  δ_p ⊗ x_p           linear, convolutions, matmul, einsum lookup   row = Σ_p
    δ_p ⊗ onehot(i_p)   embedding local    row = Σ_p  δ_p ∘ s_p           biases, scales and shifts
    of norms, broadcast sums and products

A `Tapped` mode watches the forward pass of any stateless `losses_fn` and notes, for each such call,
its input and the place of its output in the autograd graph (before anything can change that output
in place). The deltas are then derivatives at these places, and no weight's own gradient is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from ...core.checks import depth
from ...types import Params
from ..safe_ops import looked_into

Kind = Literal["outer", "lookup", "local"]


class Part(NamedTuple):
    """A leaf, or the rows start…stop of one that was split; `transposed` where the call saw it so."""

    leaf: str
    span: tuple[int, int] | None = None
    transposed: bool = False


class Use(NamedTuple):
    """One call that consumed (a part of) a leaf."""

    part: Part
    op: str
    kind: Kind
    edge: GradientEdge  # of the call's output
    shape: torch.Size  # of the call's output
    dtype: torch.dtype
    # what the row is computed from, with its version when the call read it
    inputs: tuple[tuple[Tensor, int], ...]
    # axes of the output that count positions; a sample is one entry of one of them
    axes: tuple[int, ...]
    sizes: tuple[int, int, int, int]  # inner positions, groups, a, o
    fixed: Callable[[], Tensor]  # outer: x [*axes, inner, group, a]; lookup: indices [*axes]
    # Δ [row, *shape] -> [row, *axes, inner, group, o]; local: the summands [row, *axes, inner, 1,
    # leaf]
    varied: Callable[[Tensor], Tensor]
    # rows [row, group, o, a] -> [row, *shape of the part]; a = 1 for local
    fold: Callable[[Tensor], Tensor]
    layout: tuple[Any, ...]  # two outer or lookup uses with equal layout and sizes fold alike
    stops: frozenset[Any] = frozenset()  # nodes of the call's other inputs

    @property
    def intact(self) -> bool:
        """Whether nothing has been written into the inputs since the call."""
        return all(tensor._version == version for tensor, version in self.inputs)


class Tapped(TorchFunctionMode):
    """While active, notes in `uses` every call that it understands and that consumes one of
    `leaves`; without `local`, no biases, scales and shifts.
    """

    def __init__(self, leaves: Params, *, local: bool = True) -> None:
        super().__init__()
        self.ops = _OPS if local else _PRODUCTS
        self.local = local
        self.uses: list[Use] = []
        self.parts = {id(leaf): Part(name) for name, leaf in leaves.items()}
        # whether some activation's derivative passes a hook, which may do anything to it
        self.hooked = False
        # parts that were cut: an id is a name only while its tensor lives
        self.alive: list[Tensor] = []
        self.depth = depth()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # losses_fn is compiled inside: nothing of it is seen, and its leaves are differentiated row
        # by row
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:  # it calls F.linear inside, which must be seen
                return looked_into(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":  # W.T, W.mT
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        self.hooked = self.hooked or name == "register_hook"
        reader = self.ops.get(name)
        if reader is None:
            return out
        leaves, stops = [], []
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                part = self.parts.get(id(x))
                if part is not None:
                    leaves.append(part.leaf)
                elif x.grad_fn is not None:
                    stops.append(x.grad_fn)
        # One call's two ways to a leaf cannot be told apart in the graph; a vmap inside losses_fn
        # has tensors of its own.
        if 0 < len(leaves) == len(set(leaves)) and self.depth == depth():
            # TypeError: another spelling of the arguments
            with suppress(_NotUnderstood, TypeError):
                self.uses.extend(
                    use._replace(stops=frozenset(stops))
                    for use in reader(self, out, *args, **kwargs)
                )
        return out

    def part(self, x: Any) -> Part | None:
        return self.parts.get(id(x)) if isinstance(x, Tensor) else None

    def local_part(self, x: Any) -> Part | None:
        return self.part(x) if self.local else None

    def by_leaf(self) -> dict[str, list[Use]]:
        found: dict[str, list[Use]] = {}
        for use in self.uses:
            found.setdefault(use.part.leaf, []).append(use)
        return found

    def cuts_of(self, leaf: str) -> list[Tensor]:
        return [tensor for tensor in self.alive if self.parts[id(tensor)].leaf == leaf]

    def cut(self, tensor: Tensor, part: Part) -> None:
        self.parts[id(tensor)] = part
        self.alive.append(tensor)


class _NotUnderstood(Exception):
    """This form of the call is left to ordinary differentiation."""


# Each of the functions below has the signature of the call that it reads, after the mode and the
# call's output.


def _linear(
    taps: Tapped, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Iterator[Use]:
    if (part := taps.part(weight)) is not None and weight.ndim == 2:
        yield _product(part, "linear", out, input)
    if (
        bias is not None
        and bias.shape == out.shape[-1:]
        and (part := taps.local_part(bias)) is not None
    ):
        yield _shift(part, "linear", out, 1)


def _matmul(taps: Tapped, out: Tensor, input: Tensor, other: Tensor) -> Iterator[Use]:
    part = taps.part(other)
    if part is None or taps.part(input) is not None or other.ndim != 2:
        raise _NotUnderstood
    yield _product(part._replace(transposed=not part.transposed), "matmul", out, input)


def _addmm(
    taps: Tapped,
    out: Tensor,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Iterator[Use]:
    if beta != 1 or alpha != 1:
        raise _NotUnderstood
    if taps.part(mat2) is not None:
        yield from _matmul(taps, out, mat1, mat2)
    if taps.local_part(input) is not None:
        yield from _add(taps, out, input, mat1)


def _einsum(taps: Tapped, out: Tensor, equation: Any, *operands: Any) -> Iterator[Use]:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if (
        not isinstance(equation, str)
        or len(operands) != 2
        or "." in equation
        or "->" not in equation
    ):
        raise _NotUnderstood
    names, after = equation.replace(" ", "").split("->")
    letters = names.split(",")
    which = [taps.part(x) is not None for x in operands]
    if sum(which) != 1:
        raise _NotUnderstood
    mine, other = letters[which.index(True)], letters[which.index(False)]
    part, x = taps.part(operands[which.index(True)]), operands[which.index(False)]
    assert part is not None
    if (
        any(len(set(s)) < len(s) for s in (mine, other, after))
        or not set(mine) <= set(other + after)
        or not set(other) <= set(mine + after)
        or part.transposed
    ):
        raise _NotUnderstood
    group, a = (
        [s for s in mine if s in other and s in after],
        [s for s in mine if s in other and s not in after],
    )
    o, position = [s for s in mine if s not in other], [s for s in after if s not in mine]
    size = dict(zip(other + after, (*x.shape, *out.shape), strict=True))
    every = [
        *zip(mine, operands[which.index(True)].shape, strict=True),
        *zip(other, x.shape, strict=True),
        *zip(after, out.shape, strict=True),
    ]
    if any(size[s] != length for s, length in every):  # a letter of length 1 that was broadcast
        raise _NotUnderstood
    sizes = [math.prod(size[s] for s in some) for some in (group, a, o)]
    dims = [
        [other.index(s) for s in (*position, *group, *a)],
        [1 + after.index(s) for s in (*position, *group, *o)],
    ]
    order = [*group, *o, *a]

    def fixed() -> Tensor:
        return (
            x.to(out.dtype)
            .permute(dims[0])
            .reshape(*(size[s] for s in position), 1, sizes[0], sizes[1])
        )

    def varied(delta: Tensor) -> Tensor:
        return delta.permute(0, *dims[1]).reshape(
            len(delta), *(size[s] for s in position), 1, sizes[0], sizes[2]
        )

    def fold(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *(size[s] for s in order)).permute(
            0, *(1 + order.index(s) for s in mine)
        )

    axes = tuple(after.index(s) for s in position)
    turned = tuple(mine.index(s) for s in order)
    yield _use(part, "einsum", "outer", out, (x,), axes, (1, *sizes), fixed, varied, fold, turned)


def _conv(
    taps: Tapped,
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
        raise _NotUnderstood
    kernel, channels = weight.shape[2:], weight.shape[0]
    stride, dilation = _each(stride, space), _each(dilation, space)
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
        ]
        before, after = [n // 2 for n in total], [n - n // 2 for n in total]
    else:
        before = after = _each(padding, space)
    if (part := taps.part(weight)) is not None and not part.transposed:
        inner, a, o = math.prod(out.shape[2:]), math.prod(weight.shape[1:]), channels // groups

        def fixed() -> Tensor:
            return _windows(input.to(out.dtype), groups, kernel, stride, before, after, dilation)

        def varied(delta: Tensor) -> Tensor:
            return delta.reshape(*delta.shape[:2], groups, o, inner).permute(0, 1, 4, 2, 3)

        yield _use(
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
    if (part := taps.local_part(bias)) is not None:
        yield _shift(part, f"conv{space}d", out, 1, channel=1)


def _conv_transpose(
    taps: Tapped,
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
        raise _NotUnderstood
    kernel = weight.shape[2:]
    stride, dilation, pad = _each(stride, space), _each(dilation, space), _each(padding, space)
    if (part := taps.part(weight)) is not None and not part.transposed:
        inner, a, o = math.prod(input.shape[2:]), len(weight) // groups, math.prod(weight.shape[1:])

        def fixed() -> Tensor:
            return input.to(out.dtype).reshape(len(input), groups, a, inner).permute(0, 3, 1, 2)

        def varied(delta: Tensor) -> Tensor:
            return _windows(
                delta.flatten(0, 1), groups, kernel, stride, pad, pad, dilation, input.shape[2:]
            ).unflatten(0, delta.shape[:2])

        yield _use(
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
    if (part := taps.local_part(bias)) is not None:
        yield _shift(part, f"conv_transpose{space}d", out, 1, channel=1)


def _embedding(
    taps: Tapped,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Iterator[Use]:
    part = taps.part(weight)
    if part is None or part.transposed or max_norm is not None or scale_grad_by_freq or sparse:
        raise _NotUnderstood
    skipped = None if padding_idx is None else padding_idx % len(weight)

    def varied(delta: Tensor) -> Tensor:
        kept = delta if skipped is None else torch.where((input == skipped)[..., None], 0.0, delta)
        return kept[..., None, None, :]

    axes = tuple(range(out.ndim - 1))
    yield _use(
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


def _layer_norm(
    taps: Tapped,
    out: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Use]:
    count = len(normalized_shape)
    if (part := taps.part(weight)) is not None:
        yield _scale(
            part,
            "layer_norm",
            out,
            input,
            lambda: F.layer_norm(input, normalized_shape, None, None, eps),
            count,
        )
    if (part := taps.local_part(bias)) is not None:
        yield _shift(part, "layer_norm", out, count)


def _rms_norm(
    taps: Tapped,
    out: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Iterator[Use]:
    if (part := taps.part(weight)) is not None:
        yield _scale(
            part,
            "rms_norm",
            out,
            input,
            lambda: F.rms_norm(input, normalized_shape, None, eps),
            len(normalized_shape),
        )


def _group_norm(
    taps: Tapped,
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Use]:
    if (part := taps.part(weight)) is not None:
        yield _scale(
            part,
            "group_norm",
            out,
            input,
            lambda: F.group_norm(input, num_groups, None, None, eps),
            1,
            channel=1,
        )
    if (part := taps.local_part(bias)) is not None:
        yield _shift(part, "group_norm", out, 1, channel=1)


def _batch_norm(
    taps: Tapped,
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
    if (part := taps.part(weight)) is not None:
        frozen = not training and running_mean is not None and running_var is not None
        mean, var = (running_mean, running_var) if frozen else (None, None)

        def normalized() -> Tensor:
            return F.batch_norm(input, mean, var, None, None, not frozen, momentum, eps)

        use = _scale(part, "batch_norm", out, input, normalized, 1, channel=1)
        yield use._replace(
            inputs=use.inputs + tuple((x, x._version) for x in (mean, var) if x is not None)
        )
    if (part := taps.local_part(bias)) is not None:
        yield _shift(part, "batch_norm", out, 1, channel=1)


def _add(taps: Tapped, out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Iterator[Use]:
    yield from _broadcast(
        taps,
        "add",
        out,
        (input, other),
        lambda delta, i: delta if i == 0 or alpha == 1 else alpha * delta,
        (),
    )


def _sub(taps: Tapped, out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Iterator[Use]:
    yield from _broadcast(
        taps, "sub", out, (input, other), lambda delta, i: delta if i == 0 else -alpha * delta, ()
    )


def _mul(taps: Tapped, out: Tensor, input: Any, other: Any) -> Iterator[Use]:
    both = (input, other)
    yield from _broadcast(
        taps,
        "mul",
        out,
        both,
        lambda delta, i: delta * both[1 - i],
        tuple(x for x in both if isinstance(x, Tensor)),
    )


def _transpose(taps: Tapped, out: Tensor, input: Tensor, *dims: int) -> Iterator[Use]:
    part = taps.part(input)
    if part is not None and input.ndim == 2 and (not dims or {d % 2 for d in dims} == {0, 1}):
        taps.cut(out, part._replace(transposed=not part.transposed))
    yield from ()


def _split(
    taps: Tapped, out: Any, tensor: Tensor, split_size_or_sections: Any, dim: int = 0
) -> Iterator[Use]:
    part = taps.part(tensor)
    if part is not None and part == Part(part.leaf) and dim % tensor.ndim == 0:
        start = 0
        for piece in out:
            taps.cut(piece, Part(part.leaf, (start, start + len(piece))))
            start += len(piece)
    yield from ()


_PRODUCTS: dict[str, Callable[..., Iterator[Use]]] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
    "embedding": _embedding,
    "t": _transpose,
    "T": _transpose,
    "mT": _transpose,
    "transpose": _transpose,
    "split": _split,
    "chunk": _split,
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv_transpose for n in (1, 2, 3)},
}
_OPS = _PRODUCTS | {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
}


def _use(
    part: Part,
    op: str,
    kind: Kind,
    out: Tensor,
    inputs: tuple[Tensor, ...],
    axes: Any,
    sizes: Any,
    fixed: Any,
    varied: Any,
    fold: Any,
    layout: Any = (),
    alike: str = "",
) -> Use:
    """`alike`: the operation's name in its layout, where several operations fold alike."""
    # computed under no_grad: no derivative passes here
    if not isinstance(out, Tensor) or out.grad_fn is None:
        raise _NotUnderstood
    if not out.is_floating_point() or any(
        x.layout != torch.strided or x.is_complex() or x.is_inference() for x in (out, *inputs)
    ):
        raise _NotUnderstood
    read = tuple((x, x._version) for x in inputs)
    return Use(
        part,
        op,
        kind,
        GradientEdge(out.grad_fn, out.output_nr),
        out.shape,
        out.dtype,
        read,
        axes,
        sizes,
        fixed,
        varied,
        fold,
        (kind, alike or op, *layout),
    )


def _product(part: Part, op: str, out: Tensor, x: Tensor) -> Use:
    """x @ Wᵀ."""
    axes = tuple(range(out.ndim - 1))
    sizes = 1, 1, x.shape[-1], out.shape[-1]

    def fold(rows: Tensor) -> Tensor:
        return rows[:, 0].mT if part.transposed else rows[:, 0]

    def fixed() -> Tensor:
        return x.to(out.dtype)[..., None, None, :]

    return _use(
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


def _shift(part: Part, op: str, out: Tensor, count: int, channel: int | None = None) -> Use:
    return _local(part, op, out, (), lambda delta: delta, count, channel, ("shift",))


def _scale(
    part: Part,
    op: str,
    out: Tensor,
    x: Tensor,
    normalized: Callable[[], Tensor],
    count: int,
    channel: int | None = None,
) -> Use:
    return _local(part, op, out, (x,), lambda delta: delta * normalized(), count, channel)


def _local(
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
        raise _NotUnderstood
    shape = out.shape[out.ndim - count :] if channel is None else out.shape[channel : channel + 1]
    size = math.prod(shape)
    axes = tuple(range(out.ndim - count)) if channel is None else (0,)
    inner = 1 if channel is None else math.prod(out.shape[2:])

    def varied(delta: Tensor) -> Tensor:
        summands = summand(delta)
        if channel is None:
            return summands.reshape(*summands.shape[: summands.ndim - count], 1, 1, size)
        return summands.reshape(*summands.shape[:3], inner).mT[..., None, :]

    return _use(
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


def _broadcast(
    taps: Tapped,
    op: str,
    out: Any,
    operands: tuple[Any, Any],
    summand: Callable[[Tensor, int], Tensor],
    inputs: tuple[Tensor, ...],
) -> Iterator[Use]:
    for i, leaf in enumerate(operands):
        part, other = taps.part(leaf), operands[1 - i]
        if part is None:
            continue
        if part.transposed or taps.part(other) is not None or not isinstance(out, Tensor):
            raise _NotUnderstood
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
        yield _use(
            part, op, "local", out, others, axes, (1, 1, 1, leaf.numel()), None, varied, fold
        )


def _each(value: Any, count: int) -> tuple[int, ...]:
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
    windows = x.flatten(2 + space).flatten(2, 1 + space).unflatten(1, (groups, -1))
    return windows.permute(0, 3, 1, 2, 4).flatten(3)
