"""The pages for other training loops run, learn, and get the gradients of a loop over the tasks."""

import copy
import io
from functools import partial

import pytest
import torch
import torch._functorch.config
from torch import nn

import mtlfunc as mf
from experiments.examples import accumulation, checkpointing, compiled, pinn, stock_loop
from experiments.examples.problem import Net, batches, difference, on
from tests.support.examples import falls, rows_of

STEPS, SIZE = 12, 8


def test_the_difference_is_nought_for_a_loop_alone():
    net, ((x, y),) = Net(dtype=torch.float64), batches(1, SIZE)
    weights = torch.tensor([0.2, 1.0, -0.3])
    (on(x, y)(net) @ weights.double()).backward()
    assert difference(net, on(x, y), weights) < 1e-14
    assert difference(net, on(x, y), weights, "mean") > 0.1
    for leaf in net.trunk[0].parameters():
        leaf.grad = None
    assert difference(net, on(x, y), weights) > 0.1


def test_stock_loop():
    data = batches(60, 32)
    plain, (seen, off) = stock_loop.plain(data), stock_loop.balanced(data, io.BytesIO())
    assert off < 1e-5
    falls(plain)
    falls(seen)
    assert torch.equal(plain[0], seen[0])
    assert not torch.equal(plain[-1], seen[-1])


def test_the_stock_loop_resumes_bit_for_bit_by_the_state_of_the_rule(monkeypatch):
    data = batches(STEPS, SIZE)
    whole, _ = stock_loop.balanced(data, io.BytesIO())
    file = io.BytesIO()
    first, _ = stock_loop.balanced(data[:5], file)
    second, _ = stock_loop.balanced(data[5:], copy.deepcopy(file), resume=True)
    assert torch.equal(torch.cat([first, second]), whole)
    monkeypatch.setattr(mf.Balancer, "load_state_dict", lambda *_: None)
    other, _ = stock_loop.balanced(data[5:], file, resume=True)
    assert not torch.equal(other, second)


def test_activation_checkpointing():
    data = batches(60, 32)
    seen, off, forwards = checkpointing.balanced(data)
    without, other, _ = checkpointing.balanced(data, Net)
    assert max(off, other) < 1e-5
    torch.testing.assert_close(seen, without, rtol=1e-4, atol=1e-5)
    falls(seen)
    assert forwards == checkpointing.plain(data)[1] == 2  # once again for a vector of losses


def test_a_compiled_network():
    data = batches(60, 32)
    before = torch._functorch.config.donated_buffer
    try:
        seen, off = compiled.balanced(data, backend="aot_eager")
    finally:
        torch._functorch.config.donated_buffer = before
    assert off < 1e-5
    falls(seen)
    assert torch.equal(compiled.plain(data[:2], backend="aot_eager")[0], seen[0])
    torch.testing.assert_close(seen, checkpointing.balanced(data, Net)[0], rtol=1e-3, atol=1e-4)


