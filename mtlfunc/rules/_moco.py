"""MoCo: one projected gradient step a batch towards the min-norm weights, on tracked gradients."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_scalar
from ..types import Geometry, Rule, Scalar, State, constructor
from ._modo import descend_weights


class MoCoState(NamedTuple):
    weights: Float[Tensor, " task"]  # λ, on the simplex
    steps: Int[Tensor, ""]


@constructor
def moco(lr: Scalar = 0.1, rho: Scalar = 0.1, decay: Scalar = 0.0) -> Rule:
    """Weights from tracked gradients Y, whose noise dies out as the tracking slows down: λ ← Π_Δ(λ
    - γ_k(YYᵀ + ρI)λ) with γ_k = γ/k^σ.

    Args:
        lr: γ > 0, in the unit 1/‖gradient‖²: the method is not scale-free.
        rho: ρ >= 0, in the unit of ‖gradient‖².
        decay: σ >= 0.

    Returns:
        weights >= 0 that sum to 1, those after the step; the direction is Yᵀλ. The probe is
        `mtlfunc.moving_average(...)`; a Gramian given to `mtlfunc.weights` is taken for YYᵀ.

    Raises:
        ValueError: for lr <= 0, rho < 0 or decay < 0.

    Source:
        Fernando et al. 2023, Algorithm 1; lr and rho are .1 in the authors' code for MoDo, which
        can also normalise Y's rows. Their code for this paper has ρ = 0, σ = .5; on Office, steps
        of 2γ_k; on Cityscapes, softmax instead of Π_Δ, which leaves the weights near 1/T whatever
        the gradients, and rows as long as their losses as an option, as LibMTL has.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(moco(lr=0.1, rho=0.0), torch.diag(torch.tensor([1.0, 4.0])))
        tensor([0.5750, 0.4250])
    """
    check_scalar(lr, "lr", positive=True)
    check_scalar(rho, "rho")
    check_scalar(decay, "decay")

    def init(losses: Tensor, key: Tensor) -> State:
        steps = torch.zeros_like(losses[0], dtype=torch.int64)
        return MoCoState(torch.full_like(losses, 1 / len(losses)), steps)

    def update(geometry: Geometry, state: MoCoState) -> tuple[Tensor, State]:
        steps = state.steps + geometry.present.any()
        step = lr / steps.clamp_min(1).to(state.weights) ** decay
        weights, following = descend_weights(state.weights, geometry, step, rho)
        return weights, MoCoState(following, steps)

    return Rule(init, update, frozenset({"present", "tracked_gramian"}))
