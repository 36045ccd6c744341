"""Linear algebra, products, reductions, transforms and complex numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.operations.common import DOUBLE, X23, X33, complexes, each, op, spd, symmetric


def _squares(found: tuple[Tensor, ...], values: int) -> list[Tensor]:
    """Vectors up to sign are squared; the singular or eigenvalues are not."""
    return [x if i == values else x.square() for i, x in enumerate(found)]


LINALG = {
    "solve": op(torch.linalg.solve, X33, (3, 2), kind="matrix"),
    "solve vector": op(torch.linalg.solve, X33, (3,), kind="matrix"),
    "solve batch": op(torch.linalg.solve, (2, 3, 3), (2, 3, 1), kind="matrix"),
    "solve one batch": op(torch.linalg.solve, X33, (1, 3, 1), kind="matrix"),
    "solve for two": op(torch.linalg.solve, (2, 3, 3), (3, 2), kind="matrix"),
    "solve right": op(lambda A, B: torch.linalg.solve(A, B, left=False), X33, (2, 3),
        kind="matrix"),
    "solve_ex": op(lambda A, B: torch.linalg.solve_ex(A, B)[0], X33, (3, 2), kind="matrix"),
    "lu_solve": op(lambda A, B: torch.linalg.lu_solve(*torch.linalg.lu_factor(A), B), X33, (3, 2),
        kind="matrix"),
    "lu_solve torch": op(lambda A, B: torch.lu_solve(B, *torch.linalg.lu_factor(A)), X33, (3, 2),
        kind="matrix"),
    "solve_triangular": op(lambda A, B: torch.linalg.solve_triangular(A, B, upper=True), X33,
        (3, 2), kind="matrix"),
    "solve_triangular unit": op(
        lambda A, B: torch.linalg.solve_triangular(A, B, upper=False, left=False,
        unitriangular=True), X33, (2, 3), kind="matrix"),
    "triangular_solve": op(lambda A, B: torch.linalg.solve_triangular(A.mT, B, upper=False), X33,
        (3, 1), kind="matrix"),
    "cholesky": op(lambda A: torch.linalg.cholesky(spd(A)), X33),
    "cholesky torch": op(lambda A: torch.cholesky(spd(A)), X33),
    "cholesky upper": op(lambda A: torch.linalg.cholesky(spd(A), upper=True), X33),
    "cholesky_solve": op(lambda A, B: torch.cholesky_solve(B, torch.linalg.cholesky(spd(A))), X33,
        (3, 2)),
    "cholesky_inverse": op(lambda A: torch.cholesky_inverse(torch.linalg.cholesky(spd(A))), X33),
    "cholesky_inverse upper": op(
        lambda A: torch.linalg.cholesky(spd(A), upper=True).cholesky_inverse(True), X33),
    "det": op(torch.det, X33),
    "det linalg": op(torch.linalg.det, (2, 3, 3)),
    "slogdet": op(lambda A: torch.slogdet(A)[1], X33),
    "slogdet linalg": op(lambda A: torch.linalg.slogdet(A).logabsdet, X33),
    "logdet": op(lambda A: torch.logdet(spd(A)), X33),
    "inv": op(torch.linalg.inv, X33, kind="matrix"),
    "tensorsolve": op(lambda A, b: torch.linalg.tensorsolve(A.reshape(2, 2, 4), b), (4, 4), (2, 2),
        kind="matrix"),
    "pinv": op(torch.linalg.pinv, X23),
    "pinv hermitian": op(lambda A: torch.linalg.pinv(symmetric(A), hermitian=True), X33),
    "matrix_power": op(lambda A: torch.linalg.matrix_power(A, 3), X33),
    "matrix_exp": op(torch.matrix_exp, X33),
    "qr": op(lambda A: tuple(torch.linalg.qr(A)), (3, 2)),
    "qr complete": op(lambda A: torch.linalg.qr(A, "complete")[1], X33),
    "svdvals": op(torch.linalg.svdvals, X23),
    "svd": op(lambda A: _squares(torch.linalg.svd(A, full_matrices=False), 1), X23),
    "eigvalsh": op(lambda A: torch.linalg.eigvalsh(symmetric(A)), X33),
    "eigh": op(lambda A: _squares(torch.linalg.eigh(symmetric(A)), 0), X33),
    "eigvals": op(lambda A: torch.linalg.eigvals(symmetric(A) + 0.1 * A).real, X33),
    "eig": op(lambda A: torch.linalg.eig(symmetric(A) + 0.1 * A)[1].abs(), X33),
    "lstsq": op(lambda A, B: torch.linalg.lstsq(A, B).solution, (3, 2), (3, 1)),
    "lu": op(lambda A: tuple(torch.linalg.lu(A))[1:], X33),
    "lu_factor": op(lambda A: torch.linalg.lu_factor(A)[0], X33),
    "lu_unpack": op(lambda A: torch.lu_unpack(*torch.linalg.lu_factor(A))[1:], X33),
    "householder": op(lambda A, t: torch.linalg.householder_product(A, t), (3, 2), (2,)),
    "norm": op(torch.linalg.norm, X23),
    "norm 2": op(lambda A: torch.linalg.matrix_norm(A, 2), X23),
    "norm nuc": op(lambda A: torch.linalg.matrix_norm(A, "nuc"), X23),
    "norm inf": op(lambda A: torch.linalg.vector_norm(A, math.inf, dim=1), X23),
    "norm 1": op(lambda A: torch.norm(A, p=1, dim=0), X23),
    "norm 3": op(lambda A: torch.linalg.vector_norm(A, 3.0), X23),
    "vander": op(torch.linalg.vander, (3,)),
    "cross": op(torch.linalg.cross, X23, X23),
    "vecdot": op(torch.linalg.vecdot, X23, X23),
    "cov": op(torch.cov, X33),
    "corrcoef": op(torch.corrcoef, (2, 4)),
    "trace": op(torch.trace, X33),
    "cdist": op(torch.cdist, X23, X33),
    "cdist 1": op(lambda a, b: torch.cdist(a, b, p=1.0), X23, X33),
    "cdist 3": op(lambda a, b: torch.cdist(a, b, 3.0), X23, X33),
    "cdist inf": op(lambda a, b: torch.cdist(a, b, math.inf), X23, X33),
    "cdist mm": op(lambda a, b: torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist"),
        (2, 2, 3), (2, 2, 3)),
    "cdist broadcast": op(torch.cdist, (2, 1, 2, 3), (2, 3, 3)),
    "pdist": op(F.pdist, X33),
    "dist": op(lambda a, b: torch.dist(a, b, 3), X23, X23),
}  # fmt: skip

PRODUCTS = {
    "matmul": op(torch.matmul, X23, X33), "mv": op(torch.mv, X23, (3,)),
    "dot": op(torch.dot, (3,), (3,)), "outer": op(torch.outer, (2,), (3,)),
    "inner": op(torch.inner, X23, X33), "bmm": op(torch.bmm, (2, 2, 3), (2, 3, 2)),
    "addmm": op(lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (2, 2), X23, (3, 2)),
    "addmv": op(torch.addmv, (2,), X23, (3,)), "addr": op(torch.addr, X23, (2,), (3,)),
    "baddbmm": op(torch.baddbmm, (2, 2, 2), (2, 2, 3), (2, 3, 2)),
    "addbmm": op(torch.addbmm, (2, 2), (2, 2, 3), (2, 3, 2)),
    "einsum": op(lambda a, b: torch.einsum("ij,kj->ik", a, b), X23, X33),
    "einsum trace": op(lambda a, b: torch.einsum("ij,jk,ik->", a, a, b), X33, X33),
    "tensordot": op(lambda a, b: torch.tensordot(a, b, 1), X23, X33),
    "kron": op(torch.kron, (2, 2), X23),
    "block_diag": op(lambda a, b: torch.block_diag(a, b), X23, (2, 2)),
    "combinations": op(torch.combinations, (3,)),
}  # fmt: skip

ALONG = (
    "sum", "mean", "std", "var_mean", "std_mean", "prod", "amax", "amin", "nansum", "nanmean",
    "logsumexp", "cumsum", "cumprod", "logcumsumexp",
)  # fmt: skip
REDUCTIONS = {
    **each("sum", "mean", "std", "var", "prod", "amax", "amin", "max", "min", "median"),
    **{
        f"{name} {axis}": op(lambda x, f=f, axis=axis: f(x, axis), X33)
        for name, f in {
            **{name: getattr(torch, name) for name in ALONG},
            "var": lambda x, i: torch.var(x, i, correction=0),
            "aminmax": lambda x, i: tuple(torch.aminmax(x, dim=i)),
            "max": lambda x, i: torch.max(x, i)[0],
            "min": lambda x, i: x.min(i).values,
            "median": lambda x, i: x.median(i)[0],
            "nanmedian": lambda x, i: x.nanmedian(i)[0],
            "mode": lambda x, i: torch.mode(x, i)[0],
            "kthvalue": lambda x, i: torch.kthvalue(x, 2, i)[0],
            "quantile": lambda x, i: torch.quantile(x, 0.3, i),
            "nanquantile": lambda x, i: torch.nanquantile(x, 0.3, i),
            "cummax": lambda x, i: torch.cummax(x, i)[0],
            "cummin": lambda x, i: torch.cummin(x, i)[0],
            "sort": lambda x, i: torch.sort(x, dim=i)[0],
            "msort": lambda x, i: torch.msort(x),
            "topk": lambda x, i: torch.topk(x, 2, dim=i)[0],
            "diff": lambda x, i: torch.diff(x, dim=i),
            "gradient": lambda x, i: torch.gradient(x, dim=i)[0],
            "trapezoid": lambda x, i: torch.trapezoid(x, dim=i),
            "cumulative_trapezoid": lambda x, i: torch.cumulative_trapezoid(x, dim=i),
        }.items()
        for axis in (0, -1)
    },
    "prod zero": op(lambda x: (x * torch.tensor([1.0, 0, 1], dtype=DOUBLE)).prod(-1), X23),
    "prod zeros": op(lambda x: (x * torch.tensor([0.0, 0, 1], dtype=DOUBLE)).prod(-1), X23),
    "cumprod zero": op(lambda x: (x * torch.tensor([1.0, 0, 1], dtype=DOUBLE)).cumprod(-1), X23),
    "segment_reduce": op(
        lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([1, 2]), axis=0), X33),
}  # fmt: skip

COMPLEX = {
    "fft": op(lambda x: torch.fft.fft(x), X23),
    "ifft": op(lambda x: torch.fft.ifft(complexes(x)), X23),
    "rfft": op(lambda x: torch.fft.rfft(x), (2, 4)),
    "irfft": op(lambda x: torch.fft.irfft(complexes(x)), X23),
    "hfft": op(lambda x: torch.fft.hfft(complexes(x)), X23),
    "fft2": op(lambda x: torch.fft.fft2(x), X23),
    "stft": op(lambda x: torch.stft(x, 4, window=torch.ones(4, dtype=DOUBLE), return_complex=True),
        (8,)),
    "istft": op(
        lambda x: torch.istft(
        torch.stft(x, 4, window=torch.ones(4, dtype=DOUBLE), return_complex=True), 4,
        window=torch.ones(4, dtype=DOUBLE)), (8,)),
    "complex": op(torch.complex, X23, X23),
    "polar": op(torch.polar, X23, X23, kind="positive"),
    "view_as_complex": op(lambda x: torch.view_as_complex(x) ** 2, (3, 2)),
    "view_as_real": op(lambda x: torch.view_as_real(complexes(x)), X23),
    "complex abs": op(lambda x: complexes(x).abs(), X23),
    "angle": op(lambda x: complexes(x).angle(), X23),
    "sgn": op(lambda x: torch.sgn(complexes(x)), X23),
    "conj": op(lambda x: complexes(x).conj() * complexes(x) ** 2, X23),
    "real": op(lambda x: complexes(x).exp().real, X23),
    "imag": op(lambda x: complexes(x).sin().imag, X23),
    "complex matmul": op(lambda a, b: complexes(a) @ complexes(b), X23, X33),
    "complex solve": op(
        lambda A, b: torch.linalg.solve(torch.complex(A, A.mT), torch.complex(b, b)), X33, (3, 1),
        kind="matrix"),
    "complex det": op(lambda A: torch.linalg.det(torch.complex(A, A.mT)), X33, kind="matrix"),
    "complex mul": op(lambda a, b: complexes(a) * complexes(b) / (2 + complexes(a)), X23, X23),
    "complex tanh": op(lambda x: complexes(0.3 * x).tanh().log(), X23),
    "complex cumprod": op(lambda x: complexes(x).cumprod(1), X23),
}  # fmt: skip
