"""Operations whose derivatives torch gets wrong: written out, or refused in words.

All without a word: docs/limits.md has them by version, as `docs/derivatives.py` finds them. Others
have no second derivative or no batched form. What networks contain is written out. The rest is
refused by the table below, which says what torch gets wrong and what to use, and left alone where
torch is right. Every spelling is caught: torch.nn.functional, torch, methods of tensors,
torch._C._nn, torch.ops.aten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.internals import compiler_tables, nn_functions
from ..core.transforms import constant_when_compiled, derivative_levels

Maybe = Tensor | None
Number = float | int


def is_batching_error(error: RuntimeError) -> bool:
    """Whether torch refused an operation under vmap (it has several ways to say so)."""
    words = (
        "vmap", "atching rule", "is not differentiable with respect to argument",
        "unsupported for Sparse", "at non-singleton dimension",
        "arguments from the 'Sparse",  # which are refused by name where they come one by one
    )  # fmt: skip
    return any(part in str(error) for part in words)


class SafeOps(TorchFunctionMode):
    """While active, every operation of the tables below is written out or refused."""

    def __enter__(self) -> TorchFunctionMode:
        if torch.compiler.is_compiling():
            _hand_over_table()
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WRITTEN:
            return WRITTEN[func](*args, **kwargs)
        if func is F.multi_head_attention_forward and not torch.compiler.is_compiling():
            # without its own hand-over to a watching mode, so that the attention inside comes here
            names = func.__globals__ | {"has_torch_function": lambda *_: False}
            inner = FunctionType(func.__code__, names, argdefs=func.__defaults__)
            with self:
                return inner(*args, **kwargs)
        return func(*args, **kwargs)


@constant_when_compiled
def _hand_over_table() -> None:
    """Let the compiler hand the whole table to modes: alone it hands over what torch lists as
    open to overriding, among which torch._weight_norm is not.
    """
    import_module(compiler_tables).get_overridable_functions().update(WRITTEN)


def _normalize(x: Tensor, axes: tuple[int, ...], eps: Number) -> tuple[Tensor, Tensor, Tensor]:
    """The output without a scale, the mean and the inverse standard deviation."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    rate = torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    return centred * rate, mean, rate


def _scale_shift(x: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Maybe = None, bias: Maybe = None,
    eps: Number = 1e-5, cudnn_enable: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, mean, rate = _normalize(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _scale_shift(out, weight, bias), mean.detach(), rate.detach()


def _layer_norm(*args: Any, **kwargs: Any) -> Tensor:
    return _native_layer_norm(*args, **kwargs)[0]


def _batch_norm(
    input: Tensor, running_mean: Maybe = None, running_var: Maybe = None, weight: Maybe = None,
    bias: Maybe = None, training: bool = False, momentum: Number = 0.1, eps: Number = 1e-5,
    norm: Callable[..., Tensor] = F.batch_norm,
) -> Tensor:  # fmt: skip
    if not training:
        return norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = (*((0,) if norm is F.batch_norm else ()), *range(2, input.ndim))
    one = math.prod([input.shape[i] for i in axes]) == 1
    if one or running_mean is not None or running_var is not None:
        with torch.no_grad():  # to refuse one value a channel, and to move the running statistics
            norm(input, running_mean, running_var, None, None, True, momentum, eps)
    shape = (-1, *(1,) * (input.ndim - 2))
    scale = [None if each is None else each.reshape(shape) for each in (weight, bias)]
    return _scale_shift(_normalize(input, axes, eps)[0], *scale)


def _instance_norm(
    input: Tensor, running_mean: Maybe = None, running_var: Maybe = None, weight: Maybe = None,
    bias: Maybe = None, use_input_stats: bool = True, *rest: Any, **named: Any,
) -> Tensor:  # fmt: skip
    given = running_mean, running_var, weight, bias, use_input_stats, *rest
    return _batch_norm(input, *given, **named, norm=F.instance_norm)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    axes = tuple(i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim)
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1 and (input.ndim < 2 or weight.numel() != input.shape[1]):
        return F.prelu(input, weight)  # refuses it
    shape = (-1, *(1,) * (input.ndim - 2)) if input.ndim > 1 else (1,) * input.ndim
    return torch.where(input > 0, input, weight.reshape(shape) * input)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Maybe = None, dropout_p: Number = 0.0,
    is_causal: bool = False, *, scale: Number | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # below it would be added as it is
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    scores = scores if attn_mask is None else scores + attn_mask
    dead = (scores == -torch.inf).all(-1, keepdim=True)  # of which torch makes zeros
    shares = scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)
    return torch.dropout(shares, dropout_p, True) @ value


def _cdist(x1: Tensor, x2: Tensor, p: Number = 2.0, compute_mode: Any = None) -> Tensor:
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)


FREQUENCIES = (
    "embedding: scale_grad_by_freq=True divides gradients by the counts of a whole call, so that a "
    "sample has none of its own, and second derivatives are wrong; leave it out, or take gradients "
    "of tasks under torch.no_grad() if nothing is differentiated again"
)


def _embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """The padding is a constant: torch's second derivatives take it for a parameter."""
    if scale_grad_by_freq:
        raise NotImplementedError(FREQUENCIES)
    out = F.embedding(input, weight, None, max_norm, norm_type, False, sparse)
    if padding_idx is None:
        return out
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), out.detach(), out)


