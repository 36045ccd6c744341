"""`align` and a target's loss as the last row, against literal loops."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import mtlfunc as mf
from tests.support import loops
from tests.support.oracles import check_slope, near, rows_of
from tests.support.problems import BATCH, PARAMS, TASKS, TRUNK, opaque
from tests.support.steps import F64, SHARED

ETA = 0.3


def gradients(losses_fn, params, names):
    """[loss, parameter] over the named leaves, one backward pass a loss."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    return rows_of(losses_fn(leaves), [leaves[name] for name in names])


def aimed(params, batch):
    """The tasks' losses and a target's: two of the tasks, one of them the other way round."""
    first, second, _ = opaque(params, (batch[0].flip(0), batch[1]))
    return torch.cat([opaque(params, batch), (first - 0.3 * second)[None]])


def literal(params, batch, names=TRUNK):
    """The tasks' products with the target's gradient, by literal loops."""
    rows = gradients(lambda leaves: aimed(leaves, batch), params, names)
    return rows[:-1] @ rows[-1]


def reweighed(w, products, eta=ETA):
    """One update as DGA's and DoGE's pseudocode has it."""
    found = [x * math.exp(eta * float(a)) for x, a in zip(w, products, strict=True)]
    return torch.tensor([x / sum(found) for x in found], dtype=F64)


@pytest.mark.parametrize("form", [lambda losses: losses, tuple], ids=["vector", "scalars"])
def test_steps_equal_a_loop(form):
    step = mf.descend(lambda *x: form(aimed(*x)), mf.align(ETA), mf.jacobian(SHARED), mf.sgd(0.1))
    state, w = step.init(PARAMS, BATCH), [1 / TASKS] * TASKS
    for _ in range(4):
        w = reweighed(w, literal(state.params, BATCH))
        state, info = step.update(state, BATCH)
        near(info.weights[:-1], w, 1e-9)
        assert float(info.weights[-1]) == 0


def test_towards_the_mean_equals_a_loop():
    p = torch.tensor([3.0, 1.0, 2.0], dtype=F64)
    for preference in (None, p):
        rule = mf.align(ETA, "mean", preference=preference)
        step = mf.descend(opaque, rule, mf.jacobian(SHARED), mf.sgd(0.1))
        state, w = step.init(PARAMS, BATCH), [1 / TASKS] * TASKS
        share = torch.full((TASKS,), 1 / TASKS, dtype=F64) if preference is None else p / p.sum()
        for _ in range(3):
            rows = gradients(lambda leaves: opaque(leaves, BATCH), state.params, TRUNK)
            w = reweighed(w, rows @ (share @ rows))
            state, info = step.update(state, BATCH)
            near(info.weights, w, 1e-9)


def test_absent_tasks_keep_their_weight():
    every = torch.ones(TASKS + 1, dtype=torch.bool)
    absent = torch.tensor([True, False, True, True])
    probe = mf.jacobian(SHARED, present=lambda batch: batch[2])
    step = mf.balance(lambda p, b: aimed(p, b[:2]), mf.align(ETA), probe)
    state = step.init(PARAMS, (*BATCH, every))
    _, state, first = step.update(PARAMS, (*BATCH, every), state)
    _, state, second = step.update(PARAMS, (*BATCH, absent), state)
    here, a, w = absent[:-1], literal(PARAMS, BATCH), first.weights[:-1]
    near(state.rule.logits[:-1].softmax(0)[1], w[1], 1e-12)
    some = reweighed(w[here].tolist(), a[here])
    near(second.weights[:-1][here], some, 1e-9)
    assert second.weights[[1, 3]].tolist() == [0, 0]
    nowhere = every & (torch.arange(TASKS + 1) < TASKS)
    _, same, third = step.update(PARAMS, (*BATCH, nowhere), state)  # no target at this step
    kept = w.clone()
    kept[here] = some * w[here].sum()
    near(third.weights[:-1], kept, 1e-9)
    _, _, fourth = step.update(PARAMS, (*BATCH, every), same)
    near(fourth.weights[:-1], reweighed(kept.tolist(), a), 1e-9)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        batch = {"x": torch.randn(8, 3), "y": torch.randn(8, 2), "A": torch.rand(3, 8)}
        batch["A"] = torch.cat([batch["A"], torch.eye(8)[5:].mean(0)[None]])
    return net, {name: x.double() for name, x in batch.items()}


