"""`align` and the products with a target's gradient, against literal loops."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import mtlfunc as mf
from tests.support.problems import BATCH, FORMS, PARAMS, TASKS, opaque
from tests.support.steps import SHARED, aim

F64 = torch.float64
ETA = 0.3
TRUNK = tuple(name for name in PARAMS if name.startswith("trunk."))


def gradients(losses_fn, params, names):
    """[loss, parameter] over the named leaves, one backward pass a loss."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    chosen = [leaves[name] for name in names]
    rows = [
        torch.autograd.grad(loss, chosen, retain_graph=True, allow_unused=True)
        for loss in losses_fn(leaves)
    ]
    return torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros_like(x) if g is None else g).flatten()
                    for g, x in zip(row, chosen, strict=True)
                ]
            )
            for row in rows
        ]
    )


def literal(params, batch, names=TRUNK):
    """The tasks' products with the target's gradient, by literal loops."""
    rows = gradients(lambda leaves: opaque(leaves, batch), params, names)
    return rows @ gradients(lambda leaves: [aim(leaves, batch)], params, names)[0]


def reweighed(w, products, eta=ETA):
    """One update as DGA's and DoGE's pseudocode has it."""
    found = [x * math.exp(eta * float(a)) for x, a in zip(w, products, strict=True)]
    return torch.tensor([x / sum(found) for x in found], dtype=F64)


@pytest.mark.parametrize("form", FORMS)
def test_steps_equal_a_loop(form):
    step = mf.descend(FORMS[form], mf.align(ETA), mf.jacobian(SHARED, target=aim), mf.sgd(0.1))
    state, w = step.init(PARAMS, BATCH), [1 / TASKS] * TASKS
    for _ in range(4):
        w = reweighed(w, literal(state.params, BATCH))
        state, info = step.update(state, BATCH)
        torch.testing.assert_close(info.weights, w, rtol=1e-9, atol=0)


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
            torch.testing.assert_close(info.weights, w, rtol=1e-9, atol=0)


def test_weights_rise_with_what_a_step_lowers_the_target_by():
    """a_t is the target's fall along task t's gradient, by finite differences."""
    probe = mf.jacobian("*", target=aim)
    run = mf.Run(opaque, PARAMS)
    measured, _ = probe.update(run, BATCH, probe.init(run, BATCH, mf.random.key(0))[1])
    for t, told in enumerate(measured.geometry.extra["target"]):
        g = measured.combine(torch.eye(TASKS, dtype=F64)[t])
        at = [aim({n: PARAMS[n] - s * g[n] for n in PARAMS}, BATCH) for s in (-1e-5, 1e-5)]
        assert float(at[0] - at[1]) / 2e-5 == pytest.approx(float(told), rel=1e-6)


