"""Networks whose losses are residuals of equations: derivatives in the inputs, Gauss-Newton steps,
and weights by tangent kernels.
"""

from ._gauss_newton import gauss_newton
from ._kernel_traces import kernel_traces
from ._line_search import LineSearch, line_search
from ._newton_error import NewtonError, newton_error
from ._ntk import ntk
from .jets import Laplacian, directional, laplacian, value_and_gradient

__all__ = [
    "Laplacian",
    "LineSearch",
    "NewtonError",
    "directional",
    "gauss_newton",
    "kernel_traces",
    "laplacian",
    "line_search",
    "newton_error",
    "ntk",
    "value_and_gradient",
]


def __dir__() -> list[str]:  # for completion: public names alone
    return sorted(__all__)
