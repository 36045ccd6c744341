"""UPGrad: every gradient projected on the cone of directions that hurt no task, then the mean."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.expect import expect_solver
from ..solvers.default import dual_cone_weights
from ..types import Geometry, Rule, Solver, State, constructor
from .common import fill_absent, gramian_of, no_state, preference_of, reading


@constructor
def upgrad(
    *, preference: Float[Tensor, " task"] | None = None, solver: Solver | None = None
) -> Rule:
    """The gradients, each projected so that it raises no loss: d = Σ_t π(p_t g_t), π on {d: g_s·d
    >= 0 for all s}: weights Σ_t argmin over v >= p_t e_t of vᵀG v.

    The T projections share the Gramian and are solved in one call.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.
        solver: of `mtlfunc.solvers`; None is exact.

    Returns:
        weights, each at least its preference; they are p, of sum 1, when nothing conflicts. No rate
        is negative beyond the rounding of the Gramian, ε‖g_t‖ Σ v_s‖g_s‖. For T = 2 it is PCGrad's
        mean. d is linear in the length of every gradient: multiplying one by s > 0 multiplies its
        own projection by s and leaves the others; to the rounding of the scaled gradients, which
        counts where they nearly depend on each other (see `mtlfunc.solvers.problems`).

    Raises:
        ValueError: for a bad preference.

    Source:
        Quinton & Rey 2024, eq. 5 and Proposition 1. TorchJD solves with G/trace G + 1e-4 I: two
        gradients at 135° whose lengths are 1 and 100 get a d that is off by half of its length, at
        1 and 1000 by 99 %, and that raises the loss of the shorter one. Below ‖J‖_F = 0.01 it
        returns the mean, conflicts and all; LibMTL's is TorchJD's.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(upgrad(), torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
        [0.25, 0.75]
    """
    expect_solver(solver)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian, restore = fill_absent(gramian_of(geometry), geometry.present)
        each = torch.diag(preference_of(geometry, preference, gramian))
        return restore(dual_cone_weights(gramian, each, solver).sum(0)), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))
