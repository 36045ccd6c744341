"""PCGrad's reproductions: exact findings, the ablation's arms, what holds at any budget."""

import numpy as np
import pytest
import torch

import mtlfunc as mf
from paper_repro.pcgrad import common, events, landscape, problems, training
from tests.support.loops import trained
from tests.support.oracles import near


def test_landscape_is_the_papers():
    at = torch.tensor([0.5, -3.0], dtype=torch.float64)
    x, y = at.tolist()
    expected = [20 * np.log(abs(x / 2 + np.tanh(y))), 25 * np.log(abs(x / 2 - np.tanh(y) + 2))]
    assert landscape.values(at).tolist() == pytest.approx(expected, rel=1e-12)
    on_the_cusp = torch.tensor([-2 * np.tanh(1.0), 1.0], dtype=torch.float64)
    assert float(landscape.values(on_the_cusp)[0]) == pytest.approx(20 * np.log(5e-6), rel=1e-9)


def test_arms_are_what_they_are_called():
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    arms = {name: common.arms(torch.tensor(i)) for i, name in enumerate(common.ARMS)}
    ones = torch.ones(2, dtype=torch.float64)
    weights = {name: mf.weights(arm, gramian, losses=ones) for name, arm in arms.items()}
    length = {name: float(w @ gramian @ w) for name, w in weights.items()}
    near(weights["sum"], torch.full((2,), 0.5, dtype=torch.float64))
    near(weights["PCGrad"], mf.weights(mf.pcgrad(), gramian))
    assert length["direction only"] == pytest.approx(length["sum"])
    assert length["magnitude only"] == pytest.approx(length["PCGrad"])
    for part, whole in (("direction only", "PCGrad"), ("magnitude only", "sum")):
        ratio = weights[part] / weights[whole]
        assert float(ratio[0]) == pytest.approx(float(ratio[1]))
    # a fresh one
    near(weights["GradNorm"], torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arm", "rule"),
    [("sum", mf.mean()), ("PCGrad", mf.pcgrad()), ("GradNorm", mf.gradnorm(common.ALPHA))],
)
@pytest.mark.parametrize("sgd", [False, True])
def test_lanes_are_the_methods_they_stand_for(arm, rule, sgd):
    """Three steps of a lane against the same method put together by itself."""
    start = {"theta": torch.tensor([0.5, -3.0], dtype=torch.float64)}
    lr = torch.tensor(1e-3, dtype=torch.float64)
    own = mf.sgd(lr) if sgd else mf.adam(lr)
    alone = mf.descend(landscape.losses, rule, mf.jacobian(), own, reduction="sum")
    lane = landscape.step_of(torch.tensor(common.ARMS.index(arm)), torch.tensor(sgd), lr)
    ends = [trained(step, [None] * 3, start).params for step in (alone, lane)]
    near(*ends, rtol=1e-12)


def test_maze_values_are_the_fixed_point():
    params = problems.maze_start(torch.tensor(0))
    batch = problems.maze_batch(torch.tensor(0), torch.tensor(0))
    transition, goals = batch
    near(transition.sum(-1), torch.ones(transition.shape[:2], dtype=torch.float64))
    values = -problems.maze(params, batch)
    assert ((values > 0) & (values < 1)).all()
    assert values[0] > values[1]  # the near goal
    # A policy of equal chances, by value iteration.
    even = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    value = torch.zeros_like(goals)
    for _ in range(400):
        value = goals + (1 - goals) * problems.DISCOUNT * (value @ transition.mean(0).T)
    begin = problems.BEGIN[0] * problems.SIDE + problems.BEGIN[1]
    near(-problems.maze(even, batch), value[:, begin], 1e-9, 1e-12)


def test_exponential_fit_and_change_points():
    steps = np.arange(200)
    rising = np.exp(0.03 * steps - 2)
    assert training.exponential(rising) == pytest.approx((0.03, 1))
    # what is not positive is left out
    assert training.exponential(np.where(steps % 2, rising, -1.0)) == pytest.approx((0.03, 1))
    assert events.knee(np.clip(steps - 80.0, 0, None)) == 80
    assert events.shift((steps >= 120).astype(float)) == 120
