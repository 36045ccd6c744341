"""What a solver is tested with: hard families, strategies that shrink, and checks by certificates.

A *solver* is a function of one problem (`mtlfunc.solvers.min_norm`, `cagrad`, `dual_cone`). It
returns a `Solution`, made by `problem.solution(weights, dual, steps)`, or the weights alone.
"""

from ._check_solver import check_solver
from ._judge import assert_agree, certified_error
from ._report import Counterexample, SolverReport
from .families import FAMILIES, REGULAR, gramian, jacobian
from .strategies import gramians, jacobians, problems

__all__ = [
    "FAMILIES",
    "REGULAR",
    "Counterexample",
    "SolverReport",
    "assert_agree",
    "certified_error",
    "check_solver",
    "gramian",
    "gramians",
    "jacobian",
    "jacobians",
    "problems",
]


def __dir__() -> list[str]:  # for completion: public names alone
    return sorted(__all__)
