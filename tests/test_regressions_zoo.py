"""Cases in which rules and probes could be wrong in silence, each as small as can be."""

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from tests.support.losses import geometry
from tests.support.problems import BATCH, PARAMS, scalars

ONES = torch.ones(3, dtype=torch.float64)


RAY = lambda preference: mf.pareto_mtl(preference)  # noqa: E731


@pytest.mark.parametrize("make", [mf.mean, mf.nash_mtl, mf.gls, mf.config, mf.db_mtl, RAY])
def test_bad_preference_is_nan_where_it_cannot_be_seen(make):
    """Under vmap: one that is negative, NaN or zero."""
    bad = torch.tensor([[1.0, -1.0, 1.0], [torch.nan, 1.0, 1.0], [0.0, 0.0, 0.0]]).to(ONES)
    w = vmap(lambda p: mf.weights(make(preference=p), ONES.diag(), ONES))(torch.stack([*bad, ONES]))
    assert w.isnan().all(1).tolist() == [True, True, True, False]
    assert bool(w[3].isfinite().all())


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
    _, state = rule.update(geometry(ONES, torch.tensor([True, True, False])), state)
    with pytest.raises(ValueError, match=r"warmup: tasks \[2\] were absent"):
        rule.update(geometry(ONES), state)
