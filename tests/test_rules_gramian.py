"""Rules on the Gramian alone against their papers' equations; eigenvectors by rotations."""

from fractions import Fraction
from itertools import product

import mpmath as mp
import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.rules import _spectral
from mtlfunc.solvers.default import dual_cone_weights
from mtlfunc.solvers.problems import or_one, resolution
from mtlfunc.types import Geometry
from tests.support.every import every, few, in_turn
from tests.support.families import FAMILIES, REGULAR, batch, gramian, jacobian, jacobians
from tests.support.oracles import EPS, near
from tests.support.rules import F64, INDEPENDENT, SPECTRAL, lengths, preferences, updated


def condition(G: Tensor) -> float:
    """Of the matrix of cosines."""
    n = lengths(G)
    return float(torch.linalg.cond(G / n / n[:, None]))


def test_rlw_is_the_softmax_of_its_key_and_has_mean_uniform():
    rule, losses = mf.rlw(), torch.ones(4, dtype=F64)
    geometry = Geometry(losses, torch.zeros(0, 0, dtype=F64), losses / 4, losses > 0, {})

    def two_steps(seed):
        state = rule.init(losses, mf.random.key(seed))
        first, state = rule.update(geometry, state)
        return torch.stack([first, rule.update(geometry, state)[0]])

    drawn = vmap(two_steps)(torch.arange(4000))
    key, _ = mf.random.draw(mf.random.stream(mf.random.key(7)))
    z = mf.random.normal(key, (4,), F64)
    near(drawn[7, 0], z.exp() / z.exp().sum(), 1e-14)
    assert not torch.allclose(drawn[:, 0], drawn[:, 1])
    spread = drawn.flatten(0, 1).std(0) / 8000**0.5
    assert ((drawn.flatten(0, 1).mean(0) - 0.25).abs() <= 5 * spread).all()


def test_rlw_of_absent_tasks():
    """The softmax over the present tasks' draws; nobody present: all 0."""
    G, present = torch.eye(4, dtype=F64), torch.tensor([True, False, True, True])
    whole = updated(mf.rlw(), G) * present
    near(updated(mf.rlw(), G, present), whole / whole.sum(), 1e-14)
    assert updated(mf.rlw(), G, present & ~present).tolist() == [0.0] * 4


def project(vector: np.ndarray, J: np.ndarray) -> np.ndarray:
    """min ½‖d - vector‖² over J d >= 0, in the space of the parameters: no Gramian."""
    return quadprog.solve_qp(np.eye(J.shape[1]), vector, J.T.copy(), np.zeros(len(J)))[0]