OPTIONS = {
    "measure": {"measure": "trunk.2.*"},
    "own heads": {"heads": "own"},
    "rows": {"engine": "rows", "chunk_size": 2},
    "mask": {"mask": lambda key, rows: {n: 2.0 * r for n, r in rows.items()}},
    "mix": {"mix": mf.subset(2)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_probe(name):
    """What `extra["target"]` is, from the rows that the same probe combines."""
    probe = mf.jacobian(SHARED, target=aim, **OPTIONS[name])
    run = mf.Run(opaque, PARAMS)
    state = probe.init(run, BATCH, mf.random.key(3))[1]
    measured, _ = probe.update(run, BATCH, state)
    groups = {"layers": [TRUNK[:2], TRUNK[2:]], "measure": [TRUNK[2:]]}.get(name, [TRUNK])
    told = measured.geometry.extra["target"]
    count = told.shape[-1]
    rows = [measured.combine(w.expand_as(told)) for w in torch.eye(count, dtype=F64)]
    expected = []
    for names in groups:
        goal = gradients(lambda leaves: [aim(leaves, BATCH)], PARAMS, names)[0]
        here = torch.stack([torch.cat([row[n].flatten() for n in names]) for row in rows])
        expected.append(here @ goal)
    wanted = torch.stack(expected) if name == "layers" else expected[0]
    torch.testing.assert_close(told, wanted, rtol=1e-10, atol=1e-13)


def test_absent_tasks_keep_their_weight():
    absent = torch.tensor([True, False, True])
    probe = mf.jacobian(SHARED, target=aim, present=lambda batch: batch[2])
    step = mf.balance(lambda p, b: opaque(p, b[:2]), mf.align(ETA), probe)
    every = torch.ones(TASKS, dtype=torch.bool)
    state = step.init(PARAMS, (*BATCH, every))
    _, state, first = step.update(PARAMS, (*BATCH, every), state)
    _, state, second = step.update(PARAMS, (*BATCH, absent), state)
    a, w = literal(PARAMS, BATCH), first.weights
    torch.testing.assert_close(state.rule.logits.softmax(0)[1], w[1], rtol=1e-12, atol=0)
    some = reweighed(w[absent].tolist(), a[absent])
    torch.testing.assert_close(second.weights[absent], some, rtol=1e-9, atol=0)
    assert float(second.weights[1]) == 0
    _, _, third = step.update(PARAMS, (*BATCH, every), state)
    kept = w.clone()
    kept[absent] = some * w[absent].sum()
    torch.testing.assert_close(third.weights, reweighed(kept.tolist(), a), rtol=1e-9, atol=0)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        batch = {"x": torch.randn(8, 3), "y": torch.randn(8, 2), "A": torch.rand(3, 8)}
        batch |= {"goal x": torch.randn(6, 3), "goal y": torch.randn(6, 2)}
    return net, {name: x.double() for name, x in batch.items()}


def by_sample(net):
    return lambda p, b: (functional_call(net, p, (b["x"],)) - b["y"]).square().sum(1)


def goal(net):
    return lambda p, b: by_sample(net)(p, {"x": b["goal x"], "y": b["goal y"]}).mean()


def weighed_step(net, eta=ETA):
    probe = mf.jacobian(weightings=lambda b: b["A"], target=goal(net))
    return mf.descend(by_sample(net), mf.align(eta), probe, mf.sgd(0.1))


def products(net, params, batch, metric=None):
    names = tuple(params)
    rows = gradients(lambda p: batch["A"] @ by_sample(net)(p, batch), params, names)
    aimed = gradients(lambda p: [goal(net)(p, batch)], params, names)[0]
    return rows @ (aimed if metric is None else metric * aimed)


def test_weightings_equal_a_loop():
    net, batch = network()
    step = weighed_step(net)
    state, w = step.init(mf.parameters(net), batch), [1 / 3] * 3
    for _ in range(3):
        w = reweighed(w, products(net, state.params, batch))
        state, info = step.update(state, batch)
        torch.testing.assert_close(info.weights, w, rtol=1e-9, atol=0)


def trained(net, eta, batch, steps=3):
    step = weighed_step(net, eta)
    params = mf.parameters(net)
    state = step.init(params, batch)
    for _ in range(steps - 1):
        state, _ = step.update(state, batch)
    state, info = step.update(state, batch)
    return info.weights, goal(net)(state.params, batch)


def test_vmapped_over_eta_and_batches_equals_its_loop():
    net, batch = network()
    etas = torch.tensor([0.05, 0.4], dtype=F64)
    several = [network(seed)[1] for seed in range(3)]
    stacked = {name: torch.stack([b[name] for b in several]) for name in batch}
    found = vmap(vmap(lambda e, b: trained(net, e, b), (0, None)), (None, 0))(etas, stacked)
    for i, b in enumerate(several):
        for j, eta in enumerate(etas):
            for one, other in zip(found, trained(net, eta, b), strict=True):
                torch.testing.assert_close(one[i, j], other, rtol=1e-9, atol=1e-12)


def test_derivatives_of_a_run_by_eta_of_both_orders():
    net, batch = network()
    eta, h = torch.tensor(0.2, dtype=F64), 1e-4

    def end(e):
        return trained(net, e, batch)[1]

    first = grad(end)
    near = (end(eta + h) - end(eta - h)) / (2 * h)
    torch.testing.assert_close(first(eta), near, rtol=1e-6, atol=1e-9)
    near = (first(eta + h) - first(eta - h)) / (2 * h)
    torch.testing.assert_close(grad(first)(eta), near, rtol=1e-6, atol=1e-9)


def test_live_equals_pure_with_and_without_weightings():
    for weighed in (True, False):
        net, batch = network()
        A = batch["A"]
        pure = mf.balance(
            by_sample(net) if weighed else lambda p, b, net=net, A=A: A @ by_sample(net)(p, b),
            mf.align(ETA),
            mf.jacobian(target=goal(net), weightings=(lambda b: b["A"]) if weighed else None),
        )
        state = pure.init(mf.parameters(net), batch)
        balancer = mf.Balancer(net, mf.align(ETA))
        for _ in range(3):
            grads, state, wanted = pure.update(mf.parameters(net), batch, state)
            net.zero_grad()
            losses = (net(batch["x"]) - batch["y"]).square().sum(1)
            target = (net(batch["goal x"]) - batch["goal y"]).square().sum(1).mean()
            if weighed:
                told = balancer.measure(losses, weightings=A, target=target)
                info = balancer.backward(losses, weightings=A, target=target)
                assert torch.equal(told.weights, info.weights)
            else:
                info = balancer.backward(A @ losses, target=target)
            torch.testing.assert_close(info.weights, wanted.weights, rtol=1e-10, atol=0)
            for name, leaf in net.named_parameters():
                torch.testing.assert_close(leaf.grad, grads[name], rtol=1e-10, atol=1e-14)
            assert target.grad_fn is not None
            with pytest.raises(RuntimeError):  # its graph is freed, as that of the losses is
                target.backward()


def test_in_the_optimizers_metric():
    net, batch = network()
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-2)
    balancer = mf.Balancer(net, mf.align(ETA), metric=optimizer)
    w = [1 / 3] * 3
    for _ in range(4):
        params = mf.parameters(net)
        squares = [optimizer.state[x].get("square_avg") for x in net.parameters()]
        scale = torch.cat(
            [
                torch.full((x.numel(),), 1e-2, dtype=F64)  # nothing is known yet
                if square is None
                else 1e-2 / (square.sqrt() + 1e-8).flatten()
                for square, x in zip(squares, net.parameters(), strict=True)
            ]
        )
        w = reweighed(w, products(net, params, batch, scale))
        optimizer.zero_grad()
        losses = (net(batch["x"]) - batch["y"]).square().sum(1)
        target = (net(batch["goal x"]) - batch["goal y"]).square().sum(1).mean()
        info = balancer.backward(losses, weightings=batch["A"], target=target)
        optimizer.step()
        torch.testing.assert_close(info.weights, w, rtol=1e-9, atol=0)


def test_pure_metric_equals_live():
    net, batch = network()
    step = mf.descend(
        by_sample(net),
        mf.align(ETA),
        mf.jacobian(weightings=lambda b: b["A"], target=goal(net)),
        mf.sgd(0.5),
        metric=True,
    )
    params = mf.parameters(net)
    _, info = step.update(step.init(params, batch), batch)
    wanted = reweighed([1 / 3] * 3, 0.5 * products(net, params, batch))
    torch.testing.assert_close(info.weights, wanted, rtol=1e-9, atol=0)


def test_normalized_rows_have_normalized_products():
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]], dtype=F64)
    aimed = torch.tensor([1.0, 2.0], dtype=F64)
    seen = []
    inner = mf.align(ETA)
    spy = inner._replace(
        update=lambda geometry, state: (
            seen.append(geometry.extra["target"]),
            inner.update(geometry, state),
        )[1]
    )
    rule, ones = mf.normalize(spy), torch.ones(3, dtype=F64)
    geometry = mf.Geometry(ones, rows @ rows.mT, ones / 3, ones > 0, {"target": rows @ aimed})
    rule.update(geometry, rule.init(ones, mf.random.key(0)))
    torch.testing.assert_close(seen[0], (rows / rows.norm(dim=1, keepdim=True)) @ aimed)


