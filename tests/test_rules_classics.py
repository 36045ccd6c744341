"""Mean, PCGrad, MGDA, CAGrad and GradNorm against literal implementations of their papers."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.core import optim
from mtlfunc.rules._gradnorm import exact_adam
from tests.support.families import FAMILIES, REGULAR, gramian, jacobian, jacobians
from tests.support.loops import trained
from tests.support.oracles import EPS, near, rows_of
from tests.support.rules import F64, geometry, losses_of, random_orders, trajectory, updated


def test_preference_scales_to_sum_one():
    p = torch.tensor([1.0, 2.0, 5.0], dtype=F64)
    J = jacobian("gaussian", 3)
    near(mf.weights(mf.mean(preference=p), J @ J.mT), p / 8, 4 * EPS)
    centre = p / 8 @ J
    d = mf.aggregate(mf.cagrad(0.4, preference=p), J)
    assert float((d - centre).norm()) == pytest.approx(0.4 * float(centre.norm()), rel=1e-9)
    near(mf.aggregate(mf.cagrad(0.0, preference=p), J), centre, 1e-12, 1e-14)


@pytest.mark.parametrize("rule", [mf.mean(), mf.cagrad(0.0), mf.pcgrad()])
def test_preference_defaults_to_the_geometrys(rule):
    """Mixed rows carry their own shares; cagrad(0), and pcgrad without conflict, are that mean."""
    rows = jacobian("hull", 3)
    assert (rows @ rows.mT > 0).all()
    p = torch.tensor([0.1, 0.2, 0.7], dtype=F64)
    near(updated(rule, rows @ rows.mT, preference=p), p, 1e-12)


def literal_pcgrad(J, orders):
    """Algorithm 1 of Yu et al. 2020 on vectors; the mean of the projected gradients."""
    projected = []
    for i, order in enumerate(orders):
        p = J[i].copy()
        for j in order:
            if j != i and p @ J[j] < 0:
                p = p - (p @ J[j]) / (J[j] @ J[j]) * J[j]
        projected.append(p)
    return np.mean(projected, 0)


TIED = {"orthogonal", "antiparallel", "near_duplicates", "duplicates", "identical"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in TIED])
@pytest.mark.parametrize("count", [2, 3, 6, 12])
def test_pcgrad_equals_literal_algorithm(family, count):
    """Where no product is zero by construction: there the sign of rounding decides."""
    for seed in range(3):
        J, orders = jacobian(family, count, seed), random_orders(count, seed)
        near_ties = family in ("integer_ties", "rank_deficient", "pareto_stationary")
        if near_ties and not decided(J.numpy(), orders.tolist()):
            continue
        weights = mf.weights(mf.pcgrad(orders), J @ J.mT)
        noise = 1e-12 * float((J.norm(dim=1) * weights.abs()).sum())
        wanted = literal_pcgrad(J.numpy(), orders.tolist())
        np.testing.assert_allclose((weights @ J).numpy(), wanted, rtol=0, atol=noise)
        assert (weights >= 1 / count - 8 * EPS).all()


def decided(J, orders):
    """Whether every test p·g_j < 0 of the literal algorithm is clear of rounding."""
    for i, order in enumerate(orders):
        p = J[i].copy()
        for j in order:
            product, scale = p @ J[j], np.linalg.norm(J[i]) * np.linalg.norm(J[j])
            if j != i and abs(product) <= 1e-9 * scale and scale > 0:
                return False
            if j != i and product < 0:
                p = p - product / (J[j] @ J[j]) * J[j]
    return True


def test_pcgrad_random_orders_differ_by_step_and_key():
    G = gramian("pareto_stationary", 5)
    rule = mf.pcgrad()
    state = rule.init(losses_of(5), mf.random.key(0))
    first, state = rule.update(geometry(G, losses_of(5)), state)
    second, _ = rule.update(geometry(G, losses_of(5)), state)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, mf.weights(rule, G, key=1))
    # Each answer is the literal algorithm's for some orders: of three tasks, all 8 can be tried.
    G = gramian("antiparallel", 3, 2)
    partners = [[(0, 1, 2), (0, 2, 1)], [(0, 1, 2), (2, 1, 0)], [(0, 1, 2), (1, 0, 2)]]
    possible = [mf.weights(mf.pcgrad(torch.tensor(o)), G) for o in product(*partners)]
    for key in range(5):
        assert min(float((mf.weights(rule, G, key=key) - w).abs().max()) for w in possible) <= 1e-12


@given(jacobians(least=1, most=5), st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0, 3.0]))
def test_cagrad_stays_in_its_ball_and_beats_the_mean(J, c):
    """‖d - g₀‖ <= c‖g₀‖ (√ε of the rows off where ‖g_w‖ is near 0), min g_t·d >= min g_t·g₀."""
    G = J @ J.mT
    n, g0 = J.norm(dim=1), J.mean(0)
    weights = mf.weights(mf.cagrad(c), G)
    d = weights @ J
    dual = solvers.faces()(solvers.cagrad(G, c)).dual
    length = float((dual @ J).norm())
    reach = float(n @ dual) * (64 * EPS) ** 0.5
    relative = 1e-9 + (64 * EPS * float(n @ dual) ** 2 / length**2 if length > reach else 1.0)
    radius, rounding = c * float(g0.norm()), 64 * EPS * float(n @ weights.abs())
    if relative < 1e-3:
        assert (d - g0).norm() <= radius * (1 + relative) + rounding
        assert c == 0 or (d - g0).norm() >= radius * (1 - relative) - rounding
    slack = radius * reach + len(J) * float(n.max()) * rounding
    assert (J @ d).min() >= (J @ g0).min() - slack
    if c >= 1:
        assert (J @ d).min() >= -slack


@pytest.mark.parametrize("rescale", ["1+c", "1+c^2", "1+lambda"])
def test_cagrad_rescale_divides_by_what_it_says(rescale):
    for family in REGULAR:
        J = jacobian(family, 4)
        c = 0.6
        plain, scaled = (mf.weights(mf.cagrad(c, rescale=r), J @ J.mT) for r in ("none", rescale))
        w = solvers.faces()(solvers.cagrad(J @ J.mT, c)).dual
        divisor = {
            "1+c": 1 + c,
            "1+c^2": 1 + c**2,
            "1+lambda": 1 + c * J.mean(0).norm() / (w @ J).norm(),
        }[rescale]
        near(scaled, plain / divisor, 1e-12)


def network(seed=0, count=3):
    """Losses of one shared layer W [4, 3] with fixed targets: quadratics of tanh features."""
    rng = np.random.default_rng(seed)
    x, y = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((8, 3), (count, 8, 4)))
    y = y * torch.arange(1, count + 1)[:, None, None]

    def losses(params, batch):
        return (torch.tanh(x @ params["W"].mT) - y).square().mean((1, 2))

    return losses, {"W": torch.from_numpy(rng.standard_normal((4, 3)))}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradnorm_training_equals_literal_algorithm(optimizer):
    """Ten steps of algorithm 1 of Chen et al. 2018 with torch.optim and autograd."""
    alpha, lr_weights, lr = 1.2, 1e-2, 1e-2
    losses_fn, params = network(1)
    W = params["W"].clone().requires_grad_()
    w = torch.ones(3, dtype=F64, requires_grad=True)
    sgd = optimizer == "sgd"
    mover = torch.optim.SGD([w], lr_weights) if sgd else torch.optim.Adam([w], lr_weights, eps=0.0)
    model, initial = torch.optim.SGD([W], lr=lr), None
    for _ in range(10):
        losses = losses_fn({"W": W}, ())
        initial = losses.detach() if initial is None else initial
        norms = rows_of(w * losses, [W], create_graph=True).norm(dim=1)
        rate = losses.detach() / initial
        target = (norms.mean() * (rate / rate.mean()) ** alpha).detach()
        mover.zero_grad()
        (w.grad,) = torch.autograd.grad((norms - target).abs().sum(), w, retain_graph=True)
        model.zero_grad()
        (w.detach() * losses).sum().backward(inputs=[W])
        model.step()
        mover.step()
        with torch.no_grad():
            w.mul_(3 / w.sum())

    rule = mf.gradnorm(alpha, lr_weights, optimizer=optim.sgd if sgd else exact_adam)
    step = mf.descend(losses_fn, rule, mf.jacobian(), mf.sgd(lr), reduction="sum")
    state = trained(step, [()] * 10, params)
    near(state.params["W"], W.detach(), 1e-10, 1e-12)
    near(state.balance.rule.weights, w.detach(), 1e-10)


def settle(rule, G, losses, initial, steps=400):
    """Weights after many steps with everything held constant."""
    state = rule.init(initial, mf.random.key(0))
    for _ in range(steps):
        _, state = rule.update(geometry(G, losses), state)
    return state.weights


def test_gradnorm_equilibria():
    """alpha = 0: w ∝ 1/n; normalised targets: w ∝ r^α/n; to a few steps, a sign's chatter."""
    more = {"lr": (lr := 5e-3), "optimizer": optim.multiplicative}
    size, losses, initial = torch.tensor([[1, 2, 3], [1, 2, 1], [2, 2, 4]], dtype=F64)
    G = gramian("gaussian", 3) * size[:, None] * size
    n = G.diagonal().sqrt()
    equal = settle(mf.gradnorm(0.0, **more), G, losses, initial)
    near(equal, 3 / n / (1 / n).sum(), 6 * lr)
    near(settle(mf.normalize(mf.gradnorm(0.0)), G, losses, initial), torch.ones_like(n), 1e-12)
    rate = (losses / initial) / (losses / initial).mean()
    pulled = settle(mf.gradnorm(0.5, normalize_targets=True, **more), G, losses, initial)
    near(pulled, 3 * rate**0.5 / n / (rate**0.5 / n).sum(), 6 * lr)


