"""Jets against nested derivatives of torch.func, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import mtlfunc as mf
from mtlfunc import physics

F64 = torch.float64


class Mixed(nn.Module):
    """Every kind of operation that jets know, with Fourier features and a hard boundary."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * d, 5), nn.Linear(5, 4, bias=False)
        self.last = nn.Parameter(torch.randn(4, 2))
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.cat([torch.sin(2 * x), torch.cos(x), x[:, :0]], 1)
        h = F.silu(self.first(features)) / (1 + features.square().sum(1, keepdim=True))
        h = ((self.scale * self.second(h)).tanh() + torch.ones(4)).sub(h[:, 1:], alpha=0.3)
        out = (torch.exp(-h) * h**3).matmul(self.last) - 2 / (3 + h[..., :2] ** 2)
        edge = x[:, 0].unsqueeze(-1) * (1 - x[:, :1])
        return torch.rsub(out.mean(1, keepdim=True), (edge * out).reshape(len(x), -1), alpha=0.5)


def _mlp(activation: type[nn.Module], d: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(d, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 2)
    )


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x.square() + 2).sqrt() + torch.rsqrt(x * x + 1)


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x) + torch.reciprocal(3 + torch.sin(x)) - torch.cos(x).exp()


class Tanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh") + 0.1 * F.softplus(x, beta=2)


NETWORKS = {
    f"{activation.__name__}-{d}": (activation, d)
    for activation, d in [
        *((nn.Tanh, d) for d in range(1, 6)),
        *((kind, 2) for kind in (nn.SiLU, nn.GELU, nn.Softplus, nn.Sigmoid, Log, Erf, Tanh)),
        *((Mixed, d) for d in (1, 2, 5)),
    ]
}


def _case(name: str) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    activation, d = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(d)
        net = (Mixed(d) if activation is Mixed else _mlp(activation, d)).double()
        x = torch.rand(4, d, dtype=F64) + 0.2
    return net, mf.parameters(net), x


def _at(net: nn.Module):
    """One point of the network, for torch.func."""
    return lambda params, x: functional_call(net, params, (x[None],))[0]


def _close(got: Tensor, expected: Tensor) -> None:
    # three layers of float64: rounding in units of the largest entry
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-12 * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_orders_against_nested_derivatives(name: str) -> None:
    net, params, x = _case(name)
    u = _at(net)
    found = physics.laplacian(net, params, x)
    second = vmap(hessian(u, 1), (None, 0))(params, x)
    _close(found.value, net(x))
    _close(found.gradient, vmap(jacrev(u, 1), (None, 0))(params, x))
    _close(found.laplacian, second.diagonal(0, -2, -1).sum(-1))
    direction = torch.linspace(-1, 1, x.numel(), dtype=F64).reshape(x.shape) + 0.1
    derivative = lambda t, x, v: u(params, x + t * v)  # noqa: E731
    for k, got in enumerate(physics.directional(net, params, x, direction, 3)):
        _close(got, vmap(derivative, (None, 0, 0))(torch.zeros((), dtype=F64), x, direction))
        derivative = jacfwd(derivative)
        for order in range(max(k, 1), 3):  # a lower order has the same first derivatives
            assert torch.allclose(
                physics.directional(net, params, x, direction, order)[k],
                got,
                rtol=1e-12,
                atol=1e-13,
            )


@pytest.mark.parametrize("name", ["Tanh-2", "Mixed-1"])
def test_derivatives_in_the_parameters_and_vmap(name: str) -> None:
    """First and second order of the residual's square, alone and mapped over networks, nested."""
    net, params, x = _case(name)
    u = _at(net)

    def residual(laplacian) -> Tensor:
        return (laplacian + x.sum(1, keepdim=True)).square().mean()

    def mine(params):
        return residual(physics.laplacian(net, params, x).laplacian)

    def nested(params):
        second = vmap(hessian(u, 1), (None, 0))(params, x)
        return residual(second.diagonal(0, -2, -1).sum(-1))

    tangent = {name: torch.cos(leaf) for name, leaf in params.items()}
    first = [grad(f)(params) for f in (mine, nested)]
    second = [jvp(grad(f), (params,), (tangent,))[1] for f in (mine, nested)]
    twice = grad(lambda p: sum((grad(mine)(p)[name] * tangent[name]).sum() for name in p))(params)
    for leaf in params:
        _close(first[0][leaf], first[1][leaf])
        _close(second[0][leaf], second[1][leaf])
        _close(twice[leaf], second[1][leaf])

    many = {
        name: torch.stack([leaf * (1 + k / 10) for k in range(4)]).unflatten(0, (2, 2))
        for name, leaf in params.items()
    }
    mapped = vmap(vmap(grad(mine)))(many)
    for i in range(2):
        for j in range(2):
            alone = grad(mine)({name: leaf[i, j] for name, leaf in many.items()})
            for leaf in params:
                _close(mapped[leaf][i, j], alone[leaf])


