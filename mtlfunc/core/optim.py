"""Optimizers as (init, update, scales), for `mtlfunc.descend`.

Hyper-parameters may be 0-d tensors, so that a grid of them is one vmap. `scales(state, params)`
says what a step will be: -(c + P·g) with `(P, c)`, exactly for SGD. Adam also puts g into P; P is
that of the state before the step: before the first lr alone, and 0 where no gradient has been.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..types import Optimizer, Params, Scalar, State, constructor
from .checks import check_scalar
from .tree import like, map_params, memory_dtype, real_of, same_shapes

__all__ = ["multiplicative"]
__dir__: Any = __all__.copy  # for completion: public names alone


class AdamState(NamedTuple):
    """Steps so far, and running means of the gradients and of their squares."""

    steps: Int[Tensor, ...]  # [] or, in the state of a rule, [task]
    mean: Params
    square: Params


@constructor
def sgd(lr: Scalar, momentum: Scalar | None = None) -> Optimizer:
    """Gradient descent, with heavy-ball momentum if wanted: x ← x - lr·v.

    Without momentum v is the gradient, and no state; with it v ← momentum·v + gradient.

    Args:
        lr: the learning rate, > 0.
        momentum: >= 0; None is none.

    Returns:
        an optimizer, equal to `torch.optim.SGD`.

    Raises:
        ValueError: for lr <= 0 or momentum < 0; at a step, for a state of other parameters.

    Examples:
        >>> params, _ = sgd(0.1).update({"x": torch.ones(1)}, (), {"x": torch.zeros(1)})
        >>> params["x"].item()
        -0.1...
    """
    check_scalar(lr, "lr", positive=True)
    if momentum is not None:
        check_scalar(momentum, "momentum")

    def init(params: Params) -> State:
        return () if momentum is None else _zeros(params)

    def update(grads: Params, state: State, params: Params) -> tuple[Params, State]:
        _expect_grads(grads, params)
        real, grads = real_of(params), real_of(grads)
        _require(state == () if momentum is None else same_shapes(state, real))
        if momentum is not None:
            grads = state = map_params(lambda v, g: (momentum * v + g).to(v.dtype), state, grads)
        return like(params, map_params(lambda p, v: p - (lr * v).to(p.dtype), real, grads)), state

    def scales(state: State, params: Params) -> tuple[Params, Params]:
        scale = map_params(lambda p: (lr * torch.ones_like(p)).to(p.dtype), real_of(params))
        if momentum is None:
            return scale, _zeros(params)
        share = lr * momentum
        return scale, map_params(lambda v: (share * v).to(v.dtype), state)

    return Optimizer(init, update, scales)


@constructor
def adam(lr: Scalar, betas: tuple[Scalar, Scalar] = (0.9, 0.999), eps: Scalar = 1e-8) -> Optimizer:
    """Adam, bias-corrected; equal to `torch.optim.Adam` without weight decay, but that moments of
    half-precision parameters are float32: squares of small gradients are none in half.

    Args:
        lr: the learning rate, > 0.
        betas: decay rates of the two running means, in [0, 1).
        eps: >= 0, added to the root. With 0 a coordinate whose gradient was always 0 stays where
            it is, and the step is scale-free (in float32 for gradients above 1e-17).

    Returns:
        an optimizer; its state is the named tuple (steps, mean, square).

    Raises:
        TypeError: for betas that are not a pair.
        ValueError: for lr <= 0, eps < 0 or betas outside [0, 1); at a step, for gradients or a
            state of other parameters.

    Source:
        Kingma & Ba 2015, Algorithm 1.

    Examples:
        >>> optimizer, params = adam(0.1), {"x": torch.zeros(1)}
        >>> params, _ = optimizer.update({"x": torch.ones(1)}, optimizer.init(params), params)
        >>> round(params["x"].item(), 4)
        -0.1
    """
    check_scalar(lr, "lr", positive=True)
    check_scalar(eps, "eps")
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas: expected a pair of numbers in [0, 1), got {betas!r}")
    first, second = betas
    for i, beta in enumerate(betas):
        check_scalar(beta, f"betas[{i}]", below=1.0)

    def init(params: Params) -> State:
        # Made from a leaf, so that it is batched where the parameters are: an expanded state would
        # make the compiler start twice.
        steps = next(iter(params.values())).new_zeros((), dtype=torch.int64)
        wide = {name: p.to(memory_dtype(p)) for name, p in real_of(params).items()}
        return AdamState(steps, _zeros(wide), _zeros(wide))

    def update(grads: Params, state: State, params: Params) -> tuple[Params, State]:
        _expect_grads(grads, params)
        real = real_of(params)
        _require(fits(state, real))
        grads = {name: g.to(memory_dtype(real[name])) for name, g in real_of(grads).items()}
        steps = state.steps + 1
        mean = map_params(lambda m, g: _interpolate(m, g, 1 - first), state.mean, grads)
        square = map_params(lambda v, g: _interpolate(v, g * g, 1 - second), state.square, grads)
        # The two bias corrections are folded into the step and eps, which saves a pass over the
        # parameters each; in float64, since in half precision .999 is 1.
        time = steps.double()
        correction = (1 - second**time) ** 0.5
        step, floor = -lr * correction / (1 - first**time), eps * correction

        def move(p: Tensor, m: Tensor, v: Tensor) -> Tensor:
            # Not v itself: at 0 its root has an infinite derivative, and 0/0 stands where the
            # gradient was always 0.
            scale = v.clamp_min(torch.finfo(v.dtype).tiny).sqrt() + floor.to(v.dtype)
            return torch.addcdiv(p.to(v.dtype), step.to(v.dtype) * m, scale).to(p.dtype)

        moved = map_params(move, real, mean, square)
        return like(params, moved), AdamState(steps, mean, square)

    def fits(state: State, real: Params) -> bool:
        known = isinstance(state, AdamState) and same_shapes(state.mean, real)
        return known and all(state.mean[name].dtype == memory_dtype(p) for name, p in real.items())

    def scales(state: State, params: Params) -> tuple[Params, Params]:
        _require(fits(state, real_of(params)))
        time, begun = state.steps.double(), state.steps > 0
        # of m after the step, and of v before it: its correction is 0 at the start
        share = lr / (1 - first ** (time + 1))
        correction = torch.where(begun, 1 - second**time, 1.0) ** 0.5

        def unit(v: Tensor) -> Tensor:  # 0 where no gradient has been: nothing is known of it
            size = v.where(v > 0, 1.0).sqrt() / correction.to(v.dtype) + eps
            return torch.where(v > 0, 1 / size, (~begun).to(v.dtype))

        units = map_params(unit, state.square)
        own, old = share * (1 - first), share * first
        scale = map_params(lambda u: own.to(u.dtype) * u, units)
        return scale, map_params(lambda u, m: old.to(u.dtype) * u * m, units, state.mean)

    return Optimizer(init, update, scales)


@constructor
def multiplicative(lr: Scalar) -> Optimizer:
    """Steps of fixed relative size, for positive x: x ← x·exp(-lr·sign(gradient)).

    Args:
        lr: the relative size, > 0.

    Returns:
        an optimizer without state.

    Raises:
        ValueError: for lr <= 0.

    Examples:
        >>> params, _ = multiplicative(0.5).update({"x": torch.ones(1)}, (), {"x": torch.ones(1)})
        >>> round(params["x"].item(), 4)  # exp(-0.5)
        0.6065
    """
    check_scalar(lr, "lr", positive=True)

    def update(grads: Params, state: State, params: Params) -> tuple[Params, State]:
        def move(p: Tensor, g: Tensor) -> Tensor:
            sign = g.where(g.isnan(), torch.sign(g))  # which torch takes for 0
            return (p * torch.exp(-lr * sign)).to(p.dtype)

        _expect_grads(grads, params)
        return map_params(move, params, grads), ()

    return Optimizer(lambda params: (), update)


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError(
            "state: not this optimizer's state over these parameters; it was made by another "
            "optimizer, for other parameters or in another dtype: use init of this one"
        )


def _expect_grads(grads: Params, params: Params) -> None:
    if not same_shapes(grads, params):
        raise ValueError(
            "grads: expected {name: tensor} of the names and shapes of params; with zeros for what "
            "no loss reads"
        )


def _interpolate(old: Tensor, new: Tensor, share: Scalar) -> Tensor:
    if isinstance(share, float):
        return torch.lerp(old, new, share)
    return (old + share * (new - old)).to(old.dtype)


def _zeros(params: Params) -> Params:
    real, layout = real_of(params), torch.contiguous_format
    return map_params(lambda p: torch.zeros_like(p, memory_format=layout), real)
