"""ConicGrad against cvxpy's primal and against the dual bound, on the hard families."""

import warnings
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.rules import _conicgrad
from tests.support.families import FAMILIES, jacobian
from tests.support.oracles import near

ANGLES = (0.0, 0.2, 0.7, 0.99)
# some of whose members have no direction that lowers every loss
STATIONARY = {"pareto_stationary", "weakly_stationary", "antiparallel", "rank_deficient"}


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
    """min over the simplex and μ >= 0 of ‖g_w + μg₀‖ - μc‖g₀‖: no unit vector of the cone has a
    better worst rate.
    """
    mean, w, mu = rows.mean(0), cp.Variable(len(rows), nonneg=True), cp.Variable(nonneg=True)
    vector = rows.numpy().T @ w + mu * mean.numpy()
    bound = cp.norm(vector) - mu * c * float(mean.norm())
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
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_conicgrad_attains_its_dual_bound(family):
    # in units of the largest gradient, what Clarabel reaches on near duplicates; and where
    # gradients cancel, where its problem is degenerate
    noise = 5e-7 if family in STATIONARY else 1e-8
    for count in (2, 3, 5):
        for seed, c in enumerate(ANGLES):
            check_attains_the_bound(jacobian(family, count, seed), c, noise)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("seed", range(8))
def test_conicgrad_where_there_are_fewer_coordinates_than_tasks(seed):
    """In most of these no direction lowers every loss."""
    rng = np.random.default_rng([8, seed])
    for _ in range(10):
        tasks, width = int(rng.integers(2, 7)), int(rng.integers(1, 4))
        spread, shift = 10 ** rng.normal(0, 0.3, (tasks, 1)), rng.uniform(0, 0.6)
        rows = spread * rng.standard_normal((tasks, width)) + shift * rng.standard_normal(width)
        check_attains_the_bound(torch.from_numpy(rows), float(rng.uniform(0, 0.99)), 5e-7)


def test_a_cosine_of_nought_where_gradients_cancel_keeps_the_length():
    key = torch.Generator().manual_seed(3)
    for seed in range(30):  # numbers of both signs have one direction in the cone, their mean's
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
    given = (rows @ rows.mT, p, c.double().expand(lead), 2e-16)
    checks = ("test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.mtlfunc.conic_faces, given, test_utils=checks)
