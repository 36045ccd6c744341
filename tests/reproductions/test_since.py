"""What the field has said since 2020: the ledger, and what the questions are made of."""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.optimize import brentq

import mtlfunc as mf
from paper_repro.since import (
    common,
    conflict,
    grouping,
    narrow,
    physics,
    population,
    scalarization,
    terms,
)
from tests.support.loops import trained
from tests.support.oracles import rows_of


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_out_of_reach_is_what_no_weights_on_a_grid_reach(sign):
    """The one weighting at which a point is stationary, against all weightings of a fine grid."""
    targets, points = narrow.targets_of(4), narrow.sphere()[::200]
    missed = narrow.beyond(targets, sign, points.expand(4, -1, -1))
    share = np.arange(0, 1.0001, 0.01)
    w = np.array([(a, b, 1 - a - b) for a, b in itertools.product(share, share) if a + b < 1.0001])
    decided = 0
    for y, some in zip(targets.numpy(), missed.numpy(), strict=True):
        top = np.linalg.eigvalsh(sign * np.einsum("wt,ti,tj->wij", w, y, y))[:, -1]
        for u, off in zip(points.numpy(), some, strict=True):
            gap = (top - sign * w @ (y @ u) ** 2).min()
            if np.isnan(off) or off > 0.05:
                assert gap > 0
                decided += 1
            elif off < 1e-12:
                # the grid's nearest weights are .01 off in each, and a gap has a slope of 1 at most
                assert gap < 0.03
                decided += 1
    assert decided > 40


def test_a_static_lane_is_the_run_it_stands_for():
    """One lane and seed against plain torch: Adam with decoupled decay on weighted losses."""
    steps, seed = 5, 1
    ends = scalarization.ended(scalarization.static, 2, steps, (0.2, 0.8))
    lanes = [*itertools.product(scalarization.RATES, scalarization.DECAYS)]
    (lr, decay), lane = lanes[4], len(lanes) + 4  # of the second share
    params, train, test = scalarization.drawn(torch.tensor(seed))
    leaves = [x.clone().requires_grad_() for x in params.values()]
    adam = torch.optim.AdamW(leaves, lr, weight_decay=0.0)
    for _ in range(steps):
        adam.zero_grad()
        losses = common.losses(dict(zip(params, leaves, strict=True)), train)
        # the trunk descends on the weighted losses; the heads on the mean, as everywhere
        weighted = 0.8 * losses[0] + 0.2 * losses[1]
        grads = torch.autograd.grad(weighted, leaves[:2], retain_graph=True)
        own = torch.autograd.grad(losses.mean(), leaves[2])
        for leaf, g in zip(leaves, (*grads, *own), strict=True):
            leaf.grad = g
        adam.step()
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_(1 - lr * decay)
    expected = common.losses(dict(zip(params, leaves, strict=True)), test)
    np.testing.assert_allclose(ends[lane, seed], expected.detach(), rtol=1e-6)


def test_cosines_of_samples_and_halves_are_those_of_a_loop():
    params, data, _ = torch.func.vmap(conflict.drawn)(torch.arange(2))
    gramians = conflict.gramians(params, data)
    params, data, _ = conflict.drawn(torch.tensor(1))
    trunk = [params[name].requires_grad_() for name in ("trunk.weight", "trunk.bias")]
    matrix = rows_of(common.sample_losses(params, data).flatten(), trunk)
    torch.testing.assert_close(gramians[1], matrix @ matrix.T, rtol=1e-9, atol=1e-12)
    tasks = matrix.unflatten(0, (-1, 2)).mean(0)
    cosine = torch.nn.functional.cosine_similarity(*tasks, dim=0)
    assert float(conflict.train(2, 3)[0][1, 0]) == pytest.approx(float(cosine))


def race() -> population.Race:
    problems = torch.func.vmap(lambda seed: population.drawn(seed, 3))(torch.arange(2))
    return population.Race(problems, mf.random.normal(mf.random.key(3), (2, 5, 3)).double())


def test_a_run_of_a_population_is_the_run_it_stands_for():
    every, (seed, lane) = race(), (1, 3)
    every.train(4)
    one = population.drawn(torch.tensor(seed), 3)
    weights = 10 ** every.logs[seed, lane]
    rule, probe = mf.mean(preference=weights), mf.jacobian()  # rows, where the run has one pass
    step = mf.descend(common.losses, rule, probe, mf.adam(population.RATE))
    state = trained(step, [one.train] * 4, one.start)
    for name, leaf in state.params.items():
        torch.testing.assert_close(every.state.params[name][seed, lane], leaf)
    score = (common.losses(state.params, one.test) / one.train.y.var(0)).mean()
    torch.testing.assert_close(every.scores("test")[seed, lane], score)


