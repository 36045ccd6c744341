"""IMTL-G: the direction with the same projection on every unit gradient."""

import math

import torch
from torch import Tensor

from ..core.transforms import values_readable
from ..types import Geometry, Rule, State, constructor
from ._equiangular import equiangular, inverse_lengths
from .common import gramian_of, no_state


@constructor
def imtl_g() -> Rule:
    """Weights of sum 1 with g_t·d/‖g_t‖ the same for all tasks.

    On unit gradients, with C their cosines, that is w_t = (C⁻¹1)_t/‖g_t‖, divided by the sum; for T
    = 2, w_t ∝ 1/‖g_t‖.

    Returns:
        weights that sum to 1; for T >= 3 some may be negative. **The sum before the division may be
        negative, too**: d then has negative projections on all gradients, and a step along it
        raises every loss; where the sum is 0 no such weights exist, and all are 0. Gradients that
        depend on each other: if a direction with equal projections is left, its shortest
        combination of unit gradients (duplicates share alike); otherwise, as where two gradients
        are opposite, the projections can only be equal to 0, and d = 0. A zero gradient has no
        direction, and weight 0.

    Source:
        Liu et al. 2021, eq. 6, whose inverse does not exist for dependent gradients. TorchJD takes
        G⁺ there, which divides the weights of parallel gradients in proportion to their lengths
        where every nearby Gramian has them inverse to the lengths, and all weights are 0 where |Σ
        G⁺‖g‖| < 1e-12, so for norms above 1e12; the port of Nash-MTL's authors adds 1e-8 to a
        matrix without an inverse. LibMTL has it together with IMTL-L.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(imtl_g(), torch.tensor([[1.0, 0.0], [0.0, 9.0]])).tolist()
        [0.75, 0.25]
    """

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        wide, eps = gramian.double(), torch.finfo(gramian.dtype).eps
        if len(wide) <= 2:
            weights = inverse_lengths(wide) + (wide * 0).sum()
        else:
            unit, a, unreached = equiangular(gramian, wide.new_ones(len(wide)))
            if unreached is not None:
                # a zero row is not reached either, and does not count
                null = torch.where(unit > 0, unreached, 0.0)
                a = torch.where(null.square().sum() > eps**0.5, null, a)
            weights = unit * a
        total, rounding = weights.sum(), min(1024 * len(wide) * eps, 0.25)
        if not (
            values_readable(weights)
            and abs(total.item()) > rounding * math.hypot(*weights.tolist())
        ):
            least = rounding * torch.linalg.vector_norm(weights)
            total = torch.where(total.abs() > least, total, torch.inf)
        return (weights / total).to(gramian.dtype), ()

    return Rule(no_state(), update, frozenset({"gramian"}), heads="own")
