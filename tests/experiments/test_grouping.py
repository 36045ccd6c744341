"""experiments/grouping: the tasks, the truth of a group, every forecaster, the judge, resuming."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, rankdata
from torch.func import vmap

import mtlfunc as mf
from common.cells import Store
from common.grouping import data, forecasts, judge, truth
from common.grouping.affinity import affinity
from common.problems.digits import digits
from experiments.grouping import __main__ as command
from experiments.grouping import report

SEEDS = (3, 4)


def quiet(_: int) -> None: ...


def drawn(family: str, seeds: tuple[int, ...] = SEEDS) -> data.Data:
    source, draw = digits(), torch.tensor(7)
    return vmap(lambda seed: data.questions(family, source, draw, seed))(torch.tensor(seeds))


def of_seed(tree: tuple, at: int) -> data.Data:
    return data.Data(*(data.Part(*(leaf[at] for leaf in part)) for part in tree))


@pytest.mark.parametrize("family", data.FAMILIES)
def test_parts_share_no_sample_and_questions_are_balanced(family):
    found = of_seed(drawn(family), 0)
    samples = {tuple(x.tolist()) for part in found for x in part.x}
    assert len(samples) == sum(data.SIZES)
    answers = torch.cat([part.y for part in found])
    assert answers.unique().tolist() == [0, 1]
    # halves of ten digits, medians, and signs of what is symmetric: five standard deviations
    off = (answers.mean(0) - 0.5).abs()
    assert off.max() < 5 * 0.5 / sum(data.SIZES) ** 0.5 + 0.03


def test_planted_tasks_read_their_own_features_alone():
    """Moving x along a direction that the features of a set do not see changes no answer of it."""
    draw = torch.tensor(5)
    groups = data.together(draw)
    assert groups.sum() == data.TASKS // 2
    x = mf.random.normal(mf.random.key(0), (400, data.INPUTS))
    read = mf.random.normal(mf.random.fold_in(draw, 1), (data.INPUTS, 2 * data.FEATURES))
    for number in range(2):
        own = read[:, number * data.FEATURES :][:, : data.FEATURES]
        blind = torch.linalg.svd(own.mT).Vh[data.FEATURES :]
        moved = x + 3 * mf.random.normal(mf.random.key(1), (400, len(blind))) @ blind
        same = data._planted(x, draw) == data._planted(moved, draw)
        assert same[:, groups == number].float().mean() > 0.99  # float32 at a border
        assert same[:, groups != number].float().mean() < 0.9


def test_all_groups_are_there_once():
    every = {c for n in range(1, 7) for c in itertools.combinations(range(6), n)}
    assert len(truth.GROUPS) == 63
    assert set(truth.GROUPS) == every
    assert [len(group) for group in truth.GROUPS[:21]] == [1] * 6 + [2] * 15


@pytest.mark.parametrize("group", [(1,), (0, 3, 4), tuple(range(6))])
def test_a_group_is_a_plain_loop_of_torch(group):
    """The vmapped truth against torch.optim.Adam on the sum of the group's losses."""
    many = drawn("planted")
    found = truth.every_group(SEEDS, many, 25, quiet)
    number, at = truth.GROUPS.index(group), 1
    one = of_seed(many, at)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[at])
        net = truth.Net(data.INPUTS)
    optimizer = torch.optim.Adam(net.parameters(), truth.RATE)
    best, test = {}, {}

    def look():
        with torch.no_grad():
            for task in group:
                now, other = (
                    F.binary_cross_entropy_with_logits(net(part.x)[:, task], part.y[:, task]).item()
                    for part in (one.validation, one.test)
                )
                if now < best.get(task, math.inf):
                    best[task], test[task] = now, other

    look()
    for step in range(25):
        batch = truth.batch_of(one.train, torch.tensor(SEEDS[at]), step)
        optimizer.zero_grad()
        values = [
            F.binary_cross_entropy_with_logits(net(batch.x)[:, task], batch.y[:, task])
            for task in group
        ]
        torch.stack(values).mean().backward()
        optimizer.step()
        if step + 1 in (20, 25):
            look()
    expected = [test.get(task, math.nan) for task in range(6)]
    torch.testing.assert_close(
        found[at, number], torch.tensor(expected), rtol=1e-3, atol=1e-4, equal_nan=True
    )


