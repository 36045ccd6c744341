"""An optimizer inside the backward pass is refused; post-accumulate hooks equal a plain loop."""

import warnings
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlfunc as mf
from tests.support.networks import perceptron

KINDS: dict[str, Any] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.1}),
}
RULES: dict[str, Any] = {"mgda": (mf.mgda, "*"), "dwa": (lambda: mf.dwa(1), None)}
X = mf.random.normal(mf.random.key(0), (5, 3), torch.float64)


def losses_of(net: nn.Module) -> list[Tensor]:
    return list((net(X) - 1).square().mean(0).unbind())


def inner(net: nn.Module, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of torch.jit
        optim = import_module("torch.distributed.optim")
    optim._apply_optimizer_in_backward(KINDS[kind][0], net.parameters(), KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_it_is_refused_by_name(kind, rule):
    """When the balancer is made, and at a step if it came later; nothing is written."""
    make, shared = RULES[rule]
    net = perceptron(3, 4, 2)
    balancer = mf.Balancer(net, make(), shared)
    balancer.backward(losses_of(net))  # and it is seen at any later step
    net.zero_grad()
    inner(net[2], kind)  # pyright: ignore[reportIndexIssue]
    words = rf"2\.weight: {KINDS[kind][0].__name__} steps inside the backward pass .*\.step\(\)"
    with pytest.raises(NotImplementedError, match=words):
        balancer.backward(losses_of(net))
    with pytest.raises(NotImplementedError, match=words):
        mf.assign_gradients(net, mf.parameters(net))
    assert all(leaf.grad is None for leaf in net.parameters())
    with pytest.raises(NotImplementedError, match=words):
        mf.Balancer(net, make(), shared)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_cures_step_as_a_plain_loop(kind, rule):
    """`optimizer.step()` after `backward`, and a post-accumulate hook that steps."""
    make, shared = RULES[rule]
    both = perceptron(3, 4, 2), perceptron(3, 4, 2)
    loop = KINDS[kind][0](both[0].parameters(), **KINDS[kind][1])
    for leaf in both[1].parameters():
        own = KINDS[kind][0]([leaf], **KINDS[kind][1])

        def step(leaf: Tensor, own: torch.optim.Optimizer = own) -> None:
            own.step()
            own.zero_grad()

        leaf.register_post_accumulate_grad_hook(step)
    balancers = [mf.Balancer(net, make(), shared) for net in both]
    for _ in range(4):
        for net, balancer in zip(both, balancers, strict=True):
            balancer.backward(losses_of(net))
        loop.step()
        loop.zero_grad()
    for one, other, start in zip(
        *(net.parameters() for net in both), perceptron(3, 4, 2).parameters(), strict=True
    ):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)
