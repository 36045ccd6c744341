"""Errors of a balancer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

import mtlfunc as mf


@contextmanager
def untouched(net: nn.Module, balancer: mf.Balancer) -> Iterator[None]:
    """What raises leaves `.grad` and the rule's state as they were."""
    state, held = balancer.state_dict(), [p.grad for p in net.parameters()]
    grads = [None if grad is None else grad.clone() for grad in held]
    yield
    for p, grad, one in zip(net.parameters(), grads, held, strict=True):
        assert p.grad is one
        assert one is None or grad is None or torch.equal(one, grad)
    after = balancer.state_dict()
    assert {**after, "state": 0} == {**state, "state": 0}
    pairs = zip(after["state"], state["state"], strict=True)
    assert all(name == k and torch.equal(leaf, x) for (name, leaf), (k, x) in pairs)
