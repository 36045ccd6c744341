"""Eigenvectors by rotations, as on a device, against LAPACK's; and the rules that use them."""

import pytest
import torch
from torch.func import grad, hessian, vmap

import mtlfunc as mf
from mtlfunc.core import linear
from mtlfunc.rules import _spectral
from tests.support.families import FAMILIES, batch, gramian
from tests.support.rules import F64, SPECTRAL

EPS = torch.finfo(F64).eps
by_rotations = torch.ops.mtlfunc.eigenvectors


@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_are_as_accurate_as_lapack(family):
    for count in (1, 2, 3, 4, 5, 7, 8, 11, 16, 33):
        rows = batch(family, count, 8 if count < 16 else 2)
        lengths = rows.norm(dim=-1, keepdim=True)
        unit = rows / lengths.where(lengths > 0, 1.0)
        for jacobian in (unit, rows / lengths.amax().clamp_min(1e-300)):
            matrix = jacobian @ jacobian.mT
            values, vectors = by_rotations(matrix)
            known, slack = torch.linalg.eigvalsh(matrix), 8 * count * EPS
            assert (values - known).abs().amax() <= slack * known.amax(), count
            assert (matrix @ vectors - vectors * values.unsqueeze(-2)).abs().amax() <= slack, count
            kept = (values > count**2 * EPS).to(F64)
            off = vectors.mT @ vectors * kept.unsqueeze(-1) * kept.unsqueeze(-2)
            assert (off - torch.diag_embed(kept)).abs().amax() <= slack, count


def test_small_eigenvalues_are_relatively_accurate():
    """The matrix is D C D with lengths D over twelve orders of magnitude, in any order."""
    cosine = gramian("gaussian", 6, 0)
    unit = cosine.diagonal().rsqrt()
    cosine = cosine * unit * unit[:, None]
    for seed in range(20):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        scale = torch.logspace(0, -12, 6, dtype=F64)[order]
        values, _ = by_rotations(cosine * scale * scale[:, None])
        # of the inverse the largest are the smallest here
        inverse = torch.linalg.inv(cosine) / scale / scale[:, None]
        shrunk = torch.linalg.eigvalsh(inverse)[-1] if order[-1] == 0 else None
        product = cosine.logdet() + 2 * scale.log().sum()
        torch.testing.assert_close(values.log().sum(), product, rtol=1e-13, atol=0)
        if shrunk is not None:
            torch.testing.assert_close(1 / values[0], shrunk, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_rules_and_their_derivatives_are_the_same_by_rotations(name, dtype, monkeypatch):
    rule = SPECTRAL[name]()
    names = ("gaussian", "spread", "near_duplicates", "duplicates", "rank_deficient")
    given = torch.stack([gramian(x, 4, seed).to(dtype) for x in names for seed in range(2)])
    along = torch.linspace(-1, 2, 4, dtype=dtype)

    def total(matrix):
        return mf.weights(rule, 0.5 * (matrix + matrix.mT)) @ along

    def answers():
        alone = torch.stack([mf.weights(rule, matrix) for matrix in given])
        batched = vmap(lambda matrix: mf.weights(rule, matrix))(given)
        return alone, batched, vmap(grad(total))(given[:4]), vmap(hessian(total))(given[:2])

    known = answers()
    monkeypatch.setattr(_spectral, "eigenvectors", by_rotations)
    slack = 1e3 * torch.finfo(dtype).eps ** (1.0 if dtype is torch.float32 else 0.75)
    for found, expected in zip(answers(), known, strict=True):
        apart = (found - expected).flatten(1).abs().amax(1)
        assert (apart <= slack * expected.flatten(1).abs().amax(1)).all(), apart


@pytest.mark.parametrize("lead", [(), (2,), (2, 2)])
def test_the_rotations_are_an_operator_of_torch(lead):
    matrix = gramian("gaussian", 3, 0).expand(*lead, 3, 3)
    checks = ("test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.mtlfunc.eigenvectors, (matrix,), test_utils=checks)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_two_triangular_systems(count):
    matrix = gramian("gaussian", count, 0)
    right = torch.linspace(1, 2, 2 * count, dtype=F64).reshape(count, 2)
    found = linear.solve_factored(right, torch.linalg.cholesky(matrix))
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))
