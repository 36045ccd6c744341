"""experiments/grouping: affinities, groups, the truth of a group, the judge and the command."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, rankdata
from torch.func import vmap

from common.grouping import data, forecasts, judge, truth
from common.grouping.affinity import affinity, groups
from common.problems.digits import digits
from tests.support.networks import gradient_rows, network
from tests.support.oracles import near


def literal_affinity(losses, params, batch, lr, names):
    """Move the shared parameters by one task's gradient, look at every loss."""
    before = losses(params, batch)
    rows = gradient_rows(losses, params, batch, names)
    after = [
        losses(params | {name: params[name] - lr * rows[name][i] for name in names}, batch)
        for i in range(len(before))
    ]
    return torch.stack([1 - value / before for value in after])


def test_affinity_equals_loop():
    losses, params, batch = network()
    trunk = [name for name in params if name.startswith("trunk")]
    found = affinity(losses, params, batch, lr=0.1, shared="trunk.*")
    known = literal_affinity(losses, params, batch, 0.1, trunk)
    near(found, known, 1e-9, 1e-12)
    everything = affinity(losses, params, batch, lr=0.1)
    known = literal_affinity(losses, params, batch, 0.1, list(params))
    near(everything, known, 1e-9, 1e-12)
    assert float((found - everything).abs().max()) > 1e-3  # the heads stayed


def searched(Z, count, overlap, alone):
    """The highest total of at most `count` groups: each task takes its best, as officially."""
    tasks = len(Z)
    every = [g for size in range(1, tasks + 1) for g in itertools.combinations(range(tasks), size)]
    best = -np.inf
    for number in range(1, count + 1):
        for some in itertools.combinations(every, number):
            together = sorted(t for g in some for t in g)
            if together == list(range(tasks)) or (overlap and set(together) == set(range(tasks))):
                total = sum(max(onto(Z, g, t, alone) for g in some if t in g) for t in range(tasks))
                best = max(best, total)
    return best


def onto(Z, group, task, alone):
    others = [i for i in group if i != task]
    return float(np.mean([Z[i, task] for i in others])) if others else alone


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("tasks", "count"),
    [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1), (4, 2), (4, 3), (4, 4), (5, 2), (5, 3)],
)
def test_groups_equal_exhaustive_search(tasks, count, overlap):
    for seed, alone in ((0, 0.0), (1, 0.3), (2, -1e6)):
        Z = torch.from_numpy(np.random.default_rng(seed).standard_normal((tasks, tasks)))
        found = groups(Z, count, overlap=overlap, alone=alone)
        assert found.total == pytest.approx(searched(Z.numpy(), count, overlap, alone), rel=1e-12)
        # every task is served once, in a group that trains it, and they have the total claimed
        assert 1 <= len(found.groups) <= count
        assert sorted(t for s in found.serves for t in s) == list(range(tasks))
        pairs = [(g, t) for g, s in zip(found.groups, found.serves, strict=True) for t in s]
        assert all(t in g for g, t in pairs)
        named = sum(onto(Z.numpy(), g, t, alone) for g, t in pairs)
        assert found.total == pytest.approx(named, rel=1e-12)
        if not overlap:
            assert found.groups == found.serves


SEEDS = (3, 4)


def quiet(_: int) -> None: ...


def drawn(family: str, seeds: tuple[int, ...] = SEEDS) -> data.Data:
    source, draw = digits(), torch.tensor(7)
    return vmap(lambda seed: data.questions(family, source, draw, seed))(torch.tensor(seeds))


def of_seed(tree: tuple, at: int) -> data.Data:
    return data.Data(*(data.Part(*(leaf[at] for leaf in part)) for part in tree))


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
    near(found[at, number], torch.tensor(expected), 1e-3, 1e-4, equal_nan=True)


def test_affinities_are_their_formulas():
    many = drawn("planted")
    one, key = of_seed(many, 0), torch.tensor(SEEDS[0])
    params = {name: leaf[0] for name, leaf in truth.networks(many, SEEDS).items()}
    batch = truth.batch_of(one.train, key, 0)
    shared = [name for name in params if name.startswith("trunk.")]

    def gradients(part: data.Part) -> torch.Tensor:
        rows = gradient_rows(truth.losses, params, part, shared)
        return torch.cat([rows[name].flatten(1) for name in shared], 1)

    rows, values = gradients(batch), truth.losses(params, batch)
    gramian = rows @ rows.mT
    near(forecasts.etap(params, batch), gramian / values)
    cosines = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).mT
    near(forecasts.cosine(params, batch), cosines)
    # TAG's for a short step is ETAP's times the step
    wide = lambda p, b: truth.losses(p, b).double()  # noqa: E731
    short = affinity(wide, params, batch, lr=1e-3, shared="trunk.*")
    near(short.float() / 1e-3, gramian / values, 0.02, 2e-3)
    # products of different samples, by a loop over pairs
    parts = (data.Part(x[None], y[None]) for x, y in zip(*batch, strict=True))
    each = torch.stack([gradients(part) for part in parts])
    total, alone, count = each.sum(0), torch.einsum("std,sud->tu", each, each), len(each)
    expected = (total @ total.mT - alone) / (count * (count - 1))
    near(forecasts.products(params, batch), expected, 1e-3, 1e-5)


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
    assert score.rank[draw, seed] == pytest.approx(pearsonr(rankdata(x), rankdata(y))[0])
