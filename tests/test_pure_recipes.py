"""The functions of docs/how-to/pure-recipes.md against loops."""

# pyright: reportArgumentType=false

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from docs import outputs
from tests.support import ROOT
from tests.support.families import jacobian
from tests.support.loops import trained
from tests.support.problems import TrunkAndHeads
from tests.support.rules import F64, losses_of


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page leaves after its code has run."""
    path = ROOT / "docs" / "how-to" / "pure-recipes.md"
    *_, last = outputs.run(path.read_text(encoding="utf-8"), path.name)
    return last.scope


@pytest.mark.parametrize("k", [0, 1, 2])
def test_trimmed_mean_is_the_mean_of_sorted_entries(page, k):
    J = jacobian("gaussian", 5)
    J[1, 1] = J[2, 1]  # a tie
    found = page["trimmed_mean"](k)(mf.random.key(0), {"x": J})["x"].mean(0)
    torch.testing.assert_close(found, J.sort(0).values[k : 5 - k].mean(0), rtol=1e-13, atol=1e-15)
    peer = pytest.importorskip("torchjd.aggregation").TrimmedMean(k)
    torch.testing.assert_close(found, peer(J), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("by_sample", [False, True])
def test_fractions_are_those_of_encodecs_balancer(page, by_sample):
    """Norms at the network's output, of the batch or as the mean over samples, averaged with β."""
    shares, past, rule = torch.tensor([3.0, 1.0, 2.0], dtype=F64), [], page["fractions"]
    state = rule(shares, 0.9).init(losses_of(3), mf.random.key(0))
    for step in range(4):
        rows = jacobian("gaussian", 3, step, width=12).reshape(3, 4, 3) * (1 + step)
        norms = rows.norm(dim=2).mean(1) if by_sample else rows.norm(dim=(1, 2))
        past.append(norms)
        average = sum(0.9**k * x for k, x in enumerate(reversed(past)))
        average = average / sum(0.9**k for k in range(len(past)))
        seen = mf.Geometry(losses_of(3), norms.square().diag(), shares / 6, shares > 0, {})
        weights, state = rule(shares, 0.9).update(seen, state)
        torch.testing.assert_close(weights, shares / 6 / average, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("make", [mf.mgda, mf.pcgrad, lambda: mf.gradnorm(1.5)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_weights_are_held_between_multiples_of_k(page, make, k):
    """At steps 0, k, 2k … what the rule gives that sees these steps alone."""
    held, alone = page["update_every"](make(), k), make()
    state, kept = held.init(losses_of(4), mf.random.key(1)), None
    own = alone.init(losses_of(4), mf.random.key(1))
    for step in range(7):
        rows = jacobian("gaussian", 4, step)
        present = torch.ones(4, dtype=torch.bool)
        seen = mf.Geometry(losses_of(4, step), rows @ rows.mT, present / 4, present, {})
        weights, state = held.update(seen, state)
        if step % k == 0:
            kept, own = alone.update(seen, own)
        assert torch.equal(weights, kept)


@pytest.mark.parametrize("how", ["alone", "vmap"])
def test_heads_of_absent_tasks_rest_as_in_a_loop(how):
    """Adam's moments and steps, too: a stock loop's optimizer gets None for them."""
    path = ROOT / "docs" / "how-to" / "partial-labels.md"
    *_, last = outputs.run(path.read_text(encoding="utf-8"), path.name)
    net = TrunkAndHeads(0, 2)
    seen = [[True, True], [True, False], [True, False], [False, True], [False, False], [True, True]]
    xs = torch.randn(2, len(seen), 5, 4, dtype=F64)

    def squares(outputs):
        return torch.stack(outputs).square().mean((1, 2))

    def losses_fn(params, batch):
        return squares(torch.func.functional_call(net, params, (batch[0],)))

    probe = mf.jacobian("trunk.*", present=lambda batch: batch[1])
    step = mf.descend(losses_fn, mf.mgda(), probe, last.scope["resting"](mf.adam(0.1)))

    def train(xs):
        batches = list(zip(xs, torch.tensor(seen), strict=True))
        return trained(step, batches, mf.parameters(net)).params

    found = vmap(train)(xs) if how == "vmap" else {k: p[None] for k, p in train(xs[0]).items()}
    for i in range(len(next(iter(found.values())))):
        plain = deepcopy(net)
        optimizer = torch.optim.Adam(plain.parameters(), 0.1)
        balancer = mf.Balancer(plain, mf.mgda(), "trunk.*")
        for x, present in zip(xs[i], seen, strict=True):
            optimizer.zero_grad()
            if any(present):
                balancer.backward(squares(plain(x)), present=torch.tensor(present))
            optimizer.step()
        for name, leaf in plain.named_parameters():
            torch.testing.assert_close(found[name][i], leaf.detach(), rtol=1e-9, atol=1e-12)
