"""Operations whose derivatives torch gets wrong: written out, or refused in words.

All without a word (torch 2.13). The batched backward of a fused layer, instance or train-mode batch
norm takes the statistics for constants where the gradient of the scale is differentiated again;
their third derivatives are also wrong unbatched. Second derivatives of weight norm are wrong, and
batched backwards of prelu, cdist and select_scatter, and of index_copy by one number. A batched
solve mixes up batch axes that broadcast, a batched index_select by a 0-d index takes everything. A
batched index_fill into a constant writes every value into one. What solves, and determinants, have
wrong derivatives of their forward mode, and wrong Hessians in a batch. An embedding's second
derivatives forget its padding and its frequencies. Single passes of cholesky_inverse
and cholesky_solve give the unused triangle a gradient, if it is not 0. Others have no second
derivative or no batched form at all. What networks contain is written out; the rest is refused
where torch would be wrong, and left alone elsewhere. Every spelling is caught: torch.nn.functional,
torch, methods of tensors, torch._C._nn, torch.ops.aten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core._torch import compiler_tables, nn_functions
from ..core.checks import constant_when_compiled, derivative_levels

Maybe = Tensor | None
Number = float | int


def is_batching_error(error: RuntimeError) -> bool:
    """Whether torch refused an operation under vmap (it has several ways to say so)."""
    message = str(error)
    # sparse gradients are refused by name where they come one by one
    sparse = "arguments from the 'Sparse"
    words = (
        "vmap", "atching rule", "is not differentiable with respect to argument", sparse,
        "unsupported for Sparse", "at non-singleton dimension",
    )  # fmt: skip
    return any(part in message for part in words)


class SafeOps(TorchFunctionMode):
    """While active, every operation of the tables below is written out or refused."""

    def __enter__(self) -> TorchFunctionMode:
        if torch.compiler.is_compiling():
            _hand_over_table()
        return super().__enter__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        written = WRITTEN.get(func)
        if written is not None:
            return written(*args, **kwargs)
        if func is F.multi_head_attention_forward and not torch.compiler.is_compiling():
            with self:  # the attention inside
                return unwrap_override(func)(*args, **kwargs)
        return func(*args, **kwargs)


@constant_when_compiled
def _hand_over_table() -> None:
    """Let the compiler hand the whole table to modes: alone it hands over what torch lists as
    open to overriding, among which torch._weight_norm and F.hardsigmoid are not.
    """
    import_module(compiler_tables).get_overridable_functions().update(WRITTEN)


@cache
def unwrap_override(func: FunctionType) -> FunctionType:
    """`func` without its own hand-over to a watching mode, so that the calls inside reach it."""
    body = FunctionType(
        func.__code__,
        func.__globals__ | {"has_torch_function": lambda *_: False},
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body


# --- norms --------------------------------------------------------------------------------------


def _normalize(x: Tensor, axes: tuple[int, ...], eps: Number) -> tuple[Tensor, Tensor, Tensor]:
    """The output without a scale, the mean and the inverse standard deviation."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    rate = torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    return centred * rate, mean, rate


