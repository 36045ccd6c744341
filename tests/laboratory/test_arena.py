"""The arena: answers of its problems, the study against plain loops, and the statistics."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy import optimize, stats
from torch.func import grad_and_value, hessian, jacrev, vmap

import mtlfunc as mf
from common.problems import cagrad_toy
from mtlfunc.studies.arena import (
    BenchmarkProblem,
    Cell,
    Contestant,
    Result,
    Settings,
    compete,
    contest,
    result,
    standard,
    study,
)
from mtlfunc.studies.lattice import simplex_lattice
from paper_repro.pcgrad import landscape as pcgrad_landscape
from tests.support.arena import TINY
from tests.support.every import few
from tests.support.oracles import near

FRONTS = [name for name, problem in standard().items() if problem.front is not None]


def drawn(problem: BenchmarkProblem, seed: int) -> tuple[mf.types.Params, object]:
    return problem.draw(mf.random.key(seed))


@pytest.mark.parametrize("name", standard())
def test_problem_is_sound(name):
    problem = standard()[name]
    params, data = drawn(problem, 5)
    losses = problem.losses(params, problem.batch(data, mf.random.key(0)))
    assert losses.shape == problem.ideal.shape == problem.nadir.shape
    assert (losses >= 0).all()
    assert (problem.ideal < problem.nadir).all()
    assert list(problem.rates) == sorted(problem.rates)
    ratios = [b / a for a, b in pairwise(problem.rates)]
    assert max(ratios) / min(ratios) < 1.01  # evenly spaced in the logarithm


@pytest.mark.parametrize("name", ["conflict", "spread", "conditioning"])
def test_quadratics_have_the_gradients_that_they_promise(name):
    tasks, conflict, spread, condition = {
        "conflict": (2, 0.7, 1, 10),
        "spread": (3, 0.2, 100, 3),
        "conditioning": (3, 0.3, 1, 100),
    }[name]
    problem = standard()[name]
    params, turn = drawn(problem, 3)
    origin = torch.zeros(10, dtype=torch.float64)
    rows = jacrev(lambda x: problem.losses({"x": x}, turn))(origin)
    gramian = rows @ rows.mT
    cosine = mf.diagnostics.cosines(gramian)[~torch.eye(tasks, dtype=torch.bool)]
    near(cosine, torch.full_like(cosine, -conflict), 0, 1e-10)
    lengths = gramian.diagonal().sqrt()
    near(lengths.amax() / lengths.amin(), torch.tensor(float(spread)).double())
    # Before the turn they are the symmetric root of their cosines, of which there is only one: no
    # choice among eigenvectors makes the problem, and no task is another than the others.
    unit = rows @ turn / lengths[:, None]
    root, order = unit[:, :tasks], torch.arange(tasks).roll(1)
    around = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    around(unit[:, tasks:], torch.zeros_like(unit[:, tasks:]))
    around(root @ root, (1 + conflict) * torch.eye(tasks).double() - conflict)
    around(root, root.mT)
    around(root, root[order][:, order])
    assert torch.linalg.eigvalsh(root).amin() > 0
    for curvature in hessian(lambda x: problem.losses({"x": x}, turn))(origin):
        values = torch.linalg.eigvalsh(curvature)
        assert float(values[-1] / values[0]) == pytest.approx(condition)
    assert float(params["x"].norm()) == pytest.approx(1)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", FRONTS)
def test_no_sampled_point_dominates_the_front(name):
    problem = standard()[name]
    front = problem.front
    assert front is not None
    params, data = drawn(problem, 1)
    leaf = next(iter(params))
    points = 4 * mf.random.normal(mf.random.key(1), (4000, len(params[leaf])), torch.float64)
    long = torch.tensor([2.0] + [0.01] * (points.shape[1] - 1)).double()
    points = torch.cat([points, 0.1 * points, points * long])
    losses = vmap(lambda x: problem.losses({leaf: x}, data))(points)
    slack = 1e-9 * (problem.nadir - problem.ideal)
    dominated = (losses[:, None] < front[:: max(1, len(front) // 300)] - slack).all(-1)
    assert not dominated.any()


# the cusps of PCGrad's landscape stop a quasi-Newton method
@pytest.mark.parametrize("name", [name for name in FRONTS if name != "pcgrad landscape"])
def test_front_supports_what_a_quasi_newton_method_finds(name):
    """The least weighted loss is that of the front, but for its spacing and its limits."""
    problem = standard()[name]
    assert problem.front is not None
    scale = problem.nadir - problem.ideal
    weights = torch.arange(1, len(scale) + 1) / scale
    found = []
    for seed in range(6):
        params, data = drawn(problem, seed)
        ((leaf, start),) = params.items()
        slope = grad_and_value(lambda x, leaf=leaf, d=data: weights @ problem.losses({leaf: x}, d))

        def loss(x, slope=slope):
            rows, value = slope(torch.from_numpy(x))
            return float(value), rows.numpy()

        found.append(optimize.minimize(loss, start.numpy(), jac=True, tol=1e-12).fun)
    apart = min(found) - float((problem.front @ weights).min())
    assert -2e-4 < apart / float(weights @ scale) < 2e-3


def test_fronts_are_reached_where_they_are_said_to_be():
    known = standard()
    t = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    both = torch.stack([t, t], -1) / 2**0.5
    near(vmap(lambda x: known["vlmop2"].losses({"x": x}, x))(both), known["vlmop2"].front)
    flat = torch.zeros(10, dtype=torch.float64)
    flat[0] = -math.log(3)  # x_1 = 1/4
    near(known["zdt1"].losses({"z": flat}, flat), torch.tensor([0.25, 0.5]).double())
    sphere = known["dtlz2"].losses({"z": torch.tensor([0.3, -1.0, 0, 0, 0, 0, 0]).double()}, flat)
    assert float(sphere.norm()) == pytest.approx(1)
    front = known["dtlz2"].front
    assert front is not None
    near(front.norm(dim=-1), torch.ones(len(front)).double())
    valley = {"x": torch.tensor([-2.0, 7.0]).double()}
    assert known["pcgrad landscape"].losses(valley, flat).tolist() == [0, 0]


def test_landscapes_are_those_of_the_reproductions():
    points = 6 * mf.random.normal(mf.random.key(4), (200, 2), torch.float64)
    front = standard()["cagrad toy"].front
    assert front is not None
    ours = vmap(lambda x: standard()["cagrad toy"].losses({"x": x}, x))(points)
    near(ours - 21, cagrad_toy.at(points))
    assert float(front.mean(-1).amin()) == pytest.approx(cagrad_toy.minimum_of_mean()[1] + 21)
    ours = vmap(lambda x: standard()["pcgrad landscape"].losses({"x": x}, x))(points)
    near(ours, vmap(lambda x: pcgrad_landscape.losses({"theta": x}))(points))


def test_targets_of_the_networks_have_the_variance_and_the_noise_that_they_promise():
    keys = torch.arange(64)
    _, (_, (x, y)) = vmap(standard()["difficulty"].draw)(keys)
    assert y.var((0, 1)).tolist() == pytest.approx([1, 1, 1], abs=0.06)
    residual = y[..., ::2] - x @ torch.linalg.lstsq(x, y[..., ::2]).solution
    unexplained = residual.square().sum((0, 1)) / (64 * (256 - 8))
    # four standard errors of a variance
    assert unexplained.tolist() == pytest.approx([0, 0.7], abs=4 * 0.7 * (2 / (64 * 248)) ** 0.5)
    _, (_, y) = vmap(standard()["regression"].draw)(keys)
    near(y.square().mean((1, 2)), standard()["regression"].nadir.float().expand(64, -1), 0.01)


@pytest.mark.parametrize(
    ("name", "rule"), [("spread", "pcgrad"), ("regression", "gradnorm"), ("difficulty", "cagrad")]
)
def test_study_equals_a_loop_of_descend(name, rule):
    problem, contestant = standard()[name], contest.REFERENCES[rule]
    cell = compete(problem, contestant, TINY)
    assert not cell.error
    steps = round(TINY.budget * problem.steps)
    seeds = [study.TUNING, study.TUNING + 1, 0, 1, 2]
    for config, seed in ((0, 1), (len(problem.rates) - 1, 4), (2, 3)):
        key = mf.random.key(seeds[seed])
        params, data = problem.draw(mf.random.fold_in(key, 0))
        made, probe = contestant.rule(), contestant.probe(problem.shared)

        def batch(k, data=data, key=key):
            return problem.batch(data, mf.random.fold_in(mf.random.fold_in(key, 1), k))

        state = mf.descend(problem.losses, made, probe, mf.adam(1.0)).init(
            params, batch(0), key=mf.random.fold_in(key, 2)
        )
        for k in range(steps):
            step = mf.descend(
                problem.losses, made, probe, mf.adam(problem.rates[config] * (1 - k / steps))
            )
            state, _ = step.update(state, batch(k))
        read = problem.evaluate or problem.losses
        final = read(state.params, data)
        close = (1e-6, 1e-9) if final.dtype == torch.float64 else (1e-3, 1e-4)
        near(cell.losses[config, seed], final.double(), *close)
        near(cell.start[seed], read(params, data).double(), *close)


def test_static_search_is_the_mean_with_each_weight_vector():
    problem = standard()["conflict"]
    cell = compete(problem, None, TINY)
    assert cell.weights is not None
    assert len(cell.lr) == len(problem.rates) * 9
    config = 5 * 9 + 2
    vector = study.static_grid(2)[2]
    alone = compete(problem, Contestant(lambda: mf.mean(preference=vector), mf.jacobian), TINY)
    assert torch.equal(cell.weights[config], vector)
    near(cell.losses[config], alone.losses[5])


def test_static_weights_have_ratios_of_a_hundred_both_ways():
    for tasks in (2, 3):
        grid = study.static_grid(tasks)
        ratios = grid[:, :-1] / grid[:, -1:]
        assert (float(ratios.amin()), float(ratios.amax())) == pytest.approx((0.01, 100))


def made_up(losses: dict[str, torch.Tensor], tuning: int) -> Result:
    """A study of one problem with one task whose score is the loss; losses [config, seed]."""
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    problem = BenchmarkProblem(
        "made up", lambda key: ({"x": one}, one), lambda params, batch: params["x"], zero, one,
        None, 1, (0.1, 0.2),
    )  # fmt: skip
    found, seeds = {}, 0
    for rule, final in losses.items():
        rates, seeds = torch.arange(1.0, len(final) + 1).double(), final.shape[1]
        start = torch.ones(seeds, 1).double()
        found[rule] = Cell(rates, None, start, final[..., None], 1.0, "")
    return Result({"p": problem}, {"p": found}, Settings(seeds=seeds - tuning, tuning=tuning))


def test_learning_rate_is_chosen_on_tuning_seeds_alone():
    better_tuned = torch.tensor(
        [[0.3, 0.5, 0.1, 0.1, 0.1], [0.2, 0.4, 0.9, 0.8, 0.7], [0.0, math.nan, 0.0, 0.0, 0.0]]
    ).double()
    found = made_up({"rule": better_tuned, "mean": better_tuned.flip(0)}, tuning=2)
    # not 0, best on the reporting seeds; not 2, which is lost on a tuning seed
    assert found.chosen("p", "rule") == 1
    assert found.reported("p", "rule").tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found.chosen("p", "mean") == 1
    record = found.records()[0]
    assert record["mean"] == pytest.approx(0.8)
    assert record["lr"] == 2
    assert not record["lr at edge"]
    assert record["mean less mean's"] == 0


def test_ranks_are_those_of_scipy_and_what_is_lost_is_last():
    scores = mf.random.uniform(mf.random.key(3), (6, 9), torch.float64)
    scores[2] = scores[4]
    scores[1, 3] = scores[5, 3] = math.inf
    near(result._ranks(scores), torch.from_numpy(stats.rankdata(scores.numpy(), axis=0)))
    assert result._ranks(scores)[[1, 5], 3].tolist() == [5.5, 5.5]
    around = torch.tensor([[0.30001], [0.30002], [0.4]]).double()
    assert result._ranks(around)[:, 0].tolist() == [1.5, 1.5, 3]


def test_bootstrap_has_the_standard_error_of_the_mean():
    values = mf.random.normal(mf.random.key(2), (40,), torch.float64)
    draws = result.bootstrap_weights(40, 0)
    near(draws.sum(-1), torch.ones(len(draws)).double())
    means, error = draws @ values, float(values.std()) / 40**0.5
    assert float(means.std()) == pytest.approx(float(values.std(correction=0)) / 40**0.5, rel=0.08)
    within = 4 * error / len(draws) ** 0.5
    assert float(means.mean()) == pytest.approx(float(values.mean()), abs=within)
    assert torch.equal(draws, result.bootstrap_weights(40, 0))
    interval = result._interval(float(values.mean()), means, 40)
    reference = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    # The 2.5 % quantile of 1,000 draws has a standard error of √(.025·.975/1000)/φ(1.96) = .085
    # standard errors of the mean; four of them.
    assert interval[1:] == pytest.approx(tuple(reference), abs=4 * 0.085 * error)


def test_typical_values_are_the_sign_flip_test_turned_round():
    """θ is in the interval iff the exact test of all sign patterns, at 95 %, does not reject it."""
    for count in (6, 9):
        values = mf.random.normal(mf.random.key(count), (count,), torch.float64) + 0.3
        signs = 1.0 - 2 * (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).double()
        interval = result.mean_interval(values)
        assert interval.mean == pytest.approx(float(values.mean()))
        for theta in torch.linspace(-2, 2, 81, dtype=torch.float64):
            moved = values - theta
            sums = signs @ moved
            low = float((sums <= moved.sum() + 1e-12).double().mean())
            high = float((sums >= moved.sum() - 1e-12).double().mean())
            assert (interval.low <= theta <= interval.high) == (min(low, high) > 0.025)
    six = torch.tensor([1.0, 2, 3, 4, 5, 6]).double()
    assert result.mean_interval(six)[1:] == (1, 6)  # all that six problems can say
    for count in range(1, result.ENOUGH):
        assert math.isnan(result.mean_interval(six[:count]).low)
    assert math.isnan(result.mean_interval(torch.tensor([1.0, 2, 3, 4, 5, math.inf]).double()).high)


def null(count: int, rules: int, studies: int, key: int) -> torch.Tensor:
    """Mean ranks [study, problem, rule] of rules that are good by chance (heavy tails, 8 seeds)."""
    at = mf.random.key(key)
    quality = mf.random.normal(mf.random.fold_in(at, 0), (studies, count, rules, 1), torch.float64)
    noise = mf.random.normal(mf.random.fold_in(at, 1), (studies, count, rules, 8), torch.float64)
    return vmap(vmap(result._ranks))(quality**3 + 0.7 * noise).mean(-1)


@pytest.mark.parametrize("count", few([6, 8, 11], lambda count: count == 8))
def test_intervals_over_problems_cover(count):
    """95 % over 1,000 studies in which no rule is better, to four standard errors, .7 %."""
    places = null(count, 9, 1000, count)
    differs = [result.mean_interval(study[:, 0] - study[:, 1]) for study in places]
    ranks = [result.mean_interval(study[:, 0]) for study in places]
    assert np.mean([one.low <= 0 <= one.high for one in differs]) > 0.95 - 4 * 0.007
    assert np.mean([one.low <= 5 <= one.high for one in ranks]) > 0.95 - 4 * 0.007
    average = places[:200].mean(1)
    ranges = average.amax(-1) - average.amin(-1)
    wrong = [float(x) > result.spread(y) for x, y in zip(ranges, places[:200], strict=True)]
    assert np.mean(wrong) < 0.05 + 4 * (0.05 * 0.95 / 200) ** 0.5


def made_up_study(key: int) -> list[torch.Tensor]:
    """Scores [config, seed] of two rules with three near configurations; 8 seeds are for tuning."""
    at = mf.random.key(key)
    level = torch.tensor([[0.0, 0.1, 0.2], [0.05, 0.1, 0.3]]).double()[..., None]
    shared = mf.random.normal(mf.random.fold_in(at, 0), (24,), torch.float64)
    own = mf.random.normal(mf.random.fold_in(at, 1), (2, 3, 24), torch.float64)
    return list(1 + level + 0.3 * shared + 0.5 * own)


def test_seed_intervals_hold_the_choice_of_the_learning_rate():
    """Coverage of what other seeds give on average: 300 studies, to four standard errors, 1.3 %."""
    differences, found, fixed = [], [], []
    for key in range(300):
        scores = made_up_study(1000 + key)
        best = [int(score[:, :8].mean(-1).argmin()) for score in scores]
        report = torch.stack([score[i, 8:] for score, i in zip(scores, best, strict=True)])
        gap = report[0] - report[1]
        differences.append(float(gap.mean()))
        again = result.resample_study(scores, 8, key)
        found.append(result._interval(float(gap.mean()), again.means[:, 0] - again.means[:, 1], 16))
        draws = result.bootstrap_weights(16, key) @ gap
        fixed.append(np.quantile(draws.numpy(), [0.025, 0.975]))
    truth = float(np.mean(differences))
    covered = [one.low <= truth <= one.high for one in found]
    narrow = [low <= truth <= high for low, high in fixed]
    assert np.mean(covered) > 0.95 - 4 * 0.013
    assert np.mean(narrow) < np.mean(covered)


def test_resampled_studies_are_studies():
    """Each draw is the study on its seeds: the choice and the ranks by a plain loop."""
    scores = made_up_study(3)
    scores[0][1, 2] = math.nan
    scores[1][:, 9] = math.inf
    again = result.resample_study(scores, 8, 5)
    tuning, report = result.bootstrap_weights(8, 10), result.bootstrap_weights(16, 11)
    for draw in (0, 7, 500):
        rows = []
        for score in scores:
            kept = score[:, :8].nan_to_num(result.WORST, posinf=result.WORST)
            rows.append(score[int((kept * tuning[draw]).sum(-1).argmin()), 8:])
        places = stats.rankdata((torch.stack(rows) / result.TIE).round().numpy(), axis=0)
        near(again.places[draw], torch.from_numpy(places * report[draw].numpy()).sum(-1))


def several(losses: Callable[[int], dict[str, torch.Tensor]], count: int) -> Result:
    """So many problems, each with its own final losses [config, seed] by rule."""
    studies = [made_up(losses(i), tuning=2) for i in range(count)]
    return Result(
        {f"p{i}": one.problems["p"] for i, one in enumerate(studies)},
        {f"p{i}": one.cells["p"] for i, one in enumerate(studies)},
        studies[0].settings,
    )


def test_intervals_tell_a_difference_and_do_not_make_one_up():
    def losses(i: int) -> dict[str, torch.Tensor]:
        noise = mf.random.normal(mf.random.key(i), (3, 22), torch.float64)
        base = 0.5 + 0.1 * noise[0]
        rules = {
            "mean": base,
            "better": base - 0.05 + 0.01 * noise[1],
            "twin": base.clone(),
            "noisy": base + 0.05 * noise[2],  # no better and no worse
        }
        return {rule: values[None] for rule, values in rules.items()}

    found = several(losses, 8)
    at = {record["rule"]: record for record in found.records() if record["problem"] == "p0"}
    assert at["better"]["mean less mean's, high"] < 0 < at["better"]["mean, low"]
    assert at["twin"]["mean less mean's, low"] == at["twin"]["mean less mean's, high"] == 0
    assert at["noisy"]["mean less mean's, low"] < 0 < at["noisy"]["mean less mean's, high"]
    ranks = {rank.rule: rank for rank in found.ranks()}
    assert ranks["better"].against["mean"].high < 0
    assert ranks["noisy"].against["mean"].low < 0 < ranks["noisy"].against["mean"].high
    assert ranks["twin"].rank == ranks["mean"].rank
    for rank in ranks.values():  # no rank is outside of these
        for interval in (rank.seeds, rank.problems):
            assert 1 <= interval.low <= rank.rank <= interval.high <= len(ranks)
    assert ranks["twin"].seeds == ranks["mean"].seeds
    assert sum(rank.rank for rank in ranks.values()) == pytest.approx(10)
    assert 0 < found.critical_difference() < 3
    twins = several(lambda i: {"mean": losses(i)["mean"], "twin": losses(i)["mean"]}, 8)
    assert twins.critical_difference() == 0  # and no two ranks are more than that apart
    assert "Against mean, one rule at a time: better better; worse none" in str(found)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_problems_say_nothing_about_others(count):
    base = 0.5 + 0.1 * mf.random.normal(mf.random.key(0), (1, 22), torch.float64)
    found = several(lambda i: {"mean": base, "better": base - 0.3}, count)
    assert math.isnan(found.critical_difference())
    (best, _) = found.ranks()
    assert best.rule == "better"
    assert math.isnan(best.problems.low)
    assert math.isnan(best.against["mean"].high)
    assert math.isfinite(best.seeds.low)
    text = str(found)
    assert "with fewer than 6 nothing can be said at 95 % about other problems" in text
    assert "apart" not in text
    assert "one rule at a time" not in text
    assert "95 %, seeds" in text.splitlines()[0]
    ax = found.plot()  # in a figure that notebooks show
    assert [x.get_text() for x in ax.get_yticklabels()] == [rank.rule for rank in found.ranks()]
    assert plt.gcf() is ax.figure
    plt.close()
    with pytest.raises(ValueError, match="by='best': expected one of 'mean', 'worst', 'front'"):
        found.ranks("best")


def test_distance_to_the_front_of_known_points():
    problem = standard()["zdt1"]
    final = torch.tensor([[0.25, 0.5], [0.25, 0.8], [1.25, 0.3], [0.25, 0.1]]).double()[None]
    distance = result.scores_of(problem, final)["front"][0]
    # One coordinate's excess, and the perpendicular for a point whose nearest front point is
    # inside; below the front there is none.
    around = torch.linspace(0, 1, 200_001).double()
    curve = torch.stack([around, 1 - around.sqrt()], -1)
    expected = [float((point - curve).clamp_min(0).norm(dim=-1).amin()) for point in final[0]]
    assert distance.tolist() == pytest.approx(expected, abs=1e-5)
    assert distance[0] == distance[3] == 0
    cell = compete(problem, contest.REFERENCES["mean"], TINY)
    cell = cell._replace(losses=torch.tensor([0.25, 0.5]).double().expand_as(cell.losses))
    record = Result({"zdt1": problem}, {"zdt1": {"mean": cell}}, TINY).records()[0]
    assert record["front"] == 0


@pytest.mark.parametrize(("divisions", "tasks"), [(1, 1), (4, 1), (1, 4), (4, 2), (5, 3), (3, 5)])
def test_lattice_is_every_composition(divisions, tasks):
    every = itertools.product(range(divisions + 1), repeat=tasks)
    expected = [k for k in every if sum(k) == divisions]
    found = simplex_lattice(divisions, tasks)
    assert found.shape == (math.comb(divisions + tasks - 1, tasks - 1), tasks)
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float64) / divisions)
