"""SDMGrad: min-norm weights pulled towards a preferred direction, on independent batches."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_count, check_scalar, normalized_preference, poison
from ..solvers.problems import root
from ..solvers.simplex import project_present
from ..types import Geometry, Rule, Scalar, State, constructor
from ._modo import share_among_present
from .common import gramian_of, mean_present, preference_of, reading


class SDMGradState(NamedTuple):
    weights: Float[Tensor, " task"]  # w, on the simplex


@constructor
def sdmgrad(
    strength: Scalar = 0.3,
    lr: Scalar = 10.0,
    momentum: Scalar = 0.5,
    steps: int = 20,
    *,
    preference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """The shortest Jᵀw + λg₀, w on the simplex and g₀ = Jᵀp, by `steps` of v ← μv + A(w + λp), w ←
    Π_Δ(w - ηv) from the last batch's w and v = 0.

    A = J₁J₂ᵀ/s² on two independent batches, with s the mean of the tasks' √max(0, (J₁J₂ᵀ)_tt).

    Args:
        strength: λ >= 0; 0 is stochastic MGDA, ∞ the preferred direction.
        lr: η > 0. The default 10 is past the limit of convergence of such an iteration,
            2(1 + μ)/λ_max(A) <= 3: where tasks conflict w can jump from corner to corner.
        momentum: μ in [0, 1).
        steps: how many steps >= 1 are made at a time.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.

    Returns:
        weights (w + λp)/(1 + λ) >= 0 that sum to 1; the paper's direction is (1 + λ) times as long.
        The probe is `mtlfunc.double_sampling(...)` with three batches, the third for the step; a
        Gramian given by hand, as in `mtlfunc.weights`, is taken for J₁J₂ᵀ.

    Raises:
        ValueError: for strength < 0, lr <= 0, momentum outside [0, 1), steps < 1, bad preference.

    Source:
        Xiao et al. 2023 (SDMGrad), Algorithm 1, which draws new batches at each inner step; scale,
        momentum, the reuse of one pair and the division by 1 + λ are the official code's (section
        6.1). It adds 1e-4 under the root, steps T times as far, clips the norm, and keeps its three
        batches' gradients in one tensor, so that all are the last batch's. LibMTL has lr = 5,
        TorchJD the values given here; both add 1e-8 to s².

    Examples:
        >>> import torch, mtlfunc as mf
        >>> rule = sdmgrad(strength=0.0, lr=0.3, steps=100)
        >>> mf.weights(rule, torch.diag(torch.tensor([1.0, 4.0])))
        tensor([0.8000, 0.2000])
    """
    check_scalar(strength, "strength")
    check_scalar(lr, "lr", positive=True)
    check_scalar(momentum, "momentum", below=1.0)
    check_count(steps, "steps")

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        return SDMGradState(torch.full_like(losses, 1 / len(losses)))

    def update(geometry: Geometry, state: SDMGradState) -> tuple[Tensor, State]:
        gramian, present = gramian_of(geometry), geometry.present
        p = preference_of(geometry, preference, gramian)
        s = mean_present(root(gramian.diagonal().clamp_min(0)), present)
        s = s.where(s > 0, 1.0)
        matrix = gramian / s / s
        start, total = share_among_present(state.weights, present)
        w, pull = start.to(gramian), matrix @ (strength * p)
        velocity = torch.zeros_like(w)
        for _ in range(steps):
            velocity = momentum * velocity + (matrix @ w + pull)
            w = project_present(w - lr * velocity, present)
        w = poison(w, gramian, state.weights).to(state.weights.dtype)
        kept = (total * w).where(present, state.weights)
        return (w + strength * p.to(w)) / (1 + strength), SDMGradState(kept)

    return Rule(init, update, reading("cross_gramian", preference=preference))