def test_long_runs_keep_their_log_weights():
    """After weights have left the range of floats, the products of other steps bring them back."""
    rule = mf.align(1.0)
    ones = torch.ones(2)
    state = rule.init(ones, mf.random.key(0))

    def step(a, state):
        return rule.update(mf.Geometry(ones, None, ones / 2, ones > 0, {"target": a}), state)

    there, back = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0])
    for _ in range(50):
        state = step(there, state)[1]
    assert step(there, state)[0].tolist() == [1.0, 0.0]
    for _ in range(49):
        state = step(back, state)[1]
    weights, _ = step(back, state)
    torch.testing.assert_close(weights, ones / 2, rtol=1e-3, atol=0)


def test_refusals():
    net, batch = network()
    losses = (net(batch["x"]) - batch["y"]).square().sum(1)
    given: Any = {"weightings": batch["A"]}
    with pytest.raises(ValueError, match=r"eta: "):
        mf.align(0.0)
    with pytest.raises(ValueError, match="preference: it says what the tasks count"):
        mf.align(0.1, preference=torch.ones(3))
    with pytest.raises(TypeError, match="target: expected a function"):
        mf.jacobian(target=lambda batch: batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='engine="layerwise" makes no rows, and target='):
        mf.jacobian(target=goal(net), engine="layerwise")
    with pytest.raises(ValueError, match=r"align reads 'target', .*jacobian\(\.\.\., target="):
        mf.balance(by_sample(net), mf.align(0.1), mf.jacobian())
    for probe in (mf.moving_average(rate=0.5), mf.losses_only()):
        with pytest.raises(ValueError, match=r"reads 'target', which goes with mtlfunc\.jacobian"):
            mf.Balancer(net, mf.align(0.1), probe)
    for wrong, words in (
        (losses, "target: expected one floating loss, a 0-d tensor"),
        (torch.tensor(1.0), "target: its loss depends on none"),
        (None, "target: align reads the tasks' products"),
        (losses.sum() * torch.nan, "target .its loss.: NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            mf.Balancer(net, mf.align(0.1)).backward(losses, **given, target=wrong)
    with pytest.raises(ValueError, match=r"target: mgda does not read it"):
        mf.Balancer(net, mf.mgda()).backward(losses, **given, target=losses.sum())
    with pytest.raises(ValueError, match=r"target: it goes with mtlfunc\.jacobian"):
        mf.Balancer(net, mf.moco(), mf.moving_average()).backward(losses, target=losses.sum())
    own = mf.Balancer(net, mf.align(0.1), mf.jacobian(target=goal(net)))
    with pytest.raises(ValueError, match=r"target: .* backward\(losses, target=\)"):
        own.backward(losses, **given, target=losses.sum())
    with pytest.raises(ValueError, match='engine="layerwise"'):
        mf.Balancer(net, mf.align(0.1), mf.jacobian(engine="layerwise")).backward(
            losses, **given, target=losses.sum()
        )
    step = mf.balance(by_sample(net), mf.align(0.1), mf.jacobian(target=lambda p, b: p["0.bias"]))
    with pytest.raises(ValueError, match="target: expected one floating loss"):
        step.update(mf.parameters(net), batch, step.init(mf.parameters(net), batch))
    assert all(x.grad is None for x in net.parameters())


def test_a_target_that_shares_its_graph_with_the_losses():
    net, batch = network()
    losses = (net(batch["x"]) - batch["y"]).square().sum(1)
    info = mf.Balancer(net, mf.align(ETA)).backward(
        losses, weightings=batch["A"], target=losses[:3].mean()
    )
    names = tuple(mf.parameters(net))
    each = gradients(lambda p: by_sample(net)(p, batch), mf.parameters(net), names)
    wanted = reweighed([1 / 3] * 3, batch["A"] @ each @ each[:3].mean(0))
    torch.testing.assert_close(info.weights, wanted, rtol=1e-9, atol=0)


def test_an_eta_that_overflows_is_named():
    net, batch = network()
    losses = (net(batch["x"]) - batch["y"]).square().mean(0)
    with pytest.raises(ValueError, match=r"eta: times the products .* overflows torch\.float64"):
        mf.Balancer(net, mf.align(1e308)).backward(1e3 * losses, target=1e3 * losses.sum())
    assert all(x.grad is None for x in net.parameters())
