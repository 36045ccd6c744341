"""Rules around rules: normalised rows, momentum on the weights, and their compositions."""

import io

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.rules._gradnorm import GradNormState
from mtlfunc.rules._momentum import MomentumState
from mtlfunc.types import Geometry
from tests.support.families import gramian, jacobian
from tests.support.problems import BATCH, PARAMS, vector
from tests.support.rules import geometry, losses_of, trajectory

torchjd = pytest.importorskip("torchjd.aggregation")

F64 = torch.float64
INNER = {
    "mgda": mf.mgda,
    "cagrad": lambda: mf.cagrad(0.4),
    "mean": mf.mean,
    "pcgrad": mf.pcgrad,
    "gradnorm": lambda: mf.gradnorm(1.5),
}


def drive(rule, present=None, steps=6, count=4, seed=0):
    """Weights [step, task] on gradients and losses that change from step to step, and the states
    after each.
    """
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


# --- normalize ----------------------------------------------------------------------------------


def sizes(J, losses, by):
    return {"norm": J.norm(dim=1), "loss": losses, "both": losses * J.norm(dim=1)}[by]


@pytest.mark.parametrize("by", ["norm", "loss", "both"])
@pytest.mark.parametrize("inner", INNER)
def test_normalize_is_the_rule_on_normalised_rows(inner, by):
    """d = s̄ · rule(J/s), on vectors."""
    for family in ("gaussian", "spread"):
        J, losses = jacobian(family, 4), losses_of(4)
        s = sizes(J, losses, by)
        expected = s.mean() * mf.aggregate(INNER[inner](), J / s[:, None], losses, key=2)
        got = mf.aggregate(mf.normalize(INNER[inner](), by), J, losses, key=2)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11 * float(s.mean()))


def test_normalize_with_equal_sizes_is_the_rule():
    J = jacobian("gaussian", 4)
    J = 3 * J / J.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        mf.weights(mf.normalize(mf.mgda()), J @ J.mT),
        mf.weights(mf.mgda(), J @ J.mT),
        rtol=1e-12,
        atol=1e-14,
    )
    twos = torch.full((4,), 2.0, dtype=F64)
    assert torch.equal(
        mf.weights(mf.normalize(mf.mgda(), "loss"), J @ J.mT, twos), mf.weights(mf.mgda(), J @ J.mT)
    )


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
        torch.testing.assert_close(found / found.norm(), centre / centre.norm(), rtol=0, atol=3e-4)
        radius = float((J @ found / lengths).min() / found.norm())
        reached = radius if bound == "length" else radius / (1 + radius)
        assert reached == pytest.approx(largest, abs=1e-6)


def test_normalize_zero_sizes():
    """A zero gradient, and a loss of 0 with a gradient: finite, and free of scale."""
    J = jacobian("gaussian", 3)
    J[1] = 0.0
    weights = mf.weights(mf.normalize(mf.mean()), J @ J.mT)
    n = J.norm(dim=1)
    torch.testing.assert_close(
        weights, torch.stack([n.mean() / n[0], torch.ones((), dtype=F64), n.mean() / n[2]]) / 3
    )
    losses = torch.tensor([2.0, 0.0, 4.0], dtype=F64)
    torch.testing.assert_close(
        mf.weights(mf.normalize(mf.mean(), "loss"), J @ J.mT, losses),
        torch.tensor([1.0, 1.0, 0.5], dtype=F64) / 3,
    )
    for by in ("norm", "loss", "both"):
        assert mf.weights(
            mf.normalize(mf.mean(), by), torch.zeros(3, 3, dtype=F64), torch.zeros(3, dtype=F64)
        ).tolist() == pytest.approx([1 / 3] * 3)


def test_normalised_weights_on_raw_gradients_are_another_method():
    """What LibMTL and the official MGDA do: with row lengths of 1 and 100 the small task all but
    vanishes from their direction.
    """
    J = torch.tensor([[1.0, 0.0], [0.0, 100.0]], dtype=F64)
    n = J.norm(dim=1)
    raw = mf.weights(mf.mgda(), (J / n[:, None]) @ (J / n[:, None]).mT) @ J
    ours = mf.aggregate(mf.normalize(mf.mgda()), J)
    assert float(raw[0] / raw[1]) == pytest.approx(0.01)
    assert float(ours[0] / ours[1]) == pytest.approx(1.0)


