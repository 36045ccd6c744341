"""What IMTL-G and ConFIG share: a direction at prescribed angles to all gradients, from their
cosines.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

from ..core.checks import can_look, differentiated


def inverse_lengths(gramian: Float[Tensor, "row row"]) -> Float[Tensor, " row"]:
    """1/‖g‖; 0 for a zero row."""
    return threshold(gramian.diagonal(), 0.0, torch.inf).rsqrt()


def equiangular(
    gramian: Float[Tensor, "row row"], cosines: Float[Tensor, " row"]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coefficients a of unit gradients u_i with u_i·Σ a_j u_j = cosines_i, or as near as can be: a
    = C⁺ cosines, C the matrix of cosines.

    Eigenvalues up to T²ε are taken for 0, ε of the Gramian's dtype. Derivatives are those of C⁻¹ on
    the range of C. Where values can be looked at and nothing differentiates, a compiled kernel is
    tried first: it answers if it can prove that no eigenvalue is that small.

    Returns:
        1/‖g‖ `[row]`, 0 for a zero row, all NaN where an entry of the Gramian is not finite; a
        `[row]`, 0 for a zero row; and what no direction can reach, the part of `cosines` in the
        null space of C, or None where it can be seen that there is none. All in float64.
    """
    noise = len(cosines) ** 2 * torch.finfo(gramian.dtype).eps
    gramian = gramian.double()
    carried = differentiated((gramian, cosines))
    if not carried and can_look(gramian, cosines):
        from ._kernels.equiangular import solve  # numba takes half a second to import

        unit, a = np.empty(len(cosines)), np.empty(len(cosines))
        if solve(gramian.contiguous().numpy(), cosines.contiguous().numpy(), noise, unit, a):
            return torch.from_numpy(unit), torch.from_numpy(a), None
    unit = inverse_lengths(gramian)
    cosine = gramian * unit * unit[:, None]
    fixed = cosine.detach().nan_to_num(0.0, 0.0, 0.0)
    values, vectors = torch.linalg.eigh(fixed)
    share = cosines @ vectors
    inverse = threshold(values, noise, torch.inf).reciprocal()
    a = vectors @ (inverse * share)
    if carried:
        a = a - vectors @ (inverse * ((cosine - fixed) @ a.detach() @ vectors))
    if can_look(values) and float(values[0]) > noise:
        return unit + (gramian * 0).sum(), a, None
    return unit + (gramian * 0).sum(), a, vectors @ share.where(values <= noise, 0.0)
