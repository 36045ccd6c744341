"""Whether samples mix, which values may decide anew at every step: every answer is that of rows."""

import pytest
import torch
from torch import nn

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from tests.support.oracles import near, rows_of
from tests.support.programs import MIXES

SAMPLES = 6


class Switched(nn.Module):
    """Two layers, between which samples may mix."""

    def __init__(self, mix):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm, self.mix = nn.BatchNorm1d(4), mix

    def forward(self, x, t):
        z = self.first(x).tanh()
        z = self.norm.train(t > 0)(z) if self.mix is None else self.mix(z, t)
        return self.last(z.sin()).square().sum(1)


KINDS = {
    **MIXES,
    "module": None,
    "gather": lambda z, t: z.gather(
        0, torch.arange(len(z)).roll(1 if t else 0)[:, None].expand(-1, 4)
    ),
}


@pytest.mark.parametrize("engine", ["auto", "layerwise"])
@pytest.mark.parametrize("name", KINDS)
def test_a_balancer_does_not_take_mixed_samples_for_separate(name, engine, monkeypatch):
    """After steps that keep them apart, a graph of the same nodes in which they mix."""
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    torch.manual_seed(0)
    net, x = Switched(KINDS[name]).double(), torch.randn(SAMPLES, 4, dtype=torch.float64)
    matrix = torch.randn(9, SAMPLES, dtype=torch.float64)
    balancer = mf.Balancer(net, mf.mean(), mf.jacobian(engine=engine))
    for t in (0.0, 0.0, 0.0, 0.7, 0.0, 0.7):
        net.zero_grad()
        losses = net(x, t)
        jacobian = rows_of(matrix @ net(x, t), net.parameters())
        info = balancer.backward(losses, weightings=matrix)
        scale = float(jacobian.abs().max())
        gramian = jacobian @ jacobian.T
        near(info.gramian, gramian, 0, 1e-10 * float(gramian.abs().max()))
        found = torch.cat([x.grad.flatten() for x in net.parameters() if x.grad is not None])
        near(found, jacobian.mean(0)[: len(found)], 0, 1e-10 * scale)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_call_of_one_sample_alone(samples):
    """All of an output is one sample's, and so is all of a batch of one."""
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.randn(samples, 4, dtype=torch.float64)

    def losses(params, x):
        apart = [torch.func.functional_call(net, params, (row[None],)).exp().sum() for row in x]
        return torch.stack(apart) + torch.func.functional_call(net, params, (x,)).square().sum(1)

    params = mf.parameters(net)
    found, rows = (mf.sample_gramian(losses, params, x, engine=e)[1] for e in ("auto", "rows"))
    near(found, rows)
    told = mf.explain_gramian(losses, params, x, samples=True)
    assert "rows" not in {layer.form for layer in told.layers}


def test_the_module_in_which_samples_mix_is_named():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()
    x = torch.randn(SAMPLES, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"mix in batch_norm of the module 1\. .*module\.eval"):
        mf.sample_norms(
            lambda p, x: torch.func.functional_call(net, p, (x,)).squeeze(1), mf.parameters(net), x
        )
