"""EPO and Pareto MTL against their papers' algorithms on actual vectors."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch.func import vmap

import mtlfunc as mf
from mtlfunc import solvers
from tests.support.families import gramian, jacobian
from tests.support.oracles import near
from tests.support.rules import geometry

F64 = torch.float64


# --- EPO ----------------------------------------------------------------------------------------


def literal_epo(G, losses, r, tolerance):
    """The official linear programme: its objective, its inequalities A @ alpha >= b on the simplex,
    and the mode.
    """
    count = len(losses)
    share = r * losses / (r @ losses)
    mu = share @ np.log(share * count)
    anchor = r * (np.log(share * count) - mu)
    C = G / G.diagonal().max()
    rates = C @ anchor
    if mu <= tolerance:
        return (
            C.sum(0),
            np.vstack([C, rates]),
            np.append(np.zeros(count), min(rates.max(), 0)),
            "descent",
        )
    if not (rates > 0).any():
        return rates, C, np.zeros(count), "balance"
    bound = np.where(rates > 0, -np.inf, rates)
    bound[r * losses == (r * losses).max()] = 0
    kept = np.isfinite(bound)
    return rates, C[kept], bound[kept], "balance"


@pytest.mark.parametrize("tolerance", [1e-4, 0.1])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_epo_solves_the_official_linear_programme(count, tolerance):
    """The objective within 1e-6 of HiGHS's and every bound met: where the losses are far from the
    ray, and on it up to 1e-4.
    """
    modes = set()
    for seed in range(30):
        rng = np.random.default_rng([seed, count])
        J, r = rng.standard_normal((count, count + 3)), rng.dirichlet(np.ones(count))
        losses = (
            1 / r * (1 + 1e-4 * rng.standard_normal(count))
            if seed % 3 == 0
            else rng.uniform(0.2, 2, count)
        )
        objective, A, b, mode = literal_epo(J @ J.T, losses, r, tolerance)
        best = linprog(
            -objective, A_ub=-A, b_ub=-b, A_eq=np.ones((1, count)), b_eq=[1], method="highs"
        )
        weights = mf.weights(
            mf.epo(torch.from_numpy(r), tolerance),
            *(torch.from_numpy(J @ J.T), torch.from_numpy(losses)),
        ).numpy()
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
    A = C.numpy()
    best = linprog(
        -A.sum(0), A_ub=-A, b_ub=np.zeros(count), A_eq=np.ones((1, count)), b_eq=[1], method="highs"
    )
    weights = mf.weights(mf.epo(), C, torch.full((count,), loss, dtype=F64))
    assert float((C @ weights).min()) >= -1e-9
    assert -best.fun - float(C.sum(0) @ weights) <= 1e-6 * float(C.sum(0).abs().amax())
    here = rows * rest[:, None]
    seen = geometry(here @ here.mT, loss * rest.double())._replace(
        present=rest, preference=rest / count
    )
    with_absent = mf.epo().update(seen, ())[0]
    near(with_absent[rest], weights, 0, 1e-9)


def test_epo_edge_cases():
    G = gramian("gaussian", 3)
    rays, losses = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    loop = [mf.weights(mf.epo(ray), G, x) for ray, x in zip(rays, losses, strict=True)]
    near(vmap(lambda ray, x: mf.weights(mf.epo(ray), G, x))(rays, losses), torch.stack(loop), 1e-9)
    even = mf.weights(mf.epo(), G, torch.zeros(3, dtype=F64))  # losses 0: nothing to balance
    near(even, mf.weights(mf.epo(), G, torch.ones(3, dtype=F64)))
    assert (
        mf.weights(
            mf.epo(torch.tensor([0.0, 1.0], dtype=F64)),
            torch.eye(2, dtype=F64),
            torch.tensor([5.0, 1.0], dtype=F64),
        )
        .isfinite()
        .all()
    )
    with pytest.raises(ValueError, match="needs losses >= 0, got"):
        mf.weights(mf.epo(), G, torch.tensor([1.0, -1.0, 1.0], dtype=F64))
    assert (
        vmap(lambda losses: mf.weights(mf.epo(), G, losses))(
            torch.tensor([[1.0, -1.0, 1.0]], dtype=F64)
        )
        .isnan()
        .all()
    )
    with pytest.raises(ValueError, match="tolerance: expected"):
        mf.epo(tolerance=-1.0)
    with pytest.raises(ValueError, match="inverse_ray: expected finite entries"):
        mf.weights(mf.epo(torch.tensor([-1.0, 1.0])), torch.eye(2), torch.ones(2))


# --- Pareto MTL ---------------------------------------------------------------------------------


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
        J, losses, others = (
            jacobian("gaussian", count, seed),
            rng.uniform(0.1, 2, count),
            rng.uniform(0.05, 1, (6, count)),
        )
        u = others[2]
        for search in (0, 3):
            rule = mf.pareto_mtl(torch.from_numpy(u), torch.from_numpy(others), search)
            expected, violated = literal_pareto_mtl(J.numpy(), losses, u, others, search > 0)
            phases.add((bool(search), violated > 0))
            weights, state = rule.update(
                geometry(J @ J.mT, torch.from_numpy(losses)),
                rule.init(torch.from_numpy(losses), mf.random.key(0)),
            )
            np.testing.assert_allclose(
                (weights @ J).numpy(), expected, rtol=0, atol=1e-9 * float(J.norm())
            )
            assert int(state.search) == (max(search - 1, 0) if violated else 0)
    assert len(phases) == 4


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
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    rows = rows + size * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    losses = torch.rand(3, generator=generator, dtype=torch.float64)
    for ray in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]):
        rule = mf.pareto_mtl(torch.tensor(ray, dtype=torch.float64))
        for scale in (1e-10, 1.0, 1e10):
            weights = mf.weights(rule, scale**2 * rows @ rows.T, losses=losses)
            assert weights.isfinite().all(), (size, seed, ray)
