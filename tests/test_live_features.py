"""Features of a live loop that are computed from one another: the rows are those of the heads."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf

F64 = torch.float64
WIDTH, TASKS = 4, 3


class Levels(nn.Module):
    """`reads[k]` are the earlier levels from which level k is computed; level 0 reads the input.

    Heads read all levels and, if `aside`, what no feature holds: half of a level that is split.
    """

    def __init__(self, reads, *, split=False, aside=False, inner=False):
        super().__init__()
        self.reads, self.split, self.aside, self.inner = reads, split, aside, inner
        self.trunk = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in reads)
        self.heads = nn.Linear(len(reads) * WIDTH, TASKS)
        self.direct = nn.Linear(WIDTH, TASKS)

    def encode(self, x):
        z, rest = {}, {}
        for k, (layer, sources) in enumerate(zip(self.trunk, self.reads, strict=True)):
            whole = torch.tanh(layer(x if not sources else sum(z[s] for s in sources)))
            # two outputs of one node, or one of a node of its own
            z[k], rest[k] = whole.chunk(2, 1) if self.split else (whole[:, :WIDTH].square(), whole)
        return z, rest

    def decode(self, z, rest, x):
        out = self.heads(torch.cat([level.sin() for level in z.values()], 1))
        if self.aside:
            out = out + self.direct(rest[0][:, :WIDTH])
        if self.inner:  # the trunk's parameters are also read by the heads
            out = out + self.trunk[0](x)[:, :TASKS]
        return [out[:, t].square().mean() * (t + 1) for t in range(TASKS)]


GRAPHS = {
    "alone": [()],
    "side by side": [(), ()],
    "a chain": [(), (0,), (1,)],
    "a fork": [(), (0,), (0,)],
    "a diamond": [(), (0,), (0,), (1, 2)],
    "with a skip": [(), (0,), (0, 1), (0, 2)],
}


@pytest.mark.parametrize("form", ["list", "vector"])
@pytest.mark.parametrize("options", [{}, {"split": True}, {"inner": True}, {"aside": True}])
@pytest.mark.parametrize("reads", GRAPHS.values(), ids=GRAPHS)
def test_rows_and_gradients_are_those_of_a_graph_cut_at_every_feature(reads, options, form):
    """Cut by hand: the heads on detached features, whose rows one trunk pass pulls back."""
    torch.manual_seed(len(reads))
    net = Levels(reads, **options).double()
    x = torch.randn(6, WIDTH, dtype=F64)
    z, rest = net.encode(x)
    leaves = {k: level.detach().requires_grad_() for k, level in z.items()}
    losses = net.decode(leaves, rest, x)
    rows = [torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for loss in losses]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    params = list(net.parameters())
    weights = mf.weights(mf.mgda(), flat @ flat.mT)
    whole = torch.stack(losses).mean()
    heads = torch.autograd.grad(whole, params, retain_graph=True, allow_unused=True)
    mixed = [
        torch.stack([w * row[k] for w, row in zip(weights, rows, strict=True)]).sum(0)
        for k in range(len(leaves))
    ]
    trunk = torch.autograd.grad(list(z.values()), params, mixed, allow_unused=True)
    expected = [
        sum(g if g is not None else torch.zeros_like(p) for g in pair)
        for p, *pair in zip(params, heads, trunk, strict=True)
    ]
    balancer = mf.Balancer(net, mf.mgda(), shared="trunk.*")
    z, rest = net.encode(x)
    losses = net.decode(z, rest, x)
    losses = losses if form == "list" else torch.stack(losses)
    named = {str(k): level for k, level in z.items()}
    info = balancer.backward(losses, features=named, retain_graph=True)
    torch.testing.assert_close(info.gramian, flat @ flat.mT, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(info.weights, weights, rtol=1e-9, atol=1e-12)
    for p, grad in zip(params, expected, strict=True):
        mine = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(mine, grad, rtol=1e-9, atol=1e-12)
    # nothing is left on the graph
    total = torch.stack(list(losses)).sum()
    again = torch.autograd.grad(total, params, allow_unused=True)
    fresh = torch.autograd.grad(
        torch.stack(net.decode(*net.encode(x), x)).sum(), params, allow_unused=True
    )
    for mine, theirs in zip(again, fresh, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


def test_levels_are_those_of_the_pure_probe():
    torch.manual_seed(0)
    net = Levels(GRAPHS["with a skip"]).double()
    x = torch.randn(6, WIDTH, dtype=F64)

    class Part(nn.Module):
        """One method of the net, for functional_call."""

        def __init__(self, call):
            super().__init__()
            self.net, self.call = net, call

        def forward(self, *inputs):
            return self.call(*inputs)

    def call(part, params, *inputs):
        return functional_call(Part(part), {f"net.{n}": p for n, p in params.items()}, inputs)

    def encode(params, x):
        return {str(k): z for k, z in call(net.encode, params, x)[0].items()}

    def decode(params, z, x):
        return torch.stack(call(net.decode, params, z, {}, x))

    def losses(params, x):
        return decode(params, encode(params, x), x)

    probe = mf.representation(encode, decode, shared="trunk.*")
    step, params = mf.balance(losses, mf.mgda(), probe), mf.parameters(net)
    grads, _, expected = step.update(params, x, step.init(params, x))
    z, rest = net.encode(x)
    info = mf.Balancer(net, mf.mgda(), shared="trunk.*").backward(
        net.decode(z, rest, x), features={str(k): level for k, level in z.items()}
    )
    torch.testing.assert_close(info.gramian, expected.gramian)
    for name, leaf in net.named_parameters():
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, grads[name], rtol=1e-9, atol=1e-12)


def test_one_tensor_under_two_names_is_refused():
    """What is read under which name, the graph does not say: rows would count it twice."""
    net = Levels(GRAPHS["alone"]).double()
    x = torch.randn(6, WIDTH, dtype=F64)
    z, rest = net.encode(x)
    losses = net.decode(z, rest, x)
    balancer = mf.Balancer(net, mf.mgda(), shared="trunk.*")
    with pytest.raises(ValueError, match="features: 'a' and 'b' are one tensor; pass it once"):
        balancer.backward(losses, features={"a": z[0], "b": z[0]})
