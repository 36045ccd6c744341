"""Aligned-MTL against its definition in exact and high precision."""

from itertools import product

import mpmath as mp
import numpy as np
import pytest
import torch
from torch.func import jacrev, jvp, vmap

import mtlfunc as mf
from tests.support.families import jacobian
from tests.support.oracles import near
from tests.support.rules import INDEPENDENT, preferences, updated

F64 = torch.float64
EPS = torch.finfo(F64).eps


# --- Aligned-MTL --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("family", [*INDEPENDENT, "duplicates", "rank_deficient", "zero_row"])
def test_aligned_mtl_equals_the_singular_value_decomposition(family, scale):
    """d = √s Σ_k (u_k·p) v_k over the singular triplets of J that are not 0: no Gramian."""
    for count, seed in product((1, 2, 5), range(3)):
        J = jacobian(family, count, seed)
        U, S, Vt = np.linalg.svd(J.numpy(), full_matrices=False)
        kept = S / max(S.max(), 1e-300) > 1e-7
        if not kept.any():
            assert torch.equal(mf.aggregate(mf.aligned_mtl(scale=scale), J), torch.zeros_like(J[0]))
            continue
        root = {
            "min": S[kept].min(),
            "median": np.sort(S[kept])[(kept.sum() - 1) // 2],
            "rmse": (S[kept] ** 2).mean() ** 0.5,
        }
        for p in (torch.full((count,), 1 / count, dtype=F64), preferences(count, seed)):
            d = mf.aggregate(mf.aligned_mtl(preference=p, scale=scale), J)
            expected = root[scale] * (U[:, kept].T @ p.numpy()) @ Vt[kept]
            spread = float((S[kept].max() / S[kept].min()) ** 2)
            np.testing.assert_allclose(
                d.numpy(),
                expected,
                rtol=0,
                atol=16 * EPS * count * spread * float(np.linalg.norm(expected)) + 1e-14,
            )


def test_aligned_mtl_derivative_at_equal_eigenvalues():
    """G = I: B = √s G^(-1/2) with s = tr(G)/T, so that dB p = (tr(dG)/(2T) p - ½ dG p); automatic
    differentiation of eigh gives NaN there.
    """
    p = preferences(3)
    direction = torch.tensor([[1.0, 0.3, -0.2], [0.3, -0.5, 0.1], [-0.2, 0.1, 0.7]], dtype=F64)
    slope = torch.func.jvp(
        lambda G: updated(mf.aligned_mtl(preference=p, scale="rmse"), G),
        (torch.eye(3, dtype=F64),),
        (direction,),
    )[1]
    near(slope, direction.trace() / 6 * p - 0.5 * direction @ p, 1e-12, 1e-14)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("family", ["gaussian", "hull", "spread", "duplicates"])
def test_aligned_mtl_on_present_tasks_alone(family, scale):
    """To ε times the condition number of what is kept of G, as good as eigenvalues are known."""
    J, present = jacobian(family, 5, 3), torch.tensor([True, False, True, True, False])
    rows = J * present[:, None]
    rule = mf.aligned_mtl(scale=scale)
    w, alone = updated(rule, rows @ rows.mT, present), updated(rule, J[present] @ J[present].mT)
    values = torch.linalg.eigvalsh(J[present] @ J[present].mT)
    values = values[values > 1e-12 * values[-1]]
    tolerance = (
        64 * EPS * float(values[-1] / values[0]) * float(alone.abs() @ J[present].norm(dim=1))
    )
    assert bool((w[~present] == 0).all())
    near(w @ J, alone @ J[present], 0, tolerance)


# --- derivatives where norms differ -------------------------------------------------------------


def in_high_precision(gramian, preference, scale):
    """The weights √s V Λ^(-1/2) Vᵀ p of a definite Gramian of mpmath."""
    values, vectors = mp.eigsy(gramian)
    ordered = sorted(values)
    s = {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "rmse": mp.fsum(ordered) / len(ordered),
    }[scale]
    inner = vectors.T * preference
    return vectors * mp.matrix([mp.sqrt(s / v) * x for v, x in zip(values, inner, strict=True)])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("decades", [0, 1.5, 2, 3])
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_derivatives_where_norms_differ(scale, decades, order):
    """Norms 10^±decades: values, first and second derivatives in 60 digits, in every nesting and
    vmapped. Each task's part of d, relative to the largest, is exact to ε times the ratio of the
    norms, the root of the condition number.
    """
    norms = torch.tensor([10.0**decades, 1.0, 10.0**-decades], dtype=F64)[list(order)]
    unit = torch.nn.functional.normalize(jacobian("gaussian", 3), dim=1)
    move = jacobian("gaussian", 3, 7)[:, :3]
    outer = norms * norms[:, None]
    G, direction = (x + x.mT for x in (unit @ unit.mT * outer, (move + move.mT) * outer))
    p, rule = preferences(3), mf.aligned_mtl(preference=preferences(3), scale=scale)

    with mp.workdps(60):
        h, wide, step = mp.mpf(10) ** -18, mp.matrix(G.tolist()), mp.matrix(direction.tolist())
        before, at, after = (
            in_high_precision(wide + k * h * step, mp.matrix(p.tolist()), scale) for k in (-1, 0, 1)
        )
        expected = [
            torch.tensor([float(x) for x in found], dtype=F64)
            for found in (at, (after - before) / (2 * h), (after - 2 * at + before) / h**2)
        ]

    def weights(t):
        return mf.weights(rule, G + t * direction)

    def slope(t):
        return jvp(weights, (t,), (torch.ones_like(t),))[1]

    def curvature(t):
        return jvp(slope, (t,), (torch.ones_like(t),))[1]

    zero, both = torch.zeros((), dtype=F64), torch.zeros(2, dtype=F64)
    reverse = jacrev(weights)
    found = [
        [weights(zero), vmap(weights)(both)[1]],
        [slope(zero), reverse(zero), vmap(slope)(both)[1], vmap(reverse)(both)[1]],
        [
            curvature(zero),
            jacrev(reverse)(zero),
            jacrev(slope)(zero),
            vmap(curvature)(both)[1],
            vmap(jacrev(reverse))(both)[1],
        ],
    ]
    for answers, reference in zip(found, expected, strict=True):
        for answer in answers:
            error = float(((answer - reference) * norms).abs().max())
            largest = float((reference * norms).abs().max())
            assert error <= 64 * EPS * 10 ** (2 * decades) * largest
