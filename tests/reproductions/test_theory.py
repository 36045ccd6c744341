"""Theorems and measures of pairs against literal steps, fractions, closed forms, differences."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.func import grad, hessian

import mtlfunc as mf
from paper_repro.pcgrad import theorems as theory
from paper_repro.pcgrad.measures import conflicting, curvature_bound, magnitude_similarity
from tests.support.families import FAMILIES, gramian, jacobians

EPS = torch.finfo(torch.float64).eps
PAIRWISE = [conflicting, magnitude_similarity, curvature_bound]


def rows(seed: int, size: int = 3, tasks: int = 2) -> torch.Tensor:
    return mf.random.normal(mf.random.fold_in(mf.random.key(seed), 0), (tasks, size), torch.float64)


def curved(seed: int, size: int = 3, share: float = 1.0) -> torch.Tensor:
    """A symmetric matrix; positive semidefinite for share 1."""
    basis = mf.random.normal(mf.random.fold_in(mf.random.key(seed), 1), (size, size), torch.float64)
    return basis @ torch.diag(torch.linspace(share - 1, 1, size, dtype=torch.float64)) @ basis.mT


def literal_pcgrad(J: torch.Tensor) -> torch.Tensor:
    g, h = J
    inner = (g @ h).clamp_max(0)
    return g - inner / (h @ h) * h + h - inner / (g @ g) * g


def loss(J: torch.Tensor, A: torch.Tensor, x: torch.Tensor) -> float:
    """The sum of the two tasks, minus its value at 0."""
    return float(J.sum(0) @ x + 0.5 * x @ A @ x)


@pytest.mark.parametrize("relative", [1.0, 0.3, 0.01])
def test_theorem1_bounds_the_decrease_of_literal_steps(relative):
    met = 0
    for seed in range(200):
        J, A = rows(seed), curved(seed)
        lipschitz = float(torch.linalg.matrix_norm(A, 2))
        t = relative / lipschitz
        promised = theory.pcgrad_theorem1(J @ J.mT, t, lipschitz)
        met += int(promised.applies)
        fallen = -loss(J, A, -t * literal_pcgrad(J))
        assert fallen >= promised.decrease - 1e-12 * (abs(fallen) + 1)
    assert met >= 190  # a few are lost to the rounding of t·ℒ at 1


def test_theorem1_allows_rest_only_at_its_two_alternatives():
    opposite = torch.tensor([[1.0, -2.0], [-2.0, 4.0]], dtype=torch.float64)
    assert theory.pcgrad_theorem1(opposite, 1.0, 1.0).decrease == 0
    assert theory.pcgrad_theorem1(torch.zeros(2, 2), 1.0, 1.0).decrease == 0
    assert theory.pcgrad_theorem1(torch.diag(torch.tensor([1.0, 0.0])), 1.0, 1.0).decrease == 0.5
    for seed in range(50):
        assert theory.pcgrad_theorem1(gramian("gaussian", 2, seed), 1.0, 1.0).decrease > 0


@pytest.mark.parametrize("seed", range(40))
def test_theorem2_compares_literal_steps(seed):
    J, A = rows(seed), curved(seed, share=0.6)
    J = torch.stack([J[0], -J[0] * 0.3 + 0.2 * J[1]])
    if J[0] @ J[1] >= 0:
        J[1] = -J[1]
    g, lipschitz = J.sum(0), float(torch.linalg.matrix_norm(A, 2))
    for t in (0.1 / lipschitz, 1 / lipschitz, 10 / lipschitz):
        answer = theory.pcgrad_theorem2(J @ J.mT, t, lipschitz, g @ A @ g)
        plain, edited = loss(J, A, -t * g), loss(J, A, -t * literal_pcgrad(J))
        if answer.applies:
            assert plain >= edited
            assert plain >= 0  # the plain step overshoots: it does not lower the loss
        if answer.curved:
            assert answer.dominated


def test_theorem2_applies_somewhere():
    J = torch.tensor([[1.0, 0.0], [-0.1, 0.01]], dtype=torch.float64)
    A = torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64))
    answer = theory.pcgrad_theorem2(J @ J.mT, 3.0, 1.0, J.sum(0) @ A @ J.sum(0))
    assert answer.applies
    assert answer.shortest < 3
    assert loss(J, A, -3 * literal_pcgrad(J)) < loss(J, A, -3 * J.sum(0))


def test_printed_condition_compares_a_curvature_with_a_number():
    """At ℒ = 100 the printed (b) holds for far too short a step: the plain one is better."""
    J = torch.tensor([[1.0, 0.0], [-0.4, 0.3]], dtype=torch.float64)
    g, A = J.sum(0), torch.diag(torch.tensor([1.0, 100.0], dtype=torch.float64))
    assert theory.pcgrad_theorem2(J @ J.mT, 1e-3, 100.0, g @ A @ g, printed=True).curved
    corrected = theory.pcgrad_theorem2(J @ J.mT, 1e-3, 100.0, g @ A @ g)
    assert not corrected.curved
    assert not corrected.applies


def test_no_theorem2_without_conflict():
    assert not theory.pcgrad_theorem2(torch.eye(2), 10.0, 1.0, 1.0).applies
    zero = theory.pcgrad_theorem2(torch.diag(torch.tensor([1.0, 0.0])), 10.0, 1.0, 1.0)
    assert not any(bool(flag) for flag in zero[:3])


def smooth(params, batch):
    x = params["x"]
    return torch.stack(
        [torch.log1p((x[0] - 1) ** 2 + x[1] ** 4), torch.sin(x).sum() + 0.3 * x[0] * x[1]]
    )


@pytest.mark.parametrize("lr", [0.02, 0.3, 1.0])
def test_secant_curvature_is_the_weighted_integral(lr):
    params = {"x": torch.tensor([0.3, -0.8], dtype=torch.float64)}
    total = lambda x: smooth({"x": x}, None).sum()  # noqa: E731
    g = grad(total)(params["x"])
    points, weights = np.polynomial.legendre.leggauss(40)
    s = (points + 1) / 2
    integral = sum(
        w / 2 * 2 * (1 - a) * float(g @ hessian(total)(params["x"] - a * lr * g) @ g)
        for a, w in zip(s, weights, strict=True)
    )
    assert float(theory.secant_curvature(smooth, params, None, lr=lr)) == pytest.approx(
        integral, rel=1e-9
    )


@given(
    jacobians(
        least=2,
        families=tuple(f for f in FAMILIES if f not in ("near_duplicates", "near_stationary")),
    )
)
def test_pairwise_diagnostics_equal_definitions(J):
    """Definitions 2 and 5 of PCGrad; 1 - cos² and ‖g_i ± g_j‖² lose ε to cancellation."""
    conflicts, similar, bound = (f(J @ J.mT).numpy() for f in PAIRWISE)
    for (i, g), (j, h) in product(enumerate(J.numpy()), repeat=2):
        a, b = np.linalg.norm(g), np.linalg.norm(h)
        if a == 0 or b == 0:
            assert np.isnan(bound[i, j])
            assert not conflicts[i, j]
            assert np.isnan(similar[i, j]) if a == b == 0 else similar[i, j] == 0
            continue
        k = (g / a) @ (h / b)
        assert abs(k) <= 64 * EPS or conflicts[i, j] == (k < 0)
        sizes = a**2 + b**2
        np.testing.assert_allclose(similar[i, j], 2 * a * b / sizes, rtol=64 * EPS)
        plus, minus = np.linalg.norm(g + h) ** 2, np.linalg.norm(g - h) ** 2
        if plus > 1e-6 * sizes:
            lost = float(1e3 * EPS * sizes**2 / plus**2)
            expected = (1 - k**2) * minus / plus
            np.testing.assert_allclose(bound[i, j], expected, rtol=1e-12, atol=lost)
