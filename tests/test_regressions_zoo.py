"""Wrong numbers that rules and probes once gave in silence, each as small as it was found."""

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from tests.support.families import gramian
from tests.support.oracles import near
from tests.support.problems import BATCH, PARAMS, scalars

ONES = torch.ones(3, dtype=torch.float64)


def of_steps(rule: mf.Rule, probe: mf.Probe, batch, steps: int = 1) -> mf.Info:
    step = mf.balance(scalars, rule, probe)
    _, state, info = step.update(PARAMS, batch, step.init(PARAMS, batch))
    for _ in range(steps - 1):
        _, state, info = step.update(PARAMS, batch, state)
    return info


@pytest.mark.parametrize("make", [mf.mean, mf.nash_mtl, mf.gls, mf.config, mf.db_mtl])
def test_negative_preference_is_nan_where_it_cannot_be_seen(make):
    """Under vmap a preference with a negative entry gave weights like any other."""
    preferences = torch.stack([torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), ONES])
    eye = torch.eye(3, dtype=torch.float64)
    weights = vmap(lambda p: mf.weights(make(preference=p), eye, losses=ONES))(preferences)
    assert bool(weights[0].isnan().all())
    assert bool(weights[1].isfinite().all())


@pytest.mark.parametrize("alpha", [0.02, 0.1, 10.0, 50.0])
def test_fairgrad_settles_or_says_so(alpha):
    """With lengths far apart Newton's method had not settled within its steps: directions were
    wrong by 40 %, weights negative.
    """
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


def test_fairgrad_beyond_what_it_can_solve_is_an_error_and_nan():
    """What has not settled is no answer."""
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(128, 256, dtype=torch.float64, generator=generator)
        * torch.logspace(0, 12, 128, dtype=torch.float64)[:, None]
    )
    gramian = rows @ rows.T
    with pytest.raises(ValueError, match="alpha: Newton's method has not settled"):
        mf.weights(mf.fairgrad(200.0), gramian)
    assert bool(vmap(lambda g: mf.weights(mf.fairgrad(200.0), g))(gramian[None]).isnan().all())


@pytest.mark.parametrize("alpha", [0.2, 2.0, 5.0])
def test_fairgrad_weights_are_positive_where_no_bargain_exists(alpha):
    """Of 64 gradients of rank 32 in float32 some weights were negative: the last step, without the
    ridge, went past 0.
    """
    weights = mf.weights(mf.fairgrad(alpha), gramian("rank_deficient", 64, dtype=torch.float32))
    assert bool((weights > 0).all())


def test_tracking_rates_are_at_most_one():
    """A rate given as a tensor or a function was not looked at, and above 2 the tracked gradients
    grow without bound.
    """
    with pytest.raises(ValueError, match=r"rate: expected a number in \(0, 1\]"):
        mf.moving_average(rate=torch.tensor(1.5))
    with pytest.raises(ValueError, match="rate:"):
        of_steps(mf.mean(), mf.moving_average("trunk.*", rate=lambda k: 3 * k), BATCH)


def test_stch_says_whose_losses_were_never_averaged():
    """A task absent from all averaging steps was an error that blamed the data and the learning
    rate.
    """
    rule = mf.stch(0.3, warmup=(0, 1))
    state = rule.init(ONES, mf.random.key(0))
    for present in ([True, True, False], [True, True, True]):
        mask = torch.tensor(present)
        geometry = mf.Geometry(
            ONES.where(mask, 0.0),
            torch.eye(3, dtype=torch.float64) * mask,
            mask / mask.sum().double(),
            mask,
            {},
        )
        if all(present):
            with pytest.raises(ValueError, match=r"warmup: tasks \[2\] were absent"):
                rule.update(geometry, state)
        else:
            _, state = rule.update(geometry, state)


def test_pareto_mtl_bad_preference_under_vmap_is_nan():
    """A preference that cannot be looked at and is NaN, negative or zero gave uniform weights."""
    preferences = torch.tensor([[float("nan"), 1.0], [0.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    G = torch.eye(2, dtype=torch.float64)
    assert (
        torch.func.vmap(
            lambda p: mf.weights(mf.pareto_mtl(p), G, torch.tensor([1.0, 2.0], dtype=torch.float64))
        )(preferences)
        .isnan()
        .all()
    )
