"""The direction with given cosines to all gradients, for IMTL-G and ConFIG."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.transforms import is_differentiated, values_readable
from ._spectral import rounding, solve, spectral

_SINGLE = torch.finfo(torch.float32).eps


def inverse_lengths(gramian: Float[Tensor, "row row"]) -> Float[Tensor, " row"]:
    """1/‖g‖; 0 for a zero row."""
    return torch.threshold(gramian.diagonal(), 0.0, torch.inf).rsqrt()


def equiangular(
    gramian: Float[Tensor, "row row"], cosines: Float[Tensor, " row"]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coefficients a of unit gradients u_i with u_i·Σ a_j u_j = cosines_i, or as near as can be.

    That is a = C⁺ cosines, C the matrix of cosines, where eigenvalues up to T max(ε, ε₃₂²) times
    the largest are taken for 0, ε of the Gramian's dtype (√T ε if that is half precision), ε₃₂ of
    float32: gradients that depend on each other in float32 have eigenvalues of that size in a
    Gramian of any dtype. Where the determinant can be seen to exclude such eigenvalues, and nothing
    differentiates, a compiled kernel solves with Cholesky's factor.

    Returns:
        1/‖g‖ `[row]`, 0 for a zero row; a `[row]`, 0 for a zero row, all NaN where an entry of the
        Gramian is not finite; and what no direction can reach, the part of `cosines` in the
        null space of C, or None where it can be seen that there is none. All in float64.
    """
    count = cosines.shape[0]
    noise = max(rounding(count, gramian.dtype), count * _SINGLE**2)
    gramian = gramian.double()
    if values_readable(gramian, cosines) and not is_differentiated((gramian, cosines)):
        from ._kernels.equiangular import solve as solve_on_cpu  # only where values can be read

        found = np.empty((2, count))
        given = gramian.contiguous().numpy(), cosines.contiguous().numpy()
        if solve_on_cpu.run(*given, count * noise, *found):
            unit, a = torch.from_numpy(found).unbind()
            return unit, a, None
    unit = inverse_lengths(gramian)
    matrix = gramian * unit * unit.unsqueeze(1)
    found = spectral(matrix, noise)
    share = cosines @ found.basis
    a = found.basis @ solve(found, share)
    if found.kept is None:
        return unit, a, None
    return unit, a, cosines - found.basis @ share
