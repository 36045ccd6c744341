"""FairGrad: the direction that is α-fair in the tasks' rates of progress."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_option, check_scalar
from ..types import Geometry, Rule, Scalar, State, constructor
from ._newton import bargain
from .common import gramian_of, no_state, preference_of, reading

Rescale = Literal["none", "sum"]


@constructor
def fairgrad(
    alpha: Scalar, *, preference: Float[Tensor, " task"] | None = None, rescale: Rescale = "none"
) -> Rule:
    """The α-fair direction: max over ‖d‖ <= 1 of Σ_t (g_t·d)^(1-α)/(1-α). It is along Jᵀw, where w
    > 0 solves G w = w^(-1/α).

    Args:
        alpha: fairness > 0. Towards 0 the weights tend to 1 where that lowers every loss (the sum
            of the gradients), else to T times `dualproj`'s; 1 is Nash-MTL, 2 minimises potential
            delay, and large α approaches the largest worst rate (MGDA's direction).
        preference: importances p `[task]` >= 0 of the terms, scaled to sum 1: (G w)_t = (w_t/(T
            p_t))^(-1/α); None is the geometry's, 1/T unless tasks were mixed.
        rescale: "none", the paper's own scale, or "sum", weights that sum to 1.

    Returns:
        weights w > 0, in units of ‖g‖^(-2α/(1+α)); ‖Jᵀw‖² = Σ w^(1-1/α). Common descent: every rate
        is w_t^(-1/α) > 0. With "sum" d scales with the gradients. At Pareto-stationary points, and
        for zero gradients it is as in `nash_mtl`. Derivatives are exact up to order 2.

    Raises:
        ValueError: for alpha <= 0, a bad preference or rescale; at a step, for an alpha below 1/3
            or above 3 with gradients whose lengths differ so much (eight orders of magnitude)
            that Newton's method does not settle (NaN where that cannot be seen).

    Source:
        Ban & Ji 2024, eq. 4 and Algorithm 1. The official code, LibMTL and TorchJD solve by SciPy's
        least_squares from w = 1/T; the first then steps T times as far, and clips at max_norm.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(fairgrad(0.5), torch.tensor([[1.0, 0.0], [0.0, 8.0]]))
        tensor([1.0000, 0.5000])
    """
    check_scalar(alpha, "alpha", positive=True)
    check_option(rescale, "rescale", get_args(Rescale))

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        p = preference_of(geometry, preference, gramian)
        power = 1 / (alpha.double() if isinstance(alpha, Tensor) else alpha)
        w, longest = bargain(gramian, power, p * geometry.present.sum())
        if rescale == "sum":
            total = w.sum()
            w = torch.where(total > 0, w / total.where(total > 0, 1.0), p + 0 * total)
        else:
            w = w * longest ** (-2 / (power + 1))
        return w.to(gramian.dtype), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))