def test_affinities_are_their_formulas():
    many = drawn("planted")
    one, key = of_seed(many, 0), torch.tensor(SEEDS[0])
    params = {name: leaf[0] for name, leaf in truth.networks(many, SEEDS).items()}
    batch = truth.batch_of(one.train, key, 0)
    shared = [name for name in params if name.startswith("trunk.")]

    def gradients(part: data.Part) -> torch.Tensor:
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        values = truth.losses(leaves, part)
        rows = [
            torch.autograd.grad(value, [leaves[n] for n in shared], retain_graph=True)
            for value in values
        ]
        return torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])

    rows, values = gradients(batch), truth.losses(params, batch)
    gramian = rows @ rows.mT
    torch.testing.assert_close(forecasts.etap(params, batch), gramian / values)
    cosines = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).mT
    torch.testing.assert_close(forecasts.cosine(params, batch), cosines)
    # TAG's for a short step is ETAP's times the step
    short = affinity(
        lambda p, b: truth.losses(p, b).double(), params, batch, lr=1e-3, shared="trunk.*"
    )
    torch.testing.assert_close(short.float() / 1e-3, gramian / values, rtol=0.02, atol=2e-3)
    # products of different samples, by a loop over pairs
    each = torch.stack(
        [gradients(data.Part(x[None], y[None])) for x, y in zip(*batch, strict=True)]
    )
    total = each.sum(0)
    alone = torch.einsum("std,sud->tu", each, each)
    count = len(each)
    expected = (total @ total.mT - alone) / (count * (count - 1))
    torch.testing.assert_close(forecasts.products(params, batch), expected, rtol=1e-3, atol=1e-5)


def test_groups_and_pairs_are_means_over_the_others():
    generator = torch.Generator().manual_seed(0)
    affinity = torch.rand(2, 6, 6, generator=generator)
    found = forecasts.of_groups(affinity)
    gains = torch.rand(2, 63, 6, generator=generator)
    extrapolated = forecasts.pairs(gains)
    for number, group in enumerate(truth.GROUPS):
        for task in group:
            rest = [i for i in group if i != task]
            for seed in range(2):
                mean = sum(affinity[seed, i, task] for i in rest) / max(len(rest), 1)
                assert float(found[seed, number, task]) == pytest.approx(float(mean), abs=1e-6)
                pair = [truth.GROUPS.index(tuple(sorted((i, task)))) for i in rest]
                mean = sum(gains[seed, k, task] for k in pair) / max(len(rest), 1)
                assert float(extrapolated[seed, number, task]) == pytest.approx(
                    float(mean), abs=1e-6
                )


