"""Frank–Wolfe on the simplex, with the step rules that the literature compares."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.checks import check_count, check_option
from ..types import Solver, constructor
from ._faces import scale_to_simplex
from .problems import RESOLUTION, Answer, CAGrad, DualCone, Problem, solver

StepRule = Literal["line-search", "1/(n+1)", "2/(n+2)", "away", "pairwise"]


@constructor
def frank_wolfe(steps: int = 1000, step: StepRule = "line-search") -> Solver:
    """Move towards the task with the smallest rate, `steps` times from equal weights.

    Args:
        steps: number of iterations, >= 1, always all of them.
        step: `"line-search"` (exact; zig-zags when the answer is inside a face), `"1/(n+1)"` (the
            running average of the task with the smallest rate), `"2/(n+2)"` (½‖d‖² within 2
            diam²/(n+2) of its minimum), `"away"` and `"pairwise"` (exact line search that may also
            take weight from the largest rate; linear convergence). Of rates that are equal
            to 2⁻⁴⁰ of the largest the first task's counts, so that rounding breaks no ties.

    Returns:
        an approximation whose gap says how good it is. Pure torch: vmaps, compiles, differentiates
        through the iterations. On cagrad at Pareto-stationary points d cannot be read off the dual
        weights; the gap then stays open.

    Raises:
        ValueError: for steps < 1 or another step.
        TypeError: for dual_cone, whose feasible set is unbounded.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> frank_wolfe(10)(min_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))).weights
        tensor([0.7500, 0.2500])
    """
    check_count(steps, "steps")
    check_option(step, "step", get_args(StepRule))

    def solve(problem: Problem, eps: float) -> Answer:
        if isinstance(problem, DualCone):
            raise TypeError(
                "frank_wolfe takes min_norm and cagrad, not dual_cone: its feasible set is "
                "unbounded. Use projected_gradient, cvx or auto"
            )
        count = problem.gramian.shape[-1]
        w = torch.full_like(problem.gramian[0], 1 / count)
        tasks = torch.arange(count, device=w.device)
        for n in range(1, steps + 1):
            rates = problem.gradient(w)
            tie = RESOLUTION * rates.abs().amax()
            toward = (tasks == _first(rates <= rates.amin() + tie)).to(w)
            inside = rates.where(w > RESOLUTION, -torch.inf)
            away = (tasks == _first(inside >= inside.amax() - tie)).to(w)
            direction, limit = toward - w, torch.ones_like(rates[0])
            if step == "away":
                mean, share = w @ rates, (away * w).sum()
                forward = mean - toward @ rates >= away @ rates - mean - tie
                direction = torch.where(forward, direction, w - away)
                most = torch.where(share < 1, share / (1 - share).where(share < 1, 1.0), torch.inf)
                limit = torch.where(forward, limit, most)
            elif step == "pairwise":
                direction, limit = toward - away, (away * w).sum()
            w = scale_to_simplex(w + _length(problem, w, direction, limit, n, step) * direction)
        weights = problem.recover(w) if isinstance(problem, CAGrad) else w
        return weights, w, steps

    return solver(solve)


def _first(where: Tensor) -> Tensor:
    """The first task of those that are equal up to rounding: rounding cannot choose another."""
    return where.to(torch.int8).argmax()


def _length(
    problem: Problem, w: Tensor, direction: Tensor, limit: Tensor, n: int, step: StepRule
) -> Tensor | float:
    if step == "1/(n+1)":
        return 1 / (n + 1)
    if step == "2/(n+2)":
        # n counts from 1 here and from 0 in the rule, whose first step forgets the start; the bound
        # needs that
        return 2 / (n + 1)
    assert not isinstance(problem, DualCone)
    best = torch.minimum(problem.best_step(w, direction).clamp_min(0), limit)
    return best.where(best != torch.inf, 0.0)
