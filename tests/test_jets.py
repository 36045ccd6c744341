"""Jets against nested derivatives of torch.func, and what they refuse."""

import math
import operator
import threading
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.overrides import get_overridable_functions, resolve_name

import mtlfunc as mf
from mtlfunc import physics
from tests.support.functions import custom

F64 = torch.float64


def _mlp(layer: type[nn.Module], d: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 6), layer(), nn.Linear(6, 5), layer(), nn.Linear(5, 2))


def _logsigmoid(h):  # a mapped derivative of torch's own writes into what others read
    return -F.softplus(-h) if isinstance(h, Tensor) else F.logsigmoid(h)


def _norm(h):  # torch cannot differentiate its own in the weights, behind a mapped Hessian
    return h.square().sum(1).sqrt() if isinstance(h, Tensor) else torch.linalg.vector_norm(h, dim=1)


def _layer_norm(h, *affine: Tensor):
    if not isinstance(h, Tensor):
        return F.layer_norm(h, (4,), *affine, eps=0.1)
    h = h - h.mean(-1, keepdim=True)  # torch's own layer_norm is wrong in the third derivative
    h = h / (h.square().mean(-1, keepdim=True) + 0.1).sqrt()
    return h * affine[0] + affine[1] if affine else h


OPERATIONS = {  # of h [n, 4], which depends on x, and a weight W [4, 3]
    "log": lambda h, W: (h.square() + 2).log().sqrt() + torch.rsqrt(h * h + 1) + h.square().log1p(),
    "erf": lambda h, W: h.erf() + torch.reciprocal(3 + h.sin()) - h.cos().exp(),
    "gelu": lambda h, W: F.gelu(h, approximate="tanh") + F.softplus(h, beta=2),
    "mish": lambda h, W: F.mish(h) - _logsigmoid(h),
    "sinh": lambda h, W: h.sinh() * torch.cosh(h) + torch.expm1(h) * h.atan(),
    "einsum": lambda h, W: torch.einsum("ni, io -> no", h, W) * torch.einsum("io,...i->...o", W, h),
    "einsum of two": lambda h, W: torch.einsum("ni,nj->nji", h, h.tanh()) + h[:, None],
    "tensordot": lambda h, W: (
        torch.tensordot(h, W, 1) + torch.tensordot(h.sin(), W, ([1], [0]))  # pyright: ignore
    ),
    "addmm": lambda h, W: torch.addmm(W[0], h, W, beta=2, alpha=0.5) + torch.addmm(h[:, :3], h, W),
    "matmul": lambda h, W: (
        h[:, :, None] @ h.sin()[:, None] @ W + (W.mT @ h[:, :, None]).transpose(1, 2)),
    "stack": lambda h, W: torch.stack([h, torch.ones_like(h), h.sin()], -1) * h.unsqueeze(2),
    "chunk": lambda h, W: h.chunk(2, 1)[0] * h.split([1, 3], dim=1)[0] - h.unbind(-1)[3][:, None],
    "columns": lambda h, W: h[:, [2, 0, 0]] * h[..., torch.tensor([1, 3, 0])],
    "clone": lambda h, W: h.clone().contiguous().to(h).double() * W[:, 0].to(h),
    "expand": lambda h, W: h[:, :1].expand(-1, 3) + h[:, 1:2].expand(len(h), 3).repeat(1, 1),
    "softmax": lambda h, W: torch.softmax(9 * h, 1) * F.softmax(h, dim=-1),
    "prod": lambda h, W: (
        h.prod(1)[:, None] + h.prod(dim=1, keepdim=True).sum(axis=1, keepdims=True)),
    "norm": lambda h, W: _norm(h)[:, None] * _norm(h.cos())[:, None],
    "layer_norm": lambda h, W: _layer_norm(h, W[:, 0], W[:, 1]) * _layer_norm(h),
    "powers": lambda h, W: 2.0**h + (h * h + 1) ** h + W.square()[:, 0] ** h.sin(),
    "where": lambda h, W: (
        torch.where(h > 0.1, h.sin().where(h < 1, h), W[:, 0]) + h.masked_fill(h < 0, 2) * h % 0.3),
    "integers": lambda h, W: h / torch.tensor(3) + torch.tensor([3, 7, 9, 1]) ** h,
    "numbers": lambda h, W: np.float64(2) * torch.as_tensor(h) / torch.mul(input=h, other=h).add(1),
    "transpose": lambda h, W: h.unflatten(1, (2, 2)).transpose(1, 2) * h.flip(1).reshape(-1, 2, 2),
}  # fmt: skip


class Operation(nn.Module):
    def __init__(self, *operations) -> None:
        super().__init__()
        self.operations = operations
        self.first, self.last = nn.Linear(2, 4), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        found = [f(self.first(x), self.last) for f in self.operations]
        return torch.cat([y.reshape(len(x), -1) for y in found], 1)


