"""Networks and batches that change from step to step, between those where rows are cheapest and
those where layers are: the numbers stay right.

The references: a literal loop of `torch.autograd.grad`, `engine="rows"`, and a step that knows
nothing of the steps before.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan

F64 = torch.float64
MANY, FEW = 40, 2  # samples: rows are cheapest, or layers


@pytest.fixture(autouse=True)
def prices(monkeypatch):
    """Small networks stand for large ones."""
    for name in ("FEW_PARAMETERS", "GROUP", "NUMBER"):
        monkeypatch.setattr(plan, name, 0)
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, width=16, tasks=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))
        self.saving = False

    def forward(self, x):
        z = checkpoint(self.trunk, x, use_reentrant=False) if self.saving else self.trunk(x)
        return tuple((head(z) - k).square().mean() for k, head in enumerate(self.heads))


def batch(count, seed=0, width=16):
    return torch.randn(count, width, dtype=F64, generator=torch.Generator().manual_seed(seed))


def compare(info, net, losses, shared):
    """One step's Gramian and `.grad` against a loop over the losses of another forward."""
    leaves = {name: leaf for name, leaf in net.named_parameters() if leaf.requires_grad}
    rows = [
        torch.autograd.grad(x, list(leaves.values()), retain_graph=True, materialize_grads=True)
        for x in losses
    ]
    names = list(leaves)
    trunk = [i for i, name in enumerate(names) if name.startswith(shared)]
    matrix = torch.stack([torch.cat([row[i].flatten() for i in trunk]) for row in rows])
    torch.testing.assert_close(info.gramian, matrix @ matrix.T, rtol=1e-10, atol=1e-12)
    for i, name in enumerate(names):
        weights = info.weights if i in trunk else torch.full_like(info.weights, 1 / len(rows))
        expected = sum(w * row[i] for w, row in zip(weights, rows, strict=True))
        torch.testing.assert_close(leaves[name].grad, expected, rtol=1e-10, atol=1e-12)


def live(net, balancer, x, shared="trunk"):
    """One step that is right."""
    net.zero_grad()
    losses = net(x)
    compare(balancer.backward(losses), net, net(x), shared)


def started(net, shared="trunk.*"):
    balancer = mf.Balancer(net, mf.mgda(), mf.jacobian(shared))
    live(net, balancer, batch(MANY))
    return balancer


def test_a_network_that_changes():
    net = Net().double()
    balancer, x = started(net), batch(MANY, 9)
    net.trunk.append(nn.Tanh())
    live(net, balancer, x)
    net.trunk[0].requires_grad_(False)
    live(net, balancer, x)
    net.trunk[0].requires_grad_(True)
    net.trunk[2].weight = net.trunk[0].weight  # tied
    for _ in range(2):
        live(net, balancer, x)
    net.heads[0] = net.heads[1]  # a head of two losses
    for _ in range(2):
        live(net, balancer, x)


def test_hooks_and_checkpoints_that_come_later():
    net = Net().double()
    balancer, x = started(net), batch(MANY, 9)
    hooks = [
        net.trunk[2].register_full_backward_hook(lambda module, up, down: (2 * up[0],)),
        net.trunk[1].register_forward_hook(
            lambda _, x, out: [out.register_hook(lambda g: 3 * g)][1:] or None
        ),
    ]
    for _ in range(2):
        live(net, balancer, x)
    for hook in hooks:
        hook.remove()
    live(net, balancer, x)
    net.saving = True
    for _ in range(2):
        live(net, balancer, x)


def test_losses_as_a_vector():
    net = Net().double()
    balancer, x = started(net), batch(MANY, 9)
    for _ in range(3):
        net.zero_grad()
        losses = torch.stack(net(x))
        compare(balancer.backward(losses), net, net(x), "trunk")
    net.zero_grad()
    compare(balancer.backward(net(x)), net, net(x), "trunk")


def test_resuming_is_bit_exact_where_kinds_change(tmp_path):
    counts = [MANY] * 4 + [FEW] * 2 + [MANY] * 5
    net = Net().float()
    twin, balancer = copy.deepcopy(net), mf.Balancer(net, mf.mgda(), "trunk.*")

    def step(net, balancer, seed):
        net.zero_grad()
        losses = net(batch(counts[seed], seed).float())
        balancer.backward(losses)
        with torch.no_grad():
            for leaf in net.parameters():
                leaf.sub_(0.1 * leaf.grad)

    for seed in range(len(counts)):
        other = mf.Balancer(twin, mf.mgda(), "trunk.*")  # resumes at every step
        torch.save(balancer.state_dict(), tmp_path / "state")
        other.load_state_dict(torch.load(tmp_path / "state"))
        step(net, balancer, seed)
        step(twin, other, seed)
        assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("inside", [nn.Linear(16, 16), nn.Tanh(), nn.BatchNorm1d(16)])
def test_a_checkpointed_part_runs_once_a_task(inside, late):
    """And not once more to free the graph, whenever checkpointing is switched on."""
    runs = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = inside

        def forward(self, x):
            runs.append(1)
            return self.part(x)

    net = Net()
    net.trunk = nn.Sequential(nn.Linear(16, 16), Counted())
    net = net.double()
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for step in range(8):
        net.saving = step > 4 or not late
        runs.clear()
        losses = net(batch(MANY, step))
        balancer.backward(losses)
        assert len(runs) == (1 + len(losses) if net.saving else 1), step
