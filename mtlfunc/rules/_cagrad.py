"""CAGrad: the best worst-task rate in a ball around the mean gradient."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from .. import solvers
from ..core.checks import check_option, check_scalar
from ..core.expect import expect_solver
from ..solvers.default import weights_of
from ..types import Geometry, Rule, Scalar, Solver, State, constructor
from .common import fill_absent, gramian_of, no_state, preference_if_any, reading

Rescale = Literal["none", "1+c", "1+c^2", "1+lambda"]


@constructor
def cagrad(
    c: Scalar,
    solver: Solver | None = None,
    *,
    preference: Float[Tensor, " task"] | None = None,
    rescale: Rescale = "none",
) -> Rule:
    """The best worst rate in a ball: max over ‖d - g₀‖ <= c‖g₀‖ of min_t g_t·d, g₀ = Σ p_t g_t.

    Args:
        c: radius >= 0. 0 gives the mean; below 1 the fixed points are those of the mean loss; from
            1 on no task's rate is negative beyond the rounding of the Gramian.
        solver: of `mtlfunc.solvers`; None is `auto()`, exact.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.
        rescale: divide by what the official code divides by: 1 + c² (images and Meta-World), 1 + c
            (toy and fast variants), 1 + λ with λ = c‖g₀‖/‖g_w‖ (Meta-World's exact variant; weights
            then sum to 1). "none" is the paper's own scale.

    Returns:
        weights p + λw, summing to 1 + λ; (1 + c) g when all tasks share one gradient g. At
        Pareto-stationary points with c large enough they are those of the projection on {d: g_t·d
        >= 0}, negative rates being avoidable there but not positive ones reachable.

    Raises:
        ValueError: for c < 0 or a bad preference.

    Source:
        Liu et al. 2021, eq. 3 and Algorithm 1. The official code adds 1e-4 (images: 1e-8) inside
        the roots, which breaks homogeneity and lets d leave the ball, and on Meta-World stops after
        20 steps. CAGrad-Fast is this rule on `mtlfunc.jacobian(..., mix=mtlfunc.subset(n))`.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(cagrad(0.5), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.7500, 0.7500])
    """
    check_scalar(c, "c")
    check_option(rescale, "rescale", get_args(Rescale))
    expect_solver(solver)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        filled, restore = fill_absent(gramian, geometry.present)
        p, some = preference_if_any(geometry, preference, gramian)  # 0 for the copies
        weights = some * restore(weights_of(solvers.cagrad(filled, c, preference=p), solver))
        if rescale == "1+lambda":
            return weights / weights.sum().where(some, 1.0), ()
        return weights / {"none": 1, "1+c": 1 + c, "1+c^2": 1 + c**2}[rescale], ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))
