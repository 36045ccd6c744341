"""EPO, Pareto MTL, Nash-MTL, FairGrad and ConicGrad against algorithms, equations and bounds."""

import warnings
from functools import partial
from itertools import product
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.rules import _conicgrad
from tests.support.every import every, in_turn
from tests.support.families import FAMILIES, gramian, jacobian
from tests.support.oracles import EPS, F64, near
from tests.support.rules import (
    INDEPENDENT,
    STATIONARY,
    geometry,
    lengths,
    preferences,
    updated,
    with_absent,
)


def literal_epo(G, losses, r, tolerance):
    """The official linear programme: objective, inequalities A @ alpha >= b, and the mode."""
    count = len(losses)
    share = r * losses / (r @ losses)
    mu = share @ np.log(share * count)
    anchor = r * (np.log(share * count) - mu)
    C = G / G.diagonal().max()
    rates = C @ anchor
    if mu <= tolerance:
        bound = np.append(np.zeros(count), min(rates.max(), 0))
        return C.sum(0), np.vstack([C, rates]), bound, "descent"
    if not (rates > 0).any():
        return rates, C, np.zeros(count), "balance"
    bound = np.where(rates > 0, -np.inf, rates)
    bound[r * losses == (r * losses).max()] = 0
    kept = np.isfinite(bound)
    return rates, C[kept], bound[kept], "balance"


def on_the_simplex(objective, A, b):
    """The largest objective @ alpha where A @ alpha >= b, by HiGHS."""
    ones = np.ones((1, A.shape[1]))
    return linprog(-objective, A_ub=-A, b_ub=-b, A_eq=ones, b_eq=[1], method="highs")


@pytest.mark.parametrize("tolerance", [1e-4, 0.1])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_epo_solves_the_official_linear_programme(count, tolerance):
    """Within 1e-6 of HiGHS and every bound met, far from the ray and on it up to 1e-4."""
    modes = set()
    for seed in range(30):
        rng = np.random.default_rng([seed, count])
        J, r = rng.standard_normal((count, count + 3)), rng.dirichlet(np.ones(count))
        losses = rng.uniform(0.2, 2, count)
        if seed % 3 == 0:
            losses = 1 / r * (1 + 1e-4 * rng.standard_normal(count))
        objective, A, b, mode = literal_epo(J @ J.T, losses, r, tolerance)
        best = on_the_simplex(objective, A, b)
        rule = mf.epo(torch.from_numpy(r), tolerance)
        weights = mf.weights(rule, *map(torch.from_numpy, (J @ J.T, losses))).numpy()
        # infeasible: the official training script falls back on the preference
        if best.status == 2:
            np.testing.assert_allclose(weights, r, rtol=1e-12)
            continue
        assert best.status == 0
        modes.add(mode)
        assert (weights >= 0).all()
        assert abs(weights.sum() - 1) <= 1e-12
        assert (A @ weights - b).min() >= -1e-9
        assert -best.fun - objective @ weights <= 1e-6 * np.abs(objective).max()
    assert modes == {"balance", "descent"}


@pytest.mark.parametrize("count", [3, 7, 13, 26, 30])
@pytest.mark.parametrize("loss", [2.0, 0.3])
def test_epo_on_the_ray_has_no_anchor_but_rounding(count, loss):
    """Equal losses: the programme without its last inequality, also where a task is absent."""
    rows = jacobian("gaussian", count + 1, 1)
    rest = torch.arange(count + 1) != 1
    C = rows[rest] @ rows[rest].mT
    best = on_the_simplex(C.numpy().sum(0), C.numpy(), np.zeros(count))
    weights = mf.weights(mf.epo(), C, torch.full((count,), loss, dtype=F64))
    assert float((C @ weights).min()) >= -1e-9
    assert -best.fun - float(C.sum(0) @ weights) <= 1e-6 * float(C.sum(0).abs().amax())
    some = with_absent(mf.epo(), rows, torch.full((count + 1,), loss, dtype=F64), rest, 1)[0]
    near(some[rest], weights, 0, 1e-9)