@pytest.mark.parametrize("family", [*REGULAR, "spread", "rank_deficient", "zero_row"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_projections_equal_quadprog_on_the_gradients(family, count):
    for seed in range(3):
        J, p = jacobian(family, count, seed), preferences(count, seed)
        J = J / J.norm(dim=1).amax()  # quadprog has absolute tolerances
        for preference in (None, p):
            w = torch.full_like(p, 1 / count) if preference is None else preference
            scale = 1e-9 * float(w @ J.norm(dim=1))
            whole = project((w @ J).numpy(), J.numpy())
            each = sum(project((w[t] * J[t]).numpy(), J.numpy()) for t in range(count))
            for make, expected in ((mf.dualproj, whole), (mf.upgrad, each)):
                found = mf.aggregate(make(preference=preference), J).numpy()
                np.testing.assert_allclose(found, expected, rtol=0, atol=scale)


def left_unresolved(G, face):
    """Of each constraint of a thin face the part that the Gramian's rounding leaves."""
    unit = (G / G.diagonal().sqrt().outer(G.diagonal().sqrt()))[face][:, face]
    least = float(torch.linalg.eigvalsh(unit)[0].clamp_min(0)) if len(unit) else 1.0
    delta = resolution(len(G), EPS)
    return (delta / (least + delta)) ** 2


@given(jacobians(most=7))
def test_projections_never_conflict_and_meet_their_kkt_conditions(J):
    """v >= p, G v >= 0, (v - p)·G v = 0; UPGrad's weights are a sum of such v."""
    G, n, count = J @ J.mT, J.norm(dim=1), len(J)
    for rule in (mf.dualproj(), mf.upgrad()):
        v = mf.weights(rule, G)
        u = v - 1 / count
        thin = left_unresolved(G, u > 4 * EPS) * n * n.mean()
        noise = 64 * count * EPS * n * (n @ v.abs()) + thin
        assert (v >= (1 - EPS) / count).all()
        assert (G @ v >= -noise).all()
        if rule == mf.dualproj():
            assert (u >= 0).all()
            assert (u * (G @ v)).abs().sum() <= (u * noise).sum() + noise.sum() / count


def test_upgrad_two_tasks_in_fractions():
    """Small integer gradients: v₁ = p₁ + p₂ max(0, -G₁₂/G₁₁), exactly."""
    values = [(a, b) for a, b in product(range(-2, 3), repeat=2) if (a, b) != (0, 0)]
    for g, h in product(values[::3], values[::2]):
        pairs = ((g, g), (g, h), (h, h))
        a, b, c = (Fraction(x[0] * y[0] + x[1] * y[1]) for x, y in pairs)
        push = max(Fraction(0), -b)
        expected = [Fraction(1, 2) * (1 + push / a), Fraction(1, 2) * (1 + push / c)]
        got = mf.weights(mf.upgrad(), torch.tensor([[a, b], [b, c]], dtype=F64).reshape(2, 2))
        if parallel := a * c == b * b:  # other weights give the same direction
            expected = [expected[0] * g[k] + expected[1] * h[k] for k in range(2)]
            got = got @ torch.tensor([g, h], dtype=F64)
        wanted = torch.tensor([float(x) for x in expected], dtype=F64)
        near(got, wanted, *((0, 1e-14) if parallel else (4 * EPS,)))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_for_many_right_hand_sides_equals_one_by_one(family):
    """Also under vmap and derivatives; to the rounding of a batch, which goes on from a face."""
    for count in (1, 2, 6):
        J = jacobian(family, count)
        G, each = J @ J.mT, torch.diag(preferences(count))
        one_by_one = torch.stack([solvers.auto()(solvers.dual_cone(G, w)).weights for w in each])
        assert torch.equal(dual_cone_weights(G, each[0]), one_by_one[0])
        length = or_one(lengths(G))
        least = float(torch.linalg.eigvalsh(G / length / length[:, None])[0])
        resolved = max(least, 0) + resolution(count, EPS)
        # Equations of the face solved to δ, T terms of ε n·|v|, leave δ/λ in the weights and δ/√λ
        # in the direction, λ the least eigenvalue of the matrix of cosines with its ridge.
        noise = 64 * count * EPS / resolved**0.5 * one_by_one @ lengths(G)
        batched = vmap(dual_cone_weights, (0, None))(torch.stack([G, 4 * G]), each)
        for several in (dual_cone_weights(G, each), *batched):
            assert (several >= each).all()
            assert (((several - one_by_one) @ J).norm(dim=1) <= noise).all()
        carried = jacrev(lambda G, each=each: dual_cone_weights(G, each).sum(1))(G)
        expected = [
            grad(lambda G, w=w: solvers.active_set()(solvers.dual_cone(G, w)).weights.sum())(G)
            for w in each
        ]
        # Where neither a task's multiplier nor its rate is above rounding, two paths may end on two
        # faces, and derivatives are those of one.
        moved = (dual_cone_weights(G, each) > each) != (one_by_one > each)
        slack = torch.maximum((one_by_one - each) * length, one_by_one @ G / length)
        assert (slack <= noise[:, None])[moved].all()
        same = ~moved.any(1)
        # both solve with the Gramian of directions and its ridge, as exactly as its condition lets
        rtol = 1e-9 + EPS * count / resolved
        near(carried[same], torch.stack(expected)[same], rtol, 1e-9)


def literal_imtl_g(J: np.ndarray) -> np.ndarray:
    """Liu et al. 2021, eq. 6: α₂… = g₁ Uᵀ (D Uᵀ)⁻¹, α₁ = 1 - Σ."""
    unit = J / np.linalg.norm(J, axis=1, keepdims=True)
    U, D = unit[:1] - unit[1:], J[:1] - J[1:]
    rest = J[0] @ U.T @ np.linalg.inv(D @ U.T)
    return np.concatenate([[1 - rest.sum()], rest])


@pytest.mark.parametrize("family", INDEPENDENT)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_imtl_g_equals_the_papers_closed_form_with_equal_projections(family, count):
    for seed in range(3):
        J = jacobian(family, count, seed)
        G, n = J @ J.mT, J.norm(dim=1)
        w = mf.weights(mf.imtl_g(), G)
        precision = EPS * count * condition(G)
        assert float(w.sum()) == pytest.approx(1, abs=16 * EPS * float(w.abs().sum()))
        projections = (J @ (w @ J)) / n
        assert projections.max() - projections.min() <= 16 * precision * float(w.abs() @ n)
        D = J[:1] - J[1:]
        U = J[:1] / n[0] - J[1:] / n[1:, None]
        literal = torch.from_numpy(literal_imtl_g(J.numpy()))
        error = 1e-14 + 64 * EPS * (float(torch.linalg.cond(D @ U.mT)) + condition(G))
        near(w, literal, 0, error * float(literal.abs().max()))


def test_imtl_g_can_point_uphill_for_everyone():
    """Σ C⁻¹1/‖g‖ < 0: weights of sum 1, all negative; nothing where that sum is 0."""
    unit = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.5]], dtype=F64)
    unit = torch.nn.functional.normalize(unit)
    a = torch.linalg.solve(unit @ unit.mT, torch.ones(3, dtype=F64))
    assert a.min() < 0
    worst = int(a.argmin())
    n = torch.ones(3, dtype=F64)
    n[worst] = 0.5 * float(-a[worst] / (a.sum() - a[worst]))
    J = n[:, None] * unit
    w = mf.weights(mf.imtl_g(), J @ J.mT)
    assert float(w.sum()) == pytest.approx(1, abs=1e-13)
    assert (J @ (w @ J) < 0).all()
    n[worst] *= 2  # the sum is 0 to rounding
    J = n[:, None] * unit
    assert torch.equal(mf.weights(mf.imtl_g(), J @ J.mT), torch.zeros(3, dtype=F64))


