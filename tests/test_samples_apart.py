"""Whether samples mix, which values may decide anew at every step: every answer is that of rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from tests.support.oracles import near, rows_of

SAMPLES, WIDTH = 6, 5


class Switched(nn.Module):
    """Two layers, between which `mixed` acts on the samples by a value given from outside."""

    def __init__(self, mixed):
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.norm, self.mixed = nn.BatchNorm1d(WIDTH), mixed

    def forward(self, x, t):
        return self.last(self.mixed(self, self.first(x).tanh(), t).sin()).square().sum(1)


def eye():
    return torch.eye(SAMPLES, dtype=torch.float64)


def number(t):
    return torch.tensor(t, dtype=torch.float64)


def attention(net, h, mask):
    """Samples packed into one sequence."""
    x = h[None]
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)[0]


PERMUTED = torch.tensor([3, 1, 0, 2, 5, 4])
HALF_MASK = (torch.arange(SAMPLES) < 3)[:, None]

MIXED = {  # how, the value that keeps samples apart, one that mixes them
    "batch norm": (lambda net, h, training: net.norm.train(training)(h), False, True),
    "flip": (lambda net, h, t: h + t * h.flip(0), number(0.0), number(1.0)),
    "roll": (lambda net, h, t: h + t * h.roll(1, 0), number(0.0), number(0.5)),
    "product": (lambda net, h, t: t @ h, eye(), eye()[PERMUTED]),
    "graph": (lambda net, h, t: t @ h, eye(), (eye() + eye().roll(1, 0)) / 2),
    "where": (
        lambda net, h, t: torch.where(t, h.flip(0), h), torch.zeros_like(HALF_MASK), HALF_MASK,
    ),
    "lookup": (lambda net, h, t: F.embedding(t, h), torch.arange(SAMPLES), PERMUTED),
    "gather": (
        lambda net, h, t: h.gather(0, t[:, None].expand(-1, WIDTH)), torch.arange(SAMPLES),
        PERMUTED,
    ),
    "index": (lambda net, h, t: h[t], torch.arange(SAMPLES), PERMUTED),
    "attention": (attention, eye().bool(), torch.ones(SAMPLES, SAMPLES).tril().bool()),
    "sum of those before": (
        lambda net, h, t: h + t * h.cumsum(0), number(0.0), number(1.0),
    ),
    "dead": (lambda net, h, t: h + F.relu(h.sum(0) - t), number(1e3), number(-1e3)),
    "one pair": (
        lambda net, h, t: h + t * (eye()[0][:, None] * h[3]), number(0.0), number(0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["auto", "layerwise"])
@pytest.mark.parametrize("name", MIXED)
def test_a_balancer_does_not_take_mixed_samples_for_separate(name, engine, monkeypatch):
    """After steps that keep them apart, a graph of the same nodes in which they mix."""
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    mixed, apart, together = MIXED[name]
    torch.manual_seed(0)
    net, x = Switched(mixed).double(), torch.randn(SAMPLES, 4, dtype=torch.float64)
    matrix = torch.randn(9, SAMPLES, dtype=torch.float64)
    balancer = mf.Balancer(net, mf.mean(), mf.jacobian(engine=engine))
    for t in (apart, apart, apart, together, apart, together):
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
