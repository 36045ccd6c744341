"""Losses as functions: what separate losses give, with one graph alive at a time."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import mtlfunc as mf
from common.memory import peak
from tests.support.balancers import untouched
from tests.support.every import every
from tests.support.functions import custom
from tests.support.oracles import near
from tests.support.registry import RULES

NAMES = ("depth", "normals", "edges")


def network(seed=0):
    """With dropout, whose numbers are drawn in the order of the calls, and batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)
        )
        heads = nn.ModuleDict({name: nn.Linear(4, 2) for name in NAMES})
        return nn.ModuleDict({"trunk": trunk, "heads": heads}).double()


def loader(seed=1):
    """Every task has inputs of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        yield {name: (draw(6, 5), draw(6, 2)) for name in NAMES}


def loss_of(net, batch, name):
    x, y = batch[name]
    return (net["heads"][name](net["trunk"](x)) - y).square().mean()


def without_label(make, name):
    return torch.zeros(()) if name == "normals" else make(name)


FORMS = {
    "dict": lambda make: {name: make(name) for name in NAMES},
    "list": lambda make: [make(name) for name in NAMES],
    "tuple": lambda make: tuple(make(name) for name in NAMES),
}


def run(rule, probe, in_turn, form="dict", steps=4, measured=False, absent=(), **options):
    """All that `steps` steps leave: infos, gradients, buffers and the rule's state."""
    net, found = network(), []
    metric = options.pop("metric", None)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
    balancer = mf.Balancer(net, rule, probe, metric=optimizer if metric else None, **options)
    for step, batch in zip(range(steps), loader(), strict=False):
        torch.manual_seed(step)
        make = partial(partial, loss_of, net, batch) if in_turn else partial(loss_of, net, batch)
        if step in absent and not in_turn:  # a batch without labels has no loss
            make = partial(without_label, make)
        given: Any = {"present": [True, step not in absent, True]} if absent else {}
        optimizer.zero_grad()
        if measured:
            info = balancer.measure(FORMS[form](make), **given)
        else:
            info = balancer.backward(FORMS[form](make), **given)
        found += [*info[:4], *(x for x in (p.grad for p in net.parameters()) if x is not None)]
        found.append(torch.tensor([p.grad is not None for p in net.parameters()]))
        optimizer.step()
    return [*found, *net.buffers(), *(x for _, x in balancer.state_dict()["state"])]


def rows(**options):
    return mf.jacobian("trunk.*", engine="rows", **options)


@every("name", [name for name in RULES if "-" not in name])
def test_every_rule_bit_for_bit(name):
    """With heads that one sum gives: weighted ones are one pass there, and a sum in turn."""
    make, probe = RULES[name].make, rows(heads="plain")
    assert all(map(torch.equal, run(make(), probe, True), run(make(), probe, False)))


SAME = {  # a rule, a probe and options whose numbers are the same to the bit
    "own heads": (mf.mgda, lambda: rows(heads="own"), {}),
    "a sum": (mf.mgda, rows, {"reduction": "sum"}),
    "in a metric": (mf.mgda, rows, {"metric": True}),
    "averaged rows": (mf.moco, lambda: mf.moving_average("trunk.*", rate=0.5), {}),
    "a mask": (mf.mgda, lambda: rows(mask=mf.graddrop()), {}),
    "measured": (mf.mgda, rows, {"measured": True}),
    "an absent task": (mf.mgda, rows, {"absent": (1, 3)}),
    "absent at first": (mf.mgda, rows, {"absent": (0, 1)}),
}
CLOSE = {  # sums in another order
    "weighted heads": (mf.mgda, lambda: rows(heads="weighted"), {}),
    "losses alone": (partial(mf.uw, 0.1), mf.losses_only, {}),
    "mixtures": (mf.mgda, lambda: rows(mix=mf.subset(2)), {}),
    "by layers": (mf.mgda, lambda: mf.jacobian("trunk.*", engine="layerwise"), {}),
    "all parameters": (mf.mgda, mf.jacobian, {}),
}