NETWORKS = {
    **{f"Tanh-{d}": (lambda d=d: _mlp(nn.Tanh, d), d) for d in range(1, 6)},
    **{
        x.__name__: (lambda x=x: _mlp(x, 2), 2) for x in (nn.SiLU, nn.GELU, nn.Softplus, nn.Sigmoid)
    },
    **{name: (lambda f=f: Operation(f), 2) for name, f in OPERATIONS.items()},
    "all": (lambda: Operation(*OPERATIONS.values()), 2),
}


def _case(name: str) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    make, d = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(d)
        net = make().double()
        x = torch.rand(4, d, dtype=F64) + 0.2
    return net, mf.parameters(net), x


def _at(net: nn.Module):
    """One point of the network, for torch.func."""
    return lambda params, x: functional_call(net, params, (x[None],))[0]


def _close(got: Tensor, expected: Tensor) -> None:
    # three layers of float64: rounding in units of the largest entry
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-12 * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "all"])
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
        derivative = jacrev(derivative)
        for order in range(max(k, 1), 3):  # a lower order has the same first derivatives
            lower = physics.directional(net, params, x, direction, order)[k]
            assert torch.allclose(lower, got, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["Tanh-2", "all"])
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

    scales = [1 + k / 10 for k in range(4)]
    many = {k: torch.stack([s * x for s in scales]).unflatten(0, (2, 2)) for k, x in params.items()}
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
        u = params["a"][0] * torch.sin(math.pi * x[:, :1]) * x[:, 1:] ** 2 + x @ params["w"]
        return u.squeeze(-1) - 0 * x[:, 0].reciprocal() / params["a"][1]

    found = physics.laplacian(u, params, x)
    s, c, y = torch.sin(math.pi * x[:, 0]), torch.cos(math.pi * x[:, 0]), x[:, 1]
    _close(found.value, 0.5 * s * y**2 + x.sum(1))
    _close(found.gradient, torch.stack([0.5 * math.pi * c * y**2, s * y], 1) + 1)
    _close(found.laplacian, 0.5 * s * (2 - math.pi**2 * y**2))
    narrow = {name: leaf.float() for name, leaf in params.items()}
    one = torch.ones(1, 1, dtype=F64)
    wide = physics.laplacian(lambda p, x: x @ p["w"] + one, narrow, x.float())
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


def _reversed(x):
    return custom(lambda ctx, x: x, lambda ctx, grad: -grad)(x)


def _under(mode):
    def f(p, x):
        with mode():
            y = x * 1.0
        return x + y

    return f


UNKNOWN = {  # what is refused, and how its name is spelled
    "a method": (lambda p, x: x.cummax(1), "cummax"),
    "threshold": (lambda p, x: F.softplus(x, 1, 5), "threshold >= 20"),
    "in place": (lambda p, x: x.sin_(), r"sin_; write"),
    "added": (lambda p, x: operator.iadd(x, 1), r"__iadd__; write y = y \+ 1"),
    "assigned": (lambda p, x: operator.setitem(x, 0, 1.0), r"__setitem__; write"),
    "module in place": (lambda p, x: nn.SiLU(inplace=True)(x), r"silu_; write .* inplace=False"),
    "transposed": (lambda p, x: x.T, r"Tensor\.T"),
    "batch norm": (lambda p, x: nn.BatchNorm1d(2)(x), "batch_norm"),
    "exponent": (lambda p, x: x ** p["a"][:2], "pow with a tensor as exponent"),
    "base": (lambda p, x: (-2.0) ** x, "pow"),
    "weight of x": (lambda p, x: F.linear(torch.ones(3, 2), x), "linear of an argument behind"),
    "dtype": (lambda p, x: torch.div(x, 2, rounding_mode="floor"), "div with these .*rounding"),
    "three": (lambda p, x: torch.einsum("ni,ni,ni->n", x, x, x), "einsum of three operands"),
    "norm": (lambda p, x: x.norm(1, dim=1), "norm with p = 1"),
    "detached": (lambda p, x: x.detach() + x, "detach"),
    "condition": (lambda p, x: x if x.sum(1) else -x, "__bool__"),
    "rows": (lambda p, x: torch.stack([row.sin() for row in x]), "__iter__"),
    "copied": (lambda p, x: torch.tensor(x), "tensor"),
    "mapped": (
        lambda p, x: vmap(grad(torch.sum))(x),  # pyright: ignore
        r"`.*vmap\(grad\(torch.sum\)\)\(x\).*` takes",
    ),
    "no_grad": (_under(torch.no_grad), r"mul.* under torch\.no_grad"),
    "inference": (_under(torch.inference_mode), "inference_mode"),
    "set": (_under(lambda: torch.set_grad_enabled(False)), r"set_grad_enabled\(False\)"),
    "decorated": (lambda p, x: x + torch.no_grad()(torch.sin)(x), r"sin .* under torch\.no_grad"),
    "a Function": (lambda p, x: _reversed(x), "Custom is an autograd.Function"),
}
MIXED = {
    "over points": (lambda p, x: x - x.mean(0), "mean over the first axis"),
    "turned": (lambda p, x: x.reshape(2, 3), "reshape over the first axis mixes the points"),
    "split": (lambda p, x: x.split(2)[0], "split over the first axis"),
    "joined": (lambda p, x: torch.cat([x, x]), "cat along the first axis"),
    "einsum": (lambda p, x: torch.einsum("ni,mi->nm", x, x), "einsum by 'ni,mi->nm'"),
    "one point": (lambda p, x: x - x[0], "index"),
    "a vector times": (lambda p, x: x[:, 0] @ torch.ones(3, 2), "mixes the points"),
    "by name": (lambda p, x: x.sin().sum(1).repeat(repeats=(3, 1)), "repeat over the first axis"),
    "to the front": (
        lambda p, x: x[:, [0, 1, 1]].movedim(1, destination=0),
        "movedim over the first axis",
    ),
    "swapped": (lambda p, x: x[:, [0, 1, 1]].swapaxes(1, axis1=0), "swapaxes over the first axis"),
    "points by points": (lambda p, x: torch.mm(x, x.sin()), "matmul of .* mixes the points"),
    "before": (lambda p, x: torch.ones(3, 3) @ x, "mixes the points"),
    "axes": (lambda p, x: x * x[:, 0], r"\[3, 2\] and \[3\]"),
    "no x": (lambda p, x: p["a"], "depends on x, got Tensor"),
    "two": (lambda p, x: (x, x), "depends on x, got tuple"),
}


