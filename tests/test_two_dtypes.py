"""A trunk of one dtype and heads of another: rows and Gramian next to a loop of autograd."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf
from tests.support.every import every
from tests.support.oracles import rows_of

LOW, SINGLE = torch.bfloat16, torch.float32
X, MATRIX = torch.linspace(-1, 1, 64).reshape(16, 4), torch.linspace(0, 1, 48).reshape(3, 16)


class Net(nn.Module):
    def __init__(self, trunk, heads):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)).to(trunk)
            self.heads = nn.Linear(8, 3).to(heads)

    def forward(self, x):
        z = self.trunk(x.to(self.trunk[0].weight.dtype))
        return self.heads(z.to(self.heads.weight.dtype)).square()


WAYS = {
    "vector": lambda net: (net(X).mean(0), {}),
    "list": lambda net: ([*net(X).mean(0)], {}),
    "functions": lambda net: ([lambda t=t: net(X)[:, t].mean() for t in range(3)], {}),
    "weightings": lambda net: (net(X).sum(1), {"weightings": MATRIX.to(net.heads.weight)}),
}


@every("dtypes", [(LOW, SINGLE), (SINGLE, LOW), (SINGLE, torch.float16)])
@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("shared", ["trunk.*", "*"])
@pytest.mark.parametrize("way", WAYS)
def test_every_gradient_has_its_parameters_dtype(way, shared, engine, dtypes):
    net = Net(*dtypes)
    balancer = mf.Balancer(net, mf.mgda(), mf.jacobian(shared, engine=engine))
    named = {n: p for n, p in net.named_parameters() if shared == "*" or n.startswith("trunk")}
    known = net(X).mean(0) if way != "weightings" else MATRIX.to(dtypes[1]) @ net(X).sum(1)
    rows = rows_of([*known], named.values()).double()
    losses, given = WAYS[way](net)
    info = balancer.backward(losses, **given)
    assert info.gramian.dtype == SINGLE
    # the two graphs round alike, but for sums in another order
    slack = 16 * max(torch.finfo(x).eps for x in {*dtypes})
    gramian = rows @ rows.mT
    assert (info.gramian.double() - gramian).abs().max() <= slack * gramian.diagonal().max()
    wanted = info.weights.double() @ rows
    found = torch.cat([p.grad.double().flatten() for p in named.values()])
    assert (found - wanted).abs().max() <= slack * rows.abs().max()
    assert all(p.grad.dtype == p.dtype for p in net.parameters())


def test_float64_next_to_others_is_refused():
    with pytest.raises(ValueError, match=r"^params: 'trunk.0.weight' is .* to one dtype"):
        mf.Balancer(Net(SINGLE, torch.float64), mf.mgda())


def test_a_pure_step_is_a_balancers():
    net = Net(LOW, SINGLE)
    step = mf.balance(lambda p, x: functional_call(net, p, (x,)).mean(0), mf.mgda(), mf.jacobian())
    params = mf.parameters(net)
    grads = step.update(params, X, step.init(params, X))[0]
    mf.Balancer(net, mf.mgda()).backward(net(X).mean(0))
    for name, leaf in net.named_parameters():
        assert grads[name].dtype == leaf.dtype
        torch.testing.assert_close(grads[name], leaf.grad)