def test_epo_where_every_present_rate_is_negative():
    """Near the ray αᵀCa >= max_t (Ca)_t < 0, whose maximum is not an absent task's 0."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.8, 0.9]], dtype=F64)
    losses, rest = torch.tensor([1.005, 5.0, 1.0], dtype=F64), torch.tensor([True, False, True])
    near(
        with_absent(mf.epo(), rows, losses, rest, 1)[0],
        torch.tensor([1.0, 0, 0], dtype=F64),
        0,
        1e-9,
    )


def test_epo_edge_cases():
    G = gramian("gaussian", 3)
    rays, losses = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    loop = [mf.weights(mf.epo(ray), G, x) for ray, x in zip(rays, losses, strict=True)]
    near(vmap(lambda ray, x: mf.weights(mf.epo(ray), G, x))(rays, losses), torch.stack(loop), 1e-9)
    even = mf.weights(mf.epo(), G, torch.zeros(3, dtype=F64))  # losses 0: nothing to balance
    near(even, mf.weights(mf.epo(), G, torch.ones(3, dtype=F64)))
    rule, losses = mf.epo(torch.tensor([0.0, 1.0], dtype=F64)), torch.tensor([5.0, 1.0], dtype=F64)
    assert mf.weights(rule, torch.eye(2, dtype=F64), losses).isfinite().all()
    with pytest.raises(ValueError, match="needs losses >= 0, got"):
        mf.weights(mf.epo(), G, torch.tensor([1.0, -1.0, 1.0], dtype=F64))
    below = torch.tensor([[1.0, -1.0, 1.0]], dtype=F64)
    assert vmap(lambda losses: mf.weights(mf.epo(), G, losses))(below).isnan().all()
    with pytest.raises(ValueError, match="tolerance: expected"):
        mf.epo(tolerance=-1.0)
    with pytest.raises(ValueError, match="inverse_ray: expected finite entries"):
        mf.weights(mf.epo(torch.tensor([-1.0, 1.0])), torch.eye(2), torch.ones(2))


def literal_pareto_mtl(J, losses, u, others, searching):
    """Lin et al. 2019 on vectors: the direction, and how many constraints are violated."""
    apart = others / np.linalg.norm(others, axis=1, keepdims=True) - u / np.linalg.norm(u)
    violated = apart[apart @ losses > 1e-14]
    if searching and len(violated):
        rows = violated @ J
    else:
        rows = np.vstack([J, violated @ J]) if len(violated) else J
    rows = torch.from_numpy(rows)
    w = solvers.active_set()(solvers.min_norm(rows @ rows.mT)).weights
    return (w @ rows).numpy(), len(violated)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pareto_mtl_equals_literal_algorithm(count):
    phases = set()
    for seed in range(20):
        rng = np.random.default_rng([seed, count])
        J, losses = jacobian("gaussian", count, seed), rng.uniform(0.1, 2, count)
        others = rng.uniform(0.05, 1, (6, count))
        u = others[2]
        for search in (0, 1, 3):
            rule = mf.pareto_mtl(torch.from_numpy(u), torch.from_numpy(others), search)
            expected, violated = literal_pareto_mtl(J.numpy(), losses, u, others, search > 0)
            phases.add((bool(search), violated > 0))
            seen = geometry(J @ J.mT, torch.from_numpy(losses))
            weights, state = rule.update(seen, rule.init(seen.losses, mf.random.key(0)))
            near(weights @ J, torch.from_numpy(expected), 0, 1e-9 * float(J.norm()))
            assert int(state.search) == (max(search - 1, 0) if violated else 0)
    assert len(phases) == 4
    rows, u = torch.tensor([[5.0, 2, 4], [9, -7, -1], [800, 900, 300]]), torch.tensor([1.0, 4, 3])
    w = mf.weights(mf.pareto_mtl(u, search=0), rows @ rows.mT, torch.tensor([6.0, 9, 1]))
    J, u = rows.double().numpy(), u.double().numpy()  # whole numbers: G is exact
    expected = literal_pareto_mtl(J, np.array([6.0, 9, 1]), u, np.eye(3), False)[0]
    near(w @ rows, torch.from_numpy(expected).float(), 0, 1e-4)


def test_pareto_mtl_searches_until_a_point_is_found():
    """Then the tasks' own gradients count for good; a batch without tasks is not counted."""
    J, others = jacobian("gaussian", 2), torch.eye(2, dtype=F64)
    rule = mf.pareto_mtl(torch.tensor([1.0, 1.0], dtype=F64), others, 10)
    outside, inside = torch.tensor([1.0, 9.0], dtype=F64), torch.ones(2, dtype=F64)
    state = rule.init(outside, mf.random.key(0))
    seen = []
    for losses, some in ((outside, 1), (outside, 0), (outside, 1), (inside, 1), (outside, 1)):
        given = geometry(J @ J.mT, losses)
        _, state = rule.update(given._replace(present=given.present & bool(some)), state)
        seen.append(int(state.search))
    assert seen == [9, 9, 8, 0, 0]


