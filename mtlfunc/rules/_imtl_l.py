"""IMTL-L: learn the scale that brings every loss to 1."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import optim
from ..core.checks import normalized_preference, poison
from ..types import Geometry, Optimizer, Rule, Scalar, State, constructor
from .common import preference_of, reading
from .losswise import begin, learn, optimizer_at


class IMTLLState(NamedTuple):
    s: Float[Tensor, " task"]  # log of each loss' scale
    optimizer: State


@constructor
def imtl_l(
    lr: Scalar,
    *,
    optimizer: Callable[[Scalar], Optimizer] = optim.adam,
    preference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """Descend Σ_t e^(s_t) L_t - s_t in the parameters and in s together, from s = 0.

    The slope in s is e^(s_t) L_t - 1, so s_t ends at -log L_t: every scaled loss is then 1. This
    is `uw` with the sign of s turned and twice its objective. The heads belong to the same
    objective; `mtlfunc.losses_only()` is the probe that costs least.

    Args:
        lr: learning rate > 0 of s.
        optimizer: from a learning rate to the optimizer of s.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T unless tasks were
            mixed. It scales weights, not the steps of s.

    Returns:
        weights p_t·e^(s_t), those of before this step's update of s: 1 in sum at the start, 1/L
        when all losses rest at L. Use `reduction="sum"` to step along the paper's sum. A loss that
        stays at or below 0 sends its s and its weight to ∞.

    Raises:
        ValueError: for lr <= 0 or a bad preference.

    Source:
        Liu et al. 2021 (Towards Impartial Multi-task Learning), the loss balance. TorchJD's IMTLL
        is this sum with s in the network's optimizer; LibMTL has it only inside its IMTL, where the
        gradient balance acts on the scaled losses.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(imtl_l(0.01), torch.eye(2), losses=torch.tensor([1.0, 9.0])).tolist()
        [0.5, 0.5]
    """
    move = optimizer_at(optimizer, lr)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        s = torch.zeros_like(losses)
        return IMTLLState(s, begin(move, s))

    def update(geometry: Geometry, state: IMTLLState) -> tuple[Tensor, State]:
        scale = torch.exp(state.s)
        weights = poison(preference_of(geometry, preference) * scale, geometry.losses)
        slope = scale * geometry.losses - 1
        return weights, IMTLLState(*learn(move, state.s, slope, state.optimizer, geometry.present))

    return Rule(init, update, reading("losses", preference=preference), heads="weighted")
