"""Diagnostics against definitions on vectors, quadratics, and the hull that they certify."""

import inspect
import warnings
from itertools import product

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.func import grad, vmap

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.analysis import diagnostics
from tests.support.families import FAMILIES, gramian, jacobian, jacobians
from tests.support.networks import gradient_rows, network
from tests.support.oracles import EPS, F64, check_slope, near


@given(jacobians(least=2))
def test_cosines_equal_their_definition(J):
    cosines, rows = diagnostics.cosines(J @ J.mT), J.numpy()
    for i, g in enumerate(rows):
        for j, h in enumerate(rows):
            a, b = np.linalg.norm(g), np.linalg.norm(h)
            if a == 0 or b == 0:
                assert cosines[i, j].isnan()
            else:
                known = (g / a) @ (h / b)
                np.testing.assert_allclose(cosines[i, j], known, rtol=0, atol=64 * EPS)


def test_cosines_of_opposite_gradients_and_of_a_batch():
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert diagnostics.cosines(opposite)[0, 1] == -1
    batch = torch.stack([gramian("gaussian", 3, seed) for seed in range(2)])
    alone = torch.stack([diagnostics.cosines(g) for g in batch])
    assert torch.equal(vmap(diagnostics.cosines)(batch), alone)


def test_a_gradient_whose_square_underflows_has_no_cosine():
    """Its products with the other one do not; ±1 would be said of any angle."""
    rows = torch.tensor([[1e-23, 0.0], [0.6, 0.8]])
    gramian = rows @ rows.mT
    assert gramian[0, 0] == 0
    assert gramian[0, 1] > 0
    found = diagnostics.cosines(gramian)
    assert found[0].isnan().all()
    assert found[1, 1] == 1


def softplus(params, batch):
    """Smooth, not quadratic; two tasks."""
    x = params["x"]
    return torch.stack([torch.nn.functional.softplus(batch @ x).sum(), (x**4).sum() / 4])


def test_curvature_equals_differences_of_the_gradient():
    """∫₀¹ gᵀ∇²L(θ - s·lr·g)g ds = g·(∇L(θ) - ∇L(θ - lr·g))/lr; and at a point as lr → 0."""
    batch = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 3)))
    x = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
    gradient = grad(lambda x: softplus({"x": x}, batch).sum())
    g = gradient(x)
    for lr in (0.3, 0.05):
        expected = g @ (gradient(x) - gradient(x - lr * g)) / lr
        # 16 Gauss–Legendre nodes on an analytic integrand: rounding.
        near(diagnostics.curvature(softplus, {"x": x}, batch, lr=lr), expected, 1e-10)
    h = 1e-5
    central = g @ (gradient(x + h * g) - gradient(x - h * g)) / (2 * h)
    near(diagnostics.curvature(softplus, {"x": x}, batch), central, 1e-7)


def test_forward_mode_through_weight_norm():
    w = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3)))
    params = {"v": w, "g": torch.ones(4, 1, dtype=torch.float64)}

    def losses(normed):
        return lambda p, x: (x @ normed(p["v"], p["g"]).mT).tanh().square().mean(0)

    both = losses(torch._weight_norm), losses(lambda v, g: g * v / v.norm(dim=1)[:, None])
    after = {name: 0.9 * leaf for name, leaf in params.items()}
    near(*(diagnostics.curvature(f, params, w) for f in both))
    near(*(tuple(diagnostics.predicted_change(f, params, after, w)) for f in both))


def test_curvature_vmapped_equals_loop_and_differentiates():
    batch, x = torch.ones(2, 3, dtype=torch.float64), torch.tensor([0.5, -1.0, 0.3]).double()
    points, steps = torch.stack([x, 2 * x]), torch.tensor([0.1, 0.2], dtype=torch.float64)

    def curvature(x, lr):
        return diagnostics.curvature(softplus, {"x": x}, batch, lr=lr)

    alone = [curvature(x, float(lr)) for x, lr in zip(points, steps, strict=True)]
    near(vmap(curvature)(points, steps), torch.stack(alone), 1e-9)
    check_slope(lambda lr: curvature(x, lr), 0.1, "grad")


