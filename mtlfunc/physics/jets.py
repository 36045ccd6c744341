"""Derivatives of a network in its inputs, by one forward pass that pushes Taylor coefficients.

A jet holds the value of every point and P - 1 further coefficients. A linear layer reads all of
them as P positions of a sample, `[n, P, width]`. So whatever reads inputs and deltas
(`mtlfunc.sample_gramian`, `mtlfunc.sample_norms`) finds one ordinary linear layer, where nested
derivatives use each weight many times.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode, resolve_name

from ..core._torch import tree_leaves
from ..core.checks import check_params
from ..types import Laplacian, Params

Network = nn.Module | Callable[[Params, Any], Any]
"""A module, called with other parameters, or a function `(params, x)`; from x [n, d] to [n, *out],
row i from row i alone.
"""


def laplacian(f: Network, params: Params, x: Float[Tensor, "n d"]) -> Laplacian:
    """u, ∂u/∂x and Δu = Σ_i ∂²u/∂x_i² at every point, from one forward pass of d + 2 positions.

    The second derivatives are summed in every layer: one position holds Δ, not d of them.

    Args:
        f: a module, or a function `(params, x)`, of linear layers, functions of single entries
            (tanh, sin, cos, exp, log, sigmoid, softplus, silu, gelu, erf, powers; without a kink),
            sums, products, quotients, `cat`, slices and reshapes. Row i of its output depends on
            row i of x alone.
        params: `{name: tensor}`, as `mtlfunc.parameters(module)` gives.
        x: the points `[n, d]`.

    Returns:
        value `[n, *out]`, gradient `[n, *out, d]` and laplacian `[n, *out]`. All can be
        differentiated in `params`, any number of times, and mapped by `vmap`.

    Raises:
        NotImplementedError: for another operation on what depends on x; it is named.
        ValueError: for points that are not a floating matrix; for operations that mix points; for
            an output that does not depend on x; for ReLU and its like, which are not differentiable
            twice.

    Source:
        the forward Laplacian of Li et al. 2023 (arXiv:2307.08214).

    Examples:
        >>> import torch, mtlfunc as mf
        >>> f = lambda params, x: params["a"] * (x * x).sum(1)
        >>> mf.physics.laplacian(f, {"a": torch.tensor(2.0)}, torch.ones(1, 3)).laplacian.tolist()
        [12.0]
    """
    x = _points(params, x)
    rest = torch.ones_like(x).diag_embed(), torch.zeros_like(x)[:, None]
    value, gradient, second = _push(f, params, x, rest, _collapsed)
    return Laplacian(value[:, 0], gradient.movedim(1, -1), 2 * second[:, 0])


def directional(
    f: Network,
    params: Params,
    x: Float[Tensor, "n d"],
    direction: Float[Tensor, "*n d"],
    order: int,
) -> tuple[Float[Tensor, " n *out"], ...]:
    """u and its derivatives along a line, ∂ᵏ/∂tᵏ u(x + t·direction) at t = 0 for k = 1…order, from
    one forward pass of order + 1 positions.

    Args:
        f: as in `laplacian`; where order is 1 it may have kinks, as relu has.
        params: `{name: tensor}`.
        x: the points `[n, d]`.
        direction: `[d]`, the same for every point, or `[n, d]`.
        order: 1, 2 or 3.

    Returns:
        order + 1 tensors `[n, *out]`, the value first. All can be differentiated in `params`.

    Raises:
        NotImplementedError: as in `laplacian`.
        ValueError: as in `laplacian`; for another order, or a direction of another shape.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> f = lambda params, x: params["a"] * x[:, 0] ** 3 * x[:, 1]
        >>> points, along = torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 0.0])
        >>> u = mf.physics.directional(f, {"a": torch.tensor(1.0)}, points, along, 3)
        >>> [derivative.item() for derivative in u]
        [8.0, 12.0, 12.0, 6.0]
    """
    x = _points(params, x)
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, got {order!r}")
    if not isinstance(direction, Tensor) or direction.shape not in (x.shape, x.shape[1:]):
        shape = list(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise ValueError(
            f"direction: expected a tensor of shape {list(x.shape[1:])} or {list(x.shape)}, as "
            f"the points have, got {shape}"
        )
    zero = torch.zeros_like(x)[:, None]
    rest = (direction.to(x).expand_as(x)[:, None], *[zero] * (order - 1))
    found = _push(f, params, x, rest, _along_line)
    return tuple(math.factorial(k) * c[:, 0] for k, c in enumerate(found))


def _points(params: Params, x: Any) -> Tensor:
    check_params(params)
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point() or not len(x):
        found = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected floating points [n, d] with n > 0, got {found}")
    return x


Blocks = Sequence[Tensor]
"""Taylor coefficients but for the value: blocks [n, k, ...] of k positions, one block an order. The
product of two of them starts one order later, so that of more factors than orders nothing is left.
"""
Product = Callable[[Blocks, Blocks], Blocks]


def _collapsed(a: Blocks, b: Blocks) -> Blocks:
    """Of d tangents and Δ/2: Δ(uv)/2 has Σ_i ∂_i u ∂_i v."""
    return [(a[0] * b[0]).sum(1, keepdim=True)]


def _along_line(a: Blocks, b: Blocks) -> Blocks:
    """Of coefficients of t, t², …: Σ_{i+j=k} a_i b_j."""
    return [
        functools.reduce(torch.add, [a[i] * b[k - i] for i in range(k + 1)])
        for k in range(len(a) - 1)
    ]


def _push(f: Network, params: Params, x: Tensor, rest: Blocks, product: Product) -> Blocks:
    """The blocks of f's output, the value's [n, 1, ...] first."""
    jet = Jet((x[:, None], *rest), product)
    with _Pushing():
        out = functional_call(f, params, (jet,)) if isinstance(f, nn.Module) else f(params, jet)
    if not isinstance(out, Jet):
        raise ValueError(
            f"f: expected one tensor [n, ...] that depends on x, got {type(out).__name__}; return "
            "that one tensor, or several of them by torch.cat"
        )
    return out.blocks


_KINKED = frozenset(
    [
        *("relu", "relu_", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "abs"),
        *("absolute", "clamp", "clamp_min", "clamp_max", "hardtanh", "hardswish", "hardsigmoid"),
        *("hardshrink", "softshrink", "threshold", "maximum", "minimum"),
    ]
)


def _unknown(func: Any, order: int, name: str = "") -> Exception:
    name = name or resolve_name(func) or getattr(func, "__name__", str(func))
    if order > 1 and name.rsplit(".", 1)[-1] in _KINKED:
        return ValueError(
            f"f: {name} has a kink, so it is not differentiable twice; take tanh, sin, softplus, "
            "silu, gelu or another smooth function"
        )
    return NotImplementedError(
        f"f: jets do not know {name}; mtlfunc.physics.laplacian lists what they know, and "
        "torch.func.jacrev of jacrev differentiates everything else"
    )


_MIXES = (
    "f: {} mixes the points, which are the first axis of all that depends on x; row i of the "
    "output is of point i alone"
)


def _misfit(a: Any, b: Any) -> Exception:
    return ValueError(
        f"f: shapes {list(a.shape)} and {list(b.shape)} would let points meet each other; give "
        "both as many axes, points first, by slices such as x[:, :1]"
    )


def _beside(jet: Jet, other: Any) -> Any:
    """A constant, with an axis for the positions where it has one for the points."""
    if not isinstance(other, Tensor) or other.ndim < jet.ndim:
        return other
    if other.ndim > jet.ndim:
        raise _misfit(jet, other)
    return other.unsqueeze(1)


def _add(a: Any, b: Any, *, alpha: int | float = 1) -> Jet:
    b = b if alpha == 1 else b * alpha
    if not isinstance(a, Jet):
        a, b = b, a
    if isinstance(b, Jet):
        if a.ndim != b.ndim:
            raise _misfit(a, b)
        return a.of(x + y for x, y in zip(a.blocks, b.blocks, strict=True))
    value = a.blocks[0] + _beside(a, b)
    rest, shape = a.blocks[1:], value.shape
    if shape != a.blocks[0].shape or value.dtype != a.dtype:  # it was broadcast, or promoted
        rest = [x.to(value.dtype).expand(shape[0], -1, *shape[2:]) for x in rest]
    return a.of([value, *rest])


def _multiply(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        b = _beside(a, b)
        return a.of(x * b for x in a.blocks)
    if a.ndim != b.ndim:
        raise _misfit(a, b)
    (u, *du), (v, *dv) = a.blocks, b.blocks
    found = [u * y + x * v for x, y in zip(du, dv, strict=True)]
    return a.of([u * v, *_plus_tail(found, a.product(du, dv) if a.order > 1 else ())])


def _plus_tail(found: Blocks, tail: Blocks) -> Blocks:
    first = len(found) - len(tail)
    return [*found[:first], *(x + y for x, y in zip(found[first:], tail, strict=True))]


def _divide(a: Any, b: Any) -> Jet:
    return _multiply(a, _power(b, -1) if isinstance(b, Jet) else 1 / b)


def _power(a: Any, power: Any) -> Jet:
    if not isinstance(power, int | float):
        raise _unknown(torch.pow, 1, "torch.pow with a tensor as exponent")

    def taylor(z: Tensor) -> Iterator[Tensor]:
        factor = 1.0
        for k in itertools.count():
            # where the factor is 0, z to a negative power may be infinite
            yield factor * z ** (power - k) if factor else torch.zeros_like(z)
            factor *= (power - k) / (k + 1)

    return a.composed(taylor(a.blocks[0]))


def _product_with(x: Any, f: Callable[..., Tensor], weight: Any, bias: Any = None) -> Jet:
    """A product along the last axis, of all coefficients as positions [n, P, ...] of one call."""
    if not isinstance(x, Jet) or isinstance(weight, Jet) or isinstance(bias, Jet):
        raise _unknown(f, 1, f"{f.__name__} with a weight that depends on x")
    if x.ndim < 2 or weight.ndim > 2:
        raise ValueError(_MIXES.format(f"{f.__name__} of {list(x.shape)} by {list(weight.shape)}"))
    whole = f(torch.cat(x.blocks, 1), weight)
    value, *rest = whole.split([block.shape[1] for block in x.blocks], 1)
    return x.of([value if bias is None else value + bias, *rest])


def _slice(x: Jet, index: Any) -> Jet:
    first, *others = index if isinstance(index, tuple) else (index,)
    plain = all(i is None or isinstance(i, int | slice) for i in others)
    if plain and isinstance(first, slice) and first == slice(None):
        return x.of(y[(first, first, *others)] for y in x.blocks)
    if plain and first is ... and sum(i is not None for i in others) < x.ndim:
        return x.of(y[(..., *others)] for y in x.blocks)
    raise ValueError(
        "f: an index of what depends on x starts with : or ..., for every point, and goes on with "
        "numbers and slices"
    )


class Jet:
    """The coefficients of every point: blocks [n, k, ...], that of the value first, with k = 1.

    It has the shape of the value, and takes part in the operations of `_OPERATIONS` alone.
    """

    def __init__(self, blocks: Iterable[Tensor], product: Product) -> None:
        self.blocks: tuple[Tensor, ...] = tuple(blocks)
        self.product = product
        points, _, *rest = self.blocks[0].shape
        self.shape: torch.Size = torch.Size((points, *rest))

    ndim: property = property(lambda self: len(self.shape))
    order: property = property(lambda self: len(self.blocks) - 1)
    dtype: property = property(lambda self: self.blocks[0].dtype)
    device: property = property(lambda self: self.blocks[0].device)

    def __len__(self) -> int:
        return self.shape[0]

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        return self.ndim

    def of(self, blocks: Iterable[Tensor]) -> Jet:
        return Jet(blocks, self.product)

    def composed(self, taylor: Iterator[Tensor]) -> Jet:
        """φ(z + N) = Σ_k φₖ(z) Nᵏ up to the order, from Taylor's φ₀(z), φ₁(z), … one by one."""
        value, slope = next(taylor), next(taylor)
        rest = power = self.blocks[1:]
        found: Blocks = [slope * x for x in rest]
        for _ in range(1, self.order):
            power, factor = self.product(power, rest), next(taylor)
            found = _plus_tail(found, [factor * x for x in power])
        return self.of([value, *found])

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        operation = _OPERATIONS.get(func)
        if operation is None:
            leaves = tree_leaves((args, kwargs), is_leaf=lambda x: isinstance(x, Jet))
            raise _unknown(func, max(x.order for x in leaves if isinstance(x, Jet)))
        return operation(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """A method is the function of that name."""
        method = None if name.startswith("__") else getattr(Tensor, name, None)
        if method is None:
            raise AttributeError(f"a jet has no {name}")
        if not callable(method):
            raise _unknown(method, self.order, f"Tensor.{name}")
        return lambda *args, **kwargs: Jet.__torch_function__(method, (), (self, *args), kwargs)


class _Pushing(TorchFunctionMode):
    """Takes the calls with jets before the modes around it see them: these find tensors alone, and
    record what linear layers read.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if Jet in types:
            return Jet.__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _cat(tensors: Sequence[Any], dim: int = 0) -> Jet:
    jet = next(x for x in tensors if isinstance(x, Jet))
    for other in tensors:
        if other.ndim != jet.ndim:
            raise _misfit(jet, other)
    axis = dim % jet.ndim
    if axis == 0:
        raise ValueError(_MIXES.format("torch.cat along the first axis"))
    zeros = [None if isinstance(x, Jet) else x.new_zeros(()) for x in tensors]
    found = []
    for i, block in enumerate(jet.blocks):
        parts = [
            x.blocks[i]
            if zero is None
            else (zero if i else x[:, None]).expand(len(x), block.shape[1], *x.shape[1:])
            for x, zero in zip(tensors, zeros, strict=True)
        ]
        found.append(torch.cat(parts, axis + 1))
    return jet.of(found)


def _reshaping(method: Callable[..., Tensor]) -> Callable[..., Jet]:
    """A method that leaves the entries in their order, and the points the first axis."""

    def reshape(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        after = method(torch.empty(x.shape, device="meta"), *args, **kwargs).shape
        if after[:1] != x.shape[:1]:
            raise ValueError(_MIXES.format(f"{method.__name__} to {list(after)}"))
        return x.of(y.reshape(*y.shape[:2], *after[1:]) for y in x.blocks)

    return reshape


def _summing(method: Callable[..., Tensor]) -> Callable[..., Jet]:
    """A sum or a mean over axes other than the points."""

    def total(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
        axes = [dim] if isinstance(dim, int) else range(x.ndim) if dim is None else dim
        axes = [axis % x.ndim for axis in axes]
        if 0 in axes:
            raise ValueError(_MIXES.format(f"{method.__name__} over the first axis"))
        return x.of(method(y, [axis + 1 for axis in axes], keepdim=keepdim) for y in x.blocks)

    return total


# Functions of single entries: the k-th derivative over k!, for k = 0, 1, …


def _tanh(z: Tensor) -> Iterator[Tensor]:
    t = z.tanh()
    yield t
    slope = 1 - t * t
    yield slope
    yield -t * slope
    yield slope * (t * t - 1 / 3)


def _sigmoid(z: Tensor) -> Iterator[Tensor]:
    s = z.sigmoid()
    yield s
    slope = s * (1 - s)
    yield slope
    yield slope * (0.5 - s)
    yield slope * (1 / 6 - slope)


def _softplus(z: Tensor) -> Iterator[Tensor]:
    yield F.softplus(z)
    for k, x in enumerate(_sigmoid(z), 1):
        yield x / k


def _wave(value: Tensor, slope: Tensor) -> Iterator[Tensor]:
    yield from (value, slope, -value / 2, -slope / 6)


def _exp(z: Tensor) -> Iterator[Tensor]:
    e = z.exp()
    return (e / math.factorial(k) for k in itertools.count())


def _log(z: Tensor) -> Iterator[Tensor]:
    yield z.log()
    inverse = 1 / z
    yield from (inverse, -(inverse**2) / 2, inverse**3 / 3)


def _erf(z: Tensor) -> Iterator[Tensor]:
    yield z.erf()
    slope = 2 / math.sqrt(math.pi) * (-z * z).exp()
    yield from (slope, -z * slope, (2 * z * z - 1) * slope / 3)


def _entrywise(taylor: Callable[[Tensor], Iterator[Tensor]]) -> Callable[[Any], Any]:
    return lambda x: x.composed(taylor(x.blocks[0]))


_TANH, _SIGMOID, _ERF, _SOFTPLUS = map(_entrywise, (_tanh, _sigmoid, _erf, _softplus))


def _scaled_softplus(x: Any, beta: float | int = 1, threshold: float | int = 20) -> Jet:
    if threshold < 20:  # from there on it is x to a relative 1e-10
        raise NotImplementedError(f"f: jets know softplus with a threshold >= 20, not {threshold}")
    return _SOFTPLUS(x * beta) / beta


def _gelu(x: Any, *, approximate: str = "none") -> Jet:
    if approximate == "none":
        return x * (_ERF(x * math.sqrt(0.5)) + 1) * 0.5
    return x * (_TANH((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1) * 0.5


def _relu(x: Jet, inplace: bool = False) -> Jet:
    if x.order > 1:
        raise _unknown(F.relu, x.order)
    value = x.blocks[0]
    return x.composed(iter((value.relu(), (value > 0).to(x.dtype))))


def _spellings(names: str) -> Iterator[Any]:
    for name in names.split():
        for place in (torch, Tensor, F, torch.special):
            if hasattr(place, name):
                yield getattr(place, name)


_OPERATIONS: dict[Any, Callable[..., Jet]] = {
    spelling: operation
    for names, operation in {
        "linear": lambda x, weight, bias=None: _product_with(x, F.linear, weight, bias),
        "matmul mm __matmul__": lambda x, weight: _product_with(x, torch.matmul, weight),
        "add __add__ __radd__": _add,
        "sub subtract __sub__": lambda x, other, *, alpha=1: _add(x, other, alpha=-alpha),
        "rsub __rsub__": lambda x, other, *, alpha=1: _add(other, x, alpha=-alpha),
        "mul multiply __mul__ __rmul__": _multiply,
        "div divide true_divide __truediv__": _divide,
        "reciprocal": lambda x: _power(x, -1),
        "__rtruediv__": lambda x, other: _divide(other, x),
        "neg negative __neg__": lambda x: _multiply(x, -1),
        "pow __pow__": _power,
        "square": lambda x: _multiply(x, x),
        "sqrt": lambda x: _power(x, 0.5),
        "rsqrt": lambda x: _power(x, -0.5),
        "tanh": _TANH,
        "sigmoid expit": _SIGMOID,
        "sin": _entrywise(lambda z: _wave(z.sin(), z.cos())),
        "cos": _entrywise(lambda z: _wave(z.cos(), -z.sin())),
        "exp": _entrywise(_exp),
        "log": _entrywise(_log),
        "erf": _ERF,
        "softplus": _scaled_softplus,
        "silu": lambda x, inplace=False: x * _SIGMOID(x),
        "gelu": _gelu,
        "relu": _relu,
        "cat concat concatenate": _cat,
        "sum": _summing(torch.sum),
        "mean": _summing(torch.mean),
        "reshape view": _reshaping(Tensor.reshape),
        "flatten": _reshaping(Tensor.flatten),
        "squeeze": _reshaping(Tensor.squeeze),
        "unsqueeze": _reshaping(Tensor.unsqueeze),
        "__getitem__": _slice,
    }.items()
    for spelling in _spellings(names)
}
_OPERATORS = ["add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"]
for _name in [*_OPERATORS, "neg", "pow", "matmul", "getitem"]:  # Python asks the class for these
    setattr(Jet, f"__{_name}__", _OPERATIONS[getattr(Tensor, f"__{_name}__")])
