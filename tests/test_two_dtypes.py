"""A trunk of one dtype and heads of another: rows and Gramian next to a loop of autograd."""

import pytest
import torch
from torch import nn

import mtlfunc as mf
from tests.support.every import every
from tests.support.oracles import rows_of

LOW, SINGLE = torch.bfloat16, torch.float32
X, MATRIX = torch.linspace(-1, 1, 64).reshape(16, 4), torch.linspace(0, 1, 48).reshape(3, 16)


class Net(nn.Module):
    def __init__(self, trunk, heads):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)).to(trunk)
        self.heads = nn.Linear(8, 3).to(heads)

    def forward(self, x):
        z = self.trunk(x.to(self.trunk[0].weight.dtype))
        return self.heads(z.to(self.heads.weight.dtype)).square()


@every("dtypes", [(LOW, SINGLE), (SINGLE, LOW), (SINGLE, torch.float16)])
@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("shared", ["trunk.*", "*"])
def test_every_gradient_has_its_parameters_dtype(shared, engine, dtypes):
    net, matrix = Net(*dtypes), MATRIX.to(dtypes[1])
    named = {n: p for n, p in net.named_parameters() if shared == "*" or n.startswith("trunk")}
    means = net(X).mean(0)
    for losses, known, given in (
        (net(X).mean(0), means, {}),
        ([*net(X).mean(0)], means, {}),
        ([lambda t=t: net(X)[:, t].mean() for t in range(3)], means, {}),
        (net(X).sum(1), matrix @ net(X).sum(1), {"weightings": matrix}),
    ):
        rows = rows_of([*known], named.values()).double()
        balancer = mf.Balancer(net, mf.mgda(), mf.jacobian(shared, engine=engine))
        info = balancer.backward(losses, **given)  # pyright: ignore
        assert info.gramian.dtype == SINGLE
        # the two graphs round alike, but for sums in another order
        slack, gramian = 16 * max(torch.finfo(x).eps for x in dtypes), rows @ rows.mT
        assert (info.gramian.double() - gramian).abs().max() <= slack * gramian.diagonal().max()
        found = torch.cat([p.grad.double().flatten() for p in named.values()])  # pyright: ignore
        assert (found - info.weights.double() @ rows).abs().max() <= slack * rows.abs().max()
        assert all(p.grad.dtype == p.dtype for p in net.parameters())  # pyright: ignore
        net.zero_grad()


def test_float64_next_to_others_is_refused():
    with pytest.raises(ValueError, match=r"^params: 'trunk.0.weight' is .* to one dtype"):
        mf.Balancer(Net(SINGLE, torch.float64), mf.mgda())
