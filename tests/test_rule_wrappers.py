"""Rules around rules: normalised rows, momentum on the weights, and their compositions."""

import cvxpy as cp
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.types import Geometry
from tests.support.families import jacobian
from tests.support.oracles import near
from tests.support.problems import BATCH, PARAMS, vector
from tests.support.rules import F64, losses_of

INNER = {
    "mgda": mf.mgda,
    "cagrad": lambda: mf.cagrad(0.4),
    "mean": mf.mean,
    "pcgrad": mf.pcgrad,
    "gradnorm": lambda: mf.gradnorm(1.5),
}


def drive(rule, present=None, steps=6, count=4, seed=0):
    """Weights [step, task] on changing gradients and losses, and the states after each step."""
    state, kept, states = rule.init(losses_of(count), mf.random.key(1)), [], []
    for step in range(steps):
        now = torch.ones(count, dtype=torch.bool) if present is None else present[step]
        rows = jacobian("gaussian", count, seed + step) * now[:, None]
        share = now.to(F64) / now.sum().clamp_min(1)
        weights, state = rule.update(
            Geometry(losses_of(count, step) * now, rows @ rows.mT, share, now, {}), state
        )
        kept.append(weights)
        states.append(state)
    return torch.stack(kept), states


def sizes(J, losses, by):
    return {"norm": J.norm(dim=1), "loss": losses, "both": losses * J.norm(dim=1)}[by]


@pytest.mark.parametrize("by", ["norm", "loss", "both"])
@pytest.mark.parametrize("inner", INNER)
def test_normalize_is_the_rule_on_normalised_rows(inner, by):
    for family in ("gaussian", "spread"):
        J, losses = jacobian(family, 4), losses_of(4)
        s = sizes(J, losses, by)
        expected = s.mean() * mf.aggregate(INNER[inner](), J / s[:, None], losses, key=2)
        got = mf.aggregate(mf.normalize(INNER[inner](), by), J, losses, key=2)
        near(got, expected, 1e-9, 1e-11 * float(s.mean()))


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("bound", ["length", "length and radius"])
def test_normalised_mgda_is_the_chebyshev_centre_of_the_dual_cone(count, bound):
    """Against a conic program for the largest ball in the cone, on rows of unlike lengths."""
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        J = torch.randn(count, 2 * count, dtype=F64, generator=draw)
        J = J * 10 ** (4 * torch.rand(count, 1, dtype=F64, generator=draw) - 2)
        d, r = cp.Variable(J.shape[1]), cp.Variable()
        lengths = J.norm(dim=1)
        limit = cp.norm(d) if bound == "length" else cp.norm(d) + r
        limits: list[cp.Constraint] = [(J / lengths[:, None]).numpy() @ d >= r, limit <= 1]
        largest = cp.Problem(cp.Maximize(r), limits).solve(solver=cp.CLARABEL)
        assert d.value is not None
        assert isinstance(largest, float)
        centre = torch.from_numpy(d.value)
        found = mf.aggregate(mf.normalize(mf.mgda()), J)
        # an objective to 1e-8, Clarabel's tolerance, is an argument to its square root
        near(found / found.norm(), centre / centre.norm(), 0, 3e-4)
        radius = float((J @ found / lengths).min() / found.norm())
        reached = radius if bound == "length" else radius / (1 + radius)
        assert reached == pytest.approx(largest, abs=1e-6)


def test_normalize_zero_sizes():
    """A zero gradient, and a loss of 0 with a gradient: finite, and free of scale."""
    J = jacobian("gaussian", 3)
    J[1] = 0.0
    weights = mf.weights(mf.normalize(mf.mean()), J @ J.mT)
    n = J.norm(dim=1)
    near(weights, torch.stack([n.mean() / n[0], torch.ones((), dtype=F64), n.mean() / n[2]]) / 3)
    losses = torch.tensor([2.0, 0.0, 4.0], dtype=F64)
    weights = mf.weights(mf.normalize(mf.mean(), "loss"), J @ J.mT, losses)
    near(weights, torch.tensor([1.0, 1.0, 0.5], dtype=F64) / 3)
    for by in ("norm", "loss", "both"):
        weights = mf.weights(mf.normalize(mf.mean(), by), torch.zeros(3, 3), torch.zeros(3))
        assert weights.tolist() == pytest.approx([1 / 3] * 3)


def test_normalize_by_losses_needs_no_gramian():
    step = mf.balance(vector, mf.normalize(mf.mean(), "loss"), mf.losses_only())
    grads, _, info = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
    near(info.weights, info.losses.mean() / info.losses / 3)
    assert all(g.isfinite().all() for g in grads.values())


def test_normalize_by_losses_below_0_is_nan_under_vmap():
    negative, rule = torch.tensor([[1.0, -1.0]], dtype=F64), mf.normalize(mf.mean(), "both")
    assert vmap(lambda l: mf.weights(rule, torch.eye(2).double(), l))(negative).isnan().all()


@pytest.mark.parametrize("inner", INNER)
def test_momentum_is_the_moving_average(inner):
    a = 0.7
    plain, _ = drive(INNER[inner]())
    smooth, _ = drive(mf.momentum(INNER[inner](), a))
    expected = [plain[0]]
    for now in plain[1:]:
        expected.append(a * expected[-1] + (1 - a) * now)
    near(smooth, torch.stack(expected), 1e-12, 1e-14)


def test_momentum_over_a_batch_of_factors():
    factors = torch.tensor([0.0, 0.5, 0.9], dtype=F64)
    together = vmap(lambda a: drive(mf.momentum(mf.mgda(), a))[0])(factors)
    for a, weights in zip(factors.tolist(), together, strict=True):
        near(weights, drive(mf.momentum(mf.mgda(), a))[0], 1e-9, 1e-12)


def test_momentum_stays_for_absent_tasks():
    """An average starts with its task, rests while that is away, and is used again."""
    present = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    plain, _ = drive(mf.mgda(), present, 3)
    smooth, states = drive(mf.momentum(mf.mgda(), 0.5), present, 3)
    assert (smooth[~present] == 0).all()
    assert states[1].weights[1] == states[0].weights[1] == plain[0, 1]
    near(smooth[2, 2], plain[2, 2])
    near(smooth[2, 1], (plain[0, 1] + plain[2, 1]) / 2)
