"""Aligned-MTL: all singular values of the Jacobian made equal, then the mean of its rows."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

from ..core.checks import can_look, check_option, differentiated, normalized_preference
from ..solvers.problems import root
from ..types import Geometry, Rule, State
from .common import gramian_of, preference_of

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

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        return ()

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry, "aligned_mtl")
        p = preference_of(geometry, preference, gramian).double()
        noise = len(p) ** 2 * torch.finfo(gramian.dtype).eps
        weights = None if differentiated((gramian, p)) else _compiled(gramian, p, noise, scale)
        if weights is None:
            weights = _balanced(gramian.double(), p, noise, scale)
        return weights.where(geometry.present, 0.0).to(gramian.dtype), ()

    return Rule(init, update)


def _compiled(gramian: Tensor, p: Tensor, noise: float, scale: Scale) -> Tensor | None:
    """B p by one call of a kernel where values can be looked at; None for a Gramian that is zero or
    not finite.
    """
    if not can_look(gramian):
        return None
    from ._kernels.aligned import solve  # numba takes half a second to import

    weights = p.numpy().copy()
    return (
        torch.from_numpy(weights)
        if solve(
            gramian.double().contiguous().numpy(), noise, get_args(Scale).index(scale), weights
        )
        else None
    )


def _balanced(wide: Tensor, p: Tensor, noise: float, scale: Scale) -> Tensor:
    """B p by the eigenvectors; p where the Gramian is zero."""
    whole = (wide * 0).sum()
    longest = wide.detach().diagonal().amax()
    wide = wide / longest.where(longest > 0, 1.0)
    values, vectors = torch.linalg.eigh(wide.detach().nan_to_num(0.0, 0.0, 0.0))
    f = threshold(values, noise, torch.inf).rsqrt()  # Λ^(-1/2), 0 where Λ is
    share = p @ vectors
    balanced = f * share
    if differentiated((wide, p)):
        # The derivative of V f(Λ) Vᵀ is in divided differences of f (Daleckii & Krein), finite also
        # where eigenvalues are equal.
        moved, kept = vectors.mT @ (wide - wide.detach()) @ vectors, f > 0
        one_kept = kept[:, None] != kept
        inside = -((f[:, None] * f) ** 2) / (f[:, None] + f).where(kept[:, None], 1.0)
        across = (f[:, None] - f) / (values[:, None] - values).where(one_kept, 1.0)
        balanced = balanced + (moved * torch.where(one_kept, across, inside)) @ share
        f = f - 0.5 * f**3 * moved.diagonal()
    return torch.where(f[-1] > 0, vectors @ balanced * _root_of_scale(f, scale), p) + whole


def _root_of_scale(f: Tensor, scale: Scale) -> Tensor:
    """√s from the f = λ^(-1/2) of the ascending eigenvalues, 0 for those that are 0; the others, of
    a matrix with entries up to 1, are 1/√T at least.
    """
    least = 0.5 / len(f)
    if scale == "min":
        return 1 / f.amax().clamp_min(least)
    kept = f > 0
    if scale == "median":
        middle = ((~kept).sum() + len(f) - 1) // 2
        return 1 / f.gather(0, middle[None])[0].clamp_min(least)
    return root((torch.where(kept, f, torch.inf) ** -2).sum() / kept.sum().clamp_min(1))
