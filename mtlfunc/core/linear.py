"""Linear algebra for which no host waits, so that a CUDA graph takes it.

On a CUDA device torch's `cholesky_solve` of a batch runs through MAGMA, and `eigh` reads on the
host whether it converged. Neither can be captured.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .operators import define


def solve_factored(
    right: Float[Tensor, "... row column"], factor: Float[Tensor, "... row row"]
) -> Float[Tensor, "... row column"]:
    """(L Lᵀ)⁻¹ right, L lower triangular."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def eigenvectors(
    matrix: Float[Tensor, "... row row"],
) -> tuple[Float[Tensor, "... row"], Float[Tensor, "... row row"]]:
    """Eigenvalues, ascending, and eigenvectors, the columns, of a positive semidefinite matrix.

    On a CPU by LAPACK, elsewhere by Jacobi's rotations, where the vector of an eigenvalue 0 is 0.
    Finite entries, no derivatives.
    """
    if matrix.device.type == "cpu":
        return torch.linalg.eigh(matrix)
    return _eigenvectors(matrix)


def _by_rotations(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`eigenvectors` in operators that read nothing, a fixed number of them.

    LᵀL, with L = `_factor(matrix)`, has the same eigenvalues, and where they are of very different
    sizes it is nearly diagonal. Rotations V make it diagonal; the columns of L V then are the
    eigenvectors, √λ long. A round rotates the rows i and i + T/2 for all i at once, and a
    permutation makes other pairs for the next one: after T - 1 rounds, a sweep, each pair has met.
    On all families of `mtlfunc.testing`, up to T = 128, one sweep less gives the same to rounding.

    Source:
        Drmač & Veselić 2008, whose preconditioner this is; Brent & Luk 1985, the pairs.
    """
    count = matrix.shape[-1]
    half = (count + 1) // 2
    zero, one = matrix.new_zeros(()), torch.eye(2 * half, dtype=matrix.dtype, device=matrix.device)
    signs = torch.linspace(0.5, -0.5, 2, dtype=matrix.dtype, device=matrix.device)[:, None]
    stay, cross = one, one.roll(half, 1)
    if half > 1:
        parts = [x.split([1, half - 2, 1, 1, half - 1], 1) for x in (stay, cross)]
        stay, cross = (torch.cat([x[i] for i in (0, 3, 1, 4, 2)], 1) for x in parts)
    vectors = torch.nn.functional.pad(_factor(matrix), (0, 2 * half - count))
    rest = vectors.mT @ vectors
    for _ in range((4 + (count - 1).bit_length()) * (2 * half - 1)):
        here, there = rest.diagonal(0, -2, -1).split(half, -1)
        tangent = torch.addcdiv(zero, rest.diagonal(half, -2, -1), there - here, value=2)
        angle = (signs * tangent.nan_to_num().atan().unsqueeze(-2)).flatten(-2).unsqueeze(-1)
        rotation = torch.addcmul(angle.cos() * stay, angle.sin(), cross)
        rest, vectors = rotation.mT @ (rest @ rotation), vectors @ rotation
    values, order = vectors.square().sum(-2).sort(-1)
    values, order = values[..., -count:].clone(), order[..., -count:]
    vectors = vectors.gather(-1, order.unsqueeze(-2).expand_as(matrix))
    return values, vectors * torch.threshold(values, 0.0, torch.inf).rsqrt().unsqueeze(-2)


def _factor(matrix: Tensor) -> Tensor:
    """L with L Lᵀ = the matrix, the largest pivot first; columns of pivots of rounding are 0."""
    count, columns = matrix.shape[-1], []
    noise = count * torch.finfo(matrix.dtype).eps * matrix.diagonal(0, -2, -1)
    for _ in range(count):
        pivots = matrix.diagonal(0, -2, -1)
        pivot, place = pivots.where(pivots > noise, 0.0).max(-1, keepdim=True)
        column = matrix.gather(-1, place.unsqueeze(-1).expand(*matrix.shape[:-1], 1))
        column = column * torch.threshold(pivot, 0.0, torch.inf).rsqrt().unsqueeze(-1)
        matrix = torch.addcmul(matrix, column, column.mT, value=-1)
        columns.append(column)
    return torch.cat(columns, -1)


_eigenvectors = define(
    "eigenvectors(Tensor matrix) -> (Tensor, Tensor)",
    _by_rotations,
    (2,),
    lambda lead, matrix: (matrix.new_empty(matrix.shape[:-1]), torch.empty_like(matrix)),
)
