"""Adam for many networks side by side, in place and block by block, as a cache holds them.

The numbers are those of `mf.adam` under `vmap`, which passes ten times over all networks and takes
two to three times as long.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mtlfunc as mf

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8
BLOCK = 1 << 16  # numbers of each of five tensors, which a cache holds

gradients = mf.Optimizer(mf.adam(1.0).init, lambda grads, state, params: (grads, state))
"""In a step of one network: it answers gradients in place of parameters, for `of_lanes`."""


def of_lanes(rates: Tensor, gradients: Callable[..., Any]) -> Callable[..., Any]:
    """A step of all networks, `[lane, seed]`, with Adam at each lane's rate `[lane]`.

    Args:
        rates: learning rates.
        gradients: `(state, *rest) -> (TrainState, answer)`, of steps with the optimizer above.

    Returns:
        `(state, *rest) -> (state, answer)`. On a CPU the state that it is given is written over.
    """

    def step(state: mf.TrainState, *rest: Any) -> tuple[mf.TrainState, Any]:
        after, answer = gradients(state, *rest)
        return _moved(rates, state, after), answer

    return step


def _moved(rates: Tensor, before: mf.TrainState, after: mf.TrainState) -> mf.TrainState:
    """The state after a step, whose gradients are the parameters of `after`."""
    moments: Any = before.optimizer
    steps = moments.steps + 1
    time, rate = steps.flatten().double(), rates[:, None].expand_as(steps).flatten()
    correction = (1 - SECOND**time) ** 0.5
    step, floor = -rate * correction / (1 - FIRST**time), EPSILON * correction
    params, mean, square = (
        {name: x.contiguous() if x.is_cpu else x.clone() for name, x in leaves.items()}
        for leaves in (before.params, moments.mean, moments.square)
    )
    for name, leaf in params.items():
        size, tiny = leaf[0, 0].numel(), torch.finfo(leaf.dtype).tiny
        every = leaf, after.params[name], mean[name], square[name]
        flat = [x.reshape(-1, size) for x in every]
        flat += [x[:, None].to(leaf.dtype) for x in (step, floor)]
        for p, g, m, v, s, f in zip(*(x.split(-(-BLOCK // size)) for x in flat), strict=True):
            m.lerp_(g, 1 - FIRST)
            v.lerp_(g * g, 1 - SECOND)
            p.addcdiv_(s * m, v.clamp_min(tiny).sqrt_().add_(f))  # as `mf.adam`, of v = 0 too
    return mf.TrainState(params, after.balance, type(moments)(steps, mean, square))
