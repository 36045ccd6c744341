"""Rates refined around the best: on made-up losses that are known at every rate."""

import math

import numpy as np
import pytest
import torch

from paper_repro.gradnorm import paper_size
from paper_repro.gradnorm.common import Runs
from paper_repro.gradnorm.paper_size import pair_of
from paper_repro.gradnorm.reach import curves
from paper_repro.gradnorm.toy_figures import over_equal
from paper_repro.report.bounds import GAP
from paper_repro.report.decisions import APART, settles_nothing

SEEDS = 6
NOISE = 0.02 * np.cos(np.arange(SEEDS))  # more of it the further the loss is above 1
COARSE = (1e-3, 3e-3, 1e-2)


def runs_with(final: np.ndarray, rates) -> Runs:
    """A method with these Σ L_i/L_i(0) at the end, `[rate, seed]`."""
    test = np.repeat(final[None, :, :, None] / 2, 2, -1)
    ones, count = np.ones((final.shape[1], 2)), len(rates)
    weights = torch.ones(count, *ones.shape)
    return Runs(np.array([10]), test, ones, test, test, weights, list(map(float, rates)))


def runs_of(loss, rates, scale=1.0) -> Runs:
    """A method that ends at `loss(rate)`, with a factor of each seed."""
    each = [[loss(rate) ** (1 + x) * (1 + x) for x in NOISE * scale] for rate in rates]
    return runs_with(np.array(each), rates)


def valley(best: float, low: float, width: float = 1.0):
    return lambda rate: low * (1 + width * math.log(rate / best) ** 2)


def searched(equal, learnt, rounds=2):
    losses, asked = {"equal": equal, "GradNorm": learnt}, []

    def more(name, new):
        asked.append((name, new))
        return runs_of(losses[name], new, 1.0 if name == "equal" else 0.5)

    start = {name: runs_of(x, COARSE, 1.0 if x is equal else 0.5) for name, x in losses.items()}
    return start, paper_size.refined(start, more, rounds), asked


def test_a_gap_in_the_grid_is_closed():
    """GradNorm's best lies between two rates of the grid, equal weights' on one of them."""
    start, found, _ = searched(valley(3e-3, 1.0), valley(5.5e-3, 0.98))
    before, after = paper_size.ratio_of(start), paper_size.ratio_of(found)
    assert before.mean > 1.1
    assert abs(after.mean - 0.98) < 0.01 < abs(before.mean - 0.98)
    assert paper_size.neighbours_apart(start) > GAP
    assert settles_nothing(pair_of(start).named("a best rate"), "a best rate")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("best", "rounds"),
    [  # the best so far over and times √2, then 2^¼: both its sides are worse, or not run
        (4e-4, [(0.000707, 0.00141), (0.000595, 0.000841)]),
        (3e-3, [(0.00212, 0.00424), (0.00252, 0.00357)]),
        (2.4e-2, [(0.00707, 0.0141), (0.0119, 0.0168)]),
    ],
)
def test_a_best_rate_is_followed_also_over_an_edge(best, rounds, count):
    start, found, asked = searched(valley(best, 1.0), valley(3e-3, 1.0), count)
    assert [rates for name, rates in asked if name == "equal"] == rounds[:count]
    assert math.isinf(paper_size.neighbours_apart(start)) == (best != 3e-3)
    runs = found["equal"]
    nearest = min(runs.rates, key=lambda rate: abs(math.log(rate / best)))
    assert {runs.rates[i] for i in runs.picked().choice} == {nearest}
    assert runs.rates == sorted([*COARSE, *(x for one in rounds[:count] for x in one)])
    same = [runs.rates.index(rate) for rate in COARSE]
    np.testing.assert_array_equal(runs.final()[same], start["equal"].final())


def test_flat_valleys_are_not_searched():
    start, found, asked = searched(valley(3e-3, 1.0, 1e-6), valley(3e-3, 0.98, 1e-6))
    assert asked == []
    assert all(found[name] is start[name] for name in start)
    assert paper_size.neighbours_apart(start) < GAP
    assert not settles_nothing(pair_of(start).named("a best rate"), "a best rate")


@pytest.mark.parametrize(
    ("even", "odd", "wanted"),
    [  # logarithms of the losses at the rates of COARSE
        ((0.05, 0, 0.05), None, ()),
        ((0.15, 0, 0.05), None, (1.5e-3,)),
        ((0.05, 0, 0.15), None, (6e-3,)),
        ((0.15, 0, 0.15), None, (1.5e-3, 6e-3)),
        ((0.15, 0, math.inf), None, (1.5e-3, 6e-3)),
        ((0, 0.05, 0.15), None, (5e-4,)),
        ((0, 0.15, 0.15), None, (5e-4, 2e-3)),
        ((0.15, 0.05, 0), None, (2e-2,)),
        # the halves of the seeds have two best rates; losses at 1e-2 are 0.5 above in the mean
        ((0, 0.15, 0.65), (0.15, 0, 0.5), (5e-4, 6e-3)),
    ],
)
def test_rates_are_asked_for_beside_losses_that_differ(even, odd, wanted):
    """By more than half of the width, here 0.1, or where none is: at factors 2 of the best."""
    final = np.exp([*zip(*[even, odd or even] * 2, strict=True)])
    assert paper_size.added(runs_with(final, COARSE), 2.0, 0.1) == wanted


def test_a_run_that_diverged_is_beside_nobody():
    start, _, _ = searched(lambda rate: 1.0 if rate < 5e-3 else math.inf, valley(3e-3, 1.0))
    assert math.isinf(paper_size.neighbours_apart(start))
    runs = runs_with(np.array([[math.nan, 0.1], [1.0, 1.0]]), (1e-3, 1e-2))
    assert runs.best() == 1  # nor is it ever the best
    assert math.isinf(runs.final()[0, 0])


def test_weights_that_learn_nothing_are_no_denominator():
    """Where equal weights end above an untrained network there is a loss, and no ratio."""
    runs = {
        "equal": runs_of(lambda rate: 2.1 if rate < 2e-3 else 1.5, COARSE),
        "GradNorm": runs_of(lambda rate: 1.7, COARSE),
    }
    assert list(over_equal(runs["equal"], runs["GradNorm"])) == [3e-3, 1e-2]
    numbers = curves(runs)
    name = "equal at Adam {}, loss over an untrained network's"
    assert numbers[name.format("0.001")] > 1 > numbers[name.format("0.003")]
    one = pair_of({name: x.at(1e-3) for name, x in runs.items()})
    assert list(one.named("at one")) == ["at one: equal weights learn nothing, mean loss"]
    assert one.named("x")["x: equal weights learn nothing, mean loss"] > 2
    best = pair_of(runs).named("each at its best rate")
    assert "each at its best rate" + APART in best
    assert "each at its best rate, low" in best
