"""ExcessMTL: exponentiated weights for the tasks that are farthest from convergence."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar
from ..core.transforms import select_where
from ..types import Geometry, Rule, Scalar, State, constructor
from .losswise import exponentiate


class ExcessMTLState(NamedTuple):
    logits: Float[Tensor, " task"]  # log weights
    first: Float[Tensor, " task"]  # the task's first excess risk that was not 0


@constructor
def excess_mtl(lr: Scalar = 0.01) -> Rule:
    """Weights grow with excess risks: w ← softmax(log w + η e/e(first)), with the e that
    `mtlfunc.excess_risk(...)` measures, each relative to its task's first one.

    Args:
        lr: η > 0. After n steps at which e/e(first) differs by δ between two tasks their weights
            differ by the factor exp(nηδ).

    Returns:
        weights > 0 that sum to 1, those after the step; at first 1/T (less without a gradient).

    Raises:
        ValueError: for lr <= 0.

    Source:
        He et al. 2024 (ExcessMTL), eq. 9 and section 3.2. The official code and LibMTL have weights
        that sum to T. TorchJD's default step is 1 and its first call exponentiates e itself, which
        is one-hot at once where gradients are long. A task whose first gradient was 0 has e(first)
        from its first gradient that is not, where they divide by 0.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> f = lambda params, batch: params["w"] ** 2
        >>> step = mf.balance(f, excess_mtl(), mf.excess_risk())
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> step.update(params, (), step.init(params, ()))[2].weights
        tensor([0.5000, 0.5000])
    """
    check_scalar(lr, "lr", positive=True)

    def init(losses: Tensor, key: Tensor) -> State:
        return ExcessMTLState(torch.full_like(losses, 0.0), torch.zeros_like(losses))

    def update(geometry: Geometry, state: ExcessMTLState) -> tuple[Tensor, State]:
        risk, present = geometry.extra["excess_risk"].to(state.first), geometry.present
        first = select_where(state.first, state.first > 0, risk)
        slope = lr * (risk / select_where(first, first > 0, 1.0))
        weights, logits = exponentiate(state.logits, slope, present)
        return weights, ExcessMTLState(logits, first.where(present, state.first))

    return Rule(init, update, frozenset({"excess_risk", "present"}), heads="weighted")
