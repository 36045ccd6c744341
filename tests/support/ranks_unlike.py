"""Ranks that do not do the same, and settings of wrappers that change a gradient: what every
process of `test_distributed.py` runs, like `tests.support.ranks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mtlfunc as mf
from tests.support.problems import BATCH, PARAMS, TrunkAndHeads
from tests.support.ranks import (
    TRUNK,
    alone,
    bits,
    fails,
    labels_in,
    losses_of,
    means,
    same,
    world,
)


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
    """Rules of one name that answer differently, wherever their options are kept: an error on every
    rank at the first step at the latest, and nothing is written.
    """

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
        "cagrad": mf.cagrad(0.4 + rank / 100),
    }
    for name, rule in rules.items():
        net, step = balancer(rule)
        for call in (step.backward, step.weigh, step.measure):
            fails(lambda call=call, net=net: call(losses(net)), "differ in", "on rank")
        assert grads(net) == [None] * len(PARAMS), name
        pure = mf.balance(losses_of, rule, mf.jacobian(TRUNK, group=world()))
        own = mf.balance(losses_of, rule, mf.jacobian(TRUNK, group=alone()))
        state = own.init(PARAMS, BATCH)  # a checkpoint's, which nobody has compared
        fails(lambda pure=pure, state=state: pure.update(PARAMS, BATCH, state), "differ in")
    state: Any = None
    for reduction in ("mean", "sum"):
        mine = reduction if rank else "mean"
        net, step = balancer(reduction=mine)
        pure = mf.balance(losses_of, mf.mean(), mf.jacobian(TRUNK, group=world()), reduction=mine)
        if reduction == "mean":
            step.backward(losses(net))
            state = pure.init(PARAMS, BATCH)
            continue
        fails(lambda net=net, step=step: step.backward(losses(net)), "reduction", "sum on rank 1")
        fails(lambda pure=pure: pure.init(PARAMS, BATCH), "reduction")
        fails(lambda pure=pure, state=state: pure.update(PARAMS, BATCH, state), "reduction")
    assert all(x is None for x in grads(net))


def unlike_states(rank: int, size: int) -> None:
    """A state that one rank alone loads, before the first step and later; another's; networks that
    are not the same any more.
    """
    fails_as = "whether load_state_dict came before"
    net, step = balancer(mf.dwa(1))
    step.backward(losses(net))
    saved = step.state_dict()
    if rank == 1:
        step.load_state_dict(saved)
    fails(lambda: step.backward(losses(net)), fails_as, "False on rank 0, True on rank 1")
    step.load_state_dict(saved)
    step.backward(losses(net))  # once all have it, it goes on
    net, step = balancer(mf.dwa(1))
    if rank == 0:
        step.load_state_dict(saved)
    fails(lambda: step.backward(losses(net)), fails_as)
    net, step = balancer(mf.gradnorm(1.5))
    step.backward(losses(net))
    saved = step.state_dict()
    other = {
        **saved,
        "state": [
            (name, x * (1 + rank * torch.arange(len(x))) if x.ndim else x)
            for name, x in saved["state"]
        ],
    }
    step.load_state_dict(other)
    fails(lambda: step.backward(losses(net)), "differ in weights")
    # one rank's optimizer is another one
    net, step = balancer()
    step.backward(losses(net))
    torch.optim.SGD(net.parameters(), lr=0.1 * (1 + rank)).step()
    fails(lambda: step.backward(losses(net)), "the values of params['trunk.0.weight']")
    pure = mf.descend(losses_of, mf.mgda(), mf.jacobian(TRUNK, group=world()), mf.sgd(0.1 + rank))
    state, _ = pure.update(pure.init(PARAMS, BATCH), BATCH)
    fails(lambda: pure.update(state, BATCH), "the values of params['trunk.0.weight']")


def unlike_steps(rank: int, size: int) -> None:
    """One rank makes another step, or none: an error on every rank, and then they go on."""
    net, step = balancer()
    counts = labels_in(BATCH)

    def goes_on() -> None:
        step.backward(losses(net), present=counts)

    def both(call: Callable[[], Any], other: Callable[[], Any]) -> Callable[[], Any]:
        return call if rank == 1 else other

    def raises() -> Any:
        raise OSError("no such file")

    step.backward(losses(net))
    whole = partial(step.backward, present=counts)
    fails(both(lambda: whole(losses(net)[:2]), lambda: whole(losses(net))))
    goes_on()
    fails(lambda: step.backward(losses(net), present=counts[: 3 - rank]))
    goes_on()
    fails(lambda: step.backward(losses(net), present=counts if rank else None), "present=")
    goes_on()
    fails(both(lambda: step.weigh(losses(net)), lambda: step.backward(losses(net))), "the call")
    goes_on()
    fails(lambda: step.backward(losses(net), scale=2.0**rank), "scale")
    goes_on()
    detached = [x.detach() for x in losses(net)]
    fails(both(lambda: step.backward(detached), lambda: step.backward(losses(net))))
    goes_on()
    nan = counts.double()
    fails(lambda: step.backward(losses(net), present=nan / 0 * 0 if rank else nan), "counts")
    goes_on()
    net.trunk[0].weight.requires_grad_(rank == 0)
    fails(lambda: step.backward(losses(net)), "names of params")
    net.trunk[0].weight.requires_grad_(True)
    goes_on()
    assert all(x is not None and x.isfinite().all() for x in grads(net))

    broken = []

    def sometimes(params: Any, batch: Any) -> Any:
        return raises() if broken and rank == 1 else losses_of(params, batch)

    for probe in (
        mf.jacobian(TRUNK, group=world()),
        mf.losses_only(group=world()),
        mf.moving_average(TRUNK, group=world()),
        mf.jacobian(
            TRUNK, present=lambda batch: raises() if broken and rank else counts, group=world()
        ),
    ):
        pure = mf.balance(sometimes, mf.mean(), probe)
        broken.clear()
        state = pure.init(PARAMS, BATCH)
        _, state, _ = pure.update(PARAMS, BATCH, state)
        broken.append(1)
        fails(lambda pure=pure, state=state: pure.update(PARAMS, BATCH, state), "no such file")
        broken.clear()
        pure.update(PARAMS, BATCH, state)
    two = mf.balance(sometimes, mf.modo(0.5), mf.double_sampling(TRUNK, group=world()))
    state = two.init(PARAMS, (BATCH, BATCH))
    broken.append(1)
    fails(lambda: two.update(PARAMS, (BATCH, BATCH), state), "no such file")


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


def dies(rank: int, size: int) -> None:
    """A rank that is killed between two steps of a stock loop: the others end with an error."""
    ddp = DistributedDataParallel(TrunkAndHeads(0))
    _, step = balancer(net=ddp)
    step.backward(losses(ddp))
    dist.barrier()
    if rank == 1:
        os._exit(9)
    try:
        step.backward(losses(ddp))
    except RuntimeError as error:
        print(f"ended with {type(error).__name__}", flush=True)
        os._exit(0)


CHECKS = {
    2: [unlike_rules, unlike_states, unlike_steps, idle, wrappers],
    3: [unlike_steps, idle, dies],
    4: [unlike_states, idle, some_ranks],
}
