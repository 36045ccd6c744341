"""A positive semidefinite matrix in its eigenbasis, with derivatives of order one and two.

The eigenvectors of equal eigenvalues have no derivative, functions of the matrix do. So the basis
is constant, except where the range turns. In it the matrix is K = Λ + E, where E has value 0 and
carries the derivatives. Equations for functions of K are solved by substitution: E stays on the
right side, and Λ is inverted entry by entry. Each substitution makes one more order of derivatives
exact. Nothing is divided by a difference of eigenvalues except in `eigenvalue`, so equal ones are
allowed. Eigenvalues of very different sizes do not cancel each other either.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.linear import eigenvectors
from ..core.transforms import has_finite_sum, is_differentiated, values_readable


class Spectral(NamedTuple):
    """A = Q K Qᵀ up to eigenvalues that are taken for 0."""

    values: Float[Tensor, " row"]  # ascending, constant; 1 instead of those taken for 0
    kept: Bool[Tensor, " row"] | None  # which eigenvalues are not 0; None if all are seen not to be
    basis: Float[Tensor, "row row"]  # Q, orthonormal columns; 0 where an eigenvalue is 0
    moved: Float[Tensor, "row row"] | None  # E; None where nothing differentiates


def rounding(count: int, dtype: torch.dtype) -> float:
    """How far rounding moves an eigenvalue of a Gramian of `count` rows, over the largest: Tε, or
    √T ε in half precision, which stores sums made in float32.
    """
    eps = torch.finfo(dtype).eps
    return count * eps if eps <= torch.finfo(torch.float32).eps else count**0.5 * eps


def spectral(matrix: Float[Tensor, "row row"], noise: float) -> Spectral:
    """The range of A and A on it; eigenvalues up to `noise` times the largest are taken for 0.

    All values are NaN where an entry of A is not finite. Where the sizes of rows differ, the small
    eigenvalues have their relative accuracy if the largest row is the first.

    Q is an orthonormal basis of the columns of A V, V the eigenvectors that are kept: where the
    rank does not change, that is the range of A, and moves with it.
    """
    constant = matrix.detach()
    if values_readable(matrix) and has_finite_sum(constant):
        values, vectors = eigenvectors(constant)
        seen = values.tolist()
        if seen[0] > noise * seen[-1]:
            if not is_differentiated(matrix):
                return Spectral(values, None, vectors, None)
            return Spectral(values, None, vectors, vectors.mT @ (matrix - constant) @ vectors)
    else:
        values, vectors = eigenvectors(constant.nan_to_num(0.0, 0.0, 0.0))
        values = values + 0.0 * constant.sum()  # NaN, and kept, where an entry is not finite
    kept = ~(values <= noise * values[-1])
    values, vectors = values.where(kept, 1.0), vectors * kept.to(values)
    if not is_differentiated(matrix):
        return Spectral(values, kept, vectors, None)
    change = (matrix - constant) @ vectors
    inside = vectors.mT @ change
    # The range of A is that of V + Y with Y VᵀAV = (1 - V Vᵀ) A V: 0, not rounding, if V spans all.
    lift = torch.where(kept.all(), 0.0, change - vectors @ inside)
    turn = (lift - lift / values @ inside) / values
    square = turn.mT @ turn
    # (I + YᵀY)^(1/2) K (I + YᵀY)^(1/2), and below (I + YᵀY)^(-1/2), up to order 2
    mixed = 0.5 * square * values
    basis = vectors + turn - 0.5 * vectors @ square
    return Spectral(values, kept, basis, inside + mixed + mixed.mT)


def solve(found: Spectral, x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """K⁻¹ x."""
    if found.moved is None:
        return x / found.values
    scale = found.values.rsqrt()
    one = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    unit = one + found.moved * scale * scale[:, None]
    return scale * (torch.linalg.inv_ex(unit)[0] @ (scale * x))


def inverse_root(found: Spectral, x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """K^(-1/2) x: with K^(1/2) = Λ^(1/2) + D, Λ^(1/2) D + D Λ^(1/2) = E - D²."""
    root = found.values.sqrt()
    if found.moved is None:
        return x / root
    sums = root + root[:, None]
    first = found.moved / sums
    change = (found.moved - first @ first) / sums
    return (x - change @ ((x - change @ (x / root)) / root)) / root


def eigenvalue(found: Spectral, place: int | Int[Tensor, ""], noise: float) -> Float[Tensor, ""]:
    """The eigenvalue of K at one place of `values`.

    It is λ + E_ii + Σ_j E_ij²/(λ - Λ_j) up to order 2, j ≠ i. Others as large, up to `noise` times
    the largest, are left out: there the eigenvalue is at a kink.
    """
    values, moved = found.values, found.moved
    if moved is None and isinstance(place, int):
        return values[place]
    at = torch.arange(len(values), device=values.device) == place
    value = values.where(at, 0.0).sum()
    if moved is None:
        return value
    gap, row = value - values, at.to(values) @ moved
    rest = ~at & (gap.abs() > noise * values[-1])
    return value + row.where(at, row * row / gap.where(rest, torch.inf)).sum()
