"""Closed-form minimisers on one face: given the support, the weights are a formula, and so are all
derivatives.

A support is a mask `[task]`. Every function is plain torch without branches on values: it vmaps,
compiles and differentiates. Rows are scaled to unit length first, so that gradients of very
different norms are solved equally well. A ridge at rounding level keeps the systems definite when
gradients on the face depend on each other; two refinement steps take its effect out again.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .problems import CAGrad, DualCone, MinNorm, root


def lengths(gramian: Float[Tensor, "task task"]) -> Float[Tensor, " task"]:
    """Norms of the gradients; 1 for a zero gradient, which then is its own unit vector."""
    diagonal = gramian.diagonal()
    return diagonal.where(diagonal > 0, 1.0).sqrt()


def min_norm_face(problem: MinNorm, support: Bool[Tensor, " task"]) -> Float[Tensor, " task"]:
    """The w with sum 1, zero off the support, at which wᵀG w is least (Wolfe's affine minimiser);
    entries may be negative.
    """
    x, _ = _affine(problem.gramian, support, torch.zeros_like(problem.gramian[0]))
    return x / x.sum()


def cagrad_face(
    problem: CAGrad, support: Bool[Tensor, " task"]
) -> tuple[Float[Tensor, " task"], Bool[Tensor, ""]]:
    """The minimiser of CAGrad's F on the affine hull of a face, and whether there is one.

    F falls for ever along the face when the part of g₀ in it is at least the radius. Otherwise w =
    w₀ + h₀/√(r² - ρ)·δ, with w₀ the min-norm point of the hull, h₀ its length, δ the step that
    cancels g₀ within the face and ρ = δᵀG δ.
    """
    gramian = problem.gramian
    x, y = _affine(gramian, support, problem.linear)
    centre = x / x.sum()
    delta = -(y - y.sum() / x.sum() * x)
    height, along, square = (
        root(centre @ gramian @ centre),
        delta @ gramian @ delta,
        problem.radius**2,
    )
    room = square - along
    single = support.sum() == 1
    bounded = (room > 0) | single
    step = height / room.where(room > 0, 1.0).sqrt()
    return centre + torch.where(single | ~bounded, 0.0, step) * delta, bounded


def dual_cone_face(problem: DualCone, support: Bool[Tensor, " task"]) -> Float[Tensor, " task"]:
    """The u, zero off the support, with G u = -G w on it; entries may be negative."""
    n = lengths(problem.gramian)
    matrix = torch.where(support[:, None] & support, problem.gramian / (n[:, None] * n), 0.0)
    return (
        _solve(matrix, support, torch.where(support, -problem.linear / n, 0.0)[:, None])[:, 0] / n
    )


def carry(value: Tensor, formula: Tensor) -> Tensor:
    """`value`, with the derivatives of `formula`."""
    return value + (formula - formula.detach()).nan_to_num()


def _affine(gramian: Tensor, support: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions x, y of (G + a11ᵀ) x = a1 and (G + a11ᵀ) y = linear on the support, a = the least
    squared length there.
    """
    n = lengths(gramian)
    least = n.where(support, torch.inf).amin()
    e = torch.where(support, least / n, 0.0)
    matrix = torch.where(
        support[:, None] & support, gramian / (n[:, None] * n) + e[:, None] * e, 0.0
    )
    right = torch.stack([e, torch.where(support, linear / n, 0.0)], -1)
    x, y = (_solve(matrix, support, right) / n[:, None]).unbind(-1)
    return x, y


def _solve(matrix: Tensor, support: Tensor, right: Tensor) -> Tensor:
    ridge = 4 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    factor = torch.linalg.cholesky_ex(matrix + torch.diag(torch.where(support, ridge, 1.0)))[0]
    x = torch.cholesky_solve(right, factor)
    for _ in range(2):
        x = x + torch.cholesky_solve(right - matrix @ x, factor)
    return x
