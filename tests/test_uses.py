"""Programs of every operation that reads a leaf, alone and at random: the layerwise engine's numbers
are those of a literal loop.
"""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from tests.support.oracles import literal

F64 = torch.float64


def draws(seed):
    """Numbers of a seed of its own: `draw(*shape)`."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=F64, generator=generator)


def close(got, expected, relative=1e-10):
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) <= relative


draw = draws(0)
N, A, O = 4, 40, 30  # many inputs, so that pairs of positions are cheaper than rows


def _both_ways(p, x):
    hidden = torch.addmm(p["b"], x, p["w"]).tanh()
    return torch.addmm(p["b"], hidden, p["w"].T).tanh().square().sum(1)


BIASES = {
    "products with a factor": (
        lambda p, x: torch.addmm(p["b"], x, p["w"], alpha=2).square().sum(1),
        {"b": draw(O), "w": draw(A, O)},
    ),
    "bias with a factor": (
        lambda p, x: torch.addmm(p["b"], x, p["w"], beta=2).square().sum(1),
        {"b": draw(O), "w": draw(A, O)},
    ),
    "one bias of several products": (
        lambda p, x: torch.baddbmm(p["b"], x.expand(3, -1, -1), p["w"]).square().sum((0, 2)),
        {"b": draw(O), "w": draw(3, A, O)},
    ),
    "a weight and its transpose": (_both_ways, {"b": draw(A), "w": 0.1 * draw(A, A)}),
    "a bias by position": (
        lambda p, x: torch.addmm(p["b"], x, p["w"]).view(2, 2, O).square().sum((1, 2)),
        {"b": draw(N, O), "w": draw(A, O)},
    ),
    "a number that no axis of a layer counts": (
        lambda p, x: (F.linear(x, p["w"]) * p["b"]).square().sum(1),
        {"b": draw(), "w": draw(O, A)},
    ),
    "a number in a mean": (
        lambda p, x: F.linear(x, p["w"]).square().sum(1) * p["b"].exp(),
        {"b": draw(), "w": draw(O, A)},
    ),
    "a mask of bytes": (
        lambda p, x: (x @ p["w"])[:, :5] @ p["b"][torch.ones(5, dtype=torch.uint8)].sum(1),
        {"b": draw(5, 3), "w": draw(A, O)},
    ),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", BIASES)
def test_a_leaf_and_the_products_that_it_is_added_to(name):
    losses, params = BIASES[name]
    rows = literal(losses, params, X)
    close(mf.sample_gramian(losses, params, X, engine="layerwise")[1], rows @ rows.mT)
    close(mf.sample_norms(losses, params, X, engine="layerwise")[1], rows.norm(dim=1))
    close(mf.task_gramian(losses, params, X, engine="layerwise")[1], rows @ rows.mT)


X = draw(N, A)


class Trunk(nn.Module):
    """Two layers, of which the user calls each."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(A, 5, dtype=F64), nn.Linear(5, 2, dtype=F64)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_gradient_retained_before_the_block_is_the_losses_own(steps, monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    net = Trunk()
    balancer = mf.Balancer(net, mf.mgda())
    for _ in range(steps):
        hidden = net.first(X).tanh()
        hidden.retain_grad()
        with balancer:
            losses = net.last(hidden).square().mean(0)
        # differentiated one task at a time, the last of them last
        alone = [torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in losses]
        hidden.grad = None
        balancer.backward(losses)
        close(hidden.grad, sum(alone))


def _tripled(inputs, outputs):
    return tuple(x if x is None else 3 * x for x in inputs)


def test_a_hook_of_another_thread_is_seen(monkeypatch):
    """It changes what a layer hands on, which its deltas do not show."""
    found = []
    for apart in (False, True):
        net = Trunk()
        balancer = mf.Balancer(net, mf.mgda(), mf.jacobian("*", engine="layerwise"))
        hidden = net.first(X)
        hidden.grad_fn.register_hook(_tripled)
        losses = tuple(net.last(hidden.tanh()).square().mean(0))

        def backward(balancer=balancer, losses=losses):
            found.append(balancer.backward(losses).gramian)

        if apart:
            thread = threading.Thread(target=backward)
            thread.start()
            thread.join()
        else:
            backward()
    close(found[1], found[0])