def test_one_pass_of_a_compiled_module_needs_no_setting():
    """It frees its graph in the first backward pass, as it does in a plain loop."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    compiled = torch.compile(net)  # its inductor donates the buffers of a graph
    balancer = mf.Balancer(net, mf.gls(), None)
    info = balancer.backward(compiled(x).square().mean(0))
    grads = [leaf.grad for leaf in net.parameters()]
    net.zero_grad()  # to None: the tensors stay
    (info.weights * net(x).square().mean(0)).sum().backward()
    for grad, leaf in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(grad, leaf.grad)


def test_a_physics_informed_network():
    net, seen, off = pinn.balanced(150)
    assert off < 1e-5
    assert seen[-1, 0] < 0.05 * seen[0, 0]
    assert seen[-20:, 1].mean() < seen[:20, 1].mean()
    assert pinn.error(net) < 0.5 * pinn.error(pinn.network())
    assert torch.equal(pinn.plain(1)[1][0], seen[0])


@pytest.mark.parametrize("rule", [mf.cagrad(0.4), mf.mgda(), mf.mean()])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 3, 2)])
def test_one_graph_and_one_gramian_are_the_full_batch(sizes, rule):
    found = accumulation.main(sizes, rule)
    for way in ("one graph", "one Gramian"):
        for name, full in found["full batch"].items():
            torch.testing.assert_close(found[way][name], full, rtol=1e-9, atol=1e-11)


def test_micro_batches_one_by_one_are_the_mean_of_their_own_steps():
    sizes = (5, 1, 3)
    found = accumulation.main(sizes, mf.mgda())
    net = Net(dtype=torch.float64)
    ((x, y),) = batches(1, sum(sizes), dtype=torch.float64)
    trunk, heads = torch.zeros(()), torch.zeros(())
    for micro in zip(x.split(sizes), y.split(sizes), strict=True):
        rows, own = rows_of(net, micro)
        share = len(micro[0]) / sum(sizes)
        weights = mf.mgda().update(
            mf.Geometry(
                torch.ones(3, dtype=torch.float64),
                rows @ rows.mT,
                torch.full((3,), 1 / 3, dtype=torch.float64),
                torch.ones(3, dtype=torch.bool),
                {},
            ),
            (),
        )[0]
        # the nearest point to nought of the convex hull of the rows
        step = weights @ rows
        assert (rows @ step).min() >= step @ step - 1e-10
        trunk, heads = trunk + share * step, heads + share * own
    got = found["one by one"]
    for part, expected in (("trunk", trunk), ("heads", heads)):
        flat = torch.cat([leaf.flatten() for name, leaf in got.items() if name.startswith(part)])
        torch.testing.assert_close(flat, expected, rtol=1e-9, atol=1e-11)
    full = found["full batch"]["trunk.0.weight"]
    assert (full - got["trunk.0.weight"]).norm() > 0.01 * full.norm()


def test_the_mean_one_by_one_is_the_full_batch():
    found = accumulation.main((5, 1, 3), mf.mean())
    for way in ("plain", "one by one"):
        for name, full in found["full batch"].items():
            torch.testing.assert_close(found[way][name], full, rtol=1e-12, atol=1e-14)


def test_the_problem_is_the_same_every_time_and_its_tasks_conflict():
    assert all(map(torch.equal, Net(3).parameters(), Net(3).parameters()))
    assert all(map(torch.equal, *map(partial(sum, start=()), (batches(3, 8), batches(3, 8)))))
    one, other = batches(2, SIZE)
    assert one[1].shape == (SIZE, 3)
    assert not torch.equal(one[0], other[0])
    rows, _ = rows_of(Net(), one)
    assert (rows @ rows.mT < 0).any()


def test_a_frozen_layer_a_copy_and_a_bias_that_one_loss_does_not_see():
    """What loops do to a network between two steps."""
    net, ((x, y), *_) = Net(), batches(1, SIZE)
    balancer = mf.Balancer(net, mf.cagrad(0.4), "trunk.*")
    balancer.weigh(on(x, y)(net))
    net.trunk[0].weight.requires_grad_(False)
    info = balancer.backward(on(x, y)(net))
    assert net.trunk[0].weight.grad is None
    left = [leaf for leaf in net.trunk.parameters() if leaf.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, left, retain_graph=True)])
        for loss in on(x, y)(net)
    ]
    torch.testing.assert_close(info.gramian, torch.stack(rows) @ torch.stack(rows).mT)
    other, again = copy.deepcopy((net, balancer))
    other.zero_grad()
    weights = again.backward(on(x, y)(other)).weights
    torch.testing.assert_close(weights, info.weights)
    assert all(
        torch.allclose(a.grad, b.grad)
        for a, b in zip(other.parameters(), net.parameters(), strict=True)
        if a.grad is not None and b.grad is not None
    )