@pytest.mark.parametrize("name", UNKNOWN | MIXED)
def test_what_is_refused_is_named(name: str) -> None:
    f, message = (UNKNOWN | MIXED)[name]
    apply = vars(torch.autograd.Function)["apply"]
    with pytest.raises(NotImplementedError if name in UNKNOWN else ValueError, match=message):
        physics.laplacian(f, {"a": torch.ones(3)}, torch.rand(3, 2))
    assert vars(torch.autograd.Function)["apply"] is apply


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_whole_call_without_gradients(mode) -> None:
    net, params, x = _case("Tanh-2")
    expected = physics.laplacian(net, params, x)
    with mode():
        found = physics.laplacian(net, params, x)
        with pytest.raises(NotImplementedError, match=r"under torch\.no_grad"):
            physics.laplacian(_under(torch.no_grad), params, x)
        own: Any = dict(net.named_parameters())
        answer = jvp(lambda x: physics.laplacian(net, own, x).value, (x,), (x,))
    assert not answer[0].requires_grad
    _close(answer[1], (expected.gradient * x[:, None]).sum(-1))
    assert not any(one.requires_grad for one in found)
    assert all(map(torch.equal, found, expected))


@pytest.mark.filterwarnings("ignore")  # of what is deprecated
def test_every_function_of_torch_works_or_is_named() -> None:
    """Whatever arguments it takes: no error of torch's own says that it met a jet."""
    functions = {f for fs in get_overridable_functions().values() for f in fs}
    raw, x = [], torch.rand(3, 2)
    forms = [lambda x: (x,), lambda x: (x, x), lambda x: (x, 1), lambda x: (x[:1], x)]
    for f, form in product(functions, [*forms, lambda x: ([x, x],), lambda x: (torch.ones(2), x)]):
        try:
            physics.directional(lambda p, x, f=f, form=form: f(*form(x)), {"a": x}, x, x[0], 2)
        except Exception as error:
            if "Jet" in str(error) and not str(error).startswith("f: "):
                raw.append(f"{resolve_name(f)}: {error}")
    assert not raw


def test_a_thread_inside_of_a_function_has_its_own_laplacian():
    """None waits for another, and torch is left as it was."""
    apply, x, found = vars(torch.autograd.Function)["apply"], torch.randn(4, 2), []

    def network(params, z):
        if not found:
            found.append(None)
            inside = lambda: found.append(physics.laplacian(network, params, x))  # noqa: E731
            thread = threading.Thread(target=inside, daemon=True)
            thread.start()
            thread.join(60)
        return (params["a"] * z**3).sum(1)

    outer = physics.laplacian(network, {"a": torch.tensor(2.0)}, x)
    torch.testing.assert_close(found[1].laplacian, outer.laplacian)
    assert vars(torch.autograd.Function)["apply"] is apply
