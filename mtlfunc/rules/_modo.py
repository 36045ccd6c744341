"""MoDo: a projected gradient step a batch towards min-norm weights, on two independent batches."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..core.transforms import all_present
from ..solvers.simplex import project_present
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import gramian_of, total_present


class MoDoState(NamedTuple):
    weights: Float[Tensor, " task"]  # λ, on the simplex


@constructor
def modo(lr: Scalar = 0.1, rho: Scalar = 0.1) -> Rule:
    """A stochastic step on ½‖Jᵀλ‖² + ½ρ‖λ‖²: λ ← Π_Δ(λ - γ(Gλ + ρλ)), where G = J₁J₂ᵀ of two
    independent batches is unbiased.

    Args:
        lr: γ > 0. It carries the unit 1/‖gradient‖²: the method is not scale-free. With losses of
            another scale it is another number.
        rho: ρ >= 0, in the unit of ‖gradient‖².

    Returns:
        weights >= 0 that sum to 1, those after the step. The probe is
        `mtlfunc.double_sampling(...)`; one given to `mtlfunc.weights` is taken for J₁J₂ᵀ.

    Raises:
        ValueError: for lr <= 0 or rho < 0.

    Source:
        Chen et al. 2023 (MoDo), eq. 2.9a; ρ, .1 in its code and in TorchJD's and LibMTL's defaults,
        is not in the paper's recursion. LibMTL has lr = .001; the paper's code steps twice as far.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(modo(lr=0.1, rho=0.0), torch.diag(torch.tensor([1.0, 4.0])))
        tensor([0.5750, 0.4250])
    """
    check_scalar(lr, "lr", positive=True)
    check_scalar(rho, "rho")

    def init(losses: Tensor, key: Tensor) -> State:
        return MoDoState(torch.full_like(losses, 1 / len(losses)))

    def update(geometry: Geometry, state: MoDoState) -> tuple[Tensor, State]:
        weights, following = descend_weights(state.weights, geometry, lr, rho)
        return weights, MoDoState(following)

    return Rule(init, update, frozenset({"cross_gramian", "present"}))


def descend_weights(
    weights: Tensor, geometry: Geometry, lr: Scalar, rho: Scalar
) -> tuple[Tensor, Tensor]:
    """Weights after one projected step on the present tasks, and the state after it.

    In the state absent tasks keep their weights and the others share the rest.
    """
    gramian, present = gramian_of(geometry), geometry.present
    share, total = share_among_present(weights, present)
    start = share.to(gramian)
    point = start - lr * (gramian @ start + rho * start)
    moved = poison(project_present(point, present), gramian, weights).to(weights.dtype)
    return moved, moved if all_present(present) else (total * moved).where(present, weights)


def share_among_present(weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The weights [task] of the present tasks, scaled to sum 1, and what they had together."""
    total = total_present(weights, present, 1.0)
    if all_present(present):
        return weights, total
    share = weights.where(present, 0.0) / total
    count = present.sum().clamp_min(1)
    # all of the weight was with absent tasks
    some = share.sum() > 0
    return share.where(some, present.to(weights) / count), total * some