def test_normalize_by_losses_needs_no_gramian():
    state_rule = mf.normalize(mf.mean(), "loss")
    step = mf.balance(vector, state_rule, mf.losses_only())
    grads, _, info = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
    torch.testing.assert_close(info.weights, info.losses.mean() / info.losses / 3)
    assert all(g.isfinite().all() for g in grads.values())


def test_normalize_by_losses_below_0_is_nan_under_vmap():
    negative = torch.tensor([1.0, -1.0], dtype=F64)
    assert (
        vmap(lambda l: mf.weights(mf.normalize(mf.mean(), "both"), torch.eye(2, dtype=F64), l))(
            negative[None]
        )
        .isnan()
        .all()
    )


# --- momentum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNER)
def test_momentum_is_the_moving_average(inner):
    a = 0.7
    plain, _ = drive(INNER[inner]())
    smooth, _ = drive(mf.momentum(INNER[inner](), a))
    expected = [plain[0]]
    for now in plain[1:]:
        expected.append(a * expected[-1] + (1 - a) * now)
    torch.testing.assert_close(smooth, torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_momentum_equals_torchjd():
    """Around PCGrad of two tasks, where no order matters; TorchJD's sums."""
    peer, rule = (
        torchjd.CRMOGMWeighting(torchjd.PCGradWeighting(), alpha=0.8),
        mf.momentum(mf.pcgrad(), 0.8),
    )
    state = rule.init(losses_of(2), mf.random.key(0))
    for step in range(5):
        J = jacobian("antiparallel" if step % 2 else "gaussian", 2, step) + 0.1 * jacobian(
            "gaussian", 2, 9
        )
        weights, state = rule.update(geometry(J @ J.mT, losses_of(2)), state)
        torch.testing.assert_close(2 * weights, peer(J @ J.mT), rtol=1e-10, atol=0)


def test_momentum_over_a_batch_of_factors():
    factors = torch.tensor([0.0, 0.5, 0.9], dtype=F64)
    together = vmap(lambda a: drive(mf.momentum(mf.mgda(), a))[0])(factors)
    for a, weights in zip(factors.tolist(), together, strict=True):
        torch.testing.assert_close(
            weights, drive(mf.momentum(mf.mgda(), a))[0], rtol=1e-9, atol=1e-12
        )


def test_momentum_stays_for_absent_tasks():
    """A task's average starts when it first appears, does not move while it is away, and is used
    again when it is back.
    """
    present = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    plain, _ = drive(mf.mgda(), present, 3)
    smooth, states = drive(mf.momentum(mf.mgda(), 0.5), present, 3)
    assert (smooth[~present] == 0).all()
    assert states[1].weights[1] == states[0].weights[1] == plain[0, 1]
    torch.testing.assert_close(smooth[2, 2], plain[2, 2])
    torch.testing.assert_close(smooth[2, 1], (plain[0, 1] + plain[2, 1]) / 2)


# --- together -----------------------------------------------------------------------------------


def test_wrappers_compose_and_resume():
    """Six steps at once, or three, a state through torch.save, and three more."""

    def make():
        return mf.momentum(mf.normalize(mf.gradnorm(1.5), "loss"), 0.6)

    G = gramian("gaussian", 4)
    whole, state = trajectory(make(), G, steps=6)
    assert isinstance(state, MomentumState)
    assert isinstance(state.rule, GradNormState)
    begun, state = trajectory(make(), G, steps=3)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed, _ = trajectory(make(), G, steps=3, start=3, state=loaded)
    assert torch.equal(torch.cat([begun, resumed]), whole)


def test_momentum_calms_random_weights():
    """What it is for: the variance of PCGrad's random orders falls by (1 - a)/(1 + a)."""
    G, a, steps = gramian("antiparallel", 6, 2), 0.8, 400
    losses = losses_of(6)

    def spread(rule):
        state, kept = rule.init(losses, mf.random.key(0)), []
        for _ in range(steps):
            weights, state = rule.update(geometry(G, losses), state)
            kept.append(weights)
        return float(torch.stack(kept[50:]).var(0).sum())

    ratio = spread(mf.momentum(mf.pcgrad(), a)) / spread(mf.pcgrad())
    assert ratio == pytest.approx((1 - a) / (1 + a), rel=0.35)
    assert np.isfinite(ratio)
