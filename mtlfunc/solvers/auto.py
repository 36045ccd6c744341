"""The default solver of every rule."""

from __future__ import annotations

import torch

from ..types import Solution, Solver
from .active_set import active_set
from .faces import faces
from .problems import Problem, check_problem, solver
from .two_tasks import two_tasks

FEW_TASKS = 4
"""Up to so many tasks `faces` is preferred where a graph is compiled or the Gramian is on another device than the CPU."""


def auto() -> Solver:
    """An exact solver, chosen by what is at hand; takes all three problems, any T.

    On a CPU outside `torch.compile` it is `active_set` for every T: one call of a compiled kernel, faster than any formula in eager torch, which
    pays for each operation. Inside `torch.compile` and on other devices it is the closed form for T = 2, `faces` up to T = 4 (both
    plain torch, so that they fuse, and never leave the device), and `active_set` beyond. All are exact to rounding and give the same
    direction; weights may differ where several give it.
    """
    formula, few, many = solver(two_tasks), faces(), active_set()

    def solve(problem: Problem) -> Solution:
        check_problem(problem)
        gramian = problem.gramian
        count = gramian.shape[-1]
        if count > FEW_TASKS or (gramian.device.type == "cpu" and not torch.compiler.is_compiling()):
            return many(problem)
        return (formula if count == 2 else few)(problem)

    return solve
