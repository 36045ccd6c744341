"""Nash-MTL: the direction on which the tasks would settle if they bargained for it."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_option, check_scalar
from ..solvers.problems import root
from ..types import Geometry, Rule, Scalar, State, constructor
from ._newton import bargain
from .common import gramian_of, no_state, preference_of, reading

Rescale = Literal["none", "sum"]


@constructor
def nash_mtl(
    *,
    preference: Float[Tensor, " task"] | None = None,
    rescale: Rescale = "none",
    max_norm: Scalar | None = None,
) -> Rule:
    """The Nash bargaining solution: max over ‖d‖ <= 1 of Π_t (g_t·d). It is along Jᵀα, where α > 0
    solves G α = 1/α. A multiple of one task's gradient leaves the direction as it is.

    Args:
        preference: bargaining powers p `[task]` >= 0, scaled to sum 1: Π (g_t·d)^p_t, or G α = T
            p/α; None is the geometry's, 1/T unless tasks were mixed.
        rescale: "none", the paper's own scale, or "sum", weights that sum to 1.
        max_norm: shorten a longer d to this length, > 0, also for heads; None never does.

    Returns:
        weights α > 0, in units of 1/‖g‖: ‖Jᵀα‖ = √T **however short the gradients are**, so only
        the optimizer's learning rate lets a run settle. With "sum" d scales with the gradients.

        At Pareto-stationary points no α exists: the weights are those of C + 4Tε I, C the cosines,
        finite; so are they nearly where an eigenvalue of C is below 4Tε, half for T = 16 in
        bfloat16: accumulate G in float32. Tasks in a combination that vanishes get about
        1/(√ε‖g_t‖) and cancel to √ε, and the others bargain for a direction at right angles to them
        ("sum" leaves these √ε of the weight, so that d = 0 nearly). If all are in one, d is made of
        rounding: another order of the tasks gives another direction. A task whose gradient is zero
        gets weight 0; "sum" falls back on p where all are. Derivatives are exact up to order 2.

    Raises:
        ValueError: for a bad preference, rescale or max_norm; at a step, for a preference so uneven
            that Newton's method does not settle (NaN where that cannot be seen).

    Source:
        Navon et al. 2022, eq. 2 and Algorithm 1. The official code, TorchJD and LibMTL solve a
        sequence of cvxpy problems from the last step's α, to 1e-3, and clip the shared gradient at
        norm 1, which leaves heads √T times as long as max_norm=1. They divide G by its norm and
        multiply by it again inside the problem, so that their α is also that of G.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(nash_mtl(), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([1.0000, 0.5000])
    """
    check_option(rescale, "rescale", get_args(Rescale))
    if max_norm is not None:
        check_scalar(max_norm, "max_norm", positive=True)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        p = preference_of(geometry, preference, gramian)
        alpha, longest = bargain(gramian, 1.0, p * geometry.present.sum())
        if rescale == "sum":
            total = alpha.sum()
            alpha = torch.where(total > 0, alpha / total.where(total > 0, 1.0), p + 0 * total)
        else:
            alpha = alpha / longest
        if max_norm is not None:
            norm = root(alpha @ gramian.double() @ alpha)
            alpha = alpha * (max_norm / norm.where(norm > max_norm, max_norm))
        return alpha.to(gramian.dtype), ()

    reads = reading("gramian", preference=preference)
    return Rule(no_state(preference), update, reads, heads="weighted")
