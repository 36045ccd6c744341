"""GradNorm's further reproductions: what programs train, how numbers are read off, intervals."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm, sem, t

import mtlfunc as mf
from paper_repro.gradnorm import common, difficulty, lanes, train_lanes
from paper_repro.report import grids
from paper_repro.report.findings import Settings
from paper_repro.report.intervals import (
    Interval,
    clustered_share,
    mean_interval,
    named,
    ratio_interval,
    share_interval,
)
from tests.support.loops import trained

SMALL = lanes.Size(8, 10, 6, 3, (1e-3, 1e-2), (), (1e-3, 1e-2))


@pytest.mark.parametrize("method", ["weighted", "gradnorm"])
def test_lanes_are_the_runs_they_stand_for(method):
    """One lane of one seed against the same run put together by itself."""
    chosen = [
        lanes.Lane("a", 1e-3),
        lanes.Lane("b", 1e-2, 0.7, (1.0, 0.5), (1.0, 3.0), (1.0, 2.0), (0.0, 0.3)),
    ]
    static, learnt = train_lanes.train("test", chosen, chosen, SMALL, Settings())
    trace = static if method == "weighted" else learnt
    lane, seed = chosen[1], 2
    root = torch.tensor(seed)
    fold = mf.random.fold_in
    maps = common.linear_maps(fold(root, 1), SMALL.problem((1.0, 1.0)))
    scale, sharp, deviation = (
        torch.tensor(part)[:, None, None] for part in (lane.scales, lane.sharpness, lane.noise)
    )

    def batch(
        stream: int, number: int, size: int, *, noisy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = mf.random.normal(fold(fold(root, stream), number), (size, SMALL.inputs))
        y = scale * torch.tanh(sharp * torch.einsum("bi,toi->tbo", x, maps))
        return x, y + (
            deviation * mf.random.normal(fold(fold(root, 5), number), (2, size, SMALL.outputs))
            if noisy
            else 0
        )

    step = common.step_of(
        method, torch.tensor(lane.lr), torch.tensor(lane.alpha), torch.tensor(lane.weights)
    )
    params = common.initial_params(fold(root, 0), SMALL.problem((1.0, 1.0)))
    state = step.init(params, batch(3, 0, SMALL.batch, noisy=True))
    used = torch.empty(0)
    for number in range(SMALL.steps):
        state, info = step.update(state, batch(3, number, SMALL.batch, noisy=True))
        used = info.weights
    test = batch(2, 0, train_lanes.TEST, noisy=False)
    ratio = common.losses(state.params, test) / common.losses(params, test)
    np.testing.assert_allclose(trace.test[-1, 1, seed], ratio.numpy(), rtol=1e-4)
    np.testing.assert_allclose(trace.weights[-1, 1, seed], used.numpy(), rtol=1e-4)
    assert trace.times[-1] == SMALL.steps


def test_training_is_a_plain_loop_of_one_seed():
    problem = common.Problem((1.0, 5.0), 4, 3, 5, rates=(1e-3, 1e-2), steps=4, batch=6)
    variants = common.variants_of(problem, 3, Settings())
    runs = common.train.now("gradnorm", problem, variants, Settings(), "test", 3)
    root, fold = torch.tensor(2), mf.random.fold_in
    maps = common.linear_maps(fold(root, 1), problem)
    params = common.initial_params(fold(root, 0), problem)
    test = common.sample(fold(root, 2), maps, problem, common.TEST)
    step = common.step_of("gradnorm", variants.lr[1], variants.alpha[1], variants.weights[1, 2])

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return common.sample(fold(fold(root, 3), number), maps, problem, problem.batch)

    state = step.init(params, batch(0))
    for number in range(problem.steps):
        state, _ = step.update(state, batch(number))
    ratio = common.losses(state.params, test) / common.losses(params, test)
    np.testing.assert_allclose(runs.test[-1, 1, 2], ratio.numpy(), rtol=1e-4)
    # Adam's first step moves each weight by its rate, and of two weights the sum stays
    np.testing.assert_array_equal(runs.weights[0], 1)
    np.testing.assert_allclose(np.abs(runs.weights[1] - 1), common.OWN_RATE, rtol=1e-4)


def test_settings_are_chosen_on_the_other_seeds():
    """Seeds 0 and 2 prefer lane 0, the others lane 1: each is judged in the other's."""
    final = np.array([[1.0, 5.0, 1.0, 5.0], [3.0, 2.0, 3.0, 2.0]])
    test = np.stack([np.ones((2, 4)), final])[..., None].repeat(2, -1)
    chosen = [lanes.Lane("a, 1", 1e-3), lanes.Lane("a, 2", 1e-2)]
    trace = lanes.Trace(chosen, np.arange(2), test, test, test, test)
    assert trace.picked("a").tolist() == [1, 0, 1, 0]
    assert trace.judged("a").tolist() == [3, 5, 3, 5]
    assert trace.judged("a, 1").tolist() == final[0].tolist()


