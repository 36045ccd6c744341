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


def normed(net, h, training):
    return net.norm.train(training)(h)


PERMUTED = torch.tensor([3, 1, 0, 2, 5, 4])
HALF_MASK = (torch.arange(SAMPLES) < 3)[:, None]

MIXED = {  # how, the value that keeps samples apart, one that mixes them
    "batch norm": (normed, False, True),
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


LAYERS = {
    name: layer(4, 4, **options).double()
    for name, (layer, options) in {
        "rnn": (nn.RNN, {"batch_first": True}),
        "gru": (nn.GRU, {"batch_first": True, "bidirectional": True}),
        "lstm": (nn.LSTM, {"batch_first": True, "num_layers": 2}),
        "rnn cell": (nn.RNNCell, {}),
        "gru cell": (nn.GRUCell, {}),
        "lstm cell": (nn.LSTMCell, {}),
    }.items()
}
SINGLE = nn.LSTM(4, 4, batch_first=True)  # one fused operation in float32
TO = torch.tensor([0, 0, 2, 1])
ODD = torch.arange(4) % 2 == 1


def run_cell(name, h):
    found = LAYERS[name](h[:, 0])
    return h * (found[0] if name == "lstm cell" else found)[:, None]


def moved(h, method, *given):
    h = h * 1
    return getattr(h, method)(*given)


def masked(h):
    h = h * 1
    h[:, ODD] = 0.5
    return h


def aligned(h):
    labels, one = torch.ones(len(h), 2).long(), torch.ones(len(h)).long()
    labels[:, 1] = 2
    scores = h.transpose(0, 1).log_softmax(-1)
    return h * F.ctc_loss(scores, labels, 4 * one, 2 * one, reduction="none")[:, None, None]


INSIDE = {  # of each sample [4, 4], and the name that is said where samples are the second axis
    **{x: (lambda h, x=x: LAYERS[x](h)[0][..., :4], r"\w+") for x in ("rnn", "gru", "lstm")},
    **{
        x: (lambda h, x=x: run_cell(x, h), r"\w+") for x in ("rnn cell", "gru cell", "lstm cell")
    },
    "lstm in float32": (lambda h: SINGLE(h.float())[0].to(h), "lstm"),
    "its last state": (lambda h: h + SINGLE(h.float())[1][0][0, :, None].to(h), "lstm"),
    "transpose_": (lambda h: moved(h, "transpose_", 1, 2), "order"),
    "swapaxes_": (lambda h: moved(h, "swapaxes_", 1, 2), "order"),
    "t_": (lambda h: torch.stack([moved(x, "t_") for x in h]), "order"),
    "unsqueeze_": (lambda h: moved(h, "unsqueeze_", 1)[:, 0], None),
    "unfold": (lambda h: torch.cat(h.unfold(1, 3, 1).unbind(3)[::2], 1), "unfold"),
    "pixel_shuffle": (lambda h: F.pixel_shuffle(h.reshape(-1, 4, 2, 2), 2)[:, 0], "pixel_shuffle"),
    "pixel_unshuffle": (
        lambda h: F.pixel_unshuffle(h[:, None], 2).reshape(-1, 4, 4), "pixel_unshuffle",
    ),
    "channel_shuffle": (lambda h: F.channel_shuffle(h, 2), "channel_shuffle"),
    "fold": (lambda h: F.fold(F.unfold(h[:, None], 3), (4, 4), 3)[:, 0], "unfold|fold"),
    "scatter_add": (
        lambda h: torch.zeros_like(h).scatter_add(1, TO[:, None].expand_as(h), h), "scatter_add",
    ),
    "scatter": (lambda h: h.scatter(1, TO[:, None].expand_as(h), h.exp()), "scatter"),
    "index_add": (lambda h: h.index_add(1, TO, h.exp()), "index_add"),
    "index_copy": (lambda h: h.index_copy(1, TO[1:], h.exp()[:, 1:]), "index_copy"),
    "mask": (masked, None),
    "irfft": (lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1).exp(), n=4, dim=1), "irfft"),
    "rfft": (lambda h: h * torch.fft.rfft(h, dim=1).real[:, :1], "slice"),
    "fft": (lambda h: torch.fft.fft2(h).abs(), "fft"),
    "median": (lambda h: h * h.median(1, keepdim=True)[0], "median"),
    "kthvalue": (lambda h: h * h.kthvalue(3, 1, keepdim=True)[0], "kthvalue"),
    "cummax": (lambda h: h.cummax(1)[0], "cummax"),
    "logcumsumexp": (lambda h: h.logcumsumexp(1), "logcumsumexp"),
    "inv": (lambda h: torch.linalg.inv(h + 4 * torch.eye(4).to(h)), "linalg_inv"),
    "cholesky": (
        lambda h: torch.linalg.cholesky(h @ h.mT + torch.eye(4).to(h)), "linalg_cholesky|bmm",
    ),
    "ctc": (aligned, "ctc_loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_operations_inside_a_sample_and_across_samples(name):
    """Taken where they work on each sample's own axes, with the numbers of each sample alone;
    refused by name where samples lie along them.
    """
    operation, said = INSIDE[name]
    params = {"w": torch.linspace(-1, 1, 48).double().sin().reshape(3, 16)}
    x = torch.linspace(0, 5, 12).double().cos().reshape(4, 3)

    def losses(params, x, across=False):
        h = (x @ params["w"]).reshape(-1, 4, 4)
        h = operation(h.transpose(0, 1)).transpose(0, 1) if across else operation(h)
        return (h * torch.arange(16).reshape(4, 4)).sin().sum((1, 2))

    rows = [
        rows_of(losses({"w": w}, one[None]), [w])
        for one, w in zip(x, [params["w"].clone().requires_grad_()] * 4, strict=True)
    ]
    expected = torch.cat(rows) @ torch.cat(rows).mT
    room = 1e-5 if "SINGLE" in operation.__code__.co_names else 1e-12
    for measure in (mf.sample_gramian, mf.sample_norms):
        found = measure(losses, params, x)[1]
        wanted = expected if found.ndim == 2 else expected.diagonal().sqrt()
        near(found, wanted, room, room * float(expected.abs().max()))
        if said is None:
            measure(lambda p, x: losses(p, x, True), params, x)
            continue
        with pytest.raises(ValueError, match=rf"samples mix .*({said}).*engine=\"rows\""):
            measure(lambda p, x: losses(p, x, True), params, x)


def test_the_module_in_which_samples_mix_is_named():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()
    x = torch.randn(SAMPLES, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"mix in batch_norm of the module 1\. .*module\.eval"):
        mf.sample_norms(
            lambda p, x: torch.func.functional_call(net, p, (x,)).squeeze(1), mf.parameters(net), x
        )
