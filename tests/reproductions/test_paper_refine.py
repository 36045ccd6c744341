"""Rates refined around the best: on made-up losses that are known at every rate."""

import math

import numpy as np
import pytest
import torch

from paper_repro.gradnorm import refine
from paper_repro.gradnorm.common import Runs
from paper_repro.gradnorm.paper_size import pair_of
from paper_repro.gradnorm.reach import by_rate, curves
from paper_repro.report.decisions import APART

SEEDS = 6
NOISE = 0.02 * np.cos(np.arange(SEEDS))  # more of it the further the loss is above 1
COARSE = (1e-3, 3e-3, 1e-2)


def runs_of(loss, rates, scale=1.0) -> Runs:
    """A method whose Σ L_i/L_i(0) ends at `loss(rate)`, with a factor of each seed."""
    final = np.array([[loss(rate) ** (1 + x) * (1 + x) for x in NOISE * scale] for rate in rates])
    test = np.repeat(final[None, :, :, None] / 2, 2, -1)
    weights = torch.ones(len(rates), SEEDS, 2)
    return Runs(
        np.array([10]), test, np.ones((SEEDS, 2)), test, test, weights, list(map(float, rates))
    )


def valley(best: float, low: float, width: float = 1.0):
    return lambda rate: low * (1 + width * math.log(rate / best) ** 2)


def searched(equal, learnt, rates=COARSE):
    losses, asked = {"equal": equal, "GradNorm": learnt}, []

    def more(name, new):
        asked.append((name, new))
        return runs_of(losses[name], new, 1.0 if name == "equal" else 0.5)

    start = {name: runs_of(x, rates, 1.0 if x is equal else 0.5) for name, x in losses.items()}
    return start, refine.refined(start, more), asked


def test_a_gap_in_the_grid_is_closed():
    """GradNorm's best lies between two rates of the grid, equal weights' on one of them."""
    start, found, _ = searched(valley(3e-3, 1.0), valley(5.5e-3, 0.98))
    before, after = refine.ratio_of(start), refine.ratio_of(found)
    assert before.mean > 1.1
    assert abs(after.mean - 0.98) < 0.01 < abs(before.mean - 0.98)
    assert refine.neighbours_apart(start) > 1


@pytest.mark.parametrize(("best", "edge"), [(4e-4, True), (3e-3, False), (2.4e-2, True)])
def test_a_best_rate_at_an_edge_is_followed(best, edge):
    start, found, _ = searched(valley(best, 1.0), valley(3e-3, 1.0))
    assert math.isinf(refine.neighbours_apart(start)) == edge
    near = [abs(math.log(x.rates[int(x.choice()[0])] / best)) for x in (start["equal"],)]
    now = found["equal"].rates[int(found["equal"].choice()[0])]
    assert abs(math.log(now / best)) <= near[0]


def test_flat_valleys_are_not_searched_and_order_is_kept():
    flat = valley(3e-3, 1.0, 1e-6)
    start, found, asked = searched(
        flat, lambda rate: flat(rate) * (1 + 5e-2 * math.sin(1e5 * rate))
    )
    assert found["equal"].rates == sorted(found["equal"].rates)
    assert found["equal"].final().shape[0] == len(found["equal"].rates)
    assert len(asked) <= 2 * refine.ROUNDS
    same = [found["equal"].rates.index(rate) for rate in start["equal"].rates]
    np.testing.assert_array_equal(found["equal"].final()[same], start["equal"].final())


def test_a_run_that_diverged_is_beside_nobody():
    start, _, _ = searched(lambda rate: 1.0 if rate < 5e-3 else math.inf, valley(3e-3, 1.0))
    assert math.isinf(refine.neighbours_apart(start))


def test_weights_that_learn_nothing_are_no_denominator():
    """Where equal weights end above an untrained network there is a loss, and no ratio."""
    runs = {
        "equal": runs_of(lambda rate: 2.1 if rate < 2e-3 else 1.5, COARSE),
        "GradNorm": runs_of(lambda rate: 1.7, COARSE),
    }
    assert list(by_rate(runs)) == [3e-3, 1e-2]
    numbers = curves(runs)
    name = "equal at Adam {}, loss over an untrained network's"
    assert numbers[name.format("0.001")] > 1 > numbers[name.format("0.003")]
    one = pair_of({name: x.at(1e-3) for name, x in runs.items()})
    assert list(one.named("at one")) == ["at one: equal weights learn nothing, mean loss"]
    assert one.named("x")["x: equal weights learn nothing, mean loss"] > 2
    best = pair_of(runs).named("each at its best rate")
    assert "each at its best rate" + APART in best
    assert "each at its best rate, low" in best
