"""FAMO and other rules that read a batch's losses after its step, in a stock loop."""

import pytest
import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.types import LAST_LOSSES
from tests.support.networks import perceptron

NAMES = ("a", "b", "c")
STEPS = 50


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield tuple(torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (4, 3))


def losses_of(net, batch):
    x, y = batch
    return dict(zip(NAMES, (net(x) - y).square().mean(0) + 0.1, strict=True))


def pure(rule, probe, present=None):
    net, found = perceptron(4, 6, 3), []
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    step = mf.balance(
        lambda p, b: losses_of(lambda x: functional_call(net, p, (x,)), b),
        rule,
        mf.second_evaluation(probe),
    )
    state = None
    for batch in batches():
        params = mf.parameters(net)
        grads, state, info = step.update(params, batch, state or step.init(params, batch))
        mf.assign_gradients(net, grads)
        optimizer.step()
        found.append(info.weights)
    return found


def live(rule, probe, resume=()):
    """`resume`: steps before which the balancer is made anew; where True, before it observed."""
    net, found = perceptron(4, 6, 3), []
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    balancer = mf.Balancer(net, rule, probe)

    def anew():
        fresh = mf.Balancer(net, rule, probe)
        fresh.load_state_dict(balancer.state_dict())
        return fresh

    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        found.append(balancer.backward(losses_of(net, batch)).weights)
        optimizer.step()
        balancer = anew() if (step, True) in resume else balancer
        told = losses_of(net, batch)
        balancer.observe({name: told[name].detach() for name in reversed(NAMES)})
        balancer = anew() if (step, False) in resume else balancer
    return found


@pytest.mark.parametrize("probe", [mf.losses_only, lambda: mf.jacobian(heads="weighted")])
@pytest.mark.parametrize("resume", [(), ((20, True), (30, False))])
def test_famo_equals_the_pure_way(probe, resume):
    found, known = live(mf.famo(), probe(), resume), pure(mf.famo(), probe())
    torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-12)
    assert (known[-1] - known[0]).abs().max() > 1e-3  # they move


def test_a_rule_of_ones_own_reads_what_it_would_in_the_pure_way():
    def update(geometry, state):
        before, after, present = (geometry.extra[name] for name in LAST_LOSSES)
        fall = (before - after).where(present, 0.0)
        return torch.softmax(fall + geometry.gramian.diagonal(), 0), state

    rule = mf.Rule(lambda x, key: (), update, frozenset({"gramian", *LAST_LOSSES}))
    found, known = live(rule, mf.jacobian()), pure(rule, mf.jacobian())
    torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-12)


def test_without_a_call_the_second_step_says_what_is_missing():
    net, data = perceptron(4, 6, 3), list(batches())
    balancer = mf.Balancer(net, mf.famo(), None)
    with pytest.raises(ValueError, match="observe: there was no step yet"):
        balancer.observe(losses_of(net, data[0]))
    balancer.backward(losses_of(net, data[0]))

    def left():
        return [p.grad for p in net.parameters()], dict(balancer.state_dict()["state"])

    before = tree_map(torch.clone, left())
    for call in (balancer.measure, balancer.weigh, balancer.backward):
        with pytest.raises(ValueError, match=r"call balancer\.observe\(losses\) after optimizer"):
            call(losses_of(net, data[1]))
        torch.testing.assert_close(left(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="no loss at this step for 'b'"):
        balancer.observe({"a": torch.ones(()), "c": torch.ones(())})
    balancer.observe(losses_of(net, data[0]))  # as the error says
    with pytest.raises(ValueError, match="observe: there was no step since the last call"):
        balancer.observe(losses_of(net, data[0]))  # whose shares in a group were used
    balancer.backward(losses_of(net, data[1]))


def test_a_rule_that_does_not_read_them_does_without():
    net, batch = perceptron(4, 6, 3), next(batches())
    balancer = mf.Balancer(net, mf.mgda())
    for _ in range(2):
        balancer.backward(losses_of(net, batch))
        balancer.observe(losses_of(net, batch))


def test_absent_tasks_keep_their_logits():
    found = []
    for told in (1.0, 5.0):  # whatever is told of an absent task
        net, data = perceptron(4, 6, 3), list(batches())
        balancer = mf.Balancer(net, mf.famo(), None)
        balancer.backward(losses_of(net, data[0]), present=[True, False, True])
        balancer.observe(losses_of(net, data[0]) | {"b": torch.tensor(told)})
        found.append(balancer.backward(losses_of(net, data[1])).weights)
    assert torch.equal(*found)


@pytest.mark.parametrize("saved", [False, True])
def test_what_is_told_is_refused_where_it_is_no_number(saved):
    net, data = perceptron(4, 6, 3), list(batches())
    balancer = mf.Balancer(net, mf.famo(), None)
    balancer.backward(losses_of(net, data[0]), present=[True, False, True])
    if saved:
        other = mf.Balancer(net, mf.famo(), None)
        other.load_state_dict(balancer.state_dict())
        balancer = other
    good = {name: x.detach().float() for name, x in losses_of(net, data[0]).items()}
    with pytest.raises(ValueError, match=r"NaN or infinite entries .* of 'a'"):
        balancer.observe(good | {"a": torch.tensor(torch.nan)})
    with pytest.raises(ValueError, match="call the function"):
        balancer.observe(dict.fromkeys(NAMES, lambda: torch.ones(())))
    balancer.observe(good | {"b": torch.tensor(torch.nan)})
    assert bool(balancer.backward(losses_of(net, data[1])).weights.isfinite().all())
