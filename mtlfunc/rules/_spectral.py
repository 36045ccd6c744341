"""A positive semidefinite matrix in its eigenbasis, with derivatives of every order.

The eigenvectors of equal eigenvalues have no derivative, functions of the matrix do. So the basis
is fixed, what moves it is added as a difference of value 0, and only expressions that are smooth in
the matrix, equal eigenvalues or not, follow: inverses and rational functions. `torch.linalg.solve`
is not among them: forward mode inside forward mode gets its second derivatives wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import can_look, differentiated

HALLEY = 6
"""Steps: 5 bring condition numbers up to 1e16 to 1 within rounding, one is for derivatives."""
NEWTON = 3
"""Steps for an eigenvalue; its derivatives are then exact up to order 21."""


class Spectral(NamedTuple):
    """A = Q K Qᵀ up to eigenvalues that are taken for 0."""

    values: Float[Tensor, " row"]  # ascending, constant; 1 in place of those taken for 0
    kept: Bool[Tensor, " row"]  # which eigenvalues are not 0
    basis: Float[Tensor, "row row"]  # Q, orthonormal columns; 0 where an eigenvalue is 0
    # K: diag(values) with the derivatives of QᵀAQ, or None where nothing differentiates
    matrix: Float[Tensor, "row row"] | None


def spectral(matrix: Float[Tensor, "row row"], noise: float) -> Spectral:
    """The range of A and A on it; eigenvalues up to `noise` are taken for 0.

    Q is an orthonormal basis of the columns of A V, V the eigenvectors that are kept: where the
    rank does not change, that is the range of A, and moves with it.
    """
    values, vectors = torch.linalg.eigh(matrix.detach().nan_to_num(0.0, 0.0, 0.0))
    kept = values > noise
    if not (can_look(kept) and bool(kept[0])):
        values, vectors = values.where(kept, 1.0), vectors * kept
    if not differentiated(matrix):
        return Spectral(values, kept, vectors, None)
    hole = torch.diag((~kept).to(values))
    columns = vectors + (matrix - matrix.detach()) @ (vectors / values)
    factor = torch.linalg.cholesky_ex(columns.mT @ columns + hole)[0]
    basis = torch.linalg.solve_triangular(factor, columns.mT, upper=False).mT
    inside = basis.mT @ matrix @ basis
    return Spectral(values, kept, basis, torch.diag(values) + (inside - inside.detach()))


def solve(found: Spectral, x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """K⁻¹ x."""
    if found.matrix is None:
        return x / found.values
    scale = found.values.rsqrt()
    unit = found.matrix * scale * scale[:, None]
    return scale * (torch.linalg.inv_ex(unit)[0] @ (scale * x))


def inverse_root(found: Spectral, x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """K^(-1/2) x, as a product of rational functions of K: a dynamically weighted Halley iteration.

    Source:
        Nakatsukasa, Bai & Gygi 2010, for the polar factor; x there is the root of K here.
    """
    value = found.values.rsqrt()
    if found.matrix is None:
        return value * x
    top, one = found.values.amax(), torch.eye(len(value)).to(value)
    least = (0.5 * found.values.amin() / top).sqrt()  # of the root of K/top, with room to move
    square, product = found.matrix / top, one / top.sqrt()
    for _ in range(HALLEY):
        a, b, c = _weights(least)
        factor = b / c * one + (a - b / c) * torch.linalg.inv_ex(one + c * square)[0]
        product, square = product @ factor, factor @ square @ factor
        least = (least * (a + b * least**2) / (1 + c * least**2)).clamp_max(1.0)
    return value * x + (product - product.detach()) @ x


def _weights(least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c of x(a + bx²)/(1 + cx²), which takes [least, 1] as near to 1 as it can."""
    square = least**2
    d = (4 * (1 - square) / square**2) ** (1 / 3)
    a = (1 + d).sqrt() + 0.5 * (8 - 4 * d + 8 * (2 - square) / (square * (1 + d).sqrt())).sqrt()
    b = (a - 1) ** 2 / 4
    return a, b, a + b - 1


def eigenvalue(found: Spectral, at: Bool[Tensor, " row"], noise: float) -> Float[Tensor, ""]:
    """The eigenvalue of K at one place of `values`.

    The root μ of K_ii + m(μ - R)⁻¹mᵀ = μ, m being row i without the entry i, R the rest. Others as
    large, up to `noise`, are left out: there the eigenvalue is at a kink.
    """
    value = found.values.where(at, 0.0).sum()
    if found.matrix is None:
        return value
    rest = found.kept & ~at & ((found.values - value).abs() > noise)
    row, one = at.to(value) @ found.matrix, torch.eye(len(at)).to(value)
    m, own = row.where(rest, 0.0), row.where(at, 0.0).sum()
    both = rest[:, None] & rest
    for _ in range(NEWTON):
        apart = (value * one - found.matrix).where(both, one)
        y = torch.linalg.inv_ex(apart)[0] @ m
        value = value + (own + m @ y - value) / (1 + y @ y)
    return value
