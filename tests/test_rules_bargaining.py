"""Nash-MTL and FairGrad against their equations and independent implementations."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import mtlfunc as mf
from tests.support.families import FAMILIES, gramian, jacobian
from tests.support.oracles import near
from tests.support.rules import INDEPENDENT, STATIONARY, lengths, preferences, updated

F64 = torch.float64
EPS = torch.finfo(F64).eps


# --- bargaining: Nash-MTL and FairGrad ----------------------------------------------------------


def defect(
    G: Tensor, w: Tensor, power: float, share: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """(G w)_i (w_i/s_i)^power - 1, and what rounding makes of it: ε times the sum of the absolute
    terms.
    """
    n = lengths(G)
    factor = (w / share) ** power
    return (G @ w) * factor - 1, EPS * len(G) * n * (n @ w) * factor


@pytest.mark.parametrize("family", [*INDEPENDENT, "duplicates", "near_duplicates", "identical"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 32, 128])
def test_nash_mtl_solves_its_equation(family, count):
    """G α = 1/α to 1e-12, and ‖Jᵀα‖ = √T."""
    for seed in range(1 if count == 128 else 3):
        G = gramian(family, count, seed, scale=10.0 ** (seed - 1))
        alpha = mf.weights(mf.nash_mtl(), G)
        left, rounding = defect(G, alpha, 1.0)
        assert (alpha > 0).all()
        assert (left.abs() <= 1e-12 + 4 * rounding).all()
        assert float(alpha @ G @ alpha) == pytest.approx(
            count, rel=1e-12 + 4 * float(rounding.max())
        )


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("family", [*INDEPENDENT, "duplicates", "near_duplicates", "identical"])
def test_fairgrad_solves_its_equation(family, alpha):
    """G w = w^(-1/α) to 1e-12; spread: lengths from 1 to 1e-4."""
    for count, seed in product((1, 2, 8, 32), range(3)):
        G = gramian(family, count, seed, scale=10.0 ** (seed - 1))
        w = mf.weights(mf.fairgrad(alpha), G)
        left, rounding = defect(G, w, 1 / alpha)
        assert (w > 0).all()
        assert (left.abs() <= 1e-12 + 4 * rounding).all()
        p = preferences(count, seed)
        w = mf.weights(mf.fairgrad(alpha, preference=p), G)
        left, rounding = defect(G, w, 1 / alpha, count * p)
        assert (left.abs() <= 1e-12 + 4 * rounding).all()


@pytest.mark.parametrize("cosine", [0.999999, 0.5, 0.0, -0.5, -0.99, -1 + 1e-6, -1 + 1e-10])
def test_nash_mtl_two_tasks_in_closed_form(cosine):
    """α_t = 1/(‖g_t‖√(1 + cos)), whatever the lengths."""
    for n in torch.tensor([[1.0, 1.0], [1e-3, 1e4], [1e15, 1e-15]], dtype=F64):
        G = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=F64) * n * n[:, None]
        known = float(G[0, 1] / n[0] / n[1]) + 1  # 1 + cos, as far as G knows it
        near(
            mf.weights(mf.nash_mtl(), G) * n,
            torch.full((2,), known**-0.5, dtype=F64),
            1e-13 + 16 * EPS / known,
        )


@pytest.mark.parametrize("rule", ["nash", "fair"])
def test_bargaining_weights_scale_by_their_unit(rule):
    """α ∝ 1/s and w ∝ s^(-2α/(1+α)) for gradients s times as long, to the bit at powers of two; the
    normalised weights do not move.
    """
    for family in FAMILIES:
        G = gramian(family, 4)
        made, degree = (mf.nash_mtl(), 3) if rule == "nash" else (mf.fairgrad(2.0), 4)
        one = mf.weights(made, G)
        for power in (-33, 33):
            near(
                mf.weights(made, G * 4.0**power),
                one * 2.0 ** (-degree * power // 3),
                0 if rule == "nash" else 64 * EPS,
            )


@pytest.mark.parametrize("family", STATIONARY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nash_mtl_where_no_bargain_exists(family, dtype):
    """At Pareto-stationary points: finite weights; in proportion they are the combination that
    vanishes.
    """
    eps = torch.finfo(dtype).eps
    for count, seed in product((2, 3, 8), range(2)):
        J = jacobian(family, count, seed)
        G = (J @ J.mT).to(dtype)
        n = lengths(G)
        alpha = mf.weights(mf.nash_mtl(), G)
        assert alpha.isfinite().all()
        assert (alpha * n <= 10 / eps**0.5).all()
        assert bool(((alpha > 0) == (n > 0)).all())
        shares = mf.weights(mf.nash_mtl(rescale="sum"), G)
        assert float(shares.sum()) == pytest.approx(1, abs=16 * eps)
        if family in ("pareto_stationary", "antiparallel") and dtype == F64:
            assert (shares @ J).norm() <= 1e-6 * float(shares @ J.norm(dim=1))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_nash_mtl_around_opposite_tasks(count):
    """The two that pull against each other cancel; the others bargain for a direction at right
    angles to them, as they would without them in that space.
    """
    for seed in range(3):
        J = jacobian("antiparallel", count, seed)
        d = mf.aggregate(mf.nash_mtl(), J)
        assert float(d.norm()) == pytest.approx((count - 2) ** 0.5, abs=1e-6)
        assert (J[:2] @ d).abs().max() <= 1e-6 * float(J[:2].norm())
        if count > 2:
            stuck = J[0] / J[0].norm()
            rest = J[2:] - (J[2:] @ stuck)[:, None] * stuck
            near(d, mf.aggregate(mf.nash_mtl(), rest), 0, 1e-6)


def test_nash_mtl_zero_gradients_have_no_say():
    J = torch.cat([jacobian("gaussian", 3), torch.zeros(1, 13, dtype=F64)])
    G = J @ J.mT
    alone = mf.weights(mf.nash_mtl(), G[:3, :3])
    near(mf.weights(mf.nash_mtl(), G), torch.cat([alone, torch.zeros(1, dtype=F64)]), 1e-13)
    nothing = torch.zeros(4, 4, dtype=F64)
    p = preferences(4)
    near(mf.weights(mf.nash_mtl(preference=p, rescale="sum"), nothing), p, 1e-14)
    assert torch.equal(mf.weights(mf.nash_mtl(), nothing), torch.zeros(4, dtype=F64))


def test_nash_mtl_preference_of_zero_leaves_the_bargain_to_the_others():
    G = gramian("gaussian", 4)
    w = mf.weights(
        mf.nash_mtl(preference=torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64), rescale="sum"), G
    )
    kept = torch.tensor([0, 2, 3])
    near(w[kept], mf.weights(mf.nash_mtl(rescale="sum"), G[kept][:, kept]), 1e-13)
    assert float(w[1]) == 0


def test_nash_mtl_max_norm():
    """d is cut to max_norm where it is longer, and never stretched."""
    J = jacobian("gaussian", 4)
    G = J @ J.mT
    for limit in (0.5, 2.0, 3.0):
        w = mf.weights(mf.nash_mtl(max_norm=limit), G)
        assert float((w @ J).norm()) == pytest.approx(min(limit, 2.0), rel=1e-12)
        near(w / w.sum(), mf.weights(mf.nash_mtl(rescale="sum"), G), 1e-12)
    limits = torch.tensor([0.5, 3.0], dtype=F64)
    batched = vmap(lambda limit: updated(mf.nash_mtl(max_norm=limit), G))(limits)
    near(batched[0], mf.weights(mf.nash_mtl(max_norm=0.5), G), 1e-12)


def test_fairgrad_batched_and_differentiated_in_alpha():
    G, probe = gramian("gaussian", 3), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    alphas = torch.tensor([0.4, 1.0, 3.0], dtype=F64)

    def value(alpha):
        return updated(mf.fairgrad(alpha), G) @ probe

    batched, slopes = vmap(value)(alphas), vmap(grad(value))(alphas)
    for alpha, together, slope in zip(alphas.tolist(), batched, slopes, strict=True):
        assert float(together) == pytest.approx(
            float(updated(mf.fairgrad(alpha), G) @ probe), rel=1e-12
        )
        h = 1e-5
        difference = (
            (updated(mf.fairgrad(alpha + h), G) - updated(mf.fairgrad(alpha - h), G))
            @ probe
            / (2 * h)
        )
        assert float(slope) == pytest.approx(float(difference), rel=1e-6)
