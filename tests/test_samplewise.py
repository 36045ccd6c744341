"""What the autograd graph is said to prove about samples, on random programs in which every axis
has the same length.
"""

# pyright: reportArgumentType=false

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.func import grad, jacrev, vmap

import mtlfunc as mf
from mtlfunc.gradients.layerwise.graph import read_graph
from mtlfunc.gradients.layerwise.owners import walk

F64 = torch.float64

N = 3  # samples, features and heads all of one length: every mistake about axes is possible
STEPS = {
    "relu": torch.relu,
    "tanh in place": lambda h: (h + 0).tanh_(),
    "softmax -1": lambda h: h.softmax(-1),
    "softmax 0": lambda h: h.softmax(0),
    "log softmax 1": lambda h: h.log_softmax(1),
    "transpose": lambda h: h.transpose(0, 1).contiguous(),
    "transpose inner": lambda h: h.reshape(N, N, 1).transpose(1, 2).reshape(N, N),
    "permute": lambda h: h[:, :, None].permute(1, 2, 0).reshape(N, N),
    "view": lambda h: h.reshape(N * N).reshape(N, N),
    "view turned": lambda h: h.mT.reshape(N * N).reshape(N, N),
    "center over features": lambda h: h - h.mean(1, keepdim=True),
    "center over samples": lambda h: h - h.mean(0),
    "center over all": lambda h: h - h.mean(),
    "add its rows' sums": lambda h: h + h.sum(1),
    "add its rows' sums, rightly": lambda h: h + h.sum(-1)[:, None],
    "select a sample": lambda h: h + h[1],
    "select a feature": lambda h: h * h[:, 1:2],
    "select a feature, wrongly": lambda h: h * h[:, 1],
    "roll": lambda h: h.roll(1, 0),
    "flip": lambda h: h.flip(0),
    "shift": lambda h: torch.cat([h[1:], h[:1]]),
    "concatenate features": lambda h: torch.cat([h[:, :1], h[:, 1:]], 1),
    "index": lambda h: h[torch.tensor([0, 2, 1])],
    "constant from the right": lambda h: h @ torch.arange(N * N, dtype=F64).reshape(N, N).cos(),
    "constant from the left": lambda h: torch.arange(N * N, dtype=F64).reshape(N, N).cos() @ h,
    "own Gram matrix": lambda h: h @ h.mT,
    "attention": lambda h: torch.bmm(h[:, :, None], h[:, None, :]).softmax(-1).sum(2),
    "attention over samples": lambda h: torch.bmm(h[None], h.mT[None])[0],
    "layer norm": lambda h: F.layer_norm(h, (N,)),
    "layer norm over samples": lambda h: F.layer_norm(h, (N, N)),
    "batch norm": lambda h: F.batch_norm(h, None, None, training=True),
    "group norm": lambda h: F.group_norm(h, 1),
    "convolution over samples": lambda h: F.conv1d(h[None], torch.ones(N, N, 1, dtype=F64))[0],
    "convolution": lambda h: F.conv1d(h[:, None], torch.ones(1, 1, N, dtype=F64), padding=1)[:, 0],
    "cumulative": lambda h: h.cumsum(0),
    "pooling": lambda h: F.max_pool2d(h[:, None, None], (1, 1))[:, 0, 0],
    "expand": lambda h: h[:, :1].expand(N, N),
    "expand, wrongly": lambda h: h[:, 0].expand(N, N),
    "square": lambda h: h**2,
    "divide by the largest": lambda h: h / h.detach().abs().max(),
    "maximum over samples": lambda h: h - h.amax(0),
    "embedded twice": lambda h: h.mT.mT,
}
LAST = {
    "sum": lambda h: h.sum(1),
    "mean": lambda h: h.mean(-1),
    "sum over samples": lambda h: h.sum(0),
    "squared error": lambda h: F.mse_loss(h, torch.zeros_like(h), reduction="none").sum(1),
    "cross-entropy": lambda h: F.cross_entropy(h, torch.tensor([0, 2, 1]), reduction="none"),
    "all": lambda h: h,
    "turned": lambda h: h.mT,
    "diagonal": lambda h: h.diagonal(),
    "one feature": lambda h: h[:, 0],
    "one sample": lambda h: h[0],
}


def owners(losses, places):
    """Of every tensor, which loss each entry is proved to serve alone (-1 none, -2 several)."""
    graph, found = read_graph((get_gradient_edge(losses),), {}), {}

    def visit(place, owner):
        found[place] = owner
        return True

    each = np.arange(len(losses)).reshape(-1, *(1,) * (losses.ndim - 1))
    walk(tuple(graph.reach), [((losses.grad_fn, losses.output_nr), each)], visit)
    return [np.broadcast_to(found.get((x.grad_fn, x.output_nr), -1), x.shape) for x in places]


def claimed_and_true(steps, last):
    X = torch.from_numpy(np.random.default_rng(0).standard_normal((N, N)))
    h = first = X @ torch.eye(N, dtype=F64).requires_grad_()
    for step in steps:
        h = STEPS[step](h)
    losses = LAST[last](h)
    rows = [
        torch.autograd.grad(losses[i].sum(), first, retain_graph=True, allow_unused=True)[0]
        for i in range(N)
    ]
    served = np.stack([np.zeros((N, N)) if row is None else row.numpy() for row in rows]) != 0
    return owners(losses, [first])[0], served


def wrong(steps, last):
    """Whether an entry serves another loss than the one it is said to serve."""
    claimed, served = claimed_and_true(steps, last)
    return any((served[i] & (claimed != i) & (claimed != -2)).any() for i in range(N))