def test_grad_tag_fits_the_logistic_regression():
    """The moved network's loss, against a regression by L-BFGS on explicit gradients."""
    many = drawn("planted")
    one = of_seed(many, 0)
    params = {name: leaf[0] for name, leaf in truth.networks(many, SEEDS).items()}
    key, group = torch.tensor(1), (0, 2, 5)
    found = forecasts.grad_tag(params, one, key)  # in float32, the rest in float64
    params = {name: leaf.double() for name, leaf in params.items()}
    one = data.Data(*(data.Part(part.x.double(), part.y.double()) for part in one))
    size = sum(leaf.numel() for leaf in params.values())
    project = mf.random.normal(key, (size, forecasts.PROJECTED)).double()
    project = project / forecasts.PROJECTED**0.5

    def moved(by: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = (project @ by).split([leaf.numel() for leaf in params.values()])
        return {
            n: leaf + part.view_as(leaf)
            for (n, leaf), part in zip(params.items(), parts, strict=True)
        }

    zero = torch.zeros(forecasts.PROJECTED, dtype=torch.float64)
    slopes: torch.Tensor = torch.func.jacrev(lambda by: truth.logits(moved(by), one.train.x))(zero)
    base = truth.logits(params, one.train.x)

    def validation(tasks: tuple[int, ...]) -> torch.Tensor:
        tried = []
        for ridge in forecasts.RIDGES:
            by = zero.clone().requires_grad_()
            solver = torch.optim.LBFGS(
                [by], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
            )

            def closure(by=by, solver=solver, ridge=ridge):
                solver.zero_grad()
                said = (base + slopes @ by)[:, list(tasks)]
                loss = F.binary_cross_entropy_with_logits(said, one.train.y[:, list(tasks)])
                loss = loss + 0.5 * ridge * by.square().sum()
                loss.backward()
                return loss

            solver.step(closure)
            tried.append(truth.losses(moved(by.detach()), one.validation))
        return min(tried, key=lambda x: float(x[list(tasks)].mean()))

    together = validation(group)
    for task in group:
        expected = (validation((task,))[task] / together[task]).log()
        number = truth.GROUPS.index(group)
        assert float(found[number, task]) == pytest.approx(float(expected), abs=1e-4)


def test_partitions_and_regret_by_brute_force():
    for most, count in ((1, 1), (2, 32), (3, 122), (6, 203)):  # Bell's and Stirling's numbers
        found = judge.partitions(range(6), most)
        assert len(found) == len(set(found)) == count
        assert all(sorted(itertools.chain(*one)) == list(range(6)) for one in found)
        assert all(group in judge.NUMBER for one in found for group in one)
    generator = np.random.default_rng(0)
    gains = [generator.normal(size=(4, 63, 6)) for _ in range(3)]
    said = [generator.normal(size=(4, 63, 6)) for _ in range(3)]
    score = judge.scored(said, gains, judge.folds(4)["one seed"])
    draw, seed = 1, 2
    real = gains[draw][[0, 1, 3]].mean(0)
    kept = [(k, t) for k, g in enumerate(truth.GROUPS) if len(g) > 1 for t in g]

    def worth(values, labels, alone):
        total = 0.0
        for label in set(labels):
            group = tuple(t for t in range(6) if labels[t] == label)
            if len(group) > 1 or alone:
                total += sum(values[truth.GROUPS.index(group), t] for t in group)
        return total / 6

    labels = list(itertools.product(range(3), repeat=6))
    best = max(worth(real, x, True) for x in labels)
    chosen = max(labels, key=lambda x: worth(said[draw][seed], x, False))
    assert score.regret[3][draw, seed] == pytest.approx(best - worth(real, chosen, True))
    x, y = ([v[k] for k in kept] for v in (said[draw][seed], real))
    expected = pearsonr(rankdata(x), rankdata(y))[0]
    assert score.rank[draw, seed] == pytest.approx(expected)


def test_a_choice_is_compared_with_groups_as_large_by_brute_force():
    """Which tasks go together, and not how many: random tasks in groups of the same sizes."""
    generator = np.random.default_rng(3)
    gains, said = ([x] for x in generator.normal(size=(2, 2, 63, 6)))
    real, forecast = gains[0][1], said[0][0]  # seed 0 foretells seed 1
    every = judge.partitions(range(6), 3)

    def worth(values, one, alone):
        return sum(values[judge.NUMBER[g], t] for g in one for t in g if alone or len(g) > 1) / 6

    chosen = max(every, key=lambda one: worth(forecast, one, False))
    sizes = sorted(map(len, chosen))
    others = [worth(real, one, True) for one in every if sorted(map(len, one)) == sizes]
    found = judge.above_random(said, gains, judge.folds(2)["one seed"], 3)
    assert len(others) > 1
    assert found[0, 0] == pytest.approx(np.mean(others) - worth(real, chosen, True))
    assert judge.above_random(gains, gains, [([0], [0])], 3) < 0  # the truth itself


def test_correlations_are_those_of_the_entries_kept():
    generator = np.random.default_rng(4)
    gains, said = ([x] for x in generator.normal(size=(2, 2, 63, 6)))
    for least, most, count in ((2, 2, 30), (3, 6, 156), (2, 6, 186)):
        kept = judge.shown(least, most)
        entries = [(k, t) for k, g in enumerate(truth.GROUPS) for t in g if least <= len(g) <= most]
        assert len(entries) == count
        x, y = ([v[k] for k in entries] for v in (said[0][1], gains[0][0]))
        expected = pearsonr(rankdata(x), rankdata(y))[0]
        found = judge.ranks(said, gains, judge.folds(2)["one seed"], kept)
        assert found[0, 1] == pytest.approx(expected)


def test_a_perfect_forecast_is_seen_and_a_constant_one_says_nothing():
    generator = np.random.default_rng(1)
    one = generator.normal(size=(3, 1, 63, 6)).repeat(4, 1)
    gains = list(one)
    gains = [np.where(np.arange(63)[:, None] < 6, 0.0, g) for g in gains]  # nothing gained alone
    parts = judge.folds(4)["half of the seeds"]
    perfect = judge.scored([2 * g + 5 * (g != 0) for g in gains], gains, parts)
    assert np.allclose(perfect.r2, 1)
    assert np.allclose(perfect.rank, 1)
    constant = judge.scored([np.zeros_like(g) for g in gains], gains, parts)
    assert (constant.rank == 0).all()
    assert np.allclose(constant.r2, 0)
    exact = judge.scored(gains, gains, parts)
    assert all((exact.regret[most] == 0).all() for most in judge.BUDGETS)
    for most, even in ((2, [3, 3]), (3, [2, 2, 2])):
        found = judge.unmeasured(gains, parts, most)
        every = judge.partitions(range(6), most)
        worth = judge.means_of(gains[0][0], most)
        some = [w for w, one in zip(worth, every, strict=True) if sorted(map(len, one)) == even]
        assert found[judge.EVEN][0] == pytest.approx(worth.max() - np.mean(some))
        assert found["at random"][0] == pytest.approx(worth.max() - worth.mean())
        together = gains[0][0, -1].mean()
        assert found["all together"][0] == pytest.approx(worth.max() - together)


def test_words_say_who_helps():
    generator = np.random.default_rng(2)
    gains = [g.repeat(4, 0) for g in generator.normal(size=(4, 1, 63, 6))]
    for g in gains:
        g[:, :6] = 0
    names = {name: [-g for g in gains] for name in forecasts.NAMES} | {"pairs": gains}
    found = {"planted": report.family(gains, names)}
    assert "better: pairs" in report.words(found)
    assert "worse: TAG" in report.words(found)


def test_the_command_keeps_all_numbers_and_what_they_rest_on(tmp_path, monkeypatch):
    rests = []

    def kept(folder, sources, settings):
        rests.append(({Path(path.parent.name, path.name) for path in sources}, settings))
        return Store(folder, sources, settings)

    monkeypatch.setattr(command, "Store", kept)
    assert command.main(["--quick", "--steps", "2", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert len(numbers["groups"]) == 63
    assert numbers["costs"]["pairs"] == 21
    # 6 gradients of 3 batches, and 126 forward passes of 4 batches at a third, in 300 steps
    assert forecasts.costs(300)["Grad-TAG"] == pytest.approx(1 + (18 + 126 * 4 / 3) / 300)
    assert {len(draws) for draws in numbers["draws"].values()} == {2}
    assert (tmp_path / "grouping.png").stat().st_size > 10_000
    ((sources, settings),) = rests
    every = {"problems/digits.py", "grouping/data.py", "grouping/truth.py"}
    assert {*map(Path, every)} <= sources
    assert not {Path("grouping/judge.py"), Path("grouping/report.py")} & sources
    assert settings == {"device": "cpu"}