def test_imtl_g_of_dependent_gradients():
    """Parallel: the limit of near Gramians. Opposite: projections 0, sum 1. Zero: no say."""
    J = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=F64)
    around = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1e-4, 0.0]], dtype=F64)
    near(mf.weights(mf.imtl_g(), J @ J.mT), torch.tensor([2.0, 1.0], dtype=F64) / 3, 1e-14)
    near(mf.weights(mf.imtl_g(), around @ around.mT), torch.tensor([2.0, 1.0], dtype=F64) / 3, 1e-7)
    for third in ([0.0, 3.0, 0.0], [4.0, 0.0, 0.0]):
        J = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], third], dtype=F64)
        w = mf.weights(mf.imtl_g(), J @ J.mT)
        assert float(w.sum()) == pytest.approx(1, abs=1e-14)
        assert (w @ J).norm() <= 1e-14
    J = torch.cat([jacobian("gaussian", 4), torch.zeros(1, 14, dtype=F64)])
    w, others = mf.weights(mf.imtl_g(), J @ J.mT), mf.weights(mf.imtl_g(), J[:4] @ J[:4].mT)
    near(w, torch.cat([others, torch.zeros(1, dtype=F64)]), 1e-12)
    assert mf.weights(mf.imtl_g(), torch.zeros(3, 3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("family", ["pareto_stationary", "antiparallel"])
def test_imtl_g_stops_where_only_zero_has_equal_projections(family):
    for seed in range(5):
        J = jacobian(family, 4, seed)
        w = mf.weights(mf.imtl_g(), J @ J.mT)
        assert (w @ J).norm() <= 1e-7 * float(w.abs() @ J.norm(dim=1))
        assert float(w.sum()) == pytest.approx(1, abs=1e-10 * float(w.abs().sum()))


@pytest.mark.parametrize(
    "family", [*INDEPENDENT, "duplicates", "rank_deficient", "identical", "zero_row"]
)
def test_config_equals_the_pseudo_inverse_of_unit_gradients(family):
    for count, seed in product((1, 2, 5), range(3)):
        J = jacobian(family, count, seed)
        n = J.norm(dim=1)
        unit = torch.where(n[:, None] > 0, J / n.where(n > 0, 1.0)[:, None], 0.0)
        for p in (torch.full((count,), 1 / count, dtype=F64), preferences(count, seed)):
            d = mf.aggregate(mf.config(preference=p), J)
            best = torch.linalg.pinv(unit, rtol=1e-7) @ p
            # nothing of p within reach
            best = best / best.norm() if best.norm() > 1e-10 else 0 * best
            near(d, (J @ best).mean() * best, 0, 1e-10 * float(n.max()))
            if family in INDEPENDENT:
                cosines = unit @ d / d.norm()
                near(cosines / p, (cosines / p)[:1].expand(count), 1e-10)


def test_config_without_reach_is_zero():
    for G in (torch.tensor([[1.0, -5.0], [-5.0, 25.0]], dtype=F64), torch.zeros(2, 2)):
        assert mf.weights(mf.config(), G).tolist() == [0.0, 0.0]


DEGENERATE = ("orthogonal", "identical", "duplicates", "antiparallel", "zero_row", "integer_ties")
SINGULAR = (mf.imtl_g, mf.config, mf.aligned_mtl, mf.nash_mtl, mf.upgrad, mf.dualproj)


@pytest.mark.parametrize("rule", [*(make() for make in SINGULAR), mf.fairgrad(2.0)], ids=str)
def test_derivatives_are_finite_at_degenerate_gramians(rule):
    """Equal eigenvalues, duplicates, opposite gradients, zero rows, nothing at all."""
    drawn = (gramian(family, count) for family, count in product(DEGENERATE, (2, 4)))
    for G in (*drawn, torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)):
        assert jacrev(lambda G: updated(rule, G))(G).isfinite().all()


@pytest.mark.parametrize(
    ("case", "drawn"),
    in_turn(product(SPECTRAL, FAMILIES), product((1, 2, 3, 8, 20), (F64, torch.float32)), 3),
)
@every("drawn")
def test_spectral_rules_give_the_same_where_something_differentiates(case, drawn):
    """To ε times the condition number of what is inverted, of float32 Gramians, too."""
    (name, family), (count, dtype) = case, drawn
    G, make = gramian(family, count).to(dtype), SPECTRAL[name]
    plain = updated(make(), G)
    carried, slope = jvp(lambda g: updated(make(), g), (G,), (G,))[:2]
    assert slope.isfinite().all()
    wide, length = G.double(), G.double().diagonal().sqrt()
    if name.startswith("aligned"):
        inverted = wide / length.max().where(length.max() > 0, 1.0) ** 2
    else:
        unit = torch.where(length > 0, 1 / length, 0.0)
        inverted = wide * unit * unit[:, None]
    values = torch.linalg.eigvalsh(inverted)
    kept = values[values > count**2 * torch.finfo(dtype).eps]
    condition = float(kept.max() / kept.min()) if len(kept) else 1.0
    error = (plain - carried).double()
    distance = float((error @ wide @ error).clamp_min(0).sqrt())
    # of the weights, at the end
    rounding = 8 * torch.finfo(dtype).eps if dtype != F64 else 0.0
    magnitude = float(carried.double().abs() @ length)
    assert distance <= (16 * count * EPS * condition + rounding) * magnitude
    assert plain.dtype == carried.dtype == dtype


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_rules_give_nan_for_what_is_not_finite(name):
    for at, bad in product(((0, 0), (0, 2), (2, 0)), (torch.nan, torch.inf, -torch.inf)):
        G = gramian("gaussian", 3).clone()
        G[at] = bad
        assert updated(SPECTRAL[name](), G).isnan().all()
        assert jvp(lambda g: updated(SPECTRAL[name](), g), (G,), (G,))[0].isnan().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [mf.upgrad, mf.dualproj])
