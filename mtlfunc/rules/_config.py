"""ConFIG: the direction at one angle to all gradients, as long as these agree with it."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Geometry, Rule, State, constructor
from ._equiangular import equiangular
from .common import gramian_of, mean_present, no_state, preference_of, reading


@constructor
def config(*, preference: Float[Tensor, " task"] | None = None) -> Rule:
    """The mean of g_t·û times û, the unit vector whose cosines to gradients are in proportion to p.

    With U the unit gradients and C = U Uᵀ their cosines, û is along U⁺p = Uᵀ(C⁺p): the
    pseudo-inverse of the T x T matrix does.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T unless tasks were
            mixed. A task with p_t = 0 gets a right angle.

    Returns:
        weights that sum to 1 when all tasks share one gradient: the **mean** of the projections,
        where the paper takes their sum, T times as long. No rate is negative as long as the
        gradients are independent; where they are not, U⁺p is the nearest in the sense of least
        squares, and d = 0 where nothing of p can be reached, as for two opposite gradients. A zero
        gradient has weight 0.

    Raises:
        ValueError: for a bad preference.

    Source:
        Liu et al. 2024 (ConFIG), eqs. 2–3. The official code solves least squares with the T x P
        matrix of unit gradients; TorchJD takes its pseudo-inverse, an option there. For two losses
        the direction is that of DCGD (Hwang & Lim 2024) in its form "center".

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(config(), torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
        [1.0, 1.0]
    """

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        wide = gramian.double()
        p = preference_of(geometry, preference, wide)
        unit, a, _ = equiangular(gramian, p)
        weights = unit * a
        # ‖Uᵀa‖² = pᵀC⁺p >= ‖part of p within reach‖²/T
        square, least = p @ a, torch.finfo(gramian.dtype).eps / len(p) * (p @ p)
        square = square.where(~(square <= least), torch.inf)
        length = mean_present(wide @ weights, geometry.present) / square
        return (weights * length).to(gramian.dtype), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))