@pytest.mark.parametrize("size", [0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-4])
@pytest.mark.parametrize("seed", range(6))
def test_pareto_mtl_takes_constraints_that_cancel(size, seed):
    """Gradients that nearly cancel in a violated constraint are no indefinite Gramian."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    rows = rows + size * torch.randn(3, 2, generator=generator, dtype=F64)
    losses = torch.rand(3, generator=generator, dtype=F64)
    for ray, scale in product(([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]), (1e-10, 1.0, 1e10)):
        rule = mf.pareto_mtl(torch.tensor(ray, dtype=F64))
        assert mf.weights(rule, scale**2 * rows @ rows.T, losses).isfinite().all(), ray


def defect(
    G: Tensor, w: Tensor, power: float, share: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """(G w)_i (w_i/s_i)^power - 1, and its rounding: ε times the sum of the absolute terms."""
    n = lengths(G)
    factor = (w / share) ** power
    return (G @ w) * factor - 1, EPS * len(G) * n * (n @ w) * factor


def test_fairgrad_at_its_ends():
    """Towards 0 it is T times DualProj; up to 1000 its equation holds; beyond, it is refused."""
    G = torch.tensor([[9.0, -2.0, 3.0], [-2.0, 1.0, 0.0], [3.0, 0.0, 2.0]], dtype=F64)
    near(mf.weights(mf.fairgrad(1e-3), G), 3 * mf.weights(mf.dualproj(), G), 3e-3)
    for alpha in (100.0, 1000.0):
        w = mf.weights(mf.fairgrad(alpha), G)
        near(G @ w, w ** (-1 / alpha), 1e-12)
    rows = torch.randn(6, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.logspace(0, 8, 6, dtype=F64)[:, None]
    far = rows @ rows.mT
    for alpha in (0.02, 0.1, 10.0, 50.0):
        w = mf.weights(mf.fairgrad(alpha), far)
        size = torch.maximum(far.abs() @ w, w ** (-1 / alpha))  # a rate's terms round
        assert ((far @ w - w ** (-1 / alpha)).abs() <= 1e-9 * size).all()
        near(vmap(lambda g, a=alpha: mf.weights(mf.fairgrad(a), g))(far[None])[0], w, 1e-8)
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.bfloat16)
    singular = gramian("rank_deficient", 64, dtype=torch.float32)
    for alpha, H in product((0.2, 2.0, 5.0), (singular, opposite)):  # where no bargain exists
        assert (mf.weights(mf.fairgrad(alpha), H) > 0).all()
    unsettled = "{}: Newton's method has not settled within {} steps"
    with pytest.raises(ValueError, match=unsettled.format("alpha", 256)):
        mf.weights(mf.fairgrad(3000.0), G)
    uneven = torch.tensor([1.0, 1e-200, 1e-300], dtype=F64)
    for rule in (mf.nash_mtl(preference=uneven), mf.fairgrad(0.5, preference=uneven)):
        with pytest.raises(ValueError, match=unsettled.format("gramian", 40)):
            mf.weights(rule, G)
    assert bool(vmap(lambda g: mf.weights(mf.fairgrad(3000.0), g))(G[None]).isnan().all())


@pytest.mark.parametrize("alpha", [None, 0.25, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("family", [*INDEPENDENT, "duplicates", "near_duplicates", "identical"])
def test_bargains_solve_their_equation(family, alpha):
    """G w = w^(-1/α) to 1e-12, α = 1 by Nash-MTL for None; spread: lengths from 1 to 1e-4."""
    make, alpha = (partial(mf.fairgrad, alpha), alpha) if alpha else (mf.nash_mtl, 1.0)
    for count, seed in (*product((1, 2, 3, 8, 32), range(3)), (128, 0)):
        G = gramian(family, count, seed, scale=10.0 ** (seed - 1))
        w = mf.weights(make(), G)
        left, rounding = defect(G, w, 1 / alpha)
        assert (w > 0).all()
        assert (left.abs() <= 1e-12 + 4 * rounding).all()
        p = preferences(count, seed)
        w = mf.weights(make(preference=p), G)
        left, rounding = defect(G, w, 1 / alpha, count * p)
        assert (left.abs() <= 1e-12 + 4 * rounding).all()


@pytest.mark.parametrize("cosine", [0.999999, 0.5, 0.0, -0.5, -0.99, -1 + 1e-6, -1 + 1e-10])
def test_nash_mtl_two_tasks_in_closed_form(cosine):
    """α_t = 1/(‖g_t‖√(1 + cos)), whatever the lengths."""
    for n in torch.tensor([[1.0, 1.0], [1e-3, 1e4], [1e15, 1e-15]], dtype=F64):
        G = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=F64) * n * n[:, None]
        known = float(G[0, 1] / n[0] / n[1]) + 1  # 1 + cos, as far as G knows it
        expected = torch.full((2,), known**-0.5, dtype=F64)
        near(mf.weights(mf.nash_mtl(), G) * n, expected, 1e-13 + 16 * EPS / known)


@pytest.mark.parametrize("rule", [(mf.nash_mtl(), 3, 0.0), (mf.fairgrad(2.0), 4, 64 * EPS)])
def test_bargaining_weights_scale_by_their_unit(rule):
    """α ∝ 1/s and w ∝ s^(-2α/(1+α)) for gradients s times as long; to the bit at powers of two."""
    made, degree, rtol = rule
    for family, power in product(FAMILIES, (-33, 33)):
        G = gramian(family, 4)
        one = mf.weights(made, G) * 2.0 ** (-degree * power // 3)
        near(mf.weights(made, G * 4.0**power), one, rtol)


@pytest.mark.parametrize("family", STATIONARY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nash_mtl_where_no_bargain_exists(family, dtype):
    """Finite weights, in proportion those of the combination that vanishes."""
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
    """Two opposites cancel; the others bargain at right angles to them, as without them."""
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
    p, kept = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64), torch.tensor([0, 2, 3])
    w = mf.weights(mf.nash_mtl(preference=p, rescale="sum"), G)
    near(w[kept], mf.weights(mf.nash_mtl(rescale="sum"), G[kept][:, kept]), 1e-13)
    assert float(w[1]) == 0


def test_nash_mtl_max_norm():
    J = jacobian("gaussian", 4)
    G = J @ J.mT
    for limit in (0.5, 2.0, 3.0):
        w = mf.weights(mf.nash_mtl(max_norm=limit), G)
        assert float((w @ J).norm()) == pytest.approx(min(limit, 2.0), rel=1e-12)
        near(w / w.sum(), mf.weights(mf.nash_mtl(rescale="sum"), G), 1e-12)
    limits = torch.tensor([0.5, 3.0], dtype=F64)
    batched = vmap(lambda limit: updated(mf.nash_mtl(max_norm=limit), G))(limits)
    near(batched[0], mf.weights(mf.nash_mtl(max_norm=0.5), G), 1e-12)


def test_fairgrad_batched_in_alpha():
    G, alphas = gramian("gaussian", 3), torch.tensor([0.4, 1.0, 3.0], dtype=F64)
    batched = vmap(lambda alpha: updated(mf.fairgrad(alpha), G))(alphas)
    near(batched, torch.stack([updated(mf.fairgrad(alpha), G) for alpha in alphas]), 1e-12)


ANGLES = (0.0, 0.2, 0.7, 0.99)
# some of whose members have no direction that lowers every loss
HOPELESS = {"pareto_stationary", "weakly_stationary", "antiparallel", "rank_deficient"}


def solved(problem: cp.Problem) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Clarabel says that it stops short of these tolerances
        try:
            problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        except cp.SolverError:
            problem.solve(solver=cp.CLARABEL)
    value = problem.value
    assert isinstance(value, float | np.floating)
    return float(value)


def dual_bound(rows: Tensor, c: float) -> float:
    """No unit vector of the cone has a better worst rate than min ‖g_w + μg₀‖ - μc‖g₀‖."""
    mean, w, mu = rows.mean(0), cp.Variable(len(rows), nonneg=True), cp.Variable(nonneg=True)
    bound = cp.norm(rows.numpy().T @ w + mu * mean.numpy()) - mu * c * float(mean.norm())
    simplex: Any = [cp.sum(w) == 1]
    return solved(cp.Problem(cp.Minimize(bound), simplex))


def direction(rows: Tensor, c: float) -> Tensor:
    """As the rule gives it, after what it promises of length and angle was checked."""
    d, mean = mf.aggregate(mf.conicgrad(c), rows), rows.mean(0)
    length = float(mean.norm())
    assert float(d.norm()) == pytest.approx(length, rel=2e-6)
    assert float(d @ mean) >= (c - 2e-6) * length**2
    return d / length


def check_attains_the_bound(rows: Tensor, c: float, noise: float) -> None:
    """At the length ‖g₀‖; where a loss rises, at the least length with g₀·d >= c‖g₀‖²."""
    d, mean = direction(rows, c), rows.mean(0)
    worst, cosine = float((rows @ d).amin()), float(d @ mean / mean.norm())
    worst *= c / max(cosine, c) if worst < 0 else 1.0
    assert worst == pytest.approx(dual_bound(rows, c), abs=noise * float(rows.norm(dim=1).amax()))


@pytest.fixture(params=[True, False], ids=["as on a CPU", "as on a device"])
def ways(request, monkeypatch):
    """The search that stops when it has the answer, and the one that never looks."""
    monkeypatch.setattr(_conicgrad, "_search", partial(_conicgrad._search, look=request.param))


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("family", "drawn"), in_turn(sorted(FAMILIES), product((2, 3, 5), enumerate(ANGLES)), 5)
)
@every("drawn")
def test_conicgrad_attains_its_dual_bound(family, drawn):
    # in units of the largest gradient, what Clarabel reaches on near duplicates; and where
    # gradients cancel, where its problem is degenerate
    noise = 5e-7 if family in HOPELESS else 1e-8
    count, (seed, c) = drawn
    check_attains_the_bound(jacobian(family, count, seed), c, noise)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("seed", range(8))
def test_conicgrad_where_there_are_fewer_coordinates_than_tasks(seed):
    """In most of these no direction lowers every loss."""
    rng = np.random.default_rng([8, seed])
    for _ in range(4):
        tasks, width = int(rng.integers(2, 7)), int(rng.integers(1, 4))
        spread, shift = 10 ** rng.normal(0, 0.3, (tasks, 1)), rng.uniform(0, 0.6)
        rows = spread * rng.standard_normal((tasks, width)) + shift * rng.standard_normal(width)
        c = float(rng.uniform(0, 0.99))
        check_attains_the_bound(torch.from_numpy(rows), c, 5e-7)
        solved_too = torch.from_numpy(np.insert(rows, 1, 0.0, 0))
        check_attains_the_bound(solved_too, c, 5e-7)
        assert mf.weights(mf.conicgrad(c), solved_too @ solved_too.mT)[1] == 1 / (tasks + 1)


def test_conicgrad_of_gradients_of_unlike_lengths_has_no_unit():
    for seed in range(8):
        rows = 100.0 ** torch.arange(5)[:, None] * jacobian("gaussian", 5, seed)
        for unit in (2.0**-200, 2.0**150):
            found, given = (mf.aggregate(mf.conicgrad(0.5), x * rows) for x in (unit, 1.0))
            near(found / unit, given, 0.0, 1e-9 * float(given.norm()), msg=f"{seed}")


@pytest.mark.parametrize("rule", [mf.conicgrad(0.2), mf.nash_mtl()], ids=["conicgrad", "nash_mtl"])
def test_the_answer_to_a_gramian_in_half_precision_is_that_to_its_vectors(rule):
    for count, dtype in ((8, torch.float16), (8, torch.bfloat16), (40, torch.bfloat16)):
        rows = jacobian("gaussian", count, 4)[:, :count] / 2 / count**0.5 + torch.eye(count)
        expected = mf.aggregate(rule, rows)
        weights = mf.weights(rule, (rows @ rows.mT).to(dtype)).double()
        near(weights @ rows, expected, 0.0, 8 * torch.finfo(dtype).eps * float(expected.norm()))


def test_a_cosine_of_nought_where_gradients_cancel_keeps_the_length():
    key = torch.Generator().manual_seed(3)
    for seed in range(8):  # numbers of both signs have one direction in the cone, their mean's
        rows = torch.randn(8, 5, 1, generator=key, dtype=torch.float64)
        found = vmap(lambda each: mf.aggregate(mf.conicgrad(0.0), each))(rows)
        loop = torch.stack([mf.aggregate(mf.conicgrad(0.0), each) for each in rows])
        for answer in (found, loop):
            near(answer, rows.mean(1), 1e-6, msg=f"{seed}")


def test_a_cosine_of_nought_gives_mgdas_direction():
    rows = jacobian("gaussian", 4, 1)
    shortest = mf.aggregate(mf.mgda(), rows)
    near(mf.aggregate(mf.conicgrad(0.0), rows), shortest * rows.mean(0).norm() / shortest.norm())


def test_conicgrad_vmapped_over_the_cosine_is_its_loop_and_has_its_derivative():
    rows, c = jacobian("gaussian", 3, 2), torch.linspace(0.1, 0.95, 8, dtype=torch.float64)

    def worst(c: Tensor) -> Tensor:
        return (rows @ mf.aggregate(mf.conicgrad(c), rows)).amin()

    near(vmap(worst)(c), torch.stack([worst(one) for one in c]))
    slope = vmap(torch.func.grad(worst))(c)
    step = 1e-6
    near(slope, (vmap(worst)(c + step) - vmap(worst)(c - step)) / (2 * step), 1e-6, 1e-7)


@pytest.mark.parametrize("lead", [(), (2,), (2, 2)])
def test_the_search_is_an_operator_of_torch(lead):
    """In a compiled program's first call a dispatch mode is active, which turns `vmap` off."""
    rows = torch.stack([jacobian("gaussian", 3, seed) for seed in range(4)])
    rows = (rows if len(lead) == 2 else rows[: 2 if lead else 1]).reshape(*lead, 3, -1)
    p, c = torch.full((*lead, 3), 1 / 3, dtype=torch.float64), torch.tensor(0.9)
    given = (rows @ rows.mT, p, c.double().expand(lead), 2e-16, 1e-14)
    checks = ("test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.mtlfunc.conic_faces, given, test_utils=checks)
