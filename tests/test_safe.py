"""`safe` against the projection of the optimizer's step on the cone, by cvxpy and by hand."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.solvers.problems import resolution
from mtlfunc.types import Geometry

F64 = torch.float64


def geometry_of(jacobian: torch.Tensor, carried: torch.Tensor, scale=None) -> Geometry:
    """Of gradients `[task, coordinate]` and the optimizer's c, in the metric P."""
    count = len(jacobian)
    stretched = jacobian if scale is None else jacobian * scale
    return Geometry(
        torch.ones(count, dtype=jacobian.dtype),
        stretched @ jacobian.mT,
        torch.full((count,), 1 / count, dtype=jacobian.dtype),
        torch.ones(count, dtype=torch.bool),
        {"carried": jacobian @ carried},
    )


def weights(rule: mf.Rule, geometry: Geometry) -> torch.Tensor:
    return rule.update(geometry, rule.init(geometry.losses, mf.random.key(0)))[0]


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(J, c, P): lengths over four orders of magnitude, more tasks than coordinates or fewer."""
    g = torch.Generator().manual_seed(seed)
    tasks, width = 1 + seed % 7, 3 + seed % 9
    spread = 10 ** (4 * torch.rand(tasks, 1, generator=g, dtype=F64) - 2)
    jacobian = spread * torch.randn(tasks, width, generator=g, dtype=F64)
    scale = 10 ** (2 * torch.rand(width, generator=g, dtype=F64) - 1)
    return jacobian, scale * torch.randn(width, generator=g, dtype=F64), scale


@pytest.mark.parametrize("rule", [mf.mean, mf.mgda, mf.upgrad])
@pytest.mark.parametrize("seed", range(16))
def test_it_is_the_projection_in_the_metric(rule, seed):
    jacobian, carried, scale = drawn(seed)
    geometry = geometry_of(jacobian, carried, scale)
    plain = weights(rule(), geometry)
    found = weights(mf.safe(rule()), geometry)
    u = (carried + scale * (jacobian.mT @ plain)).numpy()
    root, unit = scale.sqrt().numpy(), np.linalg.norm(u / scale.sqrt().numpy())
    rows = jacobian.numpy() * root  # in coordinates where the metric is the identity
    step = cp.Variable(len(u))
    cp.Problem(
        cp.Minimize(cp.sum_squares(step - u / root / unit)),
        [rows / np.linalg.norm(rows, axis=1, keepdims=True) @ step >= 0],
    ).solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    mine = (carried + scale * (jacobian.mT @ found)).numpy() / root / unit
    # a gap of 1e-13 is a distance of at most √2e-13; steps have length 1
    assert step.value is not None
    assert np.abs(mine - step.value).max() < 1e-6, f"{rule.__name__}, seed {seed}"
    assert (rows @ mine / np.linalg.norm(rows, axis=1)).min() > -1e-9, f"seed {seed}"
    assert (found - plain).min() >= 0, f"seed {seed}"


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 0.0])
def test_gradients_in_float32_that_are_nearly_parallel(apart):
    """Their Gramian is rounded to float32; the rates are those of the rows themselves."""
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        base, tasks = torch.randn(1, 50, generator=g), 2 + seed % 4
        jacobian = base + apart * torch.randn(tasks, 50, generator=g)
        carried = 3 * torch.randn(50, generator=g) - 2 * torch.rand((), generator=g) * base[0]
        found = weights(mf.safe(mf.mean()), geometry_of(jacobian, carried)).double()
        jacobian, carried = jacobian.double(), carried.double()
        rates = jacobian @ (carried + jacobian.mT @ found)
        lengths = jacobian.norm(dim=1)
        # what a Gramian resolves (`mtlfunc.solvers.problems`), in units of what the rates sum up
        slack = resolution(tasks, torch.finfo(torch.float32).eps)
        size = lengths * (lengths @ found + carried.norm())
        assert (rates / size).min() > -slack, f"seed {seed}: {(rates / lengths**2).tolist()}"


def test_nothing_changes_where_nothing_rises():
    jacobian = torch.tensor([[1.0, 0.2], [0.3, 1.0]], dtype=F64)
    geometry = geometry_of(jacobian, torch.tensor([0.5, 0.5], dtype=F64))
    assert torch.equal(weights(mf.safe(mf.mgda()), geometry), weights(mf.mgda(), geometry))


def test_one_task_by_hand():
    geometry = geometry_of(torch.tensor([[2.0]], dtype=F64), torch.tensor([-10.0], dtype=F64))
    # the rate is 2·(-10) + 4 w = 0 at w = 5
    assert weights(mf.safe(mf.mean()), geometry).item() == pytest.approx(5.0)
    # m·p·G = 0.25·4 = 1 more: w = 5.25
    assert weights(mf.safe(mf.mean(), 0.25), geometry).item() == pytest.approx(5.25)


@pytest.mark.parametrize("seed", range(2, 12))
def test_margin(seed):
    jacobian, carried, _ = drawn(seed)
    jacobian = jacobian[: max(1, jacobian.shape[1] - 1)]  # independent: every margin can be had
    geometry, margin = geometry_of(jacobian, carried), 0.3
    found = weights(mf.safe(mf.mean(), margin), geometry)
    assert geometry.gramian is not None
    rates = geometry.gramian @ found + geometry.extra["carried"]
    wanted = margin * geometry.preference * geometry.gramian.diagonal()
    units = geometry.gramian.diagonal().sqrt()
    slack = (rates - wanted) / units / (units @ found.abs())
    assert slack.min() > -1e-9, f"seed {seed}"
    changed = found > 1 / len(found) + 1e-9
    assert (slack[changed].abs() < 1e-7).all(), f"seed {seed}: complementarity"


def test_no_step_has_the_margin():
    jacobian = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], dtype=F64)
    geometry = geometry_of(jacobian, torch.tensor([0.3, -0.2], dtype=F64))
    with pytest.raises(ValueError, match=r"margin: no step gives every task its margin"):
        weights(mf.safe(mf.mean(), 0.1), geometry)
    margins = torch.tensor([0.0, 0.1], dtype=F64)
    found = vmap(lambda margin: weights(mf.safe(mf.mean(), margin), geometry))(margins)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    assert geometry.gramian is not None
    rates = geometry.gramian @ found[0] + geometry.extra["carried"]
    # gradients that cancel: what is left is rounding, in units of ‖g‖·Σ w‖g‖
    assert rates.min() > -1e-9


def test_an_absent_task_has_no_say():
    jacobian, carried, _ = drawn(6)
    kept = torch.tensor([True, False, True, True, False, True, True])[: len(jacobian)]
    alone = geometry_of(jacobian[kept], carried)
    masked = geometry_of(jacobian.where(kept[:, None], 0.0), carried)
    masked = masked._replace(present=kept, preference=kept / kept.sum().double())
    for rule in (mf.safe(mf.mgda()), mf.safe(mf.mean(), 0.3)):
        found = weights(rule, masked)
        torch.testing.assert_close(found[kept], weights(rule, alone))
        assert (found[~kept] == 0).all()
    for by in ("norm", "loss", "both"):
        found = weights(mf.normalize(mf.safe(mf.mean()), by), alone)
        assert (jacobian[kept] @ (carried + jacobian[kept].mT @ found)).min() > -1e-9


def test_what_it_refuses():
    cure = r"reads 'carried'.*metric=optimizer"
    with pytest.raises(ValueError, match=cure):
        mf.weights(mf.safe(mf.mgda()), torch.eye(2))
    with pytest.raises(ValueError, match=cure):
        mf.balance(lambda params, batch: params["x"], mf.safe(mf.mean()), mf.jacobian())
    with pytest.raises(ValueError, match=cure):
        mf.Balancer(torch.nn.Linear(2, 2), mf.safe(mf.mean()))
    geometry = geometry_of(torch.eye(2, dtype=F64), torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match=r"safe: geometry\.extra has no 'carried'"):
        weights(mf.safe(mf.mean()), geometry._replace(extra={}))
