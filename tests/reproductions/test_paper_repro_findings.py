"""Intervals, and what an experiment of GradNorm measures."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm, sem, t

import mtlfunc as mf
from paper_repro.gradnorm import common as gradnorm
from paper_repro.report import intervals
from paper_repro.report.intervals import clustered_share, named
from tests.support.loops import trained


def test_measuring_the_last_layer_alone_is_gradnorm_on_the_whole_trunk() -> None:
    """With weighted heads the measured layer alone may be named as the shared one."""
    problem = gradnorm.Problem(inputs=5, outputs=3)
    key = mf.random.key(1)
    params = gradnorm.initial_params(key, problem)
    maps = gradnorm.linear_maps(mf.random.fold_in(key, 8), problem)
    batch = gradnorm.sample(mf.random.fold_in(key, 9), maps, problem, 20)
    lr, alpha = torch.tensor(1e-3), torch.tensor(gradnorm.ALPHA)
    short = gradnorm.step_of("gradnorm", lr, alpha, torch.ones(2))
    rule, probe = (
        mf.gradnorm(alpha),
        mf.jacobian(f"trunk.{gradnorm.LAYERS - 1}.*", heads="weighted"),
    )
    whole = mf.descend(gradnorm.losses, rule, probe, mf.adam(lr), reduction="sum")
    states = [trained(step, [batch] * 5, params) for step in (short, whole)]
    one, other = ((state.params, state.balance.rule.weights) for state in states)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_intervals_match_known_values() -> None:
    interval = intervals.mean_interval([1.0, 2.0, 3.0])
    # t = 4.3027 at 2 degrees of freedom, s/√n = .57735
    assert interval == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert intervals.ratio_interval([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert intervals.share_interval(0, 100) == pytest.approx((0.0, 0.0, 0.0370), abs=1e-4)


def test_clustered_shares_stay_possible_and_widen_with_clusters() -> None:
    """At shares that scatter as independent draws do it is Clopper and Pearson's own."""
    none, whole = clustered_share(np.zeros(8)), clustered_share(np.ones(8))
    assert none[:2] == (0, 0)
    assert whole[0] == whole[2] == 1
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 8))
    v = np.array([0.2, 0.5, 0.3, 0.4])
    n = (norm.ppf(0.975) / t.ppf(0.975, 3)) ** 2 * v.mean() * (1 - v.mean()) / sem(v) ** 2
    hits = n * v.mean()  # of as many independent draws
    ends = beta.ppf(0.025, hits, n - hits + 1), beta.ppf(0.975, hits + 1, n - hits)
    expected = {"x": v.mean(), "x, low": ends[0], "x, high": ends[1]}
    assert named("x", clustered_share(v)) == pytest.approx(expected)
    near = clustered_share([0.9, 1.0, 1.0, 1.0])
    assert 0 < near.low < near.mean < near.high <= 1
