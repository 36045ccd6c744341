"""MGDA: the shortest convex combination of the task gradients."""

from torch import Tensor

from ..core.expect import expect_solver
from ..solvers import min_norm
from ..solvers.default import weights_of
from ..types import Geometry, Rule, Solver, State, constructor
from .common import fill_absent, gramian_of, no_state


@constructor
def mgda(solver: Solver | None = None) -> Rule:
    """The shortest convex combination d = Σ w_t g_t of the gradients; g_t·d >= ‖d‖² for every task.

    Args:
        solver: of `mtlfunc.solvers`; None is `auto()`, exact.

    Returns:
        weights >= 0 that sum to 1. d = 0 exactly at Pareto-stationary points, so one converged task
        (a zero gradient) stops all. Tasks with small gradients weigh most: w_t is proportional to
        1/‖g_t‖² when the gradients are orthogonal.

    Source:
        Sener & Koltun 2018, eq. 3; Désidéri 2012. With `mtlfunc.representation` as probe this is
        MGDA-UB. The official code takes projected gradient steps, uncounted, keeps end points at
        .999 and .001, and applies weights of normalised gradients to raw losses.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(mgda(), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    expect_solver(solver)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian, restore = fill_absent(gramian_of(geometry), geometry.present)
        return restore(weights_of(min_norm(gramian), solver)), ()

    return Rule(no_state(), update, frozenset({"gramian", "present"}), heads="own")