def _scale_shift(x: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _scale_channels(x: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
    shape = (-1, *(1,) * (x.ndim - 2))
    return _scale_shift(
        x,
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Maybe = None, bias: Maybe = None,
    eps: Number = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, mean, rate = _normalize(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _scale_shift(out, weight, bias), mean.detach(), rate.detach()


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Maybe = None, bias: Maybe = None,
    eps: Number = 1e-5, cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    return _native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def _batch_norm(
    input: Tensor, running_mean: Maybe, running_var: Maybe, weight: Maybe = None,
    bias: Maybe = None, training: bool = False, momentum: Number = 0.1, eps: Number = 1e-5,
) -> Tensor:  # fmt: skip
    stats = (running_mean, running_var)
    if not training:
        return F.batch_norm(input, *stats, weight, bias, training, momentum, eps)
    if input.numel() == input.shape[1] or any(x is not None for x in stats):
        with torch.no_grad():  # to refuse one value a channel, and to move the running statistics
            F.batch_norm(input, *stats, None, None, True, momentum, eps)
    out, _, _ = _normalize(input, (0, *range(2, input.ndim)), eps)
    return _scale_channels(out, weight, bias)


def _instance_norm(
    input: Tensor, running_mean: Maybe = None, running_var: Maybe = None, weight: Maybe = None,
    bias: Maybe = None, use_input_stats: bool = True, momentum: Number = 0.1, eps: Number = 1e-5,
) -> Tensor:  # fmt: skip
    stats = (running_mean, running_var)
    if not use_input_stats:
        return F.instance_norm(input, *stats, weight, bias, False, momentum, eps)
    if math.prod(input.shape[2:]) == 1 or any(x is not None for x in stats):
        with torch.no_grad():
            F.instance_norm(input, *stats, None, None, True, momentum, eps)
    out, _, _ = _normalize(input, tuple(range(2, input.ndim)), eps)
    return _scale_channels(out, weight, bias)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    axes = tuple(i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim)
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


# --- activations, layers and losses -------------------------------------------------------------


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1 and (input.ndim < 2 or weight.numel() != input.shape[1]):
        return F.prelu(input, weight)  # refuses it
    shape = (-1, *(1,) * (input.ndim - 2)) if input.ndim > 1 else (1,) * input.ndim
    return torch.where(input > 0, input, weight.reshape(shape) * input)


def _rrelu(
    input: Tensor, lower: Number = 1 / 8, upper: Number = 1 / 3, training: bool = False,
    inplace: bool = False,
) -> Tensor:  # fmt: skip
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input.add_(3), inplace=True).div_(6) if inplace else F.relu6(input + 3) / 6


def _hardsigmoid_(input: Tensor) -> Tensor:
    return _hardsigmoid(input, inplace=True)


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


def _gaussian_nll(
    input: Tensor, target: Tensor, var: Tensor | Number, full: bool = False, eps: Number = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """A negative variance, which torch refuses, gives NaN: it cannot be looked at."""
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.shape == input.shape[:-1] != input.shape:
        var = var.unsqueeze(-1)
    var = var.where(var >= 0, float("nan"))
    var = var + (var.clamp_min(eps) - var).detach()
    loss = 0.5 * (var.log() + (input - target).square() / var)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def _cdist(x1: Tensor, x2: Tensor, p: Number = 2.0, compute_mode: Any = None) -> Tensor:
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)


def _pdist(input: Tensor, p: Number = 2.0) -> Tensor:
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return torch.linalg.vector_norm(input[i] - input[j], ord=p, dim=-1)


def _pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: Number = 0.0,
    padding_side: str = "right",
) -> Tensor:  # fmt: skip
    longest = max(map(len, sequences))
    padded = []
    for x in sequences:
        missing = longest - len(x)
        ends = (0, missing) if padding_side == "right" else (missing, 0)
        padded.append(F.pad(x, (*(0, 0) * (x.ndim - 1), *ends), value=padding_value))
    return torch.stack(padded, 0 if batch_first else 1)


def _embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """The padding is a constant: torch's second derivatives take it for a parameter."""
    if scale_grad_by_freq:
        raise NotImplementedError(
            "embedding: torch's second derivatives with scale_grad_by_freq=True are wrong, since "
            "what it makes is no derivative; leave it out, or call under torch.no_grad() if "
            "nothing is differentiated again"
        )
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


# --- linear algebra and indexing ----------------------------------------------------------------


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """By triangles."""
    if B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]):
        return _solve(A, B.unsqueeze(-1)).squeeze(-1)
    if not left:
        return _solve(A.mT, B.mT).mT
    P, L, U = torch.lu_unpack(*torch.linalg.lu_factor(A))
    inner = torch.linalg.solve_triangular(L, P.mT @ B, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(U, inner, upper=True)


def _solve_ex(
    A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor]:
    info = torch.linalg.solve_ex(A.detach(), B.detach(), left=left, check_errors=check_errors)[1]
    found = _solve(A, B, left=left), info
    return torch.return_types.linalg_solve_ex(found)  # pyright: ignore[reportAttributeAccessIssue]


def _tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    if dims is not None:
        A = A.movedim(tuple(dims), tuple(range(A.ndim - len(dims), A.ndim)))
    return _solve(A.reshape(B.numel(), -1), B.flatten()).reshape(A.shape[B.ndim :])


def _slogdet(A: Tensor) -> tuple[Tensor, Tensor]:
    """Of the triangle's diagonal, right in forward mode too."""
    diagonal = torch.linalg.lu_factor(A)[0].diagonal(dim1=-2, dim2=-1)
    sign = torch.linalg.slogdet(A.detach())[0]
    if A.is_complex():
        turn = (diagonal / diagonal.abs()).prod(-1)
        sign = turn * (sign / turn).detach()
    found = sign, diagonal.abs().log().sum(-1)
    return torch.return_types.linalg_slogdet(found)  # pyright: ignore[reportAttributeAccessIssue]


def _logdet(input: Tensor) -> Tensor:
    sign, size = _slogdet(input)
    return sign.log() + size


def _det(A: Tensor) -> Tensor:
    sign, size = _slogdet(A)
    return sign * size.exp()


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """Torch's third derivatives are wrong."""
    if not input.ndim:
        return input.clone()
    x = input.movedim(dim, -1)
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    return x.unsqueeze(-2).masked_fill(later, -torch.inf).logsumexp(-1).movedim(-1, dim)


def _householder_product(input: Tensor, tau: Tensor) -> Tensor:
    rows, columns = input.shape[-2:]
    eye = torch.eye(rows, dtype=input.dtype, device=input.device)
    vectors, out = input.tril(-1) + eye[:, :columns], eye
    for v, factor in zip(vectors.unbind(-1), tau.unbind(-1), strict=False):
        out = out - factor[..., None, None] * (out @ v[..., None]) @ v.conj()[..., None, :]
    return out[..., :columns]


def _cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    eye = torch.eye(input.shape[-1], dtype=input.dtype, device=input.device)
    return _cholesky_solve(eye.expand_as(input), input, upper)


def _cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """Torch differentiates also by the unused triangle."""
    return torch.cholesky_solve(B, L.triu() if upper else L.tril(), upper)


def _select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    input.select(dim, index)  # refuses what is outside
    index = index % input.shape[dim]
    return torch.slice_scatter(input, src.unsqueeze(dim), dim, index, index + 1)


def _index_fill(input: Tensor, dim: int, index: Tensor, value: Tensor | Number) -> Tensor:
    """A batched value makes the input batched: torch writes every value into one otherwise."""
    if isinstance(value, Tensor):
        input = torch.where(torch.ones_like(input, dtype=torch.bool), input, value)
    return torch.index_fill(input, dim, index, value)


def _index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    return torch.index_select(input, dim, index.reshape(-1))


def _index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    source = source if source.ndim == input.ndim else source.reshape(1)
    return torch.index_copy(input, dim, index.reshape(-1), source)


def _index_copy_(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    source = source if source.ndim == input.ndim else source.reshape(1)
    return input.index_copy_(dim, index.reshape(-1), source)


def _index_add(
    input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number = 1
) -> Tensor:
    return torch.index_add(input, dim, index.reshape(-1), source, alpha=alpha)


def _index_add_(
    input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number = 1
) -> Tensor:
    return input.index_add_(dim, index.reshape(-1), source, alpha=alpha)


# --- what is refused ----------------------------------------------------------------------------


def _refuse(
    name: str, wrong: str, instead: str, function: Callable[..., Any], when: Callable[..., bool]
) -> Callable[..., Any]:
    """`function`, with an error where torch differentiates it wrongly: `when(*args, **kwargs)`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise NotImplementedError(f"{name}: torch's {wrong} are wrong; {instead}")
        return function(*args, **kwargs)

    return call


def _always(*_: Any, **__: Any) -> bool:
    return True


def _is_forward_inside(*_: Any, **__: Any) -> bool:
    """Whether forward mode may be inside another derivative than the passes' own."""
    return derivative_levels()[1] > 0 and sum(derivative_levels()) > 2


def _product_again(*args: Any, **kwargs: Any) -> bool:
    return kwargs.get("reduce", args[-1]) == "prod" and derivative_levels() > (1, 0)


def _own_statistics(
    input: Tensor, weight: Maybe, bias: Maybe, running_mean: Maybe, running_var: Maybe,
    training: bool = False, *_: Any, use_input_stats: bool = False, **__: Any,
) -> bool:  # fmt: skip
    return training or use_input_stats


def _every(*names: str) -> tuple[Any, ...]:
    """Every spelling of these operations of torch.ops.aten, whose arguments are torch's own."""
    found: list[Any] = []
    for name in names:
        packet, short = getattr(torch.ops.aten, name, None), name.removeprefix("linalg_")
        places = [x for x in (torch, Tensor, nn_functions) if hasattr(x, name)]
        found += [getattr(place, name) for place in places]
        if packet is None:
            continue
        overloads = [getattr(packet, each) for each in packet.overloads() if "out" not in each]
        found += [getattr(torch.linalg, short)] if short != name else []
        found += [packet, *overloads]
    return tuple(found)


_WRITTEN: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
    (_layer_norm, (F.layer_norm, *_every("layer_norm"))),
    (_native_layer_norm, _every("native_layer_norm")),
    (_batch_norm, (F.batch_norm,)),
    (_instance_norm, (F.instance_norm,)),
    (_weight_norm, _every("_weight_norm")),
    (_prelu, _every("prelu")),
    (_rrelu, (F.rrelu, *_every("rrelu"))),
    (_hardsigmoid, (F.hardsigmoid, *_every("hardsigmoid"))),
    (_hardsigmoid_, _every("hardsigmoid_")),
    (_attention, (F.scaled_dot_product_attention, *_every("scaled_dot_product_attention"))),
    (_gaussian_nll, (F.gaussian_nll_loss,)),
    (_cdist, _every("cdist")),
    (_pdist, _every("pdist")),
    (_pad_sequence, _every("pad_sequence")),
    (_solve, _every("linalg_solve")),
    (_solve_ex, _every("linalg_solve_ex")),
    (_tensorsolve, _every("linalg_tensorsolve")),
    (_slogdet, _every("slogdet", "linalg_slogdet")),
    (_logdet, _every("logdet")),
    (_det, _every("det", "linalg_det")),
    (_logcumsumexp, _every("logcumsumexp")),
    (_householder_product, _every("linalg_householder_product", "orgqr")),
    (_embedding, (F.embedding,)),
    (_embed, _every("embedding")),
    (_cholesky_inverse, _every("cholesky_inverse")),
    (_cholesky_solve, _every("cholesky_solve")),
    (_select_scatter, _every("select_scatter")),
    (_index_fill, _every("index_fill")),
    (_index_select, _every("index_select")),
    (_index_copy, _every("index_copy")),
    (_index_copy_, _every("index_copy_")),
    (_index_add, _every("index_add")),
    (_index_add_, _every("index_add_")),
)

_SCALE = "batched second derivatives by the scale, where statistics are the batch's own,"
_REFUSED: tuple[tuple[Callable[..., bool], tuple[Any, ...], str, str], ...] = (
    (
        *(_own_statistics, _every("batch_norm", "native_batch_norm")),
        *(_SCALE, "use torch.nn.functional.batch_norm"),
    ),
    (_own_statistics, _every("instance_norm"), _SCALE, "use torch.nn.functional.instance_norm"),
    (
        *(_is_forward_inside, _every("linalg_eig", "linalg_eigvals")),
        *("derivatives of its forward mode", "differentiate in reverse, jacrev of jacrev"),
    ),
    (
        *(_always, _every("lu_solve", "linalg_lu_solve")),
        *("batched derivatives", "use torch.linalg.solve"),
    ),
    (
        *(_always, _every("as_strided_scatter")),
        *("second derivatives", "use slice_scatter, diagonal_scatter or index_put"),
    ),
    (
        _product_again,
        _every("scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_"),
        *("second derivatives of products", "multiply with torch.prod over a dense table"),
    ),
)

WRITTEN: dict[Any, Callable[..., Any]] = {
    spelling: written for written, spellings in _WRITTEN for spelling in spellings
}
WRITTEN |= {
    spelling: _refuse(spelling.__name__, wrong, instead, WRITTEN.get(spelling) or spelling, when)
    for when, spellings, wrong, instead in _REFUSED
    for spelling in spellings
}
"""Every spelling of an operation that is written out or refused, and how it is called then."""

ALWAYS = {f for f, written in WRITTEN.items() if written in (_cholesky_inverse, _cholesky_solve)}
"""Operations that torch gets wrong in a single plain pass, too."""
