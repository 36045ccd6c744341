"""Derivatives of a network in its inputs, by one forward pass that pushes Taylor coefficients.

A jet holds the value of every point and P - 1 further coefficients. A linear layer reads all of
them as P positions of a sample, `[n, P, width]`. So whatever reads inputs and deltas
(`mtlfunc.sample_gramian`, `mtlfunc.sample_norms`) finds one ordinary linear layer, where nested
derivatives use each weight many times.
"""

from __future__ import annotations

import functools
import math
import re
import string
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode, resolve_name

from ..core.checks import check_params
from ..core.internals import tree_leaves
from ..core.transforms import derivative_levels
from ..types import Laplacian, Params

Network = nn.Module | Callable[[Params, Any], Any]
"""A module, called with other parameters, or a function `(params, x)`; from x [n, d] to [n, *out],
row i from row i alone.
"""


def laplacian(f: Network, params: Params, x: Float[Tensor, "n d"]) -> Laplacian:
    """u, ∂u/∂x and Δu = Σ_i ∂²u/∂x_i² at every point, from one forward pass of d + 2 positions.

    Args:
        f: a module, or a function `(params, x)`, of linear layers, functions of single entries
            (tanh, sin, cos, exp, log, sigmoid, softplus, silu, gelu, mish, erf, atan, sinh, cosh,
            powers), softmax, layer_norm, sums, products (also `matmul`, `einsum`, `tensordot`),
            quotients, `cat`, `stack`, `split`, slices and reshapes. Row i of its output is of row
            i of x alone. `torch.where(x > 0, a, b)` and `x % 1.0` have the derivatives of the
            branch that is taken, and none from a kink or a jump between branches.
        params: `{name: tensor}`, as `mtlfunc.parameters(module)` gives.
        x: the points `[n, d]`.

    Returns:
        value `[n, *out]`, gradient `[n, *out, d]` and laplacian `[n, *out]`. All can be
        differentiated in `params`, any number of times, and mapped by `vmap`.

    Raises:
        NotImplementedError: for another operation on what depends on x, an in-place one, one under
            `torch.no_grad` within f, or a `torch.autograd.Function`; it is named.
        ValueError: for points that are not a floating matrix; for operations that mix points; for
            an output that does not depend on x; for ReLU and its like, not differentiable twice.

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
        f: as in `laplacian`; where order is 1 it may contain relu.
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
    if isinstance(order, bool | float) or order not in (1, 2, 3):
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
Product = Callable[[Any, Blocks, Blocks], Blocks]


def _collapsed(times: Any, a: Blocks, b: Blocks) -> Blocks:
    """Of d tangents and Δ/2: Δ(uv)/2 has Σ_i ∂_i u ∂_i v."""
    return [times(a[0], b[0]).sum(1, keepdim=True)]


def _along_line(times: Any, a: Blocks, b: Blocks) -> Blocks:
    """Of coefficients of t, t², …: Σ_{i+j=k} a_i b_j."""
    orders = range(len(a) - 1)
    return [functools.reduce(torch.add, map(times, a[: k + 1], b[k::-1])) for k in orders]


def _push(f: Network, params: Params, x: Tensor, rest: Blocks, product: Product) -> Blocks:
    """The blocks of f's output, the value's [n, 1, ...] first."""
    # on while f runs, so that jets see where f turns it off; `detach` would drop tangents, too
    recorded, forward = torch.is_grad_enabled(), derivative_levels()[1] > 0
    if not (recorded or forward):
        x, params = x.detach(), {name: leaf.detach() for name, leaf in params.items()}
    jet = Jet((x[:, None], *rest), product)
    traced = torch.compiler.is_compiling()  # such a program may not change a class
    try:
        with torch.enable_grad(), nullcontext() if traced else _functions_refused(), _Pushing():
            out = functional_call(f, params, (jet,)) if isinstance(f, nn.Module) else f(params, jet)
    except Exception as error:
        if "Jet" not in str(error):
            raise
        inside, lines = (*torch.__path__, __file__), traceback.extract_tb(error.__traceback__)
        line = [x.line for x in lines if not x.filename.startswith(inside)][-1]
        raise NotImplementedError(f"f: `{line}` takes no jets ({error}); {_CURE}") from error
    if not isinstance(out, Jet):
        raise ValueError(
            f"f: expected one tensor [n, ...] that depends on x, got {type(out).__name__}; several "
            "are one by torch.cat"
        )
    return out.blocks if recorded else [x.clone() if forward else x.detach() for x in out.blocks]


@contextmanager
def _functions_refused() -> Iterator[None]:
    """`torch.autograd.Function.apply` hands any object on to `forward`: here it refuses jets."""
    with _LOCK:
        _APPLY.append(Function.__dict__["apply"])
        Function.apply = classmethod(_refusing)  # pyright: ignore
    try:
        yield
    finally:
        with _LOCK:  # the last of all threads puts back what the first one found
            Function.apply = _APPLY[-1]  # before none is left
            _APPLY.pop()


def _refusing(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if any(map(_is_jet, tree_leaves((args, kwargs), is_leaf=_is_jet))):
        raise NotImplementedError(
            f"f: {cls.__name__} is an autograd.Function, whose backward jets do not call; {_CURE}"
        )
    return [*_APPLY, Function.__dict__["apply"]][0].__get__(None, cls)(*args, **kwargs)


_LOCK, _APPLY = threading.Lock(), list[Any]()  # empty for a thread that comes late
_KINKED = re.compile(
    "relu_?|relu6|leaky_relu|prelu|rrelu|elu|selu|celu|abs|absolute|clamp|clamp_min|clamp_max|"
    "hardtanh|hardswish|hardsigmoid|hardshrink|softshrink|threshold|maximum|minimum"
)
_IN_PLACE = re.compile(r"[a-z].*_|__(i(?!n|ter)\w+|setitem)__")
_CURE = "mtlfunc.physics.laplacian lists what they know; torch.func.jacrev of jacrev knows all"


def _name(func: Any) -> str:
    return func if isinstance(func, str) else resolve_name(func) or getattr(func, "__name__", "")


def _unknown(func: Any, order: int = 1) -> Exception:
    name = _name(func)
    last, cure = name.rsplit(".", 1)[-1], _CURE
    if order > 1 and _KINKED.fullmatch(last):
        return ValueError(
            f"f: {name} has a kink, so it is not differentiable twice; take tanh, sin, softplus, "
            "silu, gelu or another smooth function"
        )
    if _IN_PLACE.fullmatch(last):
        cure = "write y = y + 1 for y += 1, torch.where(mask, a, y) for y[mask] = a, inplace=False"
    return NotImplementedError(f"f: jets do not know {name}; {cure}")


def _mixes(name: str) -> Exception:
    return ValueError(
        f"f: {name} mixes the points, which are the first axis of all that depends on x; row i of "
        "the output is of point i alone, and two tensors have as many axes (x[:, :1], not x[:, 0])"
    )


def _blocks(jet: Jet, other: Any) -> Sequence[Any]:
    """Of another jet, or of a constant: one with points gets an axis for the positions."""
    if not isinstance(other, Tensor | Jet):
        return other, *[0.0] * jet.order
    if other.ndim > jet.ndim or (isinstance(other, Jet) and other.ndim < jet.ndim):
        raise _mixes(f"an operation of {list(jet.shape)} and {list(other.shape)}")
    if isinstance(other, Jet):
        return other.blocks
    value = other.unsqueeze(1) if other.ndim == jet.ndim else other
    return value, *[value.new_zeros(()).expand(value.shape)] * jet.order


def _with_value(jet: Jet, value: Tensor) -> Jet:
    rest, shape = jet.blocks[1:], value.shape
    if shape != jet.blocks[0].shape or value.dtype != jet.dtype:  # it was broadcast, or promoted
        rest = [x.to(value.dtype).expand(shape[0], -1, *shape[2:]) for x in rest]
    return jet.of([value, *rest])


def _add(input: Any, other: Any, *, alpha: int | float = 1) -> Jet:
    other = other if alpha == 1 else other * alpha
    a, b = (input, other) if isinstance(input, Jet) else (other, input)
    if isinstance(b, Jet):
        return a.of(x + y for x, y in zip(a.blocks, _blocks(a, b), strict=True))
    return _with_value(a, a.blocks[0] + _blocks(a, b)[0])


def _bilinear(times: Any, a: Jet, b: Jet) -> Jet:
    (u, *du), (v, *dv) = a.blocks, b.blocks
    found = [times(u, y) + times(x, v) for x, y in zip(du, dv, strict=True)]
    tail = a.product(times, du, dv) if a.order > 1 else ()
    return a.of([times(u, v), *_plus_tail(found, tail)])


def _multiply(input: Any, other: Any) -> Jet:
    a, b = (input, other) if isinstance(input, Jet) else (other, input)
    if isinstance(b, Jet):
        return _bilinear(torch.mul, a, a.of(_blocks(a, b)))
    b = _blocks(a, b)[0]
    return a.of(x * b for x in a.blocks)


def _plus_tail(found: Blocks, tail: Blocks) -> Blocks:
    first = len(found) - len(tail)
    return [*found[:first], *(x + y for x, y in zip(found[first:], tail, strict=True))]


def _power(input: Any, exponent: Any) -> Jet:
    if isinstance(exponent, Jet):
        if isinstance(input, Tensor):
            input = input.to(torch.result_type(exponent.blocks[0], input))
        log: Any = math.log if isinstance(input, int | float) and input > 0 else torch.log
        return _multiply(exponent, log(input)).exp()
    if not isinstance(exponent, int | float):
        raise _unknown("torch.pow with a tensor as exponent")

    def taylor(z: Tensor) -> Iterator[Tensor]:
        for k in range(4):
            factor = math.prod((exponent - i) / (i + 1) for i in range(k))
            # where the factor is 0, z to a negative power may be infinite
            yield factor * z ** (exponent - k) if factor else torch.zeros_like(z)

    return input.composed(taylor)


def _at_once(jet: Jet, f: Callable[[Tensor], Tensor]) -> Jet:
    """A linear function, of all coefficients as positions [n, P, ...] of one call."""
    whole = f(torch.cat(jet.blocks, 1))
    return jet.of(whole.split([block.shape[1] for block in jet.blocks], 1))


def _linear(input: Jet, weight: Any, bias: Any = None) -> Jet:
    if input.ndim < 2:
        raise _mixes(f"linear of {list(input.shape)}")
    found = _at_once(input, lambda y: F.linear(y, weight))
    return found if bias is None else _add(found, bias)


def _matmul(input: Any, other: Any) -> Jet:
    first = isinstance(input, Jet)  # its rows may be the points; those of the second are summed
    jet, beside = (input, other) if first else (other, input)
    two = isinstance(beside, Jet)  # a product a point
    if jet.ndim < (3 if two or beside.ndim > 2 else 3 - first) or (two and beside.ndim < 3):
        raise _mixes(f"matmul of {list(input.shape)} by {list(other.shape)}")
    if two:
        return _bilinear(torch.matmul, jet, jet.of(_blocks(jet, beside)))
    beside = beside if beside.ndim < 3 else _blocks(jet, beside)[0]
    return _at_once(jet, lambda y: y @ beside if first else beside @ y)


def _einsum(equation: Any, *operands: Any) -> Jet:
    """Of one or two operands, the points first in what depends on x and in what comes out."""
    text = equation.replace(" ", "") if isinstance(equation, str) else ""
    names = text.partition("->")[0].split(",")
    dots = {x.ndim - len(y) + 3 for y, x in zip(names, operands, strict=False) if "..." in y}
    if "->" not in text or len(operands) > 2 or len(dots) > 1:
        raise _unknown("torch.einsum of three operands, without ->, or with two widths of ...")
    new, *free = [x for x in string.ascii_letters if x not in text]
    inputs, out = text.replace("...", "".join(free[: sum(dots)])).split("->")
    sides = list(zip(inputs.split(","), operands, strict=False))
    jets = [(name, x) for name, x in sides if _is_jet(x)]
    if not out or any(name[:1] != out[0] or out[0] in name[1:] for name, _ in jets):
        raise _mixes(f"torch.einsum by {equation!r}")
    names = [name.replace(out[0], out[0] + new) if _is_jet(x) else name for name, x in sides]
    order = f"{','.join(names)}->{out[0]}{new}{out[1:]}"
    if len(jets) > 1:
        return _bilinear(lambda y, z: torch.einsum(order, y, z), *operands)
    call = lambda y: torch.einsum(order, *[y if _is_jet(x) else x for x in operands])  # noqa: E731
    return _at_once(jets[0][1], call)


def _tensordot(a: Any, b: Any, dims: Any = 2, out: None = None) -> Jet:
    of_a, of_b = [*string.ascii_lowercase[: a.ndim]], [*string.ascii_uppercase[: b.ndim]]
    summed = (range(a.ndim - dims, a.ndim), range(dims)) if isinstance(dims, int) else dims
    for i, j in zip(*summed, strict=True):
        of_b[j] = of_a[i]
    kept = [x for x in of_a + of_b if (of_a + of_b).count(x) == 1]
    return _einsum(f"{''.join(of_a)},{''.join(of_b)}->{''.join(kept)}", a, b)


def _slice(input: Jet, index: Any) -> Jet:
    first, *others = index if isinstance(index, tuple) else (index,)
    known = all(i is None or isinstance(i, int | slice | list | Tensor) for i in others)
    if known and sum(isinstance(i, list | Tensor) for i in others) < 2:  # two may come first
        if isinstance(first, slice) and first == slice(None):
            return input.of(y[(first, first, *others)] for y in input.blocks)
        if first is ... and sum(i is not None for i in others) < input.ndim:
            return input.of(y[(..., *others)] for y in input.blocks)
    raise ValueError("f: an index of x is : or ..., then numbers, slices and one list or tensor")


class Jet:
    """The coefficients of every point: blocks [n, k, ...], that of the value first, with k = 1.

    It has the shape of the value, and takes part in the operations of `_OPERATIONS` alone.
    """

    __array_ufunc__ = None  # a number of NumPy leaves its product with a jet to the jet

    def __init__(self, blocks: Iterable[Tensor], product: Product) -> None:
        self.blocks: tuple[Tensor, ...] = tuple(blocks)
        self.product = product
        points, _, *rest = self.blocks[0].shape
        self.shape: torch.Size = torch.Size((points, *rest))

    ndim: property = property(lambda self: len(self.shape))
    order: property = property(lambda self: len(self.blocks) - 1)
    dtype: property = property(lambda self: self.blocks[0].dtype)
    device: property = property(lambda self: self.blocks[0].device)

    def of(self, blocks: Iterable[Tensor]) -> Jet:
        return Jet(blocks, self.product)

    def composed(self, taylor: Callable[[Tensor], Blocks]) -> Jet:
        """φ(z + N) = Σ_k φₖ(z) Nᵏ up to the order, from Taylor's φ₀(z), φ₁(z), …"""
        value, slope, *factors = taylor(self.blocks[0])
        if len(factors) < self.order - 1:
            raise _unknown("torch.relu", self.order)
        rest = power = self.blocks[1:]
        found: Blocks = [slope * x for x in rest]
        for factor in factors[: self.order - 1]:
            power = self.product(torch.mul, power, rest)
            found = _plus_tail(found, [factor * x for x in power])
        return self.of([value, *found])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(_OPERATIONS.get(func, (None, True)), func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """A method is the function of that name."""
        method = None if name.startswith("__") else getattr(Tensor, name, None)
        if method is None:
            raise AttributeError(f"a jet has no {name}")
        if not callable(method):
            raise _unknown(f"Tensor.{name}", self.order)
        return functools.partial(_called(method), self)


def _is_jet(x: Any) -> bool:
    return isinstance(x, Jet)


def _called(method: Any) -> Callable[..., Any]:
    entry = _OPERATIONS.get(method, (None, True))
    return lambda *args, **kwargs: _operate(entry, method, args, kwargs)


def _operate(entry: Any, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    (operation, several), names = entry, {"axis": "dim", "keepdims": "keepdim", "self": "input"}
    kwargs = {names.get(name, name): x for name, x in kwargs.items()}
    args = (*[kwargs.pop("input") for _ in range("input" in kwargs)], *args)
    jets = [x for x in tree_leaves((args, kwargs), is_leaf=_is_jet) if _is_jet(x)]
    if not torch.is_grad_enabled():
        raise NotImplementedError(
            f"f: {_name(func)} reads x under torch.no_grad (set_grad_enabled(False), inference_mode"
            "), where jets would go on; take it away, or differentiate by torch.func.jacrev of "
            "jacrev, which stops there"
        )
    if kwargs.pop("inplace", False) or kwargs.pop("out", None) is not None:
        raise _unknown(f"{_name(func)}_")
    if operation is None:
        raise _unknown(func, jets[0].order)
    if not several and (len(jets) > 1 or args[0] is not jets[0]):
        raise _unknown(f"{_name(func)} of an argument behind the first that depends on x")
    try:
        return operation(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        raise _unknown(f"{_name(func)} with these arguments ({error})") from error


class _Pushing(TorchFunctionMode):
    """Takes the calls with jets before the modes around it see them: these find tensors alone, and
    record what linear layers read.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Jet in types or any(map(_is_jet, args)):  # torch.as_tensor names no types
            return Jet.__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _cat(tensors: Sequence[Any], dim: int = 0) -> Jet:
    jet = next(filter(_is_jet, tensors))
    each = list(zip(*(_blocks(jet, x) for x in tensors), strict=True))
    if not dim % jet.ndim:
        raise _mixes("torch.cat along the first axis")
    return jet.of(
        torch.cat([x.expand(-1, y.shape[1], *x.shape[2:]) for x in parts], dim % jet.ndim + 1)
        for y, parts in zip(jet.blocks, each, strict=True)
    )


def _where(condition: Any, input: Any, other: Any) -> Jet:
    jet = next(filter(_is_jet, (input, other, condition)))
    (which, *_), a, b = (_blocks(jet, x) for x in (condition, input, other))
    return jet.of(torch.where(which, x, y) for x, y in zip(a, b, strict=True))


def _to(input: Any, *args: Any, **kwargs: Any) -> Any:
    args = tuple(x.blocks[0] if _is_jet(x) else x for x in args if x is not None)
    if not isinstance(input, Jet):
        return input.to(*args, **kwargs)
    every = [y.to(*args, **kwargs) for y in input.blocks]
    return input.of(every) if every[0].is_floating_point() else every[0][:, 0]  # a step's is 0


def _of_values(method: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: method(
        *[x.blocks[0][:, 0] if _is_jet(x) else x for x in args], **kwargs
    )


def _rows(method: Callable[..., Any], default: Any, place: Any = 0, count: int = 1) -> Any:
    """A linear method of each row, whose arguments from a place on, or dim, are axes, or, without a
    place, something of every axis, of which `default` leaves the points as they are.
    """

    def along(input: Jet, *args: Any, **kwargs: Any) -> Any:
        axis = "dim", "axis", "source", "destination"
        named = [x for name, x in kwargs.items() if place is None or name.startswith(axis)]
        axes = tree_leaves([*args[place or 0 :][:count], *named] or [default])
        stays = None not in axes and 0 not in [i % input.ndim for i in axes]
        if place is None:
            stays = len(axes) == input.ndim and axes[0] in (default, -default * input.shape[0])
        each = [vmap(lambda y: method(y, *args, **kwargs), 1)(y) for y in input.blocks if stays]
        several = stays and not isinstance(each[0], Tensor)
        parts = list(zip(*each, strict=True)) if several else [each]
        if not stays or any(y[0].shape[1:2] != input.shape[:1] for y in parts):
            raise _mixes(f"{method.__name__} over the first axis")
        jets = tuple(input.of(y.transpose(0, 1) for y in part) for part in parts)
        return jets if several else jets[0]

    return along


def _norm(input: Jet, p: Any = "fro", dim: Any = None, keepdim: bool = False, **more: Any) -> Jet:
    p = more.pop("ord", p)
    if p not in ("fro", None, 2) or not isinstance(dim, int) or any(more.values()):
        raise _unknown(f"torch.norm with p = {p!r} over {dim}")
    return input.square().sum(dim, keepdim).sqrt()


def _layer_norm(
    input: Jet, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: Any = None
) -> Jet:
    axes = [-i - 1 for i in range(len(shape))]
    x = input - input.mean(axes, keepdim=True)
    x = x / (x.square().mean(axes, keepdim=True) + eps).sqrt() * (1 if weight is None else weight)
    return x if bias is None else x + bias


def _softmax(input: Jet, dim: int, _stacklevel: Any = None, dtype: Any = None) -> Jet:
    shifted = input.to(dtype or input.dtype) - input.blocks[0][:, 0].detach().amax(dim, True)
    return (e := shifted.exp()) / e.sum(dim, keepdim=True)


def _softplus(input: Any, beta: float | int = 1, threshold: float | int = 20) -> Jet:
    if threshold < 20:  # from there on it is x to a relative 1e-10
        raise NotImplementedError(f"f: jets know softplus with a threshold >= 20, not {threshold}")
    return (input * beta).composed(_TAYLOR["softplus"]) / beta


_TAYLOR: dict[str, Callable[[Tensor], Blocks]] = {  # the k-th derivative over k!, for k = 0, 1, …
    "tanh": lambda z: (t := z.tanh(), s := 1 - t * t, -t * s, s * (t * t - 1 / 3)),
    "sigmoid expit": lambda z: (y := z.sigmoid(), s := y * (1 - y), s * (0.5 - y), s * (1 / 6 - s)),
    "exp": lambda z: (e := z.exp(), e, e / 2, e / 6),
    "expm1": lambda z: (z.expm1(), e := z.exp(), e / 2, e / 6),
    "log": lambda z: (z.log(), r := 1 / z, -(r**2) / 2, r**3 / 3),
    "log1p": lambda z: (z.log1p(), r := 1 / (1 + z), -(r**2) / 2, r**3 / 3),
    "sin": lambda z: (s := z.sin(), c := z.cos(), -s / 2, -c / 6),
    "cos": lambda z: (c := z.cos(), s := -z.sin(), -c / 2, -s / 6),
    "sinh": lambda z: (s := z.sinh(), c := z.cosh(), s / 2, c / 6),
    "cosh": lambda z: (c := z.cosh(), s := z.sinh(), c / 2, s / 6),
    "atan arctan": lambda z: (z.atan(), s := 1 / (1 + z * z), -z * s**2, (z * z - 1 / 3) * s**3),
    "erf": lambda z: (
        *(z.erf(), s := (-z * z).exp() * 2 / math.pi**0.5, -z * s, (2 * z * z - 1) * s / 3),
    ),
    "softplus": lambda z: (
        *(F.softplus(z), y := z.sigmoid(), s := y * (1 - y) / 2, s * (1 - 2 * y) / 3),
    ),
    "relu": lambda z: (z.relu(), (z > 0).to(z.dtype)),
}


def _spelled(table: dict[str, Any], several: bool) -> dict[Any, tuple[Callable[..., Any], bool]]:
    """The operations by function and method: of several tensors, or of the first alone."""
    found, places = {}, (torch, Tensor, F, torch.special, torch.linalg)
    for names, entry in table.items():
        spelled = [getattr(x, y, None) for x in places for y in names.split()]
        for method in filter(callable, spelled):  # torch.double is a dtype
            made = _rows(method, *entry) if isinstance(entry, tuple) else entry
            found[method] = made or _of_values(method), several
    return found


_OPERATIONS = _spelled(
    {
        "matmul mm bmm mv __matmul__": _matmul,
        "__rmatmul__": lambda input, other: _matmul(other, input),
        "addmm addmv baddbmm": lambda input, a, b, *, beta=1, alpha=1: a @ b * alpha + input * beta,
        "einsum": _einsum,
        "tensordot": _tensordot,
        "add __add__ __radd__": _add,
        "sub subtract __sub__": lambda input, other, *, alpha=1: _add(input, other, alpha=-alpha),
        "rsub __rsub__": lambda input, other, *, alpha=1: _add(other, input, alpha=-alpha),
        "mul multiply __mul__ __rmul__": _multiply,
        "div divide true_divide __truediv__": lambda input, other: (
            _multiply(input, 1 / other)
            if _is_jet(other)
            else input.of(x / _blocks(input, other)[0] for x in input.blocks)
        ),
        "pow __pow__": _power,
        "__rpow__": lambda input, other: _power(other, input),
        "where": _where,
        "masked_fill": lambda input, mask, value: _where(mask, value, input),
        "cat concat concatenate": _cat,
        "stack": lambda tensors, dim=0: _cat([x.unsqueeze(dim) for x in tensors], dim),
        "to type_as as_tensor": _to,
        # what has no derivative is a constant
        "gt greater __gt__ ge greater_equal __ge__ lt less __lt__ le less_equal __le__": None,
        "eq __eq__ ne not_equal __ne__ isnan isinf isfinite isclose": None,
        "zeros_like ones_like full_like rand_like randn_like new_zeros new_ones new_full": None,
        "size dim ndimension numel nelement is_floating_point is_complex __len__": None,
    },
    True,
) | _spelled(
    {
        **{
            name: functools.partial(Jet.composed, taylor=taylor) for name, taylor in _TAYLOR.items()
        },
        "linear": _linear,
        "remainder __mod__": lambda input, other: _with_value(
            input, torch.remainder(input.blocks[0], _blocks(input, other)[0])
        ),
        "reciprocal": lambda input: _power(input, -1),
        "__rtruediv__": lambda input, other: _power(input, -1) * other,
        "neg negative __neg__": lambda input: _multiply(input, -1),
        "square": lambda input: _multiply(input, input),
        "sqrt": lambda input: _power(input, 0.5),
        "rsqrt": lambda input: _power(input, -0.5),
        "softplus": _softplus,
        "logsigmoid": lambda input: _multiply(_softplus(-input), -1),
        "silu": lambda input: input * input.sigmoid(),
        "mish": lambda input: input * _softplus(input).tanh(),
        "gelu": lambda input, *, approximate="none": (
            input * 0.5 * (1 + (input * 0.5**0.5).erf())
            if approximate == "none"
            else input * 0.5 * (1 + ((input + input**3 * 0.044715) * (2 / math.pi) ** 0.5).tanh())
        ),
        "softmax": _softmax,
        "prod": lambda input, dim, keepdim=False: functools.reduce(
            _multiply, input.split(1, dim) if keepdim else input.unbind(dim)
        ),
        "norm vector_norm": _norm,
        "layer_norm": _layer_norm,
        "__getitem__": _slice,
        "sum mean select narrow index_select cumsum": (None,),
        "transpose swapaxes movedim flip": (None, 0, 9),
        "roll": (None, 1),
        "chunk split tensor_split": (0, 1),
        "unbind": (0,),
        "expand": (-1, None, 9),
        "repeat": (1, None, 9),
        "reshape view flatten squeeze unsqueeze unflatten": ((), 9),
        "clone contiguous double float half bfloat16": ((), 9),
    },
    False,
)
_OPERATIONS[Tensor.where] = (lambda input, condition, other: _where(condition, input, other), True)
for _special in dir(Tensor):  # Python asks the class for these
    _method = getattr(Tensor, _special)
    _new = not hasattr(Jet, _special) and _special not in ("__setstate__", "__torch_dispatch__")
    if _special[:2] == "__" and callable(_method) and (_new or _method in _OPERATIONS):
        setattr(Jet, _special, _called(_method))
