"""Affinities and the groups found from them, against loops and exhaustive search."""

import itertools

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf
from common.grouping.affinity import affinity, groups
from tests.support.networks import gradient_rows, network

# --- affinity -----------------------------------------------------------------------------------


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
    torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-12)
    everything = affinity(losses, params, batch, lr=0.1)
    known = literal_affinity(losses, params, batch, 0.1, list(params))
    torch.testing.assert_close(everything, known, rtol=1e-9, atol=1e-12)
    assert float((found - everything).abs().max()) > 1e-3  # the heads stayed


def test_affinity_of_quadratics_closed_form():
    """L_j = ½‖θ - c_j‖²: θ - η(θ - c_i) - c_j has half square length (1-η)²L_j +
    η(1-η)(θ-c_j)·(c_i-c_j) + η²L_j(c_i).
    """
    centres = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3)))
    lr = 0.3

    def losses(params, batch):
        return 0.5 * (params["x"] - centres).square().sum(1)

    x = torch.zeros(3, dtype=torch.float64)
    away, between = x - centres, centres[:, None] - centres
    own = losses({"x": x}, ())
    after = (
        (1 - lr) ** 2 * own
        + lr * (1 - lr) * torch.einsum("jk,ijk->ij", away, between)
        + lr**2 * 0.5 * between.square().sum(2)
    )
    torch.testing.assert_close(
        affinity(losses, {"x": x}, (), lr=lr), 1 - after / own, rtol=1e-12, atol=1e-14
    )


def test_affinity_to_first_order_is_the_gramian():
    """Z_ij → η G_ij / L_j as η → 0: the sign of an affinity is that of the cosine."""
    losses, params, batch = network()
    values, G = mf.task_gramian(losses, params, batch, shared="trunk.*")
    found = affinity(losses, params, batch, lr=1e-6, shared="trunk.*")
    torch.testing.assert_close(found / 1e-6, G / values, rtol=1e-4, atol=1e-5)


def test_affinity_vmapped_and_differentiated():
    losses, params, batch = network()
    rates = torch.tensor([0.05, 0.1], dtype=torch.float64)
    together = vmap(lambda lr: affinity(losses, params, batch, lr=lr, shared="trunk.*"))(rates)
    alone = [affinity(losses, params, batch, lr=float(lr), shared="trunk.*") for lr in rates]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-12)
    h = 1e-5
    slope = grad(lambda lr: affinity(losses, params, batch, lr=lr, shared="trunk.*")[0, 1])(
        rates[0]
    )
    high, low = (
        affinity(losses, params, batch, lr=float(rates[0]) + s, shared="trunk.*")[0, 1]
        for s in (h, -h)
    )
    torch.testing.assert_close(slope, (high - low) / (2 * h), rtol=1e-6, atol=0)


# --- groups -------------------------------------------------------------------------------------


def searched(Z, count, overlap, alone):
    """The highest total over all sets of at most `count` groups: each task takes its best group, as
    in the official code.
    """
    tasks = len(Z)
    every = [g for size in range(1, tasks + 1) for g in itertools.combinations(range(tasks), size)]
    best = -np.inf
    for number in range(1, count + 1):
        for chosen in itertools.combinations(every, number):
            together = sorted(t for g in chosen for t in g)
            if together == list(range(tasks)) or (overlap and set(together) == set(range(tasks))):
                total = sum(
                    max(onto(Z, g, t, alone) for g in chosen if t in g) for t in range(tasks)
                )
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
        # What it names has the total that it claims, and every task is served once, in a group that
        # trains it.
        assert 1 <= len(found.groups) <= count
        assert sorted(t for s in found.serves for t in s) == list(range(tasks))
        assert all(set(s) <= set(g) for s, g in zip(found.serves, found.groups, strict=True))
        named = sum(
            onto(Z.numpy(), g, t, alone)
            for g, s in zip(found.groups, found.serves, strict=True)
            for t in s
        )
        assert found.total == pytest.approx(named, rel=1e-12)
        if not overlap:
            assert found.groups == found.serves


def test_groups_of_planted_blocks():
    """Twelve tasks in three blocks that help within and hurt across: found at three groups, and
    four gain nothing.
    """
    blocks = [(0, 4, 8, 9), (1, 2, 10), (3, 5, 6, 7, 11)]
    Z = torch.full((12, 12), -1.0)
    for block in blocks:
        Z[np.ix_(block, block)] = 1.0
    for count in (3, 4):
        found = groups(Z, count, overlap=False)
        # Of equal totals, fewer groups; a part of a block is as good as the whole, so larger
        # budgets gain nothing.
        assert found.groups == blocks
        assert found.total == 12
    assert groups(Z, 1).groups == [tuple(range(12))]
    assert groups(-torch.ones(3, 3), 3).groups == [(0,), (1,), (2,)]
    assert groups(-torch.ones(3, 3), 3, alone=-1e6).groups == [(0, 1, 2)]


def test_groups_help_without_being_served():
    """Task 1 helps 0 and 2, and is itself hurt by both but helped by 3: it is trained thrice, and
    served with 3 (overlap).
    """
    Z = torch.full((4, 4), -1.0)
    Z[1, 0] = Z[1, 2] = Z[3, 1] = Z[1, 3] = 1.0
    found = groups(Z, 3)
    assert found.total == 4
    assert found.serves == [(0,), (1, 3), (2,)]
    assert found.groups == [(0, 1), (1, 3), (1, 2)]
    assert groups(Z, 3, overlap=False).total == 2
