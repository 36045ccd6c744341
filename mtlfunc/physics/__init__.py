"""Networks whose losses are residuals of equations: derivatives in the inputs, Gauss-Newton steps,
and weights by tangent kernels.
"""

from typing import Any

from ..probes.tangent_kernels import kernel_traces
from ._gauss_newton import gauss_newton
from ._line_search import line_search
from ._newton_error import newton_error
from ._ntk import ntk
from .jets import directional, laplacian

__all__ = [
    "directional", "gauss_newton", "kernel_traces", "laplacian", "line_search", "newton_error",
    "ntk",
]  # fmt: skip
__dir__: Any = __all__.copy  # for completion: public names alone