def distance(J):
    """The distance of 0 from the hull by a conic solver; right to 1e-8 of the largest row."""
    w = cp.Variable(len(J), nonneg=True)
    scale = np.linalg.norm(J, axis=1).max() or 1.0
    problem = cp.Problem(cp.Minimize(cp.norm(J.T / scale @ w)), [cp.Zero(cp.sum(w) - 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "may be inaccurate": short of 1e-10
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return scale * float(np.linalg.norm(J.T / scale @ np.asarray(w.value)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "solver",
    [None, solvers.frank_wolfe(30), solvers.projected_gradient(50)],
    ids=["auto", "frank_wolfe", "projected_gradient"],
)
def test_stationarity_encloses_the_distance(family, solver):
    for count in (2, 4, 8):
        J = jacobian(family, count)
        certificate = diagnostics.stationarity(J @ J.mT, solver)
        true, slack = distance(J.numpy()), 1e-8 * J.norm(dim=1).max()
        assert certificate.lower <= true + slack + certificate.noise
        assert true <= torch.maximum(certificate.length, certificate.noise) + slack
        assert bool(certificate.stationary) == bool(certificate.length <= certificate.noise)


@pytest.mark.parametrize("family", ["pareto_stationary", "antiparallel", "zero_row"])
def test_stationarity_verdict_at_stationary_points(family):
    for count in (2, 4, 6):
        for seed in range(5):
            certificate = diagnostics.stationarity(gramian(family, count, seed))
            assert certificate.stationary
            assert certificate.lower == 0


@pytest.mark.parametrize(
    "family", ["gaussian", "hull", "orthogonal", "identical", "near_stationary"]
)
def test_stationarity_verdict_elsewhere(family):
    """Proven, 1e-5 from stationarity, too (√ε is 1e-8); the exact solver's bounds nearly touch."""
    proven = 0
    for count in (2, 4, 6):
        for seed in range(5):
            J = jacobian(family, count, seed)
            certificate = diagnostics.stationarity(J @ J.mT)
            if distance(J.numpy()) > 100 * certificate.noise:
                proven += 1
                assert not certificate.stationary
                assert 0 < certificate.lower <= certificate.length * (1 + 4 * EPS)
                assert certificate.length - certificate.lower <= 1e-3 * certificate.length
    assert proven >= 5


def test_stationarity_noise_of_float32():
    """1e-5 from stationarity a float32 Gramian knows nothing, and says so; a float64 one does."""
    J = jacobian("near_stationary", 4, 1)
    G = J @ J.mT
    assert not diagnostics.stationarity(G).stationary
    assert diagnostics.stationarity(G.float()).stationary


def test_stationarity_vmapped_and_poisoned():
    G = torch.stack([gramian("gaussian", 3, seed) for seed in range(3)])
    G[1, 0, 0] = float("nan")
    together = vmap(diagnostics.stationarity)(G)
    assert together.length[1].isnan()
    assert not together.stationary[1]
    near(together.length[2], diagnostics.stationarity(G[2]).length, 1e-9)


def test_predicted_change_of_steps():
    """A plain step: -lr times the rates; Adam's: the rows times its own step; vmapped over runs."""
    losses, params, batch = network()
    plain = mf.descend(losses, mf.mgda(), mf.jacobian("*"), mf.sgd(1e-3))
    after, info = plain.update(plain.init(params, batch), batch)
    found = diagnostics.predicted_change(losses, params, after.params, batch)
    near(found.predicted, -1e-3 * info.rates, 1e-9)
    # up to the curvature's share of a short step
    near(found.actual, found.predicted, 2e-2)
    adam = mf.descend(losses, mf.cagrad(0.5), mf.jacobian("trunk.*"), mf.adam(0.01))

    def one(scale):
        start = {name: scale * leaf for name, leaf in params.items()}
        end = adam.update(adam.init(start, batch), batch)[0].params
        turned = dict(reversed(end.items()))  # of any order
        return start, end, diagnostics.predicted_change(losses, start, turned, batch)

    starts, ends, changes = vmap(one)(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    for i in range(3):
        start, end = ({name: leaf[i] for name, leaf in side.items()} for side in (starts, ends))
        rows = gradient_rows(losses, start, batch, list(start))
        expected = sum((rows[name] * (end[name] - start[name])).flatten(1).sum(1) for name in start)
        near(changes.predicted[i], expected, 1e-9, 1e-12)
        near(changes.actual[i], losses(end, batch) - losses(start, batch), 1e-9, 1e-12)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        # +10 % accuracy, 20 % lower error, 30 % higher error: (-10 - 20 + 30)/3
        ({"accuracy": (0.55, 0.5, True), "a": (0.8, 1.0, False), "b": (1.3, 1.0, False)}, 0.0),
        ({"accuracy": (0.45, 0.5, True), "depth": (1.2, 1.0, False)}, 15.0),
        ({"loss": (2.0, 2.0, False)}, 0.0),
        ({"likelihood": (-90.0, -100.0, True)}, -10.0),  # of -90 against -100: better by 10 %
    ],
)
def test_delta_m_worked_examples(metrics, expected):
    found = diagnostics.delta_m(*({k: x[i] for k, x in metrics.items()} for i in range(3)))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_diagnostics_refuse_a_gramian_that_is_no_square():
    # the tests' own shape check may speak first
    with pytest.raises((ValueError, TypeError), match="gramian"):
        inspect.unwrap(diagnostics.cosines)(torch.ones(2, 3))


noise_scale = diagnostics.noise_scale


def gradients(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def literal(rows: torch.Tensor) -> float:
    """tr Σ / ‖E g‖² of rows [sample, param], each part an average over pairs of samples."""
    count = len(rows)
    pairs = [(b, c) for b in range(count) for c in range(count) if b != c]
    signal = sum(float(rows[b] @ rows[c]) for b, c in pairs) / len(pairs)
    noise = sum(float((rows[b] - rows[c]).square().sum()) / 2 for b, c in pairs) / len(pairs)
    return noise / signal if signal > 0 else float("inf")


@pytest.mark.parametrize(("samples", "tasks"), [(2, 1), (5, 1), (7, 3)])
def test_it_is_the_literal_loop_over_pairs(samples, tasks):
    rows = gradients(samples, samples, tasks, 4) + 1
    flat = rows.flatten(0, 1)
    known = torch.tensor([literal(rows[:, task]) for task in range(tasks)], dtype=F64)
    torch.testing.assert_close(noise_scale(flat @ flat.mT, tasks=tasks), known)
    lengths, total = rows.norm(dim=2), rows.mean(0).norm(dim=1)
    torch.testing.assert_close(noise_scale(lengths, total), known)
    torch.testing.assert_close(noise_scale(lengths[:, 0], total[0]), known[0])


def test_mean_squares_over_draws_give_the_population_exactly():
    """As its docstring advises: statistics first, then one ratio."""
    population = gradients(3, 3, 2)
    draws = [population[list(draw)] for draw in product(range(3), repeat=4)]
    squares = torch.stack([rows.square().sum(1) for rows in draws]).mean(0)
    total = torch.stack([rows.mean(0).square().sum() for rows in draws]).mean()
    mean = population.mean(0)
    known = (population - mean).square().sum(1).mean() / mean.square().sum()
    torch.testing.assert_close(noise_scale(squares.sqrt(), total.sqrt()), known)
    gramians = torch.stack([rows @ rows.mT for rows in draws]).mean(0)
    torch.testing.assert_close(noise_scale(gramians)[0], known)


def test_hidden_gradients_have_no_finite_scale():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert noise_scale(rows @ rows.mT).item() == float("inf")
    assert noise_scale(torch.zeros(3, 2), torch.zeros(2)).tolist() == [float("inf")] * 2
    assert noise_scale(torch.tensor([1.0, float("nan")]), torch.tensor(1.0)).isnan()
    assert grad(lambda x: noise_scale(x, torch.zeros(())))(torch.ones(3)).isfinite().all()


def test_vmap_is_a_loop():
    lengths, totals = gradients(2, 5, 4, 3).abs() + 1, gradients(4, 5, 3).abs()
    alone = [noise_scale(x, y) for x, y in zip(lengths, totals, strict=True)]
    near(vmap(noise_scale)(lengths, totals), torch.stack(alone))
