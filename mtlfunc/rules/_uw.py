"""UW: weigh every loss by the inverse of its learned noise variance."""

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


class UWState(NamedTuple):
    s: Float[Tensor, " task"]  # log σ²
    optimizer: State


@constructor
def uw(
    lr: Scalar,
    *,
    optimizer: Callable[[Scalar], Optimizer] = optim.adam,
    initial: Scalar = 0.0,
    preference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """Descend Σ_t ½e^(-s_t) L_t + ½s_t in the parameters and in s = log σ² together.

    The slope in s is known, ½ - ½e^(-s_t) L_t, so no second backward pass is made; s_t ends at log
    L_t, where task t's weight is 1/(2L_t). The heads belong to the same objective;
    `mtlfunc.losses_only()` is the probe that costs least.

    Args:
        lr: learning rate > 0 of s; the paper learns s with the network's own optimizer.
        optimizer: from a learning rate to the optimizer of s.
        initial: s at the start.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T unless tasks were
            mixed. It scales weights, not the steps of s.

    Returns:
        weights p_t·½e^(-s_t), those of before this step's update of s: ½ in sum at the start,
        1/(2L) when all losses rest at L. Use `reduction="sum"` to step along the paper's sum. A
        loss that stays at or below 0 sends its s to -∞ and its weight to ∞.

    Raises:
        ValueError: for lr <= 0 or a bad preference.

    Source:
        Kendall et al. 2018, eq. 7 with s = log σ². LibMTL starts at s = -½; there and in TorchJD s
        is a parameter of the network's optimizer, weight decay included.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(uw(0.01), torch.eye(2), losses=torch.tensor([1.0, 9.0])).tolist()
        [0.25, 0.25]
    """
    move = optimizer_at(optimizer, lr)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        s = torch.zeros_like(losses) + initial
        return UWState(s, begin(move, s))

    def update(geometry: Geometry, state: UWState) -> tuple[Tensor, State]:
        precision = 0.5 * torch.exp(-state.s)
        weights = poison(preference_of(geometry, preference) * precision, geometry.losses)
        slope = 0.5 - precision * geometry.losses
        return weights, UWState(*learn(move, state.s, slope, state.optimizer, geometry.present))

    return Rule(init, update, reading("losses", preference=preference), heads="weighted")
