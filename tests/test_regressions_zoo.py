"""Cases in which rules and probes could be wrong in silence, each as small as can be."""

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from tests.support.families import gramian
from tests.support.losses import geometry
from tests.support.oracles import near
from tests.support.problems import BATCH, PARAMS, scalars

ONES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize("make", [mf.mean, mf.nash_mtl, mf.gls, mf.config, mf.db_mtl])
def test_negative_preference_is_nan_where_it_cannot_be_seen(make):
    """Under vmap, where an entry cannot be seen."""
    preferences = torch.stack([torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), ONES])
    eye = torch.eye(3, dtype=torch.float64)
    weights = vmap(lambda p: mf.weights(make(preference=p), eye, losses=ONES))(preferences)
    assert bool(weights[0].isnan().all())
    assert bool(weights[1].isfinite().all())


@pytest.mark.parametrize("alpha", [0.02, 0.1, 10.0, 50.0])
def test_fairgrad_settles_or_says_so(alpha):
    """With lengths far apart."""
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(6, 12, dtype=torch.float64, generator=generator)
        * torch.logspace(0, 8, 6, dtype=torch.float64)[:, None]
    )
    gramian = rows @ rows.T
    weights = mf.weights(mf.fairgrad(alpha), gramian)
    assert bool((weights >= 0).all())
    rates = gramian @ weights
    expected = weights ** (-1 / alpha)
    # A rate is known to rounding of the terms that it is the sum of.
    size = (gramian.abs() @ weights).clamp_min(expected.amin())
    assert bool(((rates - expected).abs() <= 1e-9 * torch.maximum(size, expected)).all())
    near(vmap(lambda g: mf.weights(mf.fairgrad(alpha), g))(gramian[None])[0], weights, 1e-8)


@pytest.mark.parametrize("alpha", [0.2, 2.0, 5.0])
def test_fairgrad_weights_are_positive_where_no_bargain_exists(alpha):
    """In float32 the last step, without the ridge, stops above 0; the ridge of bfloat16 is 1/16."""
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.bfloat16)
    for G in (gramian("rank_deficient", 64, dtype=torch.float32), opposite):
        assert bool((mf.weights(mf.fairgrad(alpha), G) > 0).all())


def test_tracking_rates_are_at_most_one():
    """Above 2 the tracked gradients grow without bound."""
    with pytest.raises(ValueError, match=r"rate: expected a number in \(0, 1\]"):
        mf.moving_average(rate=torch.tensor(1.5))
    tracked = mf.moving_average("trunk.*", rate=lambda k: 3 * k)
    step = mf.balance(scalars, mf.mean(), tracked)
    with pytest.raises(ValueError, match="rate:"):
        step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))


def test_stch_says_whose_losses_were_never_averaged():
    """Of a task absent from all averaging steps, rather than blame the data."""
    rule = mf.stch(0.3, warmup=(0, 1))
    state = rule.init(ONES, mf.random.key(0))
    here = torch.tensor([True, True, False])
    _, state = rule.update(geometry(ONES, here), state)
    with pytest.raises(ValueError, match=r"warmup: tasks \[2\] were absent"):
        rule.update(geometry(ONES), state)


def test_pareto_mtl_bad_preference_under_vmap_is_nan():
    """One that is negative, zero or NaN itself."""
    preferences = torch.tensor([[float("nan"), 1.0], [0.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    G, losses = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = vmap(lambda p: mf.weights(mf.pareto_mtl(p), G, losses))(preferences)
    assert bool(found.isnan().all())
