"""The direction with given cosines to all gradients, for IMTL-G and ConFIG."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

from ._spectral import solve, spectral


def inverse_lengths(gramian: Float[Tensor, "row row"]) -> Float[Tensor, " row"]:
    """1/‖g‖; 0 for a zero row."""
    return threshold(gramian.diagonal(), 0.0, torch.inf).rsqrt()


def equiangular(
    gramian: Float[Tensor, "row row"], cosines: Float[Tensor, " row"]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coefficients a of unit gradients u_i with u_i·Σ a_j u_j = cosines_i, or as near as can be.

    That is a = C⁺ cosines, C the matrix of cosines, where eigenvalues up to T² max(ε, ε₃₂²) are
    taken for 0, ε of the Gramian's dtype, ε₃₂ of float32: gradients that depend on each other in
    float32 have eigenvalues of that size in a Gramian of any dtype.

    Returns:
        1/‖g‖ `[row]`, 0 for a zero row; a `[row]`, 0 for a zero row, all NaN where an entry of the
        Gramian is not finite; and what no direction can reach, the part of `cosines` in the
        null space of C, or None where it can be seen that there is none. All in float64.
    """
    single = torch.finfo(torch.float32).eps
    noise = len(cosines) ** 2 * max(torch.finfo(gramian.dtype).eps, single**2)
    gramian = gramian.double()
    unit = inverse_lengths(gramian)
    found = spectral(gramian * unit * unit[:, None], noise)
    share = cosines @ found.basis
    a = found.basis @ solve(found, share)
    if found.kept is None:
        return unit, a, None
    return unit, a, cosines - found.basis @ share
