"""The steps of SOAP and Shampoo in `pytorch_optimizer`: P has a factor for each axis of a leaf.

They are read by the state's names, as of its version 4.1.0; nothing is imported from it. Shampoo
multiplies a gradient by a matrix along each axis. SOAP turns it along each axis into the eigenbases
of such matrices, where its P is Adam's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import local_part
from ..core.tree import turn, turn_scaled
from ..types import Factors

Group = dict[str, Any]


class Turned(NamedTuple):
    """P·g = B(scale·A(g)) of one leaf, A and B being products along its axes, and c, if any."""

    scale: Tensor
    carried: Tensor | None
    turns: tuple[Factors, Factors]  # A and B


def kronecker_form(optimizer: object) -> Callable[..., Turned] | None:
    """What reads this optimizer's step; None if it is another one.

    Raises:
        ValueError: for options whose step is not read.
    """
    kind = type(optimizer)
    form = _FORMS.get(f"{kind.__module__}.{kind.__qualname__}")
    if form is None:
        return None
    groups: list[Group] = getattr(optimizer, "param_groups", [])
    wrong = [x for x in ("merge_dims", "normalize_gradient") if any(g.get(x) for g in groups)]
    if getattr(optimizer, "maximize", False):
        wrong.append("maximize")
    if wrong:
        raise ValueError(
            f"metric: {kind.__name__}'s step is not read with {' and '.join(wrong)}; leave it out"
        )
    return form


def factor_shapes(leaf: Tensor) -> dict[str, tuple[int, int]]:
    """The matrices of a leaf in Shampoo's state, by name."""
    return {f"{x}pre_cond_{i}": (n, n) for x in ("", "inv_") for i, n in enumerate(leaf.shape)}


def _soap(group: Group, state: Group, leaf: Tensor, waiting: Tensor | None) -> Turned:
    """θ - (1 - ηδ)·ηQ(Qᵀ(β₁m + (1 - β₁)g)/(√v + ε)) - ηδθ; nothing in the first step."""
    _check(state, leaf, "Q", "exp_avg", "exp_avg_sq")
    step = group.get("step", 0)
    if not state or not step:
        return Turned(torch.zeros_like(leaf), None, ((), ()))
    bases = tuple(x if len(x) else None for x in state["Q"])
    (first, second), rate, decay = group["betas"], group["lr"], group["weight_decay"]
    size = rate * (1 - rate * decay)
    if group["correct_bias"]:
        size = size * (1 - second**step) ** 0.5 / (1 - first**step)
    # where no gradient has been, nothing is known, and the rates of the decay are not counted
    root = torch.threshold(state["exp_avg_sq"].sqrt(), 0.0, torch.inf)
    scale = size / (root + group["eps"])
    mean = first * state["exp_avg"] + (0.0 if waiting is None else (1 - first) * waiting)
    turns = bases, tuple(None if x is None else x.mT for x in bases)
    carried = turn_scaled(mean[None], scale, turns)[0]
    shrunk = turn_scaled(leaf[None], (scale != 0).to(leaf), turns)[0]
    return Turned((1 - first) * scale, carried + rate * decay * shrunk, turns)


def _shampoo(group: Group, state: Group, leaf: Tensor, waiting: Tensor | None) -> Turned:
    """θ - ηδθ - η·P(μ·buffer + (1 - μ)g), or with δθ in the brackets."""
    names = [f"inv_pre_cond_{axis}" for axis in range(leaf.ndim)]
    _check(state, leaf, *names, *["momentum_buffer"] * bool(group["momentum"]))
    if not state:
        return Turned(leaf.new_zeros(()), None, ((), ()))
    rate, momentum, apart = group["lr"], group["momentum"], group["weight_decouple"]
    decay, factors = group["weight_decay"], tuple(state[name] for name in names)
    buffer, within = state.get("momentum_buffer"), 0.0 if apart else decay
    parts = (1 - momentum, waiting), (momentum, buffer), (within, leaf)
    mixed = [share * x for share, x in parts if share and x is not None]
    carried = rate * turn(torch.stack(mixed).sum(0, keepdim=True), factors)[0] if mixed else None
    if apart and decay:
        known = torch.stack([x.any() for x in factors]).all()  # no root is 0 once it is computed
        shrunk = (decay if group["fixed_decay"] else rate * decay) * known * leaf
        carried = shrunk if carried is None else carried + shrunk
    return Turned(leaf.new_zeros(()) + rate * (1 - momentum), carried, (factors, ()))


_FORMS = {
    "pytorch_optimizer.optimizer.soap.SOAP": _soap,
    "pytorch_optimizer.optimizer.shampoo.Shampoo": _shampoo,
}
KRONECKER = "SOAP and Shampoo of pytorch_optimizer"


def _check(state: Group, leaf: Tensor, *names: str) -> None:
    """Raise unless a leaf is whole and its state, {} before the first step, has these names."""
    if local_part(leaf) is not leaf:
        raise NotImplementedError(
            "metric: this optimizer turns whole matrices, and a parameter is sharded"
        )
    missing = [name for name in names if state and name not in state]
    if missing:
        raise ValueError(
            f"metric: the optimizer's state has no {', '.join(missing)}; what is read is that of "
            "pytorch_optimizer 4.1.0"
        )
