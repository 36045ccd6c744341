"""What an optimizer of `torch.optim` will do with a gradient g: the step -(c + P·g).

P and c are those of the state before the step. SGD's step is exactly this. Adam and its like also
put g itself into the running mean of squares that P is made of: the difference is of second order
in the share 1 - β₂ that g has there, and large in the first steps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from ..core.tree import as_real
from ..types import Metric, Params

Group = dict[str, Any]
"""A parameter group's options."""
Parts = tuple[Tensor, Tensor | None]
"""P and c of one parameter, without weight decay; None is 0."""
Form = Callable[[Group, dict[str, Tensor], Tensor], Parts]


def check_metric(optimizer: Any) -> None:
    """Raise unless the step of this optimizer is known to be linear in the gradient."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "metric: expected the torch.optim optimizer that steps on these parameters, got "
            f"{type(optimizer).__name__}; of a wrapper (Accelerate, Lightning) pass the optimizer "
            "inside"
        )
    kind, name = type(optimizer), type(optimizer).__name__
    if kind not in _FORMS:
        why = _REFUSED.get(name, "it is not one whose step is known here")
        if issubclass(kind, tuple(_FORMS)):
            why = "a subclass may step otherwise than its base"
        raise ValueError(
            f"metric: there is none of {name}: {why}; known are "
            f"{', '.join(x.__name__ for x in _FORMS)} of torch.optim. Without metric= a rule works "
            "on J Jᵀ, whatever the optimizer"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            "metric: the optimizer maximizes, and the tasks' losses fall along -g; make it without "
            "maximize, and negate the losses"
        )


def metric_of(optimizer: Optimizer, params: Params, names: tuple[str, ...]) -> Metric:
    """P and c over the leaves of these names, `{name: [*shape]}`; raises an error for one that is
    not the optimizer's, or whose state has another shape.
    """
    check_metric(optimizer)  # groups may have been added
    kind = {"decoupled_weight_decay": type(optimizer) is AdamW}  # torch 2.6 leaves it unsaid
    group_of = {id(x): kind | group for group in optimizer.param_groups for x in group["params"]}
    if left := [name for name in names if id(params[name]) not in group_of]:
        raise ValueError(
            f"metric: the optimizer does not hold {', '.join(left)}, which the Gramian is "
            "measured over; pass the optimizer that steps on these, or narrow shared= to the "
            "parameters of this one"
        )
    form, found, carried = _FORMS[type(optimizer)], {}, {}
    with torch.no_grad():
        for name in names:
            leaf, weight = params[name], as_real(params[name].detach())
            held = optimizer.state.get(leaf, {})
            state = {k: as_real(x) for k, x in held.items() if x is not None}
            for key, x in state.items():
                if isinstance(x, Tensor) and x.ndim and x.shape != weight.shape:
                    raise ValueError(
                        f"metric: the state's {key} of {name} is {list(x.shape)}, the parameter "
                        f"{list(weight.shape)}; load the state of this model"
                    )
            # what is in `.grad` already will step along
            parts = _parts(form, group_of[id(leaf)], state, weight, as_real(leaf.grad))
            found[name], carried[name] = parts
    return Metric(found, carried)


def _parts(
    form: Form, group: Group, state: Group, weight: Tensor, waiting: Tensor | None
) -> tuple[Tensor, Tensor]:
    """P and c of one leaf, with weight decay and what waits in `.grad`."""
    before = not state and form is not _sgd  # the first step, of which SGD's own form knows
    scale, rest = (_filled(weight, group["lr"]), None) if before else form(group, state, weight)
    total = torch.zeros_like(weight) if rest is None else rest
    if decay := group["weight_decay"]:
        shrunk = decay * (group["lr"] if group.get("decoupled_weight_decay") else scale) * weight
        # where no gradient has been, P is 0 and the step's rates are not counted
        total = total + shrunk.where(scale != 0, 0.0)
    return scale, total if waiting is None else total + scale * waiting


def _sgd(group: Group, state: dict[str, Tensor], leaf: Tensor) -> Parts:
    rate, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
    buffer = state.get("momentum_buffer") if momentum else None
    if buffer is None:
        return _filled(leaf, rate * (1 + momentum) if nesterov else rate), None
    if nesterov:  # g + μ(μ·buffer + g)
        return _filled(leaf, rate * (1 + momentum)), rate * momentum**2 * buffer
    return _filled(leaf, rate * (1 - group["dampening"])), rate * momentum * buffer


def _adam(group: Group, state: dict[str, Tensor], leaf: Tensor) -> Parts:
    (first, second), steps = group["betas"], state["step"]
    if isinstance(steps, Tensor) and steps.device.type == "cpu":  # a device is not waited for
        steps = steps.item()
    square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    share = group["lr"] * (1 - first) / (1 - first ** (steps + 1))
    scale = _over_root(share, square, (1 - second**steps) ** 0.5, group["eps"])
    return scale, _times(first / (1 - first), scale, state["exp_avg"]) if first else None


def _rmsprop(group: Group, state: dict[str, Tensor], leaf: Tensor) -> Parts:
    square = state["square_avg"]
    if group["centered"]:
        square = square - state["grad_avg"].square()
    buffer = state.get("momentum_buffer") if group["momentum"] else None
    carried = None if buffer is None else group["lr"] * group["momentum"] * buffer
    return _over_root(group["lr"], square, 1.0, group["eps"]), carried


_FORMS: dict[type, Form] = {Adam: _adam, AdamW: _adam, RMSprop: _rmsprop, SGD: _sgd}
_WHOLE = "multiplies a gradient by whole matrices, and a metric here is a diagonal"
_REFUSED = {
    "Muon": "it orthogonalizes the gradient, so that its step is not linear in it (see "
    "mtlfunc.muon.gradients)",
    "LBFGS": "it calls the losses several times a step",
    "Rprop": "it steps by the gradient's sign",
    "Adamax": "it takes the larger of the gradient and its past",
    "Adafactor": "it clips the step by its own length",
    "Shampoo": f"it {_WHOLE}",
    "SOAP": f"it {_WHOLE}",
}
"""Why there is none of an optimizer, by its name: the last two are not torch's."""


def _over_root(share: Any, square: Tensor, correction: Any, eps: Any) -> Tensor:
    """share/(√square/correction + eps); 0 where no gradient has been yet, and nothing is known."""
    size = torch.threshold_(square.sqrt(), 0.0, torch.inf).add_(eps * correction)
    return size.reciprocal_().mul_(share * correction)


def _times(share: Any, scale: Tensor, mean: Tensor) -> Tensor:
    """share·scale·mean, in one pass where the share is a number."""
    if isinstance(share, Tensor):
        return share * scale * mean
    return torch.addcmul(scale.new_zeros(()), scale, mean, value=share)


def _filled(leaf: Tensor, x: Any) -> Tensor:
    return torch.zeros_like(leaf) + x if isinstance(x, Tensor) else torch.full_like(leaf, x)