def test_graph_proves_nothing_false_about_any_single_operation():
    assert not [(step, last) for step in STEPS for last in LAST if wrong([step], last)]
    proved = [
        (step, last)
        for step in STEPS
        for last in LAST
        if (claimed_and_true([step], last)[0] != -2).all()
    ]
    assert len(proved) > 150  # it is not by proving nothing


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=3), st.sampled_from(sorted(LAST)))
@settings(max_examples=400)
def test_graph_proves_nothing_false_about_samples(steps, last):
    """Where it says that an entry serves loss i alone, no other loss has a derivative by it."""
    assert not wrong(steps, last)


def test_graph_proves_common_networks_apart():
    """So that one backward pass is enough for them."""
    x = torch.randn(5, 3, 8, 8)
    convolutional = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    dense = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)
    )
    for network in (convolutional, dense):
        x = x.clone().requires_grad_() * 1
        for apart, losses in (
            (True, F.cross_entropy(network(x), torch.arange(5) % 3, reduction="none")),
            (True, (network(x) - 1).square().mean(-1)),
            (True, (network(x) - 1).square()),
            (False, (network(x) - network(x).mean(0)).square().mean(-1)),
        ):
            expected = np.arange(5).reshape(-1, 1, 1, 1) if apart else -2
            assert (owners(losses, [x])[0] == expected).all()


def test_as_many_ensembles_as_samples():
    """vmap over parameters, N of them: their axis is not taken for the samples'."""
    x = torch.randn(N, 4, dtype=F64)
    params = {"w": torch.randn(N, 4, N, dtype=F64)}

    def losses(params, batch):
        return torch.tanh(batch @ params["w"]).square().sum(1)

    def mixing(params, batch):
        return (batch @ params["w"]).softmax(0).square().sum(1)

    together = vmap(lambda p: mf.sample_gramian(losses, p, x)[1])(params)
    for i in range(N):
        torch.testing.assert_close(
            together[i],
            mf.sample_gramian(losses, {"w": params["w"][i]}, x, engine="rows")[1],
            rtol=1e-12,
            atol=1e-14,
        )
    with pytest.raises(ValueError, match="samples mix at w"):
        vmap(lambda p: mf.sample_gramian(mixing, p, x)[1])(params)
    for measure in (mf.sample_gramian, mf.sample_norms):
        with pytest.raises(ValueError, match="samples mix at w"):
            grad(lambda p, f=measure: f(mixing, p, x)[1].sum())({"w": params["w"][0]})
    one = {"w": params["w"][0]}
    inside = mf.sample_gramian(
        lambda p, batch: vmap(lambda s: torch.tanh(s @ p["w"]).square().sum())(batch), one, x
    )[1]
    torch.testing.assert_close(
        inside, mf.sample_gramian(losses, one, x, engine="rows")[1], rtol=1e-12, atol=1e-14
    )
    with pytest.raises(ValueError, match="the samples mix"):
        mf.sample_gramian(
            lambda p, batch: vmap(lambda feature: torch.tanh(feature).sum(), in_dims=1)(
                batch @ p["w"]
            ),
            one,
            x,
        )


MERGED = {
    "a low rank": lambda a, b, g, v: a @ b,
    "a low rank beside a fixed one": lambda a, b, g, v: torch.ones_like(v) + 2 * (a @ b),
    "a normed one": lambda a, b, g, v: g * v / v.norm(dim=1, keepdim=True),
}


@pytest.mark.parametrize("samples", [3, 4, 8])
@pytest.mark.parametrize("name", MERGED)
def test_weights_made_of_weights_have_no_samples(name, samples):
    """Their axis of 8 is a multiple of 4 and of 8 samples."""
    generator = torch.Generator().manual_seed(samples)
    shapes = {"a": (8, 2), "b": (2, 5), "g": (8, 1), "v": (8, 5)}
    params = {
        key: torch.randn(shape, dtype=F64, generator=generator) for key, shape in shapes.items()
    }
    x = torch.randn(2, samples, 5, dtype=F64, generator=generator)

    def losses(params, x):
        return F.linear(x, MERGED[name](**params)).square().sum(1)

    def expected(x):
        rows = torch.func.jacrev(losses)(params, x)
        J = torch.cat([rows[key].flatten(1) for key in params], 1)
        return J @ J.mT

    def found(x):
        return mf.sample_gramian(losses, params, x)[1]

    each = torch.stack([expected(one) for one in x])
    torch.testing.assert_close(found(x[0]), each[0])
    torch.testing.assert_close(vmap(found)(x), each)


@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_a_number_among_the_parameters(engine):
    """The unknown coefficient of an equation, 0-d."""
    params = {"w": torch.randn(N, N, dtype=F64), "a": torch.tensor(0.7, dtype=F64)}
    x = torch.randn(4, N, dtype=F64)

    def losses(params, batch):
        return params["a"] * torch.tanh(batch @ params["w"]).sum(1)

    rows = jacrev(losses)(params, x)
    matrix = torch.cat([rows["w"].flatten(1), rows["a"][:, None]], 1)
    _, norms = mf.sample_norms(losses, params, x, engine=engine)
    torch.testing.assert_close(norms, matrix.norm(dim=1), rtol=1e-12, atol=0)
    _, gramian = mf.sample_gramian(losses, params, x, engine=engine)
    torch.testing.assert_close(gramian, matrix @ matrix.mT, rtol=1e-12, atol=1e-14)