def _embed(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:  # fmt: skip
    padding = None if padding_idx < 0 else padding_idx
    return _embedding(indices, weight, padding, None, 2.0, scale_grad_by_freq, sparse)


def _cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    eye = torch.eye(input.shape[-1], dtype=input.dtype, device=input.device)
    return _cholesky_solve(eye.expand_as(input), input, upper)


def _cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """Torch differentiates also by the unused triangle."""
    return torch.cholesky_solve(B, L.triu() if upper else L.tril(), upper)


When = Callable[..., bool] | None  # of an operation's arguments; None is always


def _refuse(function: Callable[..., Any], when: When, wrong: str, instead: str) -> Any:
    """`function`, with an error where torch differentiates it wrongly."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if when is None or when(*args, **kwargs):
            name = function.__name__
            raise NotImplementedError(f"{name}: torch's {wrong} are wrong; {instead}")
        return function(*args, **kwargs)

    return call


def _forward(*_: Any, **__: Any) -> bool:
    return torch.compiler.is_compiling() or derivative_levels()[1] > 0


def _solves_many(A: Tensor, B: Tensor, **_: Any) -> bool:
    """Whether batch axes broadcast, or the same."""
    lead = B.shape[: -1 if B.ndim == 1 or B.shape == A.shape[:-1] else -2]
    return A.shape[:-2] != lead or _forward()


def _by_number(input: Tensor, dim: int, index: Tensor, source: Maybe = None, **_: Any) -> bool:
    return index.ndim == 0 or (source is not None and source.ndim != input.ndim)


def _product_again(*args: Any, **kwargs: Any) -> bool:
    again = derivative_levels() not in ((0, 0), (1, 0))
    return again and kwargs.get("reduce", args[-1]) == "prod"


def _own_statistics(*args: Any, **kwargs: Any) -> bool:
    named = kwargs.get("training") or kwargs.get("use_input_stats")
    return bool(args[5] if len(args) > 5 else named)


def _every(names: str) -> list[Any]:
    """Every spelling of these operations of torch.ops.aten, whose arguments are torch's own."""
    found: list[Any] = []
    for name in names.split():
        found += [getattr(x, name) for x in (torch, Tensor, nn_functions) if hasattr(x, name)]
        packet, short = getattr(torch.ops.aten, name, None), name.removeprefix("linalg_")
        if packet is not None:
            found += [getattr(torch.linalg, short)] if short != name else []
            found += [packet, *(getattr(packet, x) for x in packet.overloads() if "out" not in x)]
    return found


_FORWARD = "derivatives of its forward mode", "differentiate in reverse, jacrev of jacrev"
_STATISTICS = "batched second derivatives by the scale, where statistics are the batch's own,"
_REFUSED: tuple[tuple[str, When, str, str], ...] = (
    ("batch_norm native_batch_norm", _own_statistics, _STATISTICS,
     "use torch.nn.functional.batch_norm"),
    ("instance_norm", _own_statistics, _STATISTICS, "use torch.nn.functional.instance_norm"),
    ("linalg_eig linalg_eigvals linalg_tensorsolve slogdet linalg_slogdet logdet "
     "linalg_householder_product orgqr", _forward, *_FORWARD),
    ("linalg_solve linalg_solve_ex", _solves_many,
     "derivatives where batch axes broadcast or forward mode enters",
     "use torch.linalg.inv(A) @ B"),
    ("lu_solve linalg_lu_solve", None, "batched derivatives", "use torch.linalg.inv(A) @ B"),
    ("det linalg_det", None, "third derivatives",
     "use sign * size.exp() of sign, size = torch.linalg.slogdet(A)"),
    ("logcumsumexp", None, "third derivatives",
     "use m + (x - m).exp().cumsum(dim).log() with m = x.detach().amax(dim, keepdim=True)"),
    ("pdist", None, "second derivatives",
     "use (x[i] - x[j]).norm(dim=-1) with i, j = torch.triu_indices(len(x), len(x), 1)"),
    ("as_strided_scatter", None, "derivatives by the input",
     "use slice_scatter, diagonal_scatter or index_put"),
    ("select_scatter", None, "batched derivatives",
     "use slice_scatter(input, src.unsqueeze(dim), dim, index, index + 1)"),
    ("index_fill", lambda input, dim, index, value: isinstance(value, Tensor),
     "batched derivatives by a tensor's value", "use torch.where with a mask"),
    ("index_select index_copy index_copy_ index_add index_add_", _by_number,
     "batched derivatives by an index or a source without the axis",
     "use index.reshape(1), and a source with the input's axes"),
    ("scatter_reduce scatter_reduce_ index_reduce index_reduce_", _product_again,
     "second derivatives and forward mode of products",
     "multiply with torch.prod over a dense table"),
)  # fmt: skip

_OURS = {
    "layer_norm": _layer_norm, "native_layer_norm": _native_layer_norm,
    "_weight_norm": _weight_norm, "prelu": _prelu, "scaled_dot_product_attention": _attention,
    "cdist": _cdist, "embedding": _embed, "cholesky_inverse": _cholesky_inverse,
    "cholesky_solve": _cholesky_solve,
}  # fmt: skip

WRITTEN: dict[Any, Callable[..., Any]] = {
    spelling: _refuse(spelling, when, wrong, instead)
    for names, when, wrong, instead in _REFUSED
    for spelling in _every(names)
}
WRITTEN |= {spelling: written for name, written in _OURS.items() for spelling in _every(name)}
WRITTEN |= {F.layer_norm: _layer_norm, F.batch_norm: _batch_norm}
WRITTEN |= {F.instance_norm: _instance_norm, F.embedding: _embedding}
"""Every spelling of an operation that is written out or refused, and how it is called then."""

ALWAYS = {*_every("cholesky_inverse cholesky_solve as_strided_scatter")}
"""Operations that torch gets wrong in a single plain pass, too."""