def test_rates_that_seeds_do_not_tell_apart_settle_nothing_of_another_number():
    """Of five rates the second and third end alike; what is compared besides differs there."""
    shift = np.array([-0.03, 0.01, 0.03, -0.01])
    final = np.array([0.8, 0.5, 0.5, 0.7, 0.8])[:, None] + np.stack(
        [shift, shift, -shift] + [shift] * 2
    )
    test = np.stack([np.ones((5, 4)), final])[..., None].repeat(2, -1)
    other = np.ones((2, 5, 4, 2)) * np.array([9.0, 0.5, 2.0, 9.0, 9.0])[:, None, None]
    grid = [lanes.Lane(f"a, {rate:g}", rate) for rate in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    trace = lanes.Trace(grid, np.arange(2), test, test, other, other)
    plain = trace._replace(lengths=np.ones_like(other))

    def ratio(*arms: lanes.Arm) -> Interval:
        return ratio_interval(*(one.of(one.lengths, name)[-1].mean(-1) for one, name in arms))

    assert [one.lanes[0].lr for one in trace.tied("a")] == [1e-3, 1e-2]
    assert [x.final("a").tolist() for x in trace.tied("a")] == [[x.tolist()] for x in final[1:3]]
    assert lanes.unsettled(ratio, 1, (trace, "a"), (plain, "a"))
    # on one side at both: settled; the same if the seeds tell the rates apart
    assert not lanes.unsettled(ratio, 3, (trace, "a"), (plain, "a"))
    test[-1, 2] += 0.2
    assert [one.lanes[0].lr for one in trace.tied("a")] == [1e-3]
    assert not lanes.unsettled(ratio, 1, (trace, "a"), (plain, "a"))
    test[-1, 0] = 0.1  # the best rate is at the edge
    assert lanes.unsettled(ratio, 1, (trace, "a"), (plain, "a"))


@pytest.mark.parametrize(
    ("even", "odd", "edge", "words"),
    [(2, 3, False, "2"), (1, 3, True, "1 and 2"), (2, 5, True, "2 and 3"), (0, 1, True, "1")],
)
def test_a_best_says_whether_its_setting_is_at_an_end(even, odd, edge, words):
    """A grid of three values, each with two further settings: its ends are those of the values."""
    scores = 1.0 + np.arange(24).reshape(6, 4)
    scores[even, 1::2] = scores[odd, ::2] = 0  # each half's choice is made on the other one
    scores[4, :2] = np.nan  # a run that diverged, which is never best
    found = grids.at_best(scores, (1, 1, 2, 2, 3, 3))
    assert found.choice.tolist() == [even, odd, even, odd]
    assert found.scores.tolist() == [scores[x, seed] for seed, x in enumerate(found.choice)]
    assert (found.edge, found.settings) == (edge, words)
    assert not grids.at_best(scores, [7] * 6).edge  # one value has no ends


def test_crossing_and_reading_off():
    times = np.array([0, 10, 20])
    curves = np.array([[1.0, 1.0], [0.1, 1.0], [0.01, 0.5]])
    moments = difficulty.crossing(times, curves, np.array([10**-0.5, 0.5]))
    assert moments.tolist() == pytest.approx([5, 20])
    assert difficulty.at(moments, times, curves).tolist() == pytest.approx([10**-0.5, 0.5])
    assert difficulty.crossing(times, curves, np.array([1.0, 1.0])).tolist() == [0, 0]


def test_measuring_the_last_layer_alone_is_gradnorm_on_the_whole_trunk() -> None:
    """With weighted heads the measured layer alone may be named as the shared one."""
    problem = common.Problem(inputs=5, outputs=3)
    key = mf.random.key(1)
    params = common.initial_params(key, problem)
    maps = common.linear_maps(mf.random.fold_in(key, 8), problem)
    batch = common.sample(mf.random.fold_in(key, 9), maps, problem, 20)
    lr, alpha = torch.tensor(1e-3), torch.tensor(common.ALPHA)
    short = common.step_of("gradnorm", lr, alpha, torch.ones(2))
    rule, probe = (
        mf.gradnorm(alpha),
        mf.jacobian(f"trunk.{common.LAYERS - 1}.*", heads="weighted"),
    )
    whole = mf.descend(common.losses, rule, probe, mf.adam(lr), reduction="sum")
    states = [trained(step, [batch] * 5, params) for step in (short, whole)]
    one, other = ((state.params, state.balance.rule.weights) for state in states)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_intervals_match_known_values() -> None:
    # t = 4.3027 at 2 degrees of freedom, s/√n = .57735
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert share_interval(0, 100) == pytest.approx((0.0, 0.0, 0.0370), abs=1e-4)


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