def test_batch_that_shares_gramians_changes_only_the_order_of_a_sum(rule, family):
    """UPGrad's sum over tasks runs along the memory, and nesting lays that out anew."""
    made = rule()
    for count in (1, 2, 6):
        G = torch.stack([gramian(family, count, seed) for seed in range(4)])
        alone = torch.stack([updated(made, g) for g in G])
        rounding = count * EPS * float(alone.abs().sum(-1).max())
        near(vmap(lambda g: updated(made, g))(G), alone, 0, rounding)
        nested = vmap(vmap(lambda g: updated(made, g)))(torch.stack([G, G.flip(0)]))
        near(nested, torch.stack([alone, alone.flip(0)]), 0, rounding)


def test_batch_over_gramians_and_preferences_in_either_order():
    G = torch.stack([gramian("gaussian", 5, seed) for seed in range(3)])
    p = torch.tensor([[1, 2, 3, 4, 5], [1] * 5, [5, 0, 0, 0, 1], [0, 0, 1, 0, 0]], dtype=F64)

    def weights(g, p):
        return mf.weights(mf.upgrad(preference=p), g)

    expected = torch.stack([torch.stack([weights(g, q) for q in p]) for g in G])
    near(vmap(vmap(weights, (None, 0)), (0, None))(G, p), expected, 1e-13, 1e-15)
    near(vmap(vmap(weights, (0, None)), (None, 0))(G, p), expected.transpose(0, 1), 1e-13, 1e-15)


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
            expected = torch.from_numpy(root[scale] * (U[:, kept].T @ p.numpy()) @ Vt[kept])
            spread = float((S[kept].max() / S[kept].min()) ** 2)
            near(d, expected, 0, 16 * EPS * count * spread * float(expected.norm()) + 1e-14)


