"""GradVac, Krum, PCD and least distance against algorithms on vectors, and closed forms."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.rules._gradvac import vaccinate
from mtlfunc.rules._least_distance import least_distance
from mtlfunc.rules._pcgrad import project
from mtlfunc.rules._surgery import surgery
from mtlfunc.types import Geometry
from tests.support.families import gramian, jacobian
from tests.support.oracles import F64, near
from tests.support.rules import (
    geometry,
    losses_of,
    preferences,
    random_orders,
    trajectory,
    with_absent,
)

torchjd = pytest.importorskip("torchjd.aggregation")

DECIDED = ("gaussian", "spread", "hull", "zero_row")
"""Families without a zero product or a cosine at its target, where rounding decides the sign."""


@pytest.mark.parametrize("family", DECIDED)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_kernel_equals_plain_torch(family, count):
    rng = np.random.default_rng(count)
    G, orders = gramian(family, count, 1), random_orders(count, 2)
    targets = torch.from_numpy(rng.uniform(-0.9, 0.9, (count, count)))
    noise = 1e-12 * float(G.diagonal().sqrt().amax())
    n = G.diagonal().sqrt()
    kernel, _ = surgery(G, orders, None)
    near(kernel * n, project(G, orders) * n, 1e-9, noise)
    (kernel, met), (plain, expected) = surgery(G, orders, targets), vaccinate(G, orders, targets)
    near(kernel * n, plain * n, 1e-9, noise)
    near(met, expected, 1e-9, 1e-9)


def test_kernel_draws_the_orders_of_random_permutation():
    for count, seed in product((3, 8, 33), range(3)):
        G, key = gramian("gaussian", count, seed), mf.random.key(seed - 1)
        orders = mf.random.permutation(key, count, rows=count)
        assert torch.equal(surgery(G, key, None)[0], surgery(G, orders, None)[0])


def test_kernel_under_nested_vmap_and_threads():
    G = torch.stack([gramian("gaussian", 24, seed) for seed in range(200)])
    keys = torch.tensor([3, 1])
    rule = mf.pcgrad()

    def weights(g, key):
        return rule.update(geometry(g, losses_of(24)), rule.init(losses_of(24), key))[0]

    together = vmap(vmap(weights, (None, 0)), (0, None))(G, keys)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(vmap(vmap(weights, (None, 0)), (0, None))(G, keys), together)
    finally:
        torch.set_num_threads(threads)
    for i, j in ((0, 0), (7, 1), (199, 1)):
        near(together[i, j], weights(G[i], keys[j]), 1e-12)
    single = G[0].float()
    near(weights(single, keys[0]).double(), weights(single.double(), keys[0]), 1e-5, 1e-6)


def literal_gradvac(J, orders, targets, beta):
    """Wang et al. 2021 on vectors; the corrected gradients and the new targets."""
    targets, corrected = targets.copy(), []
    for i, order in enumerate(orders):
        c = J[i].copy()
        for j in order:
            lengths = np.linalg.norm(c) * np.linalg.norm(J[j])
            if j == i or lengths == 0:
                continue
            phi, goal = c @ J[j] / lengths, targets[i, j]
            if phi < goal:
                root, root_goal = np.sqrt(1 - phi**2), np.sqrt(1 - goal**2)
                share = (goal * root - phi * root_goal) / (np.linalg.norm(J[j]) * root_goal)
                c = c + np.linalg.norm(c) * share * J[j]
                if math.isclose(np.linalg.norm(c), 0):
                    continue
                # what the formula is for
                met = c @ J[j] / np.linalg.norm(c) / np.linalg.norm(J[j])
                assert met == pytest.approx(goal, abs=1e-6)
            targets[i, j] = (1 - beta) * goal + beta * phi
        corrected.append(c)
    return np.stack(corrected), targets


@pytest.mark.parametrize("family", DECIDED)
@pytest.mark.parametrize("count", [2, 3, 6, 12])
def test_gradvac_equals_literal_algorithm(family, count):
    """Six steps on changing gradients, targets and all; the preference weighs what is corrected."""
    beta, orders = 0.3, random_orders(count, 5)
    p = torch.ones(count, dtype=F64) if count == 2 else preferences(count)
    rule = mf.gradvac(beta, orders, preference=None if count == 2 else p)
    state, targets = rule.init(losses_of(count), mf.random.key(0)), np.zeros((count, count))
    for step in range(6):
        J = jacobian(family, count, step // 2)
        J = J + 0.1 * jacobian("gaussian", count, 50 + step) * J.norm(dim=1, keepdim=True)
        if family == "zero_row":
            J[0] = 0.0
        corrected, targets = literal_gradvac(J.numpy(), orders.tolist(), targets, beta)
        weights, state = rule.update(geometry(J @ J.mT, losses_of(count)), state)
        noise = 1e-10 * float((J.norm(dim=1) * weights.abs()).sum())
        expected = (p / p.sum()).numpy() @ corrected
        np.testing.assert_allclose((weights @ J).numpy(), expected, rtol=0, atol=noise)
        np.testing.assert_allclose(state.targets.numpy(), targets, rtol=0, atol=1e-10)
    assert family == "zero_row" or float(state.targets.abs().max()) > 0


def test_gradvac_targets_stay_for_zero_and_absent_tasks():
    J = jacobian("hull", 4)
    J[2] = 0.0
    rule = mf.gradvac(0.5)
    half = torch.full((4, 4), 0.5, dtype=F64)
    state = rule.init(losses_of(4), mf.random.key(0))._replace(targets=half)
    present = torch.tensor([True, True, True, False])
    rows = J * present[:, None]
    given = Geometry(losses_of(4), rows @ rows.mT, present.to(F64) / 3, present, {})
    weights, after = rule.update(given, state)
    assert (after.targets != half).nonzero().tolist() == [[0, 1], [1, 0]]
    assert weights[3] == 0
    # a square that underflows is a zero gradient's, whatever its products
    G = torch.tensor([[0.0, -1e-30], [-1e-30, 1.0]], dtype=F64)
    assert torch.equal(surgery(G, random_orders(2, 0), None)[0], torch.eye(2, dtype=F64))


def test_gradvac_parallel_gradients_keep_their_weights():
    """Rounding of a cosine of 1 is no correction; 2,000 steps bring the targets there."""
    J = jacobian("identical", 3) * torch.tensor([[1.0], [3.0], [0.1]], dtype=F64)
    weights, state = trajectory(mf.gradvac(0.5), J @ J.mT, steps=100)
    near(weights, torch.full_like(weights, 1 / 3), 1e-9)
    off = state.targets[~torch.eye(3, dtype=torch.bool)]
    near(off, torch.ones_like(off), 1e-14)


def literal_krum(J, byzantine, select):
    """Blanchard et al. 2017, sec. 4, on vectors."""
    scores = []
    for i in range(len(J)):
        distances = sorted(np.linalg.norm(J[i] - J[k]) ** 2 for k in range(len(J)) if k != i)
        scores.append(sum(distances[: len(J) - byzantine - 2]))
    return J[np.argsort(scores, kind="stable")[:select]].mean(0)


@pytest.mark.parametrize("family", ["gaussian", "spread", "hull"])
@pytest.mark.parametrize(
    ("count", "byzantine", "select"), [(4, 0, 1), (5, 0, 1), (6, 1, 3), (9, 3, 2), (9, 0, 9)]
)
def test_krum_equals_literal_algorithm(family, count, byzantine, select):
    for seed in range(5):
        J, rule = jacobian(family, count, seed), mf.krum(byzantine, select)
        wanted = literal_krum(J.numpy(), byzantine, select)
        more = torch.cat([J[:1], J, J[:1]])  # with a row before and after that is absent
        present = torch.arange(count + 2) % (count + 1) > 0
        weights = with_absent(rule, more, losses_of(count + 2), present)[0]
        for found in (mf.aggregate(rule, J), weights @ more):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-14)


def test_krum_shares_among_ties():
    """With one neighbour to count, T = f + 3, the two closest rows always tie."""
    J = jacobian("gaussian", 3)
    assert sorted(mf.weights(mf.krum(), J @ J.mT).tolist()) == [0.0, 0.5, 0.5]
    assert mf.weights(mf.krum(), torch.eye(4, dtype=F64)).tolist() == [0.25] * 4
    assert mf.weights(mf.krum(select=2), torch.eye(4, dtype=F64)).tolist() == [0.25] * 4
    near_top = torch.tensor([3.5e4, 3.5e4, 5e4], dtype=torch.half).diag()
    assert mf.weights(mf.krum(), near_top).tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_least_distance_meets_its_optimality_conditions(count):
    """n·x >= h, μ >= 0, μ(n·x - h) = 0 prove the shortest x; tall rows are made feasible."""
    solve = solvers.auto()
    for seed, wide in product(range(10), (True, False)):
        rng = np.random.default_rng([seed, count])
        width = count + 3 if wide else max(1, count // 2)
        normals = torch.from_numpy(rng.standard_normal((count, width)))
        h = torch.from_numpy(rng.standard_normal(count))
        if not wide:
            h = normals @ torch.from_numpy(rng.standard_normal(width)) - h.abs()
        multipliers, feasible = least_distance(normals @ normals.mT, h, solve)
        assert feasible
        slack = normals @ (multipliers @ normals) - h
        assert (multipliers >= 0).all()
        assert (slack >= -1e-9).all()
        assert float(multipliers @ slack.abs()) <= 1e-9 * (1 + float(multipliers.sum()))


def test_least_distance_knows_what_cannot_be_met():
    n = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=F64)
    solve = solvers.auto()
    never, possibly = ([1.0, 0.5, 0.0], [1e-6, 1e-6, 1.0]), ([1.0, -2.0, 3.0], [-1.0] * 3)
    for h, possible in (*((h, False) for h in never), *((h, True) for h in possibly)):
        multipliers, feasible = least_distance(n @ n.mT, torch.tensor(h, dtype=F64), solve)
        assert bool(feasible) == possible
        assert possible or not multipliers.any()


@pytest.mark.parametrize("family", ["gaussian", "spread", "hull", "rank_deficient", "duplicates"])
def test_pcd_meets_the_optimality_conditions_on_vectors(family):
    tau = torch.tensor([9.0, 0.1, 0.3, 0.0, 0.02, 0.6], dtype=F64)
    for seed in range(10):
        J = jacobian(family, 6, seed)
        weights = mf.weights(mf.pcd(tau), J @ J.mT)
        # at the first step the averages are the lengths
        d, unit = weights @ J, J / J.norm(dim=1, keepdim=True)
        assert float(d.norm()) == pytest.approx(float(J[0].norm()), rel=1e-9)
        weight = weights * J.norm(dim=1)
        if (weights[1:] == 0).all():  # nothing to do, or nothing to be done
            continue
        d = d / weight[0]  # the projection has weight 1 on the primary
        slack = (unit @ d - tau)[1:]
        multipliers = (weight / weight[0])[1:]
        tolerance = 1e-9 * (1 + float(multipliers.sum()))
        assert (multipliers >= 0).all()
        assert (slack >= -tolerance).all()
        assert float(multipliers @ slack.abs()) <= tolerance * (1 + float(multipliers.sum()))


def test_pcd_edge_cases():
    J = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    near(mf.aggregate(mf.pcd(0.1), J), J[0])  # contradictory demands
    near(mf.aggregate(mf.pcd(0.1, primary=1), J[:2]), J[1], 1e-12)
    J[0] = 0.0
    assert not mf.aggregate(mf.pcd(), J).any()
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=F64)
    assert mf.aggregate(mf.pcd(0.0), opposite).norm() <= 1e-12  # d = 0 is all that is left
    # the paper's rescaling makes .02 of a step a whole one
    assert mf.aggregate(mf.pcd(0.02), opposite).tolist() == pytest.approx([-1.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pcd_of_a_gramian_in_half_precision_sees_the_conflict(dtype):
    """At 120 degrees g₁ + ½g₂ is at a right angle to g₂, and √¾ long."""
    gramian = torch.block_diag(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.eye(3)).to(dtype)
    expected = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]).double() / 0.75**0.5
    near(mf.weights(mf.pcd(0.0), gramian).double(), expected, 2 * torch.finfo(dtype).eps)


def test_pcd_with_tasks_absent():
    J, losses, rule = jacobian("gaussian", 5, 3), losses_of(5), mf.pcd(0.3)
    present = torch.tensor([True, False, True, True, False])
    weights = with_absent(rule, J, losses, present)
    alone = with_absent(rule, J[present], losses[present], present[present])
    assert (weights[:, ~present] == 0).all()
    near(weights @ J, alone @ J[present], 1e-9, 1e-12)
    assert not with_absent(rule, J, losses, ~present).any()  # without the primary: no step
    state = rule.init(losses, mf.random.key(0))
    _, after = rule.update(Geometry(losses, J @ J.mT, present / 3, present, {}), state)
    assert after.seen.tolist() == [1, 0, 1, 1, 0]
    assert (after.squares[~present] == 0).all()
    square, G = (J @ J.mT).diagonal(), J @ J.mT  # the averages of all others are still these
    settled = after._replace(squares=square.clone(), seen=torch.full_like(after.seen, 10**6))
    one, other = (rule.update(geometry(G, losses), x)[0] for x in (after, settled))
    near(one, other, 1e-12, 1e-14)
