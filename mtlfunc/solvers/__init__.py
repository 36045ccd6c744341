"""Solvers side by side on the same problems; every answer carries a duality gap.

The problems, and what can be known of their answers from a Gramian: `mtlfunc.solvers.problems`.
"""

from ._active_set import active_set
from ._auto import auto
from ._certify import Certificate, certify
from ._compare import Comparison, compare
from ._cvx import cvx
from ._faces import faces
from ._frank_wolfe import frank_wolfe
from ._projected_gradient import projected_gradient
from .problems import CAGrad, DualCone, MinNorm, cagrad, dual_cone, min_norm

__all__ = [
    "CAGrad",
    "Certificate",
    "Comparison",
    "DualCone",
    "MinNorm",
    "active_set",
    "auto",
    "cagrad",
    "certify",
    "compare",
    "cvx",
    "dual_cone",
    "faces",
    "frank_wolfe",
    "min_norm",
    "projected_gradient",
]


def __dir__() -> list[str]:  # for completion: public names alone
    return sorted(__all__)
