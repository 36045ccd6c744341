"""What a solver is tested with: hard families, strategies that shrink, and checks by certificates.

A *solver* is a function of one problem (`mtlfunc.solvers.min_norm`, `cagrad`, `dual_cone`). It
returns a `Solution`, made by `problem.solution(weights, dual, steps)`, or the weights alone.
"""

from typing import Any

from ._check_solver import check_solver
from ._outside import outside
from .families import jacobian
from .judge import assert_agree, certified_error
from .strategies import jacobians, problems

__all__ = [
    "assert_agree", "certified_error", "check_solver", "jacobian", "jacobians", "outside",
    "problems",
]  # fmt: skip
__dir__: Any = __all__.copy  # for completion: public names alone
