"""Aligned-MTL: all singular values of the Jacobian made equal, then the mean of its rows."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_option
from ..core.transforms import select_where
from ..types import Geometry, Rule, State, constructor
from ._spectral import Spectral, eigenvalue, inverse_root, rounding, spectral
from .common import gramian_of, no_state, preference_of, reading

Scale = Literal["min", "median", "rmse"]


@constructor
def aligned_mtl(*, preference: Float[Tensor, " task"] | None = None, scale: Scale = "min") -> Rule:
    """All singular values of the balanced gradients B J are √s, their condition number 1: d = Jᵀ B
    p, with G = V Λ Vᵀ and B = √s V Λ^(-1/2) Vᵀ.

    Eigenvalues up to Tε times the largest are taken for 0 (√T ε in half precision), in Λ^(-1/2) as
    in s, ε that of the Gramian's dtype; the answer and its derivatives are exact to ε times the
    condition number of G, or to ε times its root if that comes from the norms alone.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.
        scale: s is the smallest eigenvalue that is not 0 ("min", the paper's), their median
            ("median", the lower one of two), or their mean ("rmse").

    Returns:
        weights B p, some of which may be negative; p where all gradients are 0. They sum to 1 when
        all tasks share one gradient. With "min" ‖d‖ <= √s.

    Raises:
        ValueError: for a bad preference or scale.

    Source:
        Senushkin et al. 2023, Algorithm 1. "median" and "rmse" are the official code's; it and
        LibMTL take p = 1, T times as long, and the ε of torch's default dtype.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(aligned_mtl(), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.5000, 0.2500])
    """
    check_option(scale, "scale", get_args(Scale))

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        noise = rounding(len(gramian), gramian.dtype)
        # the longest gradient first: `spectral` is then exact however much the norms differ
        squares, order = gramian.detach().diagonal().sort(descending=True)
        longest = torch.threshold(squares[0].double(), 0.0, 1.0)
        ordered = gramian.index_select(0, order).index_select(1, order).double()
        found = spectral(ordered / longest, noise)
        p = preference_of(geometry, preference, ordered).index_select(0, order)
        weights = found.basis @ inverse_root(found, p @ found.basis)
        weights = weights * _squared_scale(found, scale, noise).sqrt()
        if found.kept is not None:
            weights = torch.where(found.kept[-1], weights, p)
        weights = weights.index_select(0, order.argsort())
        return select_where(weights, geometry.present, 0.0).to(gramian.dtype), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))


def _squared_scale(found: Spectral, scale: Scale, noise: float) -> Tensor:
    """s, from the eigenvalues that are kept, which are the last ones; 1 if there are none."""
    count = len(found.values)
    number = count if found.kept is None else found.kept.sum().clamp_min(1)
    if scale == "rmse":
        values = found.values if found.moved is None else found.values + found.moved.diagonal()
        values = values if found.kept is None else values.where(found.kept, 0.0)
        return torch.threshold(values.sum() / number, 0.0, 1.0)
    middle = (number - 1) // 2 if scale == "median" else 0
    return eigenvalue(found, count - number + middle, noise)
