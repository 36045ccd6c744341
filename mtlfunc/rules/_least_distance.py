"""Least-distance programming on a Gramian: the shortest vector that meets linear inequalities."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from ..solvers import dual_cone
from ..solvers.default import weights_of
from ..solvers.problems import or_one, root, rounding
from ..types import Solver


def least_distance(
    gramian: Float[Tensor, "row row"], offsets: Float[Tensor, " row"], solver: Solver | None
) -> tuple[Float[Tensor, " row"], Bool[Tensor, ""]]:
    """min ½‖x‖² over n_j·x >= h_j, for all rows j.

    Lawson and Hanson's problem LDP: append h_j to n_j as one more coordinate and project y = (0,
    -1) on {z: (n_j, h_j)·z >= 0}. With the projection z = y + Σ u_j (n_j, h_j) the answer is x = Σ
    u_j n_j / ‖z‖², and z = 0 proves that no x meets all inequalities. y itself may join the rows,
    since y·z = ‖z‖² >= 0; then this is the problem `dual_cone`, with weight 1 on y. It has a
    solution also for dependent normals.

    Args:
        gramian: n_i·n_j `[row, row]`; a zero normal is not an inequality.
        offsets: h `[row]`.
        solver: takes `dual_cone`; None is the default.

    Returns:
        multipliers μ >= 0 `[row]` of x = Σ μ_j n_j, and whether there is such an x; μ = 0 where
        there is none. A Gramian hides contradictions below √ε of the largest h_j/‖n_j‖.

    Source:
        Lawson & Hanson 1974, ch. 23, sec. 4.
    """
    square = gramian.diagonal()
    if not len(square):
        return offsets, torch.ones((), dtype=torch.bool, device=offsets.device)
    if len(square) == 1:
        multiplier = torch.where(square > 0, offsets.clamp_min(0) / or_one(square), 0.0)
        return multiplier, torch.ones_like(square[0], dtype=torch.bool)
    n = or_one(root(square))
    unit, h = gramian / n[:, None] / n, torch.where(square > 0, offsets / n, 0.0)
    scale = h.amax()  # the most that one inequality demands of ‖x‖
    scale = scale.where(scale > 0, 1.0)
    h = h / scale
    edge = pad(h, (1, 0), value=-1.0)
    lifted = pad(unit, (1, 0, 1, 0)) + edge[:, None] * edge
    v = weights_of(dual_cone(lifted, pad(torch.zeros_like(h), (1, 0), value=1.0)), solver)
    square = v[0] - h @ v[1:]  # ‖z‖²
    apart = square > 8 * rounding(len(v), h.dtype) * (1 + h.abs() @ v[1:].abs())
    multipliers = torch.where(apart, v[1:] / square.where(apart, 1.0), 0.0)
    feasible = apart & (unit @ multipliers >= h - torch.finfo(h.dtype).eps ** 0.5).all()
    return torch.where(feasible, scale * multipliers / n, 0.0), feasible
