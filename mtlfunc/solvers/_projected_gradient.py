"""Accelerated projected gradient with restarts, on gradients scaled to unit length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.checks import check_count
from ..types import Solver, constructor
from . import simplex
from .face_solve import lengths
from .problems import Answer, CAGrad, DualCone, MinNorm, Problem, root, solver


@constructor
def projected_gradient(steps: int = 1000) -> Solver:
    """Accelerated projected gradient with restarts; takes all three problems.

    The unknowns are y_t = ‖g_t‖ w_t, so that a wide spread of norms does not slow it down; the
    simplex becomes {y >= 0, Σ y_t/‖g_t‖ = 1}, onto which projecting is as cheap. CAGrad's square
    root is majorised by the parabola that touches it at the current point.

    Args:
        steps: iterations, >= 1.

    Returns:
        a solver: an approximation whose gap says how good it is. Pure torch: vmaps, compiles,
        differentiates through the iterations.

    Raises:
        ValueError: for steps < 1.

    Source:
        Beck & Teboulle 2009 (FISTA); O'Donoghue & Candès 2015, the restart by the gradient.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> projected_gradient(100)(min_norm(torch.diag(torch.tensor([1.0, 4.0])))).weights
        tensor([0.8000, 0.2000])
    """
    check_count(steps, "steps")

    def solve(problem: Problem, eps: float) -> Answer:
        if isinstance(problem, DualCone):
            u = _dual_cone(problem, steps)
            return problem.weights + u, u, steps
        w = _simplex(problem, steps)
        if isinstance(problem, MinNorm):
            return w, w, steps
        push = _dual_cone(DualCone(problem.gramian, problem.preference), steps)
        return _better_direction(problem, w, push), w, steps

    return solver(solve)


def _simplex(problem: MinNorm | CAGrad, steps: int) -> Tensor:
    n = lengths(problem.gramian)
    largest = _curvature(problem.gramian, n)

    def descend(y: Tensor) -> Tensor:
        w = y / n
        curvature = largest
        if isinstance(problem, CAGrad):
            length = root(w @ problem.gramian @ w)
            curvature = problem.radius * largest / length.where(length > 0, 1.0)
        step = 1 / curvature.where(curvature > 0, 1.0)
        return simplex.project(y - step * problem.gradient(w) / n, 1 / n)

    y = _accelerate(descend, n / len(n), steps)
    return (y / n) / (y / n).sum()


def _dual_cone(problem: DualCone, steps: int) -> Tensor:
    n = lengths(problem.gramian)
    curvature = _curvature(problem.gramian, n)

    def descend(y: Tensor) -> Tensor:
        slope = problem.linear + problem.gramian @ (y / n)
        return (y - slope / n / curvature.where(curvature > 0, 1.0)).clamp_min(0)

    return _accelerate(descend, torch.zeros_like(n), steps) / n


def _accelerate(descend: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    current, extrapolated, momentum = start, start, torch.ones_like(start[0])
    for _ in range(steps):
        following = descend(extrapolated)
        restart = (extrapolated - following) @ (following - current) > 0
        momentum = momentum.where(~restart, 1.0)
        next_momentum = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        extrapolated = following + (momentum - 1) / next_momentum * (following - current)
        current, momentum = following, next_momentum
    return current


def _curvature(gramian: Tensor, n: Tensor) -> Tensor:
    """A bound on the largest eigenvalue of the cosine matrix: the largest absolute row sum."""
    return (gramian / (n[:, None] * n)).abs().sum(-1).amax()


def _better_direction(problem: CAGrad, w: Tensor, push: Tensor) -> Tensor:
    """The larger worst rate of two feasible directions: of the dual weights, to the dual cone."""
    reach = root(push @ problem.gramian @ push)
    shrink = torch.where(reach > problem.radius, problem.radius / reach.where(reach > 0, 1.0), 1.0)
    recovered, pushed = problem.recover(w), problem.preference + shrink * push
    better = (problem.gramian @ pushed).amin() > (problem.gramian @ recovered).amin()
    return torch.where(better, pushed, recovered)