def test_gradnorm_floor_keeps_weights_positive():
    """At equilibrium weights 1e-6 : 1 the floor holds; renormalising takes a step at most."""
    G = torch.diag(torch.tensor([1.0, 1e12], dtype=F64))
    lr, floor = 0.025, 1e-2
    rule = mf.gradnorm(0.0, lr, floor=floor)
    state = rule.init(torch.ones(2, dtype=F64), mf.random.key(0))
    for _ in range(200):
        _, state = rule.update(geometry(G, torch.ones(2, dtype=F64)), state)
        assert (state.weights >= floor / (1 + lr)).all()
        assert float(state.weights.sum()) == pytest.approx(2, rel=1e-14)
    assert float(state.weights[1]) <= 2 * lr + floor


def test_gradnorm_reference_replaces_initial_losses():
    G, losses = gramian("gaussian", 3), losses_of(3)
    reference = torch.tensor([1.0, 5.0, 2.0], dtype=F64)
    one = mf.gradnorm(1.0, reference=reference)
    assert torch.equal(one.init(losses, mf.random.key(0)).initial, reference)
    assert not torch.equal(trajectory(one, G)[0], trajectory(mf.gradnorm(1.0), G)[0])


def test_gradnorm_zero_gradient_and_zero_losses():
    """A task without gradient has slope 0; losses that all reached 0 count as equal rates."""
    G = torch.diag(torch.tensor([0.0, 1.0, 4.0], dtype=F64))
    weights, state = trajectory(mf.gradnorm(1.0), G, steps=10)
    assert weights.isfinite().all()
    rule = mf.gradnorm(1.5)
    state = rule.init(torch.ones(3, dtype=F64), mf.random.key(0))
    weights, state = rule.update(geometry(gramian("gaussian", 3), torch.zeros(3, dtype=F64)), state)
    assert all(leaf.isfinite().all() for leaf in tree_leaves((weights, state)))


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradnorm_has_derivatives_beside_a_loss_of_zero_and_without_labels(normalize, labels):
    rule, here = mf.gradnorm(0.12, normalize_targets=normalize), torch.tensor(labels)

    def weight(x):
        state = rule.init(torch.ones(2, dtype=F64), mf.random.key(0))
        given = geometry(torch.diag(torch.stack([1 + x, 2 * x])), torch.stack([x * x + 1, 0 * x]))
        for present in (given.present, here):
            _, state = rule.update(given._replace(present=present), state)
        return rule.update(given, state)[0][0]

    x, h = torch.tensor(1.0, dtype=F64), 1e-5
    wanted = (weight(x + h) - weight(x - h)) / (2 * h)
    torch.testing.assert_close(grad(weight)(x), wanted, rtol=1e-6, atol=1e-9)
    assert grad(grad(weight))(x).abs() < 1e-9