@pytest.mark.filterwarnings("ignore:shared. only one task:UserWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SAME | CLOSE)
def test_options_are_those_of_losses_together(case, form):
    rule, probe, options = (SAME | CLOSE)[case]
    known, found = (run(rule(), probe(), x, form, **options) for x in (False, True))
    for one, other in zip(found, known, strict=True):
        near(one, other, 0 if case in SAME else 1e-9, 0 if case in SAME else 1e-13)


def test_under_autocast_and_in_the_order_of_the_first_step():
    net, order = network(), []
    balancer = mf.Balancer(net, mf.mgda(), rows())
    batch = next(loader())

    def loss(name):
        order.append((name, torch.is_autocast_enabled("cpu")))
        return loss_of(net, batch, name)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        balancer.backward({name: partial(loss, name) for name in NAMES})
        info = balancer.backward({name: partial(loss, name) for name in reversed(NAMES)})
    assert order == [(name, True) for name in NAMES] * 2
    assert list(info.tasks) == list(NAMES)


@pytest.mark.parametrize("started", [False, True])
def test_what_a_function_does_wrong(started):
    net: Any = network()
    batch = next(loader())
    balancer = mf.Balancer(net, mf.gradnorm(1.5), rows())
    good = {name: partial(loss_of, net, batch, name) for name in NAMES}
    if started:
        balancer.backward(good)

    def ends():
        raise KeyError("no batch left")

    def passes():
        loss = loss_of(net, batch, "normals")
        loss.backward(retain_graph=True)
        return loss

    def zeroes(**given):
        net.zero_grad(**given)
        return loss_of(net, batch, "normals")

    def moves(**given):
        torch.optim.SGD(net.parameters(), 0.0, **given).step()
        return loss_of(net, batch, "normals")

    def clips():  # behind autograd's back
        net["trunk"][0].weight.data.clamp_(-0.1, 0.1)
        return loss_of(net, batch, "normals")

    def shrinks():
        net["heads"]["normals"].bias.data = torch.zeros(3)
        return loss_of(net, batch, "depth")

    def freezes():
        net["heads"]["normals"].bias.requires_grad_(False)
        return loss_of(net, batch, "normals")

    def vector():
        return loss_of(net, batch, "normals") * torch.ones(4)

    z = net["trunk"](batch["depth"][0])
    stranger = nn.Linear(5, 1).double()
    shared = {name: (lambda name=name: net["heads"][name](z).square().mean()) for name in NAMES}
    for wrong, error, words in (
        ({"normals": ends}, KeyError, "no batch left"),
        ({"normals": passes}, RuntimeError, r"losses\['normals'\]: .* calls backward\(\)"),
        ({"normals": zeroes}, RuntimeError, r"\['normals'\]: .* or zero_grad\(\)"),
        ({"normals": partial(zeroes, set_to_none=False)}, RuntimeError, r"s'\]: .* or zero_grad"),
        ({"normals": moves}, RuntimeError, r"\['normals'\]: .* writes into 'trunk.0.weight'"),
        ({"normals": partial(moves, fused=True)}, RuntimeError, r"s'\]: .* optimizer.step"),
        ({"normals": clips}, RuntimeError, r"losses: a function writes into '.*' by its .data"),
        ({"normals": shrinks}, RuntimeError, r"s'\]: .* writes into 'heads.normals.bias'"),
        ({"normals": freezes}, RuntimeError, r"s'\]: .* freezes 'heads.normals.bias'"),
        ({"normals": vector}, ValueError, r"losses\['normals'\]: .* one floating loss.*\[4\]"),
        ({"normals": lambda: 1.0}, ValueError, r"losses\['normals'\]: .* float; return the loss"),
        ({"normals": lambda: None}, ValueError, "got NoneType; return the loss"),
        ({"normals": lambda: torch.tensor(3)}, ValueError, r"got torch.int64 \[\]"),
        ({"normals": lambda: stranger(batch["depth"][0]).mean()}, ValueError, "not in it"),
        (shared, RuntimeError, r"losses\['normals'\]:"),
        ({"normals": z.sum()}, ValueError, r"losses: some are functions, and losses\['normals'\]"),
    ):
        with untouched(net, balancer), pytest.raises(error, match=words) as told:
            balancer.backward(good | wrong)
        if error is KeyError:
            assert told.value.__notes__ == ["losses['normals']: the balancer called this function"]
        net.requires_grad_()
        z = net["trunk"](batch["depth"][0])
    assert balancer.backward(good).losses.shape == (3,)


def test_what_goes_with_functions():
    net: Any = network()
    batch = next(loader())
    balancer = mf.Balancer(net, mf.mgda(), rows())
    good = [partial(loss_of, net, batch, name) for name in NAMES]
    with pytest.raises(ValueError, match=r"weigh: losses are functions, .* pass the losses"):
        balancer.weigh(good)
    with pytest.raises(ValueError, match="retain_graph: losses are functions"):
        balancer.backward(good, retain_graph=True)
    with pytest.raises(ValueError, match="weightings: losses are functions"):
        balancer.backward(good, weightings=torch.eye(3))
    with pytest.raises(ValueError, match="present: expected one entry per task, 3, got 2"):
        balancer.backward(good, present=[True, True])
    balancer.backward(good)
    for wrong, words in (
        (good[:2], "3 losses at the first step, 2 at this step"),
        (dict(zip(NAMES, good, strict=True)), "without names at the first step"),
    ):
        with pytest.raises(ValueError, match=words):
            balancer.backward(wrong)
    calls = []
    with pytest.raises(ValueError, match="losses: they depend on no parameter of the module"):
        mf.Balancer(net, mf.mgda(), rows()).backward([lambda: calls.append(0) or torch.ones(())])
    assert calls == [0]


def test_a_batch_without_labels_is_a_step_of_zero():
    net = network()
    calls = [partial(loss_of, net, next(loader()), name) for name in NAMES]
    balancer = mf.Balancer(net, mf.mgda(), rows())
    for present in ([False] * 3, [True] * 3, [False] * 3):
        other = mf.Balancer(net, mf.mgda(), rows())  # goes on from what is saved
        other.load_state_dict(balancer.state_dict())
        balancer = other
        net.zero_grad()
        info = balancer.backward(calls, present=present)
        moved = any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
        assert moved == bool(info.gramian.any()) == any(present)


def test_a_backward_inside_that_calls_backward():
    net: Any = network()
    batch = next(loader())
    weight = net["trunk"][0].weight

    def adds_to_grad(ctx, grad):
        with torch.enable_grad():
            weight.sum().backward()
        return grad

    passes = custom(lambda ctx, x: x.clone(), adds_to_grad)
    wrong = {n: lambda n=n: passes(loss_of(net, batch, n)) for n in NAMES}
    balancer = mf.Balancer(net, mf.mgda(), rows())
    weight.grad = torch.ones_like(weight)
    with untouched(net, balancer), pytest.raises(RuntimeError, match=r"\['depth'\]: .*calls back"):
        balancer.backward(wrong)


def deep(tasks):
    layers = [m for _ in range(6) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    heads = nn.ModuleList(nn.Linear(16, 5) for _ in range(tasks))
    return nn.ModuleDict({"trunk": nn.Sequential(*layers), "heads": heads})


@pytest.mark.parametrize("tasks", [3, 8])
def test_one_graph_is_alive_at_a_time(tasks):
    """At most 1.1 of one task's plain pass and T rows, where together it is T graphs."""
    net: Any = deep(tasks)
    x = torch.randn(4, 16, 16, 16)

    def loss(t):
        return net["heads"][t](net["trunk"](x).mean((2, 3))).square().mean()

    def plain():
        net.zero_grad()
        loss(0).backward()

    def in_turn():
        net.zero_grad()
        balancer.backward([partial(loss, t) for t in range(tasks)])

    def together():
        net.zero_grad()
        balancer.backward([loss(t) for t in range(tasks)])

    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    row = sum(p.numel() * p.element_size() for p in net["trunk"].parameters())
    one = peak(plain)
    assert peak(in_turn) <= 1.1 * (one + tasks * row)
    assert peak(together) > 0.8 * tasks * one
