"""Two tasks: the answers are formulas."""

import torch
from torch import Tensor

from ._faces import answer_by
from .face_solve import lengths
from .problems import Answer, CAGrad, DualCone, MinNorm, Problem, or_one, resolution, root


def two_tasks(problem: Problem, eps: float) -> Answer:
    """The answer of any of the three problems for T = 2, in the form that `problems.solver` wraps;
    plain torch, nothing but arithmetic.
    """
    return *answer_by(problem, eps, _min_norm, _dual_cone, _cagrad), 1


def _entries(gramian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return gramian[0, 0], gramian[0, 1], gramian[1, 1]


def _min_norm(problem: MinNorm) -> Tensor:
    first, inner, second = _entries(problem.gramian)
    # both from differences: 1 - x has no digit left of a gradient 1e16 times as long
    shares = torch.stack([second - inner, first - inner]).clamp_min(0)
    total = shares.sum()  # ‖g₁ - g₂‖², if neither is the shortest vector alone
    return torch.where(total > 0, shares / or_one(total), 0.5)


def _cagrad(problem: CAGrad) -> tuple[Tensor, Tensor]:
    """The dual weights, and r/‖g_w‖ between the ends: F along the segment is linear plus r times
    the distance from the origin, a hyperbola in the share of task 1.
    """
    first, inner, second = _entries(problem.gramian)
    linear = problem.linear
    square, slope = first + second - 2 * inner, linear[0] - linear[1]
    room = problem.radius**2 * square - slope**2
    # of the origin above the line through g₁ and g₂
    height = root((first * second - inner**2) / or_one(square))
    inside = (room > 0) & (square > 0)
    bend = root(square * room.where(inside, 1.0))
    shift, whole = slope * height / or_one(bend), or_one(square)
    # both from differences, as in `_min_norm`
    shares = torch.stack([(second - inner) / whole - shift, (first - inner) / whole + shift])
    between = inside & (shares > 0).all() & (height > 0)
    pull = torch.where(between, bend / whole / or_one(height), 0.0)
    shares = shares.clamp_min(0)
    end = torch.stack([slope <= 0, slope > 0]).to(shares)
    return torch.where(inside, shares / or_one(shares.sum()), end), pull


def _dual_cone(problem: DualCone, eps: float) -> Tensor:
    """u >= 0: none, one alone where that leaves the other no conflict, or both."""
    first, inner, second = _entries(problem.gramian)
    linear = problem.linear
    alone = torch.stack([-linear[0] / or_one(first), -linear[1] / or_one(second)]).clamp_min(0)
    left = torch.stack([linear[1] + inner * alone[0], linear[0] + inner * alone[1]])
    n = root(problem.gramian.diagonal())
    noise = 16 * eps * n.flip(0) * (n @ problem.weights.abs() + n * alone)
    one = (alone > 0) & (left >= -noise)
    both = _inverse_times(problem.gramian, -linear, eps)
    both = both + _inverse_times(problem.gramian, -linear - problem.gramian @ both, eps)
    # where δ turns one of both negative, the one that lowers the objective more
    fall, single = -linear * alone, one.any() | (both < 0).any()
    first_alone = torch.where(one.any(), one[0], fall[0] >= fall[1])
    unit = torch.eye(2, dtype=n.dtype, device=n.device)
    found = torch.where(single, torch.where(first_alone, unit[0], unit[1]) * alone, both)
    return torch.where((linear >= 0).all() | (alone <= 0).all(), 0.0, found)


def _inverse_times(gramian: Tensor, right: Tensor, eps: float) -> Tensor:
    """x of (G + δ diag(G)) x = right, δ what G resolves, by elimination on unit rows."""
    n, own = lengths(gramian), 1 + resolution(2, eps)
    cosine, (first, second) = gramian[0, 1] / n[0] / n[1], right / n
    last = (second - cosine * first / own) / or_one(own - cosine**2 / own)
    return torch.stack([(first - cosine * last) / own, last]) / n
