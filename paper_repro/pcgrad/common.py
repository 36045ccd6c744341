"""What PCGrad's questions share: names, colours, the ablation's arms."""

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.types import LossesFn

from ..report.figures import METHOD_COLOURS
from ..report.findings import Settings

COLOURS = {
    "sum": METHOD_COLOURS["mean"],
    "PCGrad": METHOD_COLOURS["PCGrad"],
    "direction only": "C0",
    "magnitude only": "C4",
    "GradNorm": METHOD_COLOURS["GradNorm"],
}
ARMS = tuple(COLOURS)
ALPHA = 0.12  # of GradNorm, as in its paper's synthetic regression
STUDENT = "95 % t intervals over seeds"


def normal(key: Tensor, tag: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    return mf.random.normal(mf.random.fold_in(key, tag), shape, torch.float64)


def uniform(key: Tensor, tag: int, low: float, high: float) -> Tensor:
    """One number in [low, high)."""
    return low + (high - low) * mf.random.uniform(mf.random.fold_in(key, tag), (), torch.float64)


def arms(arm: Tensor) -> mf.Rule:
    """The rule of `ARMS[arm]`. All are worked out and one is taken, so that lanes with different
    rules make one program. "direction only" is PCGrad's direction at the plain gradient's length,
    "magnitude only" the plain direction at PCGrad's length.
    """
    learnt, edit = mf.gradnorm(ALPHA), mf.pcgrad()

    def update(geometry: mf.Geometry, state: Any) -> tuple[Tensor, Any]:
        plain, (edited, _) = geometry.preference, edit.update(geometry, ())
        weights, state = learnt.update(geometry, state)
        gramian = geometry.gramian
        assert gramian is not None
        own, other = edited @ gramian @ edited, plain @ gramian @ plain
        some = (own > 0) & (other > 0)  # else the ratio counts as 1
        ratio = (own.where(some, 1.0) / other.where(some, 1.0)).sqrt()
        choices = torch.stack([plain, edited, edited / ratio, plain * ratio, weights])
        return choices.index_select(0, arm.reshape(1))[0], state

    return mf.Rule(learnt.init, update)


Moved = tuple[mf.types.Params, Any]  # torch's compiler cannot subscript it within `either`


def either(sgd: Tensor, lr: Tensor) -> mf.Optimizer:
    """SGD in some lanes, Adam in the others."""
    adam, plain = mf.adam(lr), mf.sgd(lr)

    def update(grads: mf.types.Params, state: Any, params: mf.types.Params) -> Moved:
        moved, state = adam.update(grads, state, params)
        straight, _ = plain.update(grads, (), params)
        return {name: torch.where(sgd, straight[name], leaf) for name, leaf in moved.items()}, state

    return mf.Optimizer(adam.init, update)


def arm_step(losses: LossesFn, arm: Tensor, sgd: Tensor, lr: Tensor, shared: str = "*") -> mf.Step:
    """A step of one lane."""
    return mf.descend(losses, arms(arm), mf.jacobian(shared), either(sgd, lr), reduction="sum")


def jacobians(settings: Settings, tasks: int, size: int) -> Tensor:
    """Normal ones, `[draw, task, param]`."""
    return vmap(lambda key: normal(key, 0, (tasks, size)))(torch.arange(settings.count(500)))
