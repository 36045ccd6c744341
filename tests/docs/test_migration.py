"""The rows of docs/from/torchjd.md and docs/from/libmtl.md, as on the pages, both sides run."""

import importlib
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from tests.support.families import jacobian
from tests.support.problems import F64, TrunkAndHeads

A = pytest.importorskip("torchjd.aggregation")
S = pytest.importorskip("torchjd.scalarization")
peers = importlib.import_module("docs.peers")


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize(("left", "right", "which"), [*peers.pairs()])
def test_a_row_of_rules(left, right, which):
    if left.startswith("NashMTL"):
        pytest.importorskip("ecos")
    if "random numbers" in right:  # the means of 100; a factor T would be 2
        draws = [peers.both(left, right, which, 0, key) for key in range(100)]
        found, theirs = (torch.stack([x[0] for x in y]).mean(0) for y in zip(*draws, strict=True))
        assert (found - theirs).norm() <= 0.25 * theirs.norm()
        return
    gap = peers.gaps(left, right, which)
    if "first step" in right:
        assert gap[:, 0].amax() <= 1e-6
        assert gap[:, 1:].amax() >= 1e-3
    elif "not a replacement" in right:
        assert gap.amax() >= 0.1
    elif "converges" in right or "cases" in right:
        assert (gap <= 1e-6).double().mean() >= 0.7
    else:
        near = re.search(r", to ([\d.e-]+\d)", right)
        assert gap.amax() <= (float(near[1]) if near else 1e-6)


def executed(cell: str) -> Tensor:
    """The gradients that the calls of a cell leave, or what they answer, in a row per task."""
    torch.manual_seed(0)
    net, x = TrunkAndHeads(0), torch.randn(8, 4, dtype=F64)
    value: Any = None
    autojac, autogram = (importlib.import_module(f"torchjd.{x}") for x in ("autojac", "autogram"))
    if "engine" in cell or "part" in cell:  # which hooks what it is given
        modules = [net.trunk] if "part" in cell else [net.trunk, *net.heads]
        engine = part = autogram.Engine(*modules, batch_dim=None if "part" in cell else 0)
    features = net.trunk(x)
    squares = [head(features).square() for head in net.heads]
    losses, each = [y.mean() for y in squares], torch.cat(squares, 1).mean(1)
    losses = losses if "mtl_backward" in cell else torch.stack(losses)
    scope = peers.SCOPE | vars(autojac) | vars(importlib.import_module("torchjd.linalg")) | locals()
    scope |= {"matrix": (matrix := peers.drawn(0)[0][0]), "gramian": matrix @ matrix.mT, "batch": x}
    scope |= {"leaves": [*net.parameters()], "shared": [*net.trunk.parameters()]}
    scope |= {"scalarizer": S.GeometricMean(), "aggregator": A.AlignedMTL()}
    scope |= {"params": mf.parameters(net), "each_fn": lambda p, b: squared(net, p, b).mean(1)}
    scope |= {"losses_fn": lambda p, b: squared(net, p, b).mean(0)}
    for span in (x for x in peers.spans(cell) if "(" in x):
        value = eval(span, scope)
    if written := [x.grad.flatten() for x in net.parameters() if x.grad is not None]:
        return torch.cat(written)
    value = [*value.values()] if isinstance(value, dict) else value
    return value if isinstance(value, Tensor) else torch.cat([x.flatten(1) for x in value], 1)


def squared(net, params, batch):
    return torch.stack(functional_call(net, params, (batch,)), 1).square().mean(2)


@pytest.mark.filterwarnings("ignore:shared. only one task")
@pytest.mark.parametrize("row", peers.table("torchjd.md", "Calls"), ids=lambda row: row[0])
def test_a_row_of_calls(row):
    left, right = row
    if "mf." not in right:
        assert "](../how-to/recipes.md#" in right, "a row without a test"
    else:
        torch.testing.assert_close(executed(right), executed(left), rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_what_is_different_from_torchjd():
    wrong, failed, g = [0, 0], [], torch.tensor([1.0, 2.0, 2.0], dtype=F64)
    for seed in range(500):
        J = jacobian("gaussian", 7, seed, width=5)
        scores = torch.cdist(J, J).square().sort(1).values[:, 1:4].sum(1)  # of 7 - 2 - 2
        found = mf.weights(mf.krum(2), J @ J.mT), A.KrumWeighting(2)(J @ J.mT)
        wrong = [n + int(x.argmax() != scores.argmin()) for n, x in zip(wrong, found, strict=True)]
    assert wrong[0] == 0
    assert 15 <= wrong[1] <= 60
    torch.testing.assert_close(A.IMTLG()(torch.stack([g, -2 * g])), -5 * g)
    assert mf.aggregate(mf.imtl_g(), torch.stack([g, -2 * g])).norm() <= 1e-9
    J = jacobian("gaussian", 3)
    for short in (J * torch.tensor([[0.0], [1.0], [1.0]]), 1e-6 * J):
        assert A.CAGrad(0.4)(short).norm() == 0
        assert mf.aggregate(mf.cagrad(0.4), short).norm() > 0
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(8, 6)
    net[2].weight = net[0].weight
    y = net(x).square().mean(1)
    grads = [torch.autograd.grad(z, [*net.parameters()], retain_graph=True) for z in y]
    rows = torch.stack([torch.cat([x.flatten() for x in row]) for row in grads])
    engine = importlib.import_module("torchjd.autogram").Engine(net, batch_dim=0)
    off = engine.compute_gramian(net(x).square().mean(1)) - rows @ rows.mT
    assert 0.1 <= off.norm() / (rows @ rows.mT).norm() <= 0.25
    pytest.importorskip("ecos")
    for seed in range(100):
        J = jacobian("gaussian", 3, seed, width=6)
        d = A.NashMTL(3)(J)
        if (d - mf.aggregate(mf.nash_mtl(max_norm=1.0), J)).norm() > 1e-2:
            failed.append((J @ d).amin() < 0)
    assert 1 <= len(failed) <= 20
    assert all(failed)