def by_sample(net):
    return lambda p, b: (functional_call(net, p, (b["x"],)) - b["y"]).square().sum(1)


def products(net, params, batch, metric: float | torch.Tensor = 1.0):
    """With the mean over the last samples, the fourth row of A."""
    rows = gradients(lambda p: batch["A"] @ by_sample(net)(p, batch), params, tuple(params))
    return rows[:-1] @ (metric * rows[-1])


def trained(net, eta, batch):
    """The target's loss after three steps of losses that are weighted by sample."""
    probe = mf.jacobian(weightings=lambda b: b["A"])
    step = mf.descend(by_sample(net), mf.align(eta), probe, mf.sgd(0.1))
    state = loops.trained(step, [batch] * 3, mf.parameters(net))
    return batch["A"][-1] @ by_sample(net)(state.params, batch)


def test_derivatives_of_a_run_by_eta_of_both_orders():
    net, batch = network()

    def end(eta):
        return trained(net, eta, batch)

    check_slope(end, 0.2, "grad", "vmap", h=1e-4)
    check_slope(grad(end), 0.2, "grad", h=1e-4)


def test_in_the_optimizers_metric():
    net, batch = network()
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-2)
    balancer = mf.Balancer(net, mf.align(ETA), metric=optimizer)
    w = [1 / 3] * 3
    for _ in range(4):
        params = mf.parameters(net)
        squares = [optimizer.state[x].get("square_avg") for x in net.parameters()]
        known = [x for x in squares if x is not None]  # at first nothing is
        scale = torch.cat([1e-2 / (x.sqrt() + 1e-8).flatten() for x in known]) if known else 1e-2
        w = reweighed(w, products(net, params, batch, scale))
        optimizer.zero_grad()
        losses = (net(batch["x"]) - batch["y"]).square().sum(1)
        info = balancer.backward(losses, weightings=batch["A"])
        optimizer.step()
        near(info.weights[:-1], w, 1e-9)


def test_long_runs_keep_their_log_weights():
    """After weights have left the range of floats, the products of other steps bring them back."""
    rule = mf.align(1.0)
    ones = torch.ones(3)
    state = rule.init(ones, mf.random.key(0))

    def step(a, state):
        rows = torch.cat([torch.eye(2), a[None]])
        return rule.update(mf.Geometry(ones, rows @ rows.mT, ones / 3, ones > 0, {}), state)

    there, back = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0])
    for _ in range(50):
        state = step(there, state)[1]
    assert step(there, state)[0].tolist() == [1.0, 0.0, 0.0]
    for _ in range(49):
        state = step(back, state)[1]
    weights, _ = step(back, state)
    near(weights[:2], ones[:2] / 2, 1e-3)


def test_refusals():
    net, _ = network()
    with pytest.raises(ValueError, match="losses: align takes the last as the target's"):
        mf.Balancer(net, mf.align(0.1)).backward([net(torch.ones(1, 3).double()).sum()])
    assert all(x.grad is None for x in net.parameters())


def test_an_eta_that_overflows_is_named():
    net, batch = network()
    losses = (net(batch["x"]) - batch["y"]).square().mean(0)
    with pytest.raises(ValueError, match=r"eta: times the products .* overflows torch\.float64"):
        mf.Balancer(net, mf.align(1e308)).backward([*(1e3 * losses), 1e3 * losses.sum()])
    assert all(x.grad is None for x in net.parameters())
