"""What a solver is tested with: hard families, strategies that shrink, and checks by certificates.

A *solver* is a function of one problem (`mtlfunc.solvers.min_norm`, `cagrad`, `dual_cone`). It
returns a `Solution`, made by `problem.solution(weights, dual, steps)`, or the weights alone.
"""

from typing import Any

from ..core.gone import gone_names
from ._check_solver import check_solver
from ._judge import assert_agree, certified_error
from .families import jacobian
from .strategies import jacobians, problems

__all__ = ["assert_agree", "certified_error", "check_solver", "jacobian", "jacobians", "problems"]
__dir__: Any = __all__.copy  # for completion: public names alone


__getattr__: Any = gone_names(
    "mtlfunc.testing",
    {
        "Counterexample": "it is what `check_solver(...).counterexamples` holds",
        "FAMILIES": "`jacobian` lists the families",
        "REGULAR": 'write ("gaussian", "hull", "orthogonal")',
        "SolverReport": "it is what `check_solver` returns",
        "gramian": "write `rows @ rows.mT` with `rows = jacobian(...)`",
        "gramians": "write `jacobians(...).map(lambda rows: rows @ rows.mT)`",
    },
)
