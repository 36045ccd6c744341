"""Closed-form minimisers on one face: given the support, the weights are a formula.

So are all their derivatives.
A support is a mask `[task]`. Every function is plain torch without branches on values: it vmaps,
compiles and differentiates. Rows are scaled to unit length first, so that gradients of very
different norms are solved equally well. A ridge keeps the systems definite where gradients on the
face depend on each other; refinement takes its effect out again where it is resolved.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.linear import solve_factored
from .problems import CAGrad, DualCone, MinNorm, or_one, resolution, root


def lengths(gramian: Float[Tensor, "task task"]) -> Float[Tensor, " task"]:
    """Norms of the gradients; 1 for a zero gradient, which then is its own unit vector."""
    diagonal = gramian.diagonal()
    return diagonal.where(diagonal > 0, 1.0).sqrt()


def min_norm_face(problem: MinNorm, support: Bool[Tensor, " task"]) -> Float[Tensor, " task"]:
    """w of sum 1 and either sign on the support with the least wᵀG w (Wolfe's affine minimiser)."""
    x, _ = _affine(problem.gramian, support, torch.zeros_like(problem.gramian[0]))
    return x / x.sum()


def cagrad_face(
    problem: CAGrad, support: Bool[Tensor, " task"]
) -> tuple[Float[Tensor, " task"], Bool[Tensor, ""], Float[Tensor, ""]]:
    """The minimiser w of CAGrad's F on the affine hull of a face, whether there is one, and r/‖g_w‖
    as `CAGrad.recover` takes it.

    F falls for ever along the face when the part of g₀ in it is at least the radius. Otherwise w =
    w₀ + h₀/√(r² - ρ)·δ, with w₀ the min-norm point of the hull, h₀ its length, δ the step that
    cancels g₀ within the face and ρ = δᵀG δ.
    """
    gramian = problem.gramian
    centre, delta = face_hull(gramian, support, problem.linear)
    height = root(centre @ gramian @ centre)
    room = problem.radius**2 - delta @ gramian @ delta
    single = support.sum() == 1
    bounded = (room > 0) | single
    reach, moves = room.where(room > 0, 1.0).sqrt(), (room > 0) & ~single
    w = centre + torch.where(moves, height / reach, 0.0) * delta
    return w, bounded, torch.where(moves & (height > 0), reach / or_one(height), 0.0)


def face_hull(
    gramian: Tensor, support: Bool[Tensor, " task"], linear: Float[Tensor, " task"]
) -> tuple[Float[Tensor, " task"], Float[Tensor, " task"]]:
    """The weights of the shortest vector in the affine hull of a face, and the weights δ, which sum
    to 0, that cancel within the face a vector whose products with the gradients are `linear`.
    """
    x, y = _affine(gramian, support, linear)
    centre = x / x.sum()
    return centre, -(y - y.sum() / x.sum() * x)


def dual_cone_face(
    problem: DualCone, support: Bool[Tensor, " task"], eps: float
) -> Float[Tensor, " task"]:
    """The u, zero off the support, with G u = -G w on it as far as a Gramian with noise `eps`
    resolves it (see `problems.resolution`); entries may be negative.
    """
    n = lengths(problem.gramian)
    matrix = torch.where(support[:, None] & support, problem.gramian / (n[:, None] * n), 0.0)
    right = torch.where(support, -problem.linear / n, 0.0)[:, None]
    return _solve(matrix, support, right, resolution(len(n), eps), 2)[:, 0] / n


def carry_derivatives(value: Tensor, formula: Tensor) -> Tensor:
    """`value`, with the derivatives of `formula`."""
    return value + (formula - formula.detach()).nan_to_num()


def _affine(gramian: Tensor, support: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """x, y: (G + a11ᵀ) x = a1, (G + a11ᵀ) y = linear on the support; a is its least length²."""
    n = lengths(gramian)
    least = n.where(support, torch.inf).amin()
    e = torch.where(support, least / n, 0.0)
    matrix = gramian / (n[:, None] * n) + e[:, None] * e
    matrix = torch.where(support[:, None] & support, matrix, 0.0)
    right = torch.stack([e, torch.where(support, linear / n, 0.0)], -1)
    ridge = 4 * len(n) * torch.finfo(n.dtype).eps
    x, y = (_solve(matrix, support, right, ridge, 3) / n[:, None]).unbind(-1)
    return x, y


def _solve(matrix: Tensor, support: Tensor, right: Tensor, ridge: float, rounds: int) -> Tensor:
    factor = torch.linalg.cholesky_ex(matrix + torch.diag(torch.where(support, ridge, 1.0)))[0]
    x = solve_factored(right, factor)
    for _ in range(rounds - 1):
        x = x + solve_factored(right - matrix @ x, factor)
    return x
