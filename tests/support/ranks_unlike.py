"""Ranks that do not do the same, for every process of `test_distributed.py`."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mtlfunc as mf
from tests.support.problems import BATCH, PARAMS, TrunkAndHeads
from tests.support.ranks import TRUNK, alone, bits, fails, labels_in, losses_of, means, same, world


def losses(net: nn.Module, batch: Any = BATCH) -> list[Tensor]:
    return list(means(net(batch[0]), batch[1]))


def balancer(rule: mf.Rule | None = None, net: Any = None, **options: Any) -> Any:
    net = TrunkAndHeads(0) if net is None else net
    return net, mf.Balancer(net, rule or mf.mgda(), TRUNK, group=world(), **options)


def grads(net: nn.Module) -> list[Tensor | None]:
    return [leaf.grad for leaf in net.parameters()]


class Held:
    """A rule whose option is an attribute of an object."""

    def __init__(self, c: float) -> None:
        self.c = c

    def weigh(self, gramian: Tensor) -> Tensor:
        return torch.full_like(gramian[0], self.c)


HELD = {"c": 0.4}


def unlike_rules(rank: int, size: int) -> None:
    """Rules of one name that answer differently: an error on every rank, and nothing is written."""

    def with_default(gramian: Tensor, c: float = 0.4 + rank) -> Tensor:
        return torch.full_like(gramian[0], c)

    def with_global(gramian: Tensor) -> Tensor:
        return torch.full_like(gramian[0], HELD["c"])

    def with_code(gramian: Tensor) -> Tensor:
        return gramian[0] if rank else gramian[1]

    def with_call(gramian: Tensor) -> Tensor:
        return torch.full_like(gramian[0], float(os.environ.get("MTLFUNC_NO_SUCH", rank)))

    HELD["c"] = 0.4 + rank
    rules = {
        "method": mf.stateless(Held(0.4 + rank).weigh),
        "default": mf.stateless(with_default),
        "global": mf.stateless(with_global),
        "code": mf.stateless(with_code),
        "call": mf.stateless(with_call),
        "partial": mf.stateless(partial(Held.weigh, Held(0.4 + rank))),
    }
    for name, rule in rules.items():
        net, step = balancer(rule)
        for call in (step.backward, step.weigh, step.measure):
            fails(lambda call=call, net=net: call(losses(net)), "differ in", "on rank")
        assert grads(net) == [None] * len(PARAMS), name
    net, step = balancer(reduction="sum" if rank else "mean")
    fails(lambda: step.backward(losses(net)), "reduction", "sum on rank 1")
    reduction = "sum" if rank else "mean"
    pure = mf.balance(losses_of, mf.mean(), mf.jacobian(TRUNK, group=world()), reduction=reduction)
    fails(lambda: pure.init(PARAMS, BATCH), "reduction")
    assert all(x is None for x in grads(net))


def unlike_states(rank: int, size: int) -> None:
    """A state that the ranks load, and that is another on one; then parameters that differ."""
    net, step = balancer(mf.gradnorm(1.5))
    step.backward(losses(net))
    saved = step.state_dict()
    step.load_state_dict(saved)
    step.backward(losses(net))
    other = {
        **saved,
        "state": [
            (name, x * (1 + rank * torch.arange(len(x))) if x.ndim else x)
            for name, x in saved["state"]
        ],
    }
    step.load_state_dict(other)
    fails(lambda: step.backward(losses(net)), "differ in the state of load_state_dict")
    step.load_state_dict(saved)
    step.backward(losses(net))  # once all have it, it goes on
    torch.optim.SGD(net.parameters(), lr=0.1 * (1 + rank)).step()
    step.load_state_dict(saved)
    fails(lambda: step.backward(losses(net)), "the values of params['trunk.0.weight']")


def unlike_labels(rank: int, size: int) -> None:
    """At the first step: other tasks, labels, options of a step; then they go on."""
    net, step = balancer()
    counts = labels_in(BATCH)
    fails(lambda: step.backward(losses(net)[: 3 - rank]), "the number of tasks")
    fails(lambda: step.backward(losses(net), present=counts if rank else None), "present=")
    net.trunk[0].weight.requires_grad_(rank == 0)
    fails(lambda: step.backward(losses(net)), "names of params")
    net.trunk[0].weight.requires_grad_(True)
    for given in (counts, counts, counts.double()):
        step.backward(losses(net), present=given)
    nan = counts.double()
    fails(lambda: step.backward(losses(net), present=nan / 0 * 0 if rank else nan), "counts")
    assert all(x is not None and x.isfinite().all() for x in grads(net))


def idle(rank: int, size: int) -> None:
    """A rank without labels of any task, whose losses are constants: one process on the others'."""
    cuts = {2: [5], 3: [3, 6], 4: [2, 4, 6]}[size]
    mine = [x.tensor_split(cuts)[rank].clone() for x in BATCH]
    last = rank == size - 1
    whole = tuple(x[: cuts[-1]] for x in BATCH)

    def loop(net: nn.Module, group: Any, batch: Any, constant: bool) -> list[Any]:
        step = mf.Balancer(net, mf.upgrad(), TRUNK, group=group)
        optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
        for _ in range(3):
            out = losses(net, batch)
            out = [x.new_zeros(()) for x in out] if constant else out
            counts = 0 * labels_in(batch) if constant else labels_in(batch)
            info = step.backward(out, present=counts)
            optimizer.step()
            optimizer.zero_grad()
            seen += [info.losses, info.gramian, info.weights]
        return [*seen, *(leaf.detach() for leaf in net.parameters())]

    wanted = loop(TrunkAndHeads(0), alone(), whole, False)
    for wrap in (lambda net: net, DistributedDataParallel):
        found = loop(wrap(TrunkAndHeads(0)), world(), mine, last)
        same(found, wanted, torch.float64, "idle")
        bits(found)


def wrappers(rank: int, size: int) -> None:
    """DistributedDataParallel over another group; `join`."""
    ddp = DistributedDataParallel(TrunkAndHeads(0), process_group=alone())
    fails(lambda: mf.Balancer(ddp, mf.mgda(), TRUNK, group=world()), "averages over")
    ddp = DistributedDataParallel(TrunkAndHeads(0))
    _, step = balancer(net=ddp)
    with pytest.raises(NotImplementedError, match=r"\.join"), ddp.join():
        step.backward(losses(ddp))


def some_ranks(rank: int, size: int) -> None:
    """A group of some of the ranks: the others have no part in its steps."""
    some = dist.new_group([0, 1])
    if rank < 2:
        step = mf.balance(losses_of, mf.mgda(), mf.jacobian(TRUNK, group=some))
        step.init(PARAMS, BATCH)


CHECKS = {
    2: [unlike_rules, unlike_states, unlike_labels, idle, wrappers],
    3: [unlike_labels, idle],
    4: [unlike_states, idle, some_ranks],
}