def test_gramian_and_norms_are_those_of_the_rows() -> None:
    """The engine sees a linear layer with d + 2 positions a point, and forms no rows of it."""
    net, params, x = _case("Tanh-2")

    def residual(params, x):
        found = physics.laplacian(net, params, x)
        return found.laplacian[:, 0] + found.gradient[:, 1, 0] * found.value[:, 0]

    rows = jacrev(residual)(params, x)
    flat = torch.cat([leaf.flatten(1) for leaf in rows.values()], 1)
    expected = flat @ flat.mT
    losses, gramian = mf.sample_gramian(residual, params, x)
    assert torch.equal(losses, residual(params, x))
    assert (gramian - expected).abs().max() <= 1e-12 * expected.diagonal().max()
    norms = mf.sample_norms(residual, params, x)[1]
    assert torch.allclose(norms, expected.diagonal().sqrt(), rtol=1e-12)
    told = str(mf.explain_gramian(residual, params, x, samples=True))
    assert "rows" not in told.split("leaf")[1]
    assert told.count("linear") == 3


def test_a_function_of_parameters_and_points() -> None:
    params = {"a": torch.tensor([0.5, 2.0], dtype=F64), "w": torch.ones(2, 1, dtype=F64)}
    x = torch.tensor([[0.3, 0.7], [1.0, -1.0]], dtype=F64)

    def u(params, x):  # a₀ sin(πx) y² + the sum of both, a constant first in - and /
        return (
            params["a"][0] * torch.sin(math.pi * x[:, :1]) * x[:, 1:] ** 2 + x @ params["w"]
        ).squeeze(-1) - 0 * x[:, 0].reciprocal() / params["a"][1]

    found = physics.laplacian(u, params, x)
    s, c, y = torch.sin(math.pi * x[:, 0]), torch.cos(math.pi * x[:, 0]), x[:, 1]
    _close(found.value, 0.5 * s * y**2 + x.sum(1))
    _close(found.gradient, torch.stack([0.5 * math.pi * c * y**2, s * y], 1) + 1)
    _close(found.laplacian, 0.5 * s * (2 - math.pi**2 * y**2))
    narrow = {name: leaf.float() for name, leaf in params.items()}
    wide = physics.laplacian(
        lambda p, x: x @ p["w"] + torch.ones(1, 1, dtype=F64), narrow, x.float()
    )
    assert {wide.value.dtype, wide.gradient.dtype, wide.laplacian.dtype} == {F64}


def test_relu_has_a_gradient_and_no_laplacian() -> None:
    net = _mlp(nn.ReLU, 2).double()
    params, x = mf.parameters(net), torch.rand(5, 2, dtype=F64)
    expected = vmap(jacrev(_at(net), 1), (None, 0))(params, x)
    along = [physics.directional(net, params, x, e, 1)[1] for e in torch.eye(2, dtype=F64)]
    _close(torch.stack(along, -1), expected)
    with pytest.raises(ValueError, match=r"relu has a kink, so it is not differentiable twice"):
        physics.laplacian(net, params, x)
    for kink in (nn.ELU(), nn.LeakyReLU(), nn.Hardtanh(), torch.abs, lambda x: x.clamp(0)):
        with pytest.raises(ValueError, match="has a kink"):
            physics.directional(lambda p, x, kink=kink: kink(x), params, x, x[0], 2)


BAD = {
    "softmax": (lambda p, x: torch.softmax(x, 1), NotImplementedError, r"softmax"),
    "a layer": (lambda p, x: F.layer_norm(x, (2,)), NotImplementedError, "layer_norm"),
    "threshold": (lambda p, x: F.softplus(x, 1, 5), NotImplementedError, "threshold >= 20"),
    "in place": (lambda p, x: x.sin_(), NotImplementedError, r"sin_"),
    "a method": (lambda p, x: x.cumsum(1), NotImplementedError, r"cumsum"),
    "transposed": (lambda p, x: x.T, NotImplementedError, r"Tensor\.T"),
    "batch norm": (lambda p, x: nn.BatchNorm1d(2)(x), NotImplementedError, "batch_norm"),
    "exponent": (lambda p, x: 2 * torch.ones(2) ** x, NotImplementedError, "pow"),
    "weight of x": (lambda p, x: torch.ones(3, 2) @ x[:, :, None], NotImplementedError, "matmul"),
    "over points": (lambda p, x: x - x.mean(0), ValueError, "mean over the first axis"),
    "all": (lambda p, x: x.sum(), ValueError, "sum over the first axis"),
    "turned": (lambda p, x: x.reshape(2, 3), ValueError, r"reshape to \[2, 3\] mixes the points"),
    "joined": (lambda p, x: torch.cat([x, x]), ValueError, "cat along the first axis"),
    "one point": (lambda p, x: x - x[0], ValueError, "index"),
    "picked": (lambda p, x: x[:, [0]], ValueError, "index"),
    "a vector times": (lambda p, x: x[:, 0] @ torch.ones(3, 2), ValueError, "mixes the points"),
    "axes": (lambda p, x: x * x[:, 0], ValueError, r"\[3, 2\] and \[3\]"),
    "wide constant": (lambda p, x: x[:, 0] * torch.ones(3, 3), ValueError, r"\[3\] and \[3, 3\]"),
    "no x": (lambda p, x: p["a"], ValueError, "depends on x, got Tensor"),
    "two": (lambda p, x: (x, x), ValueError, "depends on x, got tuple"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_is_named(name: str) -> None:
    f, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        physics.laplacian(f, {"a": torch.ones(3)}, torch.rand(3, 2))