def test_the_worst_runs_go_on_from_the_best_with_other_weights(monkeypatch):
    every = race()
    every.train(2)
    before, logs = every.state.params["heads"].clone(), every.logs.clone()
    scores = torch.tensor([[3.0, 1.0, 5.0, 4.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    monkeypatch.setattr(every, "scores", lambda part: scores)
    every.evolve(mf.random.key(0))
    # the worse of the best two replaces the worst
    for seed, row in enumerate([[0, 1, 4, 1, 4], [0, 1, 2, 0, 1]]):
        for lane, source in enumerate(row):
            heads = every.state.params["heads"][seed, lane]
            torch.testing.assert_close(heads, before[seed, source])
            factor = 10 ** (every.logs[seed, lane] - logs[seed, source]).abs()
            expected = population.STEP if lane != source else 1.0
            torch.testing.assert_close(factor, torch.full_like(factor, expected))


def test_a_good_choice_has_less_loss_than_a_random_one_and_orders_the_gains():
    """Gains that all seeds share: who knows them chooses well, who has them reversed badly."""
    rng = np.random.default_rng(0)
    gains = [rng.normal(size=(1, 63, 6)).repeat(2, 0) for _ in range(5)]
    found = grouping.Trained(gains, {"known": gains, "reversed": [-x for x in gains]})
    for most in grouping.BUDGETS:
        assert found.less_random("known", most).high < 0
        assert found.less_random("reversed", most).low > 0
    for kept in (grouping.PAIRS, grouping.LARGER, grouping.shown()):
        assert found.correlation("known", kept) == pytest.approx(1)
        assert found.correlation("reversed", kept) == pytest.approx(-1)
    assert np.isnan(common.rank_correlation([1, 2, np.nan, 4], [1, 2, 3, 4])).all()


@pytest.fixture(params=physics.PROBLEMS)
def equation(request) -> tuple[physics.Problem, mf.types.Params, physics.Points]:
    """A problem, and the weights and points of one seed."""
    problem = physics.PROBLEMS[request.param]
    first, points = physics.begun(problem, 2)
    one = {name: leaf[1] for name, leaf in first.items()}
    return problem, one, physics.Points(*(part[1] for part in points))


def test_residuals_are_those_of_the_equation(equation):
    problem, params, points = equation

    def off(u, x):
        second = torch.func.vmap(torch.func.hessian(lambda t: u(t[None])[0, 0]))(x)[:, 0, 0]
        exact = torch.func.vmap(torch.func.hessian(lambda t: problem.exact(t[None])[0, 0]))(x)
        f = exact[:, 0, 0] + problem.rest(problem.exact(x))[:, 0]
        return second + problem.rest(u(x))[:, 0] - f

    x = points.inside
    expected = off(lambda x: physics.network(params, x)[0], x) / len(x) ** 0.5
    torch.testing.assert_close(problem.inner(params, points), expected)
    rows = torch.func.jacrev(lambda p: problem.stacked(p, points))(params)
    expected = torch.cat([leaf.flatten(1) for leaf in rows.values()], 1)
    torch.testing.assert_close(problem.rows(params, points), expected)
    assert ((x + 1) * len(x) / 2).floor().flatten().tolist() == list(range(len(x)))


def test_falls_in_gradient_flow_are_those_of_a_matrix_exponential(equation):
    problem, params, points = equation
    kernel = (rows := problem.rows(params, points)) @ rows.mT
    r, split = problem.stacked(params, points).numpy(), len(points.inside)

    def terms_at(log_time: float) -> np.ndarray:
        left = expm(-2 * np.exp(log_time) * kernel.numpy()) @ r
        return np.array([(left[:split] ** 2).sum(), (left[split:] ** 2).sum()])

    time = float(np.asarray(brentq(lambda t: terms_at(t).sum() - 0.1 * (r**2).sum(), -30, 5)))
    before = np.array([(r[:split] ** 2).sum(), (r[split:] ** 2).sum()])
    expected = abs(np.diff(np.log(terms_at(time) / before)))[0]
    assert float(terms.apart(problem, physics.equal, 2)[1]) == pytest.approx(expected, rel=1e-3)
