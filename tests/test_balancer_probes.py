"""A balancer with any probe: the numbers of the pure step, its states, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.probes.common import answer
from mtlfunc.types import Probe
from tests.support.oracles import near
from tests.support.problems import F64, TrunkAndHeads

TRUNK = "trunk.*"


@pytest.fixture
def net():
    return TrunkAndHeads(0)


def batch(seed, size=5):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, width, dtype=F64, generator=generator) for width in (4, 2))


def losses_of(outputs, y, form) -> Any:
    each = [(out - y).square().mean() * (1 + k) for k, out in enumerate(outputs)]
    return torch.stack(each) if form == "stacked" else tuple(each)


def decaying(steps):
    return 0.9 / steps**0.5


METHODS = {
    "moco": (mf.moco, lambda **more: mf.moving_average(TRUNK, rate=decaying, **more)),
    "cagrad, averaged": (lambda: mf.cagrad(0.4),
        lambda **more: mf.moving_average(TRUNK, corrected=True, heads="own", **more)),
    "excess_mtl": (mf.excess_mtl, lambda **more: mf.excess_risk(TRUNK, **more)),
    "db_mtl": (mf.db_mtl, lambda **more: mf.moving_average(TRUNK, rate=decaying, **more)),
    "graddrop": (mf.mean, lambda **more: mf.jacobian(TRUNK, mask=mf.graddrop(), **more)),
    "subset": (lambda: mf.cagrad(0.4), lambda: mf.jacobian(TRUNK, mix=mf.subset(2))),
    "modo": (mf.modo, lambda: mf.double_sampling(TRUNK)),
    "sdmgrad": (mf.sdmgrad, lambda: mf.double_sampling(TRUNK, heads="own")),
    "losses alone": (mf.gls, lambda **more: mf.losses_only(**more)),
}  # fmt: skip
BATCHES = {"modo": 2, "sdmgrad": 3}


def data(name, step):
    if name not in BATCHES:
        return batch(step)
    return tuple(batch(10 * step + k) for k in range(BATCHES[name]))


def forwards(net, given, name, form):
    """The losses of one batch, or of each of several."""
    if name not in BATCHES:
        return losses_of(net(given[0]), given[1], form)
    return tuple(losses_of(net(x), y, form) for x, y in given)


def compare(net, info, grads, expected):
    for leaf, grad in grads.items():
        got = net.get_parameter(leaf).grad  # None where only absent tasks read it
        near(torch.zeros_like(grad) if got is None else got, grad, 1e-9, 1e-12)
    near(info.weights, expected.weights, 1e-9, 1e-12)
    near(info.gramian, expected.gramian, 1e-9, 1e-12)
    near(info.losses, expected.losses, 1e-12)


FULL, MASKS = [True] * 3, ([True] * 3, [True, False, True], [False, True, True])
ABSENT = ("moco", "excess_mtl", "db_mtl", "graddrop", "losses alone")
CASES = [(name, False) for name in METHODS] + [(name, True) for name in ABSENT]


@pytest.mark.parametrize("form", ["stacked", "tuple"])
@pytest.mark.parametrize(("name", "absent"), CASES)
def test_every_probe_as_in_the_pure_step_and_resumed_at_every_step(name, absent, form, net):
    """Also where tasks are absent, of which the pure step reads in its batch."""
    rule, probe = METHODS[name]
    step = mf.balance(
        lambda p, b: losses_of(functional_call(net, p, (b[0],)), b[1], form),
        rule(),
        probe(present=lambda b: b[2]) if absent else probe(),
    )
    params, state, kept = mf.parameters(net), None, None
    for i, mask in enumerate(MASKS if absent else [FULL] * 3):
        more: Any = {"present": torch.tensor(mask)} if absent else {}
        given = (*data(name, i), *more.values())
        state = step.init(params, given, key=3) if state is None else state
        balancer = mf.Balancer(net, rule(), probe(), key=3)
        if kept is not None:
            balancer.load_state_dict(kept)
        grads, state, expected = step.update(params, given, state)
        net.zero_grad()
        losses = forwards(net, data(name, i), name, form)
        measured = balancer.measure(losses, **more)
        info = balancer.backward(losses, **more)
        compare(net, info, grads, expected)
        near(measured.weights, info.weights, 1e-12)
        kept = balancer.state_dict()


def test_a_probe_of_ones_own_measures_the_tasks_with_labels(net):
    def init(run, batch, key):
        return run.started(run.first(batch).value), ()

    def update(run, batch, state):
        return answer(run(batch).over(TRUNK).measure(gramian=True, heads=run.heads)), state

    (x, y), present = batch(0), [True, False, True]
    first, second, third = losses_of(net(x), y, "tuple")
    losses = first, second * float("nan"), third
    own = Probe(init, update, measures=frozenset({"gramian"}))
    found = mf.Balancer(net, mf.mgda(), own).measure(losses, present=present)
    expected = mf.Balancer(net, mf.mgda(), TRUNK).measure(losses, present=present)
    near(found.weights, expected.weights)
    near(found.gramian, expected.gramian)


def test_what_a_balancer_cannot_use_is_refused_when_it_is_made(net):
    for probe in (
        mf.second_evaluation(mf.jacobian(TRUNK)),
        mf.representation(lambda params, x: x, lambda params, z, x: z),
    ):
        with pytest.raises(ValueError, match=r"probe: it calls the model itself.*mtlfunc\.balance"):
            mf.Balancer(net, mf.mgda(), probe)
    with pytest.raises(TypeError, match=r"probe: .*the function jacobian itself"):
        mf.Balancer(net, mf.mgda(), mf.jacobian)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"probe: it has options of its own"):
        mf.Balancer(net, mf.mgda(), mf.jacobian(TRUNK), shared=TRUNK)
    for probe, shared in ((TRUNK, "heads.*"), (None, TRUNK), (net.trunk, None)):
        with pytest.raises(ValueError, match=r"probe: .* so does shared=; pass one"):
            mf.Balancer(net, mf.mean(), probe, shared=shared)


def test_what_goes_wrong_at_a_step_is_named(net):
    x, y = batch(0)
    given = mf.Balancer(net, mf.mgda(), mf.jacobian(TRUNK, present=lambda b: b))
    with pytest.raises(ValueError, match=r"present: a Balancer is given .*backward\(losses"):
        given.backward(losses_of(net(x), y, "tuple"))
    several = (losses_of(net(x), y, "tuple"), losses_of(net(x), y, "tuple"))
    with pytest.raises(ValueError, match=r"losses: expected one batch's, .*double_sampling"):
        mf.Balancer(net, mf.mgda(), TRUNK).backward(several)
    with pytest.raises(ValueError, match=r"losses: .*double_sampling a tuple of two or three"):
        mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK)).backward(several[0])
    absent = torch.tensor([True, False, True])
    mixing = mf.Balancer(net, mf.mgda(), mf.jacobian(TRUNK, mix=mf.subset(2)))
    with pytest.raises(ValueError, match="present: a row of mix="):
        mixing.backward(losses_of(net(x), y, "tuple"), present=absent)
    doubled = mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK))
    with pytest.raises(ValueError, match="present: double_sampling multiplies two batches"):
        doubled.backward(several, present=absent)


def test_parameters_outside_of_the_module_are_named(net):
    x, y = batch(0)
    balancer = mf.Balancer(net.trunk, mf.mgda())
    with pytest.raises(ValueError, match=r"module: .*not in it, of shapes .*\[2, 5\].*ModuleDict"):
        balancer.backward(losses_of(net(x), y, "tuple"))
    assert all(leaf.grad is None for leaf in net.parameters())
    balancer = mf.Balancer(net, mf.mgda(), TRUNK)
    balancer.backward(losses_of(net(x), y, "tuple"))
    outside = nn.Parameter(torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match=r"module: .*not in it, of shapes \[\[2\]\]"):
        balancer.backward(losses_of([out * outside for out in net(x)], y, "tuple"))
    points = x.clone().requires_grad_()  # no parameter, and none of the balancer's business
    mf.Balancer(net, mf.mgda(), TRUNK).backward(losses_of(net(points), y, "tuple"))
    assert points.grad is None


@pytest.mark.parametrize("hooked", [0, 1], ids=["the first", "the second"])
def test_a_hook_on_either_of_two_batches_sees_gradients_alone(hooked, net):
    balancer, seen = mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK)), []

    def losses(step, x, y):
        z = net.trunk(x)
        if step == hooked:
            z.register_hook(lambda grad: seen.append(grad) or 2 * grad)
        return losses_of([head(z) for head in net.heads], y, "tuple")

    balancer.backward((losses(0, *batch(1)), losses(1, *batch(2))))
    assert len(seen) == 3
    assert all(grad is not None for grad in seen)


def test_losses_in_a_dict_are_paired_by_name_from_the_first_two_batches_on(net):
    def named(balancer, order):
        first, second = (losses_of(net(batch(k)[0]), batch(k)[1], "tuple") for k in (1, 2))
        net.zero_grad()
        info = balancer.backward(({k: first[k] for k in range(3)}, {k: second[k] for k in order}))
        return info, [leaf.grad.clone() for leaf in net.parameters()]

    info, grads = named(mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK)), (2, 0, 1))
    expected = named(mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK)), (0, 1, 2))
    near(info.gramian, expected[0].gramian, 1e-10)
    near(grads, expected[1], 1e-10, 1e-14)
    balancer = mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK))
    with pytest.raises(ValueError, match=r"losses: no loss .* for 2, which the first batch saw"):
        named(balancer, (0, 1))


@pytest.mark.parametrize("form", ["separate", "stacked"])
def test_batches_of_one_forward_are_as_those_of_several(form, net):
    (x, y), (other, target) = batch(1), batch(2)

    def step(outputs, targets):
        net.zero_grad()
        balancer = mf.Balancer(net, mf.modo(), mf.double_sampling(TRUNK))
        first, second = outputs()
        losses = losses_of(first, y, form), losses_of(second, targets, form)
        info = balancer.backward(losses)
        if form == "separate":  # then the graph is freed
            with pytest.raises(RuntimeError, match="second time"):
                losses[0][0].backward()
        return info.gramian, [leaf.grad.clone() for leaf in net.parameters()]

    def split():
        both = net(torch.cat([x, other]))
        return [out[: len(x)] for out in both], [out[len(x) :] for out in both]

    near(step(split, target), step(lambda: (net(x), net(other)), target), 1e-9, 1e-12)


def test_a_hook_that_removes_itself_is_called_once(net):
    x, y = batch(0)
    seen, (leaf, *_) = [], net.trunk.parameters()

    def once(leaf):
        seen.append(leaf.grad)
        handle.remove()

    handle = leaf.register_post_accumulate_grad_hook(once)
    leaf.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad))
    mf.Balancer(net, mf.mgda(), TRUNK).backward(losses_of(net(x), y, "tuple"))
    assert seen == [leaf.grad, leaf.grad]


def test_a_parameter_frozen_after_the_forward_gets_no_gradient(net):
    x, y = batch(0)
    balancer = mf.Balancer(net, mf.mgda(), TRUNK)
    losses = losses_of(net(x), y, "tuple")
    net.heads[0].requires_grad_(False)
    balancer.backward(losses)
    assert all(leaf.grad is None for leaf in net.heads[0].parameters())
    assert all(leaf.grad is not None for leaf in net.trunk.parameters())


def test_a_hook_that_fails_leaves_the_rules_state(net):
    x, y = batch(0)
    balancer = mf.Balancer(net, mf.gradnorm(1.5), TRUNK)
    balancer.backward(losses_of(net(x), y, "tuple"))
    before = str(balancer.state_dict())

    def fail(leaf):
        raise ArithmeticError("of the loop's own")

    hook = net.heads[0].weight.register_post_accumulate_grad_hook(fail)
    with pytest.raises(ArithmeticError):
        balancer.backward(losses_of(net(x), y, "tuple"))
    assert str(balancer.state_dict()) == before
    hook.remove()
    balancer.backward(losses_of(net(x), y, "tuple"))
    assert str(balancer.state_dict()) != before
