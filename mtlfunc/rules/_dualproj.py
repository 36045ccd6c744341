"""DualProj: the mean gradient, projected on the cone of directions that hurt no task."""

from jaxtyping import Float
from torch import Tensor

from ..core.expect import expect_solver
from ..solvers.default import dual_cone_weights
from ..types import Geometry, Rule, Solver, State, constructor
from .common import fill_absent, gramian_of, no_state, preference_of, reading


@constructor
def dualproj(
    *, preference: Float[Tensor, " task"] | None = None, solver: Solver | None = None
) -> Rule:
    """The mean gradient g₀ = Jᵀp, moved as little as raises no loss: the point d of {d: g_t·d >= 0
    for all t} nearest to it, d = Jᵀv, v = argmin over v >= p of vᵀG v.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.
        solver: of `mtlfunc.solvers`; None is exact.

    Returns:
        weights v >= p, equal to p, of sum 1, where g₀ hurts no task. No rate is negative beyond the
        rounding of the Gramian, ε‖g_t‖ Σ v_s‖g_s‖. At Pareto-stationary points some are 0, and
        d = 0 only where nothing else is left.

    Raises:
        ValueError: for a bad preference.

    Source:
        Lopez-Paz & Ranzato 2017, eqs. 8–11 (GEM), for the gradients of all tasks at once, as in
        Quinton & Rey 2024. TorchJD solves with G/trace G + 1e-4 I: two gradients at 135° whose
        lengths are 1 and 100 get a d that is off by half of its length, at 1 and 1000 by 99 %, and
        that raises the loss of the shorter one. Below ‖J‖_F = 0.01 it returns g₀, conflicts and
        all. With a one-hot preference this is GEM, for two tasks A-GEM (Chaudhry et al. 2019) and,
        with a row for minus the loss of what is to be forgotten, GRU (Wang et al. 2025).

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(dualproj(), torch.tensor([[1.0, 0.0], [-3.0, 1.0]])).tolist()
        [0.0, 0.5]
    """
    expect_solver(solver)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian, restore = fill_absent(gramian_of(geometry), geometry.present)
        p = preference_of(geometry, preference, gramian)
        return restore(dual_cone_weights(gramian, p, solver)), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))
