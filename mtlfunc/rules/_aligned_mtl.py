"""Aligned-MTL: all singular values of the Jacobian made equal, then the mean of its rows."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_option, poison
from ..solvers.problems import root
from ..types import Geometry, Rule, State
from ._spectral import Spectral, eigenvalue, inverse_root, spectral
from .common import gramian_of, no_state, preference_of, reading

Scale = Literal["min", "median", "rmse"]


def aligned_mtl(preference: Float[Tensor, " task"] | None = None, *, scale: Scale = "min") -> Rule:
    """d = Jᵀ B p, with G = V Λ Vᵀ, B = √s V Λ^(-1/2) Vᵀ: the balanced gradients B J have condition
    number 1, all singular values √s.

    Eigenvalues up to T²ε times the largest ‖g_t‖² are taken for 0, in Λ^(-1/2) as in s, ε that of
    the Gramian's dtype; the answer is exact to ε times the condition number of G.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T unless tasks were
            mixed.
        scale: s is the smallest eigenvalue that is not 0 ("min", the paper's), their median
            ("median", the lower one of two), or their mean ("rmse").

    Returns:
        weights B p, some of which may be negative; p where all gradients are 0. They sum to 1 when
        all tasks share one gradient. With "min" ‖d‖ <= √s.

    Raises:
        ValueError: for a bad preference or scale.

    Source:
        Senushkin et al. 2023, Algorithm 1. "rmse" is the official implementation's, by TorchJD's
        account. LibMTL takes p = 1, T times as long, and the ε of torch's default dtype.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(aligned_mtl(), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.5000, 0.2500])
    """
    check_option(scale, "scale", get_args(Scale))

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        p = preference_of(geometry, preference, gramian).double()
        noise = len(p) ** 2 * torch.finfo(gramian.dtype).eps
        longest = gramian.detach().diagonal().amax().double()
        found = spectral(gramian.double() / longest.where(longest > 0, 1.0), noise)
        balanced = found.basis @ inverse_root(found, p @ found.basis)
        weights = torch.where(found.kept[-1], balanced * root(_squared(found, scale, noise)), p)
        weights = poison(weights, gramian)
        return weights.where(geometry.present, 0.0).to(gramian.dtype), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))


def _squared(found: Spectral, scale: Scale, noise: float) -> Tensor:
    """s, from the eigenvalues that are kept, which are the last ones."""
    if scale == "rmse":
        values = found.values if found.matrix is None else found.matrix.diagonal()
        return values.where(found.kept, 0.0).sum() / found.kept.sum().clamp_min(1)
    count = len(found.values)
    place = (~found.kept).sum() + (found.kept.sum() - 1) // 2 * (scale == "median")
    places = torch.arange(count, device=place.device)
    return eigenvalue(found, places == place.clamp_max(count - 1), noise)
