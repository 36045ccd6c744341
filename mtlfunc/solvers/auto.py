"""The default solver of every rule."""

from __future__ import annotations

from ..types import Solution, Solver
from .cvx import cvx
from .faces import MOST_TASKS, faces
from .problems import Problem, check_problem


def auto() -> Solver:
    """An exact solver: `faces` for up to 6 tasks, `cvx` beyond; takes all three problems.

    Raises: RuntimeError for more than 6 tasks under `torch.compile`, which cannot trace cvx.
    """
    small, large = faces(), cvx()

    def solve(problem: Problem) -> Solution:
        check_problem(problem)
        return (small if problem.gramian.shape[-1] <= MOST_TASKS else large)(problem)

    return solve
