"""The functions of docs/how-to/pure-recipes.md against loops of what earlier versions had."""

# pyright: reportArgumentType=false

from typing import Any

import pytest
import torch

import mtlfunc as mf
from docs import outputs
from tests.support import ROOT
from tests.support.families import jacobian
from tests.support.rules import losses_of

F64 = torch.float64


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page leaves after its code has run."""
    path = ROOT / "docs" / "how-to" / "pure-recipes.md"
    *_, last = outputs.run(path.read_text(encoding="utf-8"), path.name)
    return last.scope


def test_log_space_is_a_step_on_the_logarithm(page):
    params = {"x": torch.tensor([1e-3, 2.0], dtype=F64)}
    gradient = {"x": torch.tensor([5.0, -1.0], dtype=F64)}
    optimizer = page["log_space"](mf.sgd(0.1))
    moved, _ = optimizer.update(gradient, optimizer.init(params), params)
    expected = torch.exp(params["x"].log() - 0.1 * params["x"] * gradient["x"])
    torch.testing.assert_close(moved["x"], expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_trimmed_mean_is_the_mean_of_sorted_entries(page, k):
    J = jacobian("gaussian", 5)
    J[1, 1] = J[2, 1]  # a tie
    found = page["trimmed_mean"](k)(mf.random.key(0), {"x": J})["x"].mean(0)
    torch.testing.assert_close(found, J.sort(0).values[k : 5 - k].mean(0), rtol=1e-13, atol=1e-15)
    peer = pytest.importorskip("torchjd.aggregation").TrimmedMean(k)
    torch.testing.assert_close(found, peer(J), rtol=1e-13, atol=1e-15)


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
