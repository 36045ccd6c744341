"""The default solver of every rule."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ..core.checks import check_gramian
from ..core.expect import expect_solver
from ..core.transforms import is_differentiated
from ..types import Solution, Solver, constructor
from ._faces import faces
from .exact import active_set, kernel_at, run
from .problems import DualCone, Problem, check_problem, precision, solver
from .two_tasks import two_tasks

FEW_TASKS = 4
"""Up to so many tasks formulas are preferred where no kernel runs on the Gramian's device."""


@constructor
def auto() -> Solver:
    """An exact solver, chosen by what is at hand; takes all three problems, any T.

    Outside `torch.compile`, on a CPU and on CUDA with Triton (T <= 128), it is `active_set` for
    every T: one call of a compiled kernel, where formulas in eager torch pay for each of their 40
    to 600 operations. Inside `torch.compile` it is the closed form for T = 2 (plain torch, which
    fuses) and `active_set` beyond, one operator of the graph: formulas for three tasks would be two
    thirds of the graph of a small network's step, and most of the time that it takes to compile. On
    a device without a kernel it is the closed form for T = 2, `faces` up to T = 4 (neither leaves
    the device), and `active_set` beyond. All are exact to rounding and give the same direction;
    weights may differ where several give it. None reads a value on the host, but for `active_set`
    on a device without a kernel.

    Returns:
        a solver: from a problem to its `Solution`.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> auto()(min_norm(torch.diag(torch.tensor([1.0, 4.0])))).weights
        tensor([0.8000, 0.2000])
    """
    formula, few, many = solver(two_tasks), faces(), active_set()

    def solve(problem: Problem) -> Solution:
        check_problem(problem)
        gramian = problem.gramian
        count = gramian.shape[-1]
        if count == 2 and (torch.compiler.is_compiling() or not kernel_at(gramian)):
            return formula(problem)
        return (few if count <= FEW_TASKS and not kernel_at(gramian) else many)(problem)

    return solve


def solver_or_auto(solver: Solver | None) -> Solver:
    """The solver that a rule was given, checked; `auto()` for None."""
    expect_solver(solver)
    return solver or auto()


def weights_of(problem: Problem, solver: Solver | None = None) -> Float[Tensor, "... task"]:
    """`solver(problem).weights`; by default, outside of derivatives, one kernel call."""
    gramian = problem.gramian
    if solver or is_differentiated(problem) or not kernel_at(gramian):
        found = (solver or auto())(problem)
        return found if isinstance(found, Tensor) else found.weights  # as `check_solver` takes them
    report, _, _ = run(problem, precision(len(gramian), gramian.dtype))
    return report.narrow(-1, 0, len(gramian)).to(gramian.dtype)


def dual_cone_weights(
    gramian: Float[Tensor, "task task"],
    weights: Float[Tensor, "... task"],
    solver: Solver | None = None,
) -> Float[Tensor, "... task"]:
    """`solver(dual_cone(gramian, w)).weights` for one w or several, which are taken as they are: by
    default one kernel call; with a solver, or where something differentiates, a `vmap` over w.
    """
    check_gramian(gramian, symmetric=True)
    alone = solver or is_differentiated((gramian, weights)) or not kernel_at(gramian)
    if weights.ndim > 1 and alone:
        return vmap(lambda w: weights_of(DualCone(gramian, w), solver))(weights)
    return weights_of(DualCone(gramian, weights), solver)
