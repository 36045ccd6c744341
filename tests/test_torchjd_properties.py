"""TorchJD's properties of aggregators, restated from their definitions, on rules that claim them.
With d = A(J): non-conflicting, J d >= 0; linear under scaling, A(diag(c) J) linear in c > 0. In
float32 at TorchJD's tolerances, in float64 at 1e-9.
"""

import pytest
import torch

import mtlfunc as mf
from mtlfunc.solvers.problems import resolution
from mtlfunc.solvers.simplex import faces

SHAPES = [
    (1, 1, 1), (2, 3, 1), (2, 3, 2), (4, 3, 1), (4, 3, 2), (4, 3, 3), (5, 10, 5), (8, 5, 3),
    (8, 5, 5), (9, 11, 5), (9, 11, 9), (16, 8, 8), (20, 10, 5), (20, 10, 10),
]  # fmt: skip
"""(tasks, parameters, rank)."""
DTYPES = [torch.float32, torch.float64]
KINDS = ("normal", "strongly stationary", "weakly stationary")


def matrix(kind, count, width, rank, seed, dtype):
    """Random rows of one rank; stationary: Jᵀu = 0 for u > 0, weakly so: half of u is 0."""
    draw = torch.Generator().manual_seed(1000 * seed + 100 * count + 10 * width + rank)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    left = normal(count, count)
    if kind != "normal" and count > 1:
        u = normal(count).abs()
        if kind == "weakly stationary":
            u[torch.randperm(count, generator=draw)[: count // 2]] = 0
        rank = min(rank, count - 1)
        left[:, 0] = u
        left = torch.linalg.qr(left)[0][:, 1:]
    else:
        left = torch.linalg.qr(left)[0]
    right = torch.linalg.qr(normal(width, width))[0]
    return left[:, :rank] @ torch.diag(normal(rank).abs()) @ right[:, :rank].mT


def matrices(dtype):
    for kind in KINDS:
        for shape in SHAPES:
            for seed in range(2):
                if kind == "normal" or shape[0] > 1:
                    yield (kind, *shape, seed), matrix(kind, *shape, seed, dtype)


def tolerance(dtype, peer):
    return peer if dtype == torch.float32 else 1e-9


def close(found, expected, bound):
    return bool(((found - expected).abs() <= bound + bound * expected.abs()).all())


def report(wrong):
    assert not wrong, f"{len(wrong)} matrices (kind, tasks, parameters, rank, seed): {wrong[:8]}"


CALM = {
    "mgda": mf.mgda,
    "dualproj": mf.dualproj,
    "upgrad": mf.upgrad,
    "cagrad(1)": lambda: mf.cagrad(1.0),
    "cagrad(2)": lambda: mf.cagrad(2.0),
}
LINEAR = {"mean": mf.mean, "upgrad": mf.upgrad}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", CALM)
def test_non_conflicting(rule, dtype):
    wrong = []
    for name, J in matrices(dtype):
        rates = J @ mf.aggregate(CALM[rule](), J)
        if not close(rates.clamp_min(0).norm(), rates.norm(), tolerance(dtype, 4e-4)):
            wrong.append((*name, float(rates.min())))
    report(wrong)


@pytest.mark.parametrize("dtype", [*DTYPES, "widened"])
@pytest.mark.parametrize("rule", LINEAR)
def test_linear_under_scaling(rule, dtype):
    """What rounding to float32 left of a thin cone is scaled with the rows, in float64."""
    wrong, wide = [], dtype == "widened"
    for name, rows in matrices(torch.float32 if wide else dtype):
        J = rows.double() if wide else rows
        draw = torch.Generator().manual_seed(0)
        one, two = torch.rand(2, len(J), generator=draw, dtype=J.dtype)
        a, b = torch.rand(2, generator=draw, dtype=J.dtype)
        d, e, both = (
            mf.aggregate(LINEAR[rule](), c[:, None] * J) for c in (one, two, a * one + b * two)
        )
        bound = tolerance(J.dtype, 1e-4)
        if dtype != torch.float64 and rule == "upgrad":
            parts = ((1, a * one + b * two), (a, one), (b, two))
            bound += sum(float(factor) * moved(c[:, None] * J)[wide] for factor, c in parts)
        if not close(both, a * d + b * e, bound):
            wrong.append((*name, float((both - a * d - b * e).abs().max())))
    report(wrong)


def moved(rows):
    """How far d moves, to first order, when the rows are rounded to float32, and when G is to
    float64.
    Take the rows of a face at unit length and a singular value s of theirs, the opening of a cone.
    Two steps of the proximal-point method with δ = `resolution` impose its constraint by a share
    1 - (δ/(s² + δ))², 2s²/δ where s² << δ. Rounding each row by u <= 2⁻²⁴ turns the singular
    vector by √T u/s, at most all the way, and d by that times the share. Rounding G by ε moves the
    multipliers of the face, over δ at most, by Tε/δ of themselves, and d by that times the share.
    Projections of p_t g_t are no longer than Σ p_t‖g_t‖ together.
    """
    n = rows.double().norm(dim=1)
    unit = rows.double() / n.where(n > 0, 1.0)[:, None]
    # of the rows of any face (of all rows where faces are too many: that is the stricter bound);
    # rows off the face add 1
    face = faces(len(n), n.device) if len(n) < 10 else torch.ones(1, len(n), dtype=torch.bool)
    cosines = torch.where(face[:, :, None] & face[:, None], unit @ unit.mT, 0.0)
    s = torch.linalg.eigvalsh(cosines + torch.diag_embed((~face).double())).clamp_min(0).sqrt()
    count, eps = len(n), torch.finfo(torch.float64).eps
    delta = resolution(count, eps)
    share = 1 - (delta / (s**2 + delta)) ** 2
    turn = (count**0.5 * 2.0**-24 / s.clamp_min(1e-300)).clamp_max(1)
    # a cone that G resolves is refined: its error is that of a solve, ε over s²
    solve = count * eps / (s**2 + delta)
    size = float(n.mean())
    return size * float((share * turn).max()), size * float((share * solve).max())
