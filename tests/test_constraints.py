"""The rules of docs/how-to/constraints.md by a loop, autograd and conditions of an optimum."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import mtlfunc as mf
from docs import outputs
from tests.support import ROOT
from tests.support.families import jacobian
from tests.support.loops import trained
from tests.support.losses import F64, geometry
from tests.support.oracles import check_slope, near

BOUNDS = torch.tensor([math.inf, 0.5, math.inf, 2.0], dtype=F64)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    path = ROOT / "docs" / "how-to" / "constraints.md"
    *_, last = outputs.run(path.read_text(encoding="utf-8"), path.name)
    return last.scope


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_weights_are_the_derivative_of_the_augmented_lagrangian(page, penalty):
    """By autograd through f + μᵀv - ‖μ - λ‖²/(2ρ) with μ = max(λ + ρv, 0), which is Cooper's."""
    rule = page["lagrangian"](BOUNDS, 0.3, penalty)
    multipliers, state = [0.0] * 4, rule.init(torch.zeros(4, dtype=F64), mf.random.key(0))
    for step in range(12):
        losses = 3 * mf.random.uniform(mf.random.key(step), (4,), F64)

        def value(losses: Tensor, prices: list[float] = multipliers) -> Tensor:
            total = losses[0] + losses[2]
            for t in (1, 3):
                over, price = losses[t] - BOUNDS[t], prices[t]
                best = torch.relu(price + penalty * over)
                total = total + best * over
                total = total - ((best - price) ** 2 / (2 * penalty) if penalty else 0.0)
            return total

        weights, state = rule.update(geometry(losses), state)
        near(weights, grad(value)(losses), 1e-12)
        multipliers = [
            0.0 if math.isinf(b) else max(0.0, price + 0.3 * (loss - b))
            for price, loss, b in zip(multipliers, losses.tolist(), BOUNDS.tolist(), strict=True)
        ]
        assert state.tolist() == pytest.approx(multipliers, rel=1e-12)


def test_an_absent_bound_stays_as_it_was(page):
    rule, present = page["lagrangian"](BOUNDS, 0.3), torch.tensor([True, False, True, True])
    state = torch.tensor([0.0, 0.4, 0.0, 0.1], dtype=F64)
    weights, after = rule.update(geometry(torch.full((4,), 3.0, dtype=F64), present), state)
    assert weights.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.1])
    assert after.tolist() == pytest.approx([0.0, 0.4, 0.0, 0.4])


def test_the_lagrangian_maps_over_its_bounds_and_composes_with_grad(page):
    def after(bound: Tensor) -> Tensor:
        """The loss with a bound after 60 steps of Σ ½‖x - centre‖²."""
        centres = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=F64)
        rule = page["lagrangian"](torch.stack([bound + math.inf, bound]), 1.0, 1.0)
        step = mf.descend(
            lambda p, b: 0.5 * (p["x"] - centres).square().sum(1),
            rule, mf.losses_only(), mf.sgd(0.2),
        )  # fmt: skip
        state = trained(step, [()] * 59, {"x": torch.tensor([-1.0, 1.0], dtype=F64)})
        return step.update(state, ())[1].losses[1]

    bounds = torch.tensor([0.3, 0.5, 0.9], dtype=F64)
    found = vmap(after)(bounds)
    near(found, torch.stack([*map(after, bounds)]), 1e-10)
    near(found, bounds, 1e-3)  # met, with equality
    check_slope(after, 0.5, "grad")


@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize("family", ["gaussian", "spread", "antiparallel"])
def test_least_weights_are_optimal(page, family, tasks):
    """w >= c, of sum 1; and weight beyond c only where the rate is the smallest."""
    J = jacobian(family, tasks)
    J = J / J.norm()
    G, c = J @ J.mT, torch.arange(1, tasks + 1, dtype=F64) / (2 * tasks**2)
    w = mf.weights(page["at_least"](c), G)
    near(w.sum(), torch.ones((), dtype=F64), 1e-12)
    assert bool((w >= c - 1e-12).all())
    rates = G @ w
    # the first-order gap over the polytope: rates are linear in w, so this bounds the objective
    gap = w @ rates - (c @ rates + (1 - c.sum()) * rates.amin())
    assert -1e-12 <= float(gap) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_least_weights_where_the_answers_gradient_vanishes(page, dtype):
    """As at the end of training: the products of that corner are rounding alone."""
    J, c = jacobian("gaussian", 4).to(dtype), torch.tensor([0.0, 0.2, 0.1, 0.3]).to(dtype)
    corner = c + (1 - c.sum()) * torch.eye(4)[0].to(dtype)
    J[0] -= corner @ J / corner[0]
    near(mf.weights(page["at_least"](c), J @ J.mT), corner, 1e-4)
    squares = torch.tensor([1.0, 0.01, 1e6]).to(dtype).diag()
    near(mf.weights(page["at_least"](c[:1].expand(3)), squares)[0], 1 / (101 + c[0]), 1e-5)


def test_least_weights_map_and_differentiate(page):
    c = torch.tensor([0.1, 0.3, 0.05], dtype=F64)
    J = torch.stack([jacobian("gaussian", 3, seed) for seed in range(4)])
    G = J @ J.mT
    rule = page["at_least"](c)
    each = torch.stack([mf.weights(rule, one) for one in G])
    near(vmap(lambda one: mf.weights(rule, one))(G), each, 1e-9)

    def first(s: Tensor) -> Tensor:
        scaled = torch.stack([s, s * 0 + 1, s * 0 + 1])
        return mf.weights(rule, scaled[:, None] * G[0] * scaled)[0]

    check_slope(first, 1.0, "grad", rtol=1e-5, h=1e-6)