def test_of_gradients_at_right_angles_none_is_taken_for_rounding():
    """T of length 1 but for the last: weights √(s/λ)/T, as in exact arithmetic."""
    for dtype, size in ((torch.float32, 1.5e-3), (torch.float16, 0.25), (torch.bfloat16, 0.5)):
        length = torch.tensor([1.0] * 7 + [size])
        expected = (size / length / 8).to(dtype)
        got = mf.weights(mf.aligned_mtl(), torch.diag(length**2).to(dtype))
        torch.testing.assert_close(got, expected)
    for dtype in (torch.float16, torch.bfloat16):  # twelve parallel ones; two at right angles
        same = mf.weights(mf.config(), torch.ones(12, 12, dtype=dtype))
        torch.testing.assert_close(same, torch.full_like(same, 1 / 12))
        assert mf.weights(mf.pcd(tau=0.0), torch.eye(2, dtype=dtype)).tolist() == [1.0, 0.0]


def test_aligned_mtl_derivative_at_equal_eigenvalues():
    """G = I: B = √s G^(-1/2) with s = tr(G)/T, so that dB p = (tr(dG)/(2T) p - ½ dG p); no NaN."""
    p = preferences(3)
    direction = torch.tensor([[1.0, 0.3, -0.2], [0.3, -0.5, 0.1], [-0.2, 0.1, 0.7]], dtype=F64)
    rule = mf.aligned_mtl(preference=p, scale="rmse")
    slope = jvp(lambda G: updated(rule, G), (torch.eye(3, dtype=F64),), (direction,))[1]
    near(slope, direction.trace() / 6 * p - 0.5 * direction @ p, 1e-12, 1e-14)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("family", ["gaussian", "hull", "spread", "duplicates"])
def test_aligned_mtl_on_present_tasks_alone(family, scale):
    """To ε times the condition number of what is kept of G, as good as eigenvalues are known."""
    J, present = jacobian(family, 5, 3), torch.tensor([True, False, True, True, False])
    rows, rule = J * present[:, None], mf.aligned_mtl(scale=scale)
    w, alone = updated(rule, rows @ rows.mT, present), updated(rule, J[present] @ J[present].mT)
    values = torch.linalg.eigvalsh(J[present] @ J[present].mT)
    values = values[values > 1e-12 * values[-1]]
    size, spread = float(alone.abs() @ J[present].norm(dim=1)), float(values[-1] / values[0])
    assert bool((w[~present] == 0).all())
    near(w @ J, alone @ J[present], 0, 64 * EPS * spread * size)


def in_high_precision(gramian, preference, scale):
    """The weights √s V Λ^(-1/2) Vᵀ p of a definite Gramian of mpmath."""
    values, vectors = mp.eigsy(gramian)
    ordered, count = sorted(values), len(values)
    middle, mean = ordered[(count - 1) // 2], mp.fsum(ordered) / count
    s = {"min": ordered[0], "median": middle, "rmse": mean}[scale]
    inner = vectors.T * preference
    return vectors * mp.matrix([mp.sqrt(s / v) * x for v, x in zip(values, inner, strict=True)])


# each scale with every number of decades, and with every order
ORDERS = [(0, 1, 2), (1, 2, 0), (2, 1, 0)]
DECADES = product(*map(enumerate, (["min", "median", "rmse"], [0, 1.5, 2, 3], ORDERS)))


@pytest.mark.parametrize("case", few(DECADES, lambda case: sum(n for n, _ in case) % 3 == 0))
def test_aligned_mtl_derivatives_where_norms_differ(case):
    """Norms 10^±decades: values and derivatives in 60 digits; each task's part of d to its ε."""
    scale, decades, order = (value for _, value in case)
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

    zero, both, reverse = torch.zeros((), dtype=F64), torch.zeros(2, dtype=F64), jacrev(weights)
    forms = ((weights,), (slope, reverse), (curvature, jacrev(reverse), jacrev(slope)))
    for ways, reference in zip(forms, expected, strict=True):
        for answer in (x for way in ways for x in (way(zero), vmap(way)(both)[1])):
            error = float(((answer - reference) * norms).abs().max())
            assert error <= 64 * EPS * 10 ** (2 * decades) * float((reference * norms).abs().max())


by_rotations = torch.ops.mtlfunc.eigenvectors


@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_are_as_accurate_as_lapack(family):
    for count in (1, 2, 3, 4, 5, 7, 8, 11, 16, 33):
        rows = batch(family, count, 8 if count < 16 else 2)
        lengths = rows.norm(dim=-1, keepdim=True)
        unit = rows / lengths.where(lengths > 0, 1.0)
        for scaled in (unit, rows / lengths.amax().clamp_min(1e-300)):
            matrix = scaled @ scaled.mT
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
