"""Networks for many tasks as parameters in a dict: shared, with a head a task, or each its own."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc.types import Params

from .methods import BLIND, HEADS, INDEPENDENT


def inputs(name: str, width: int, tasks: int) -> int:
    """Inputs of the first layer: the observation, and the task's one-hot code where it is seen."""
    return width + (tasks if name not in (BLIND, INDEPENDENT) else 0)


def start(
    key: Tensor,
    net: str,
    widths: Sequence[int],
    tasks: int,
    name: str,
    last: float = 1.0,
    xavier: bool = False,
) -> Params:
    """First parameters of one network, `{net}.{layer}.weight` and `.bias`. `key`: of the draws.
    `net`: its name. `widths`: from inputs to outputs. `tasks`: how many. A leaf with an axis of
    tasks in front is each task's own: all leaves of the method `INDEPENDENT`, the last layer's of
    `HEADS`. `name`: of the method. `last`: factor of the last layer's weights. `xavier`: draw
    weights uniformly within ±√(6 / (inputs + outputs)) (Glorot and Bengio 2010); by default they
    are normal with variance 1 / inputs.
    """
    params: Params = {}
    layers = len(widths) - 1
    for layer in range(layers):
        own = name == INDEPENDENT or (name == HEADS and layer == layers - 1)
        shape = (*([tasks] if own else []), widths[layer + 1], widths[layer])
        layer_key, into, out = mf.random.fold_in(key, layer), widths[layer], widths[layer + 1]
        if xavier:
            drawn, size = 2 * mf.random.uniform(layer_key, shape) - 1, (6 / (into + out)) ** 0.5
        else:
            drawn, size = mf.random.normal(layer_key, shape), into**-0.5
        size *= last if layer == layers - 1 else 1
        params[f"{net}.{layer}.weight"] = drawn * size
        params[f"{net}.{layer}.bias"] = torch.zeros(shape[:-1], device=key.device)
    return params


def codes(like: Tensor) -> Tensor:
    """One-hot codes `[task, sample, task]` next to observations `[task, sample, ...]`."""
    return torch.eye(len(like)).to(like)[:, None].expand(-1, like.shape[1], -1)


def scales(samples: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of observations `[sample, input]`; 0 and 1 for the codes at their end."""
    mean, deviation = samples.mean(0), samples.std(0).clamp_min(1e-2)
    mean[-tasks:], deviation[-tasks:] = 0, 1
    return mean, deviation


def network(
    params: Params, net: str, x: Tensor, squash: Callable[[Tensor], Tensor] = torch.tanh
) -> Tensor:
    """`[task, sample, output]` from `[task, sample, input]`, `squash` between layers. What the
    first layer has no columns for is left out: codes stand last.
    """
    weight = params[f"{net}.0.weight"]
    x, layer = x[..., : weight.shape[-1]], 0
    while True:
        bias = params[f"{net}.{layer}.bias"]
        if weight.dim() == 2:
            x = torch.nn.functional.linear(x, weight, bias)
        else:
            x = torch.baddbmm(bias[:, None], x, weight.mT)
        layer += 1
        if f"{net}.{layer}.weight" not in params:
            return x
        x, weight = squash(x), params[f"{net}.{layer}.weight"]


def log_normal(z: Tensor, spread: Tensor) -> Tensor:
    """Log-density, summed over the last axis, of values z deviations exp(spread) from the mean."""
    return -(z.square() / 2 + spread + math.log(2 * math.pi) / 2).sum(-1)
