"""Losses of several terms, each with points of its own: an equation inside, others on the edge."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import mtlfunc as mf

F64 = torch.float64
NET = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.fixture(scope="module")
def params():
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(leaf.shape, generator=draw, dtype=F64) / 2
        for name, leaf in NET.named_parameters()
    }


def points(count, seed):
    return torch.rand(count, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def value(params, x):
    return functional_call(NET, params, (x,))[:, 0]


def by_autograd(params, x):
    x = x.detach().requires_grad_()
    first = torch.autograd.grad(value(params, x).sum(), x, create_graph=True)[0]
    parts = (torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0] for i in (0, 1))
    return sum(part[:, i] for i, part in enumerate(parts))


def by_jets(params, x):
    return mf.physics.laplacian(NET, params, x).laplacian[:, 0]


# the first sizes are equal to a width, to each other, a divisor of all points
TERMS = {
    "two": lambda f: lambda p, b: torch.cat([f(p, b[0]), 3 * value(p, b[1])]),
    "edge first": lambda f: lambda p, b: torch.cat([value(p, b[1]), f(p, b[0]) - 1]),
    "three": lambda f: lambda p, b: torch.cat([f(p, b[0]), value(p, b[1]), value(p, b[0]) ** 2]),
    "stacked": lambda f: lambda p, b: torch.stack([f(p, b[0]), value(p, b[0])]).flatten(),
    "two tasks": lambda f: (
        lambda p, b: torch.stack(
            [torch.cat([f(p, b[0]), value(p, b[1])]), torch.cat([value(p, b[0]), value(p, b[1])])],
            1,
        )
    ),
}
SIZES = [(4, 8), (4, 4), (6, 3), (5, 7), (1, 5)]
WAYS = {"autograd": by_autograd, "jets": by_jets}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("terms", TERMS)
def test_gramian_and_norms_are_those_of_rows(terms, way, sizes, params):
    losses, batch = TERMS[terms](WAYS[way]), tuple(points(n, i) for i, n in enumerate(sizes))
    expected = mf.sample_gramian(losses, params, batch, engine="rows")[1]
    scale = expected.diagonal().max()
    for engine in ("auto", "layerwise"):
        got = mf.sample_gramian(losses, params, batch, engine=engine)[1]
        assert (got - expected).abs().max() <= 1e-12 * scale
    norms = mf.sample_norms(losses, params, batch)[1].flatten()
    assert (norms.square() - expected.diagonal()).abs().max() <= 1e-12 * scale


@pytest.mark.parametrize("way", WAYS)
def test_terms_form_no_rows(way, params):
    losses = TERMS["two"](WAYS[way])
    told = mf.explain_gramian(losses, params, (points(5, 0), points(7, 1)), samples=True)
    assert not any(layer.form == "rows" for layer in told.layers)


def test_a_term_that_mixes_its_points_is_found(params):
    def losses(p, b):
        inside = value(p, b[0])
        return torch.cat([inside - inside.mean(), value(p, b[1])])

    batch = points(5, 0), points(7, 1)
    got, expected = (
        mf.sample_gramian(losses, params, batch, engine=engine)[1]
        for engine in ("layerwise", "rows")
    )
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


def test_mapped_and_differentiated(params):
    losses, batch = TERMS["two"](by_jets), (points(5, 0), points(7, 1))

    def trace(scale, engine):
        scaled = {name: scale * leaf for name, leaf in params.items()}
        return mf.sample_gramian(losses, scaled, batch, engine=engine)[1].trace()

    scales = torch.tensor([0.5, 1.5], dtype=F64)
    for f in (trace, grad(trace), grad(grad(trace))):
        got = vmap(lambda s, f=f: f(s, "layerwise"))(scales)
        expected = torch.stack([f(s, "rows") for s in scales])
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
