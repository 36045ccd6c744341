"""Solvers side by side on the same problems; every answer carries a duality gap.

The problems, and what can be known of their answers from a Gramian: `mtlfunc.solvers.problems`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._certify import certify
from ._faces import faces
from ._frank_wolfe import frank_wolfe
from ._projected_gradient import projected_gradient
from .default import auto
from .exact import active_set
from .problems import CAGrad, DualCone, MinNorm, cagrad, dual_cone, min_norm

if TYPE_CHECKING:
    from ..testing.reference import cvx

__all__ = [
    "CAGrad", "DualCone", "MinNorm", "active_set", "auto", "cagrad", "certify", "cvx", "dual_cone",
    "faces", "frank_wolfe", "min_norm", "projected_gradient",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "cvx":  # of the laboratory above, where it is found when it is asked for
        return import_module("mtlfunc.testing.reference").cvx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__dir__: Any = __all__.copy  # for completion: public names alone
