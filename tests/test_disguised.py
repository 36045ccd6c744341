"""Parameters, inputs and calls in disguise, by every engine, against single plain passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients.layerwise.plan import Engine
from tests.support.networks import perceptron
from tests.support.oracles import rows_of

ENGINES: tuple[Engine, ...] = ("layerwise", "rows", "auto")


def inputs(count: int = 7) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def literal(losses: Tensor, net: nn.Module) -> Tensor:
    """Rows [task, parameter]."""
    return rows_of(losses, net.parameters()).as_subclass(Tensor)


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def compare(net: nn.Module, run: Callable[[Any], Tensor]) -> None:
    """Gramians of each engine, rows, and a live step of UPGrad, with the literal rows."""
    rows = literal(run(net), net)

    def vector(params: Any, batch: Any) -> Tensor:
        return run(lambda *given: functional_call(net, params, given))

    params = mf.parameters(net)
    for losses_fn in (vector, lambda params, batch: tuple(vector(params, batch))):
        for engine in ENGINES:
            found = mf.task_gramian(losses_fn, params, (), engine=engine)[1]
            torch.testing.assert_close(found.as_subclass(Tensor), rows @ rows.mT)
        found = mf.task_gradients(losses_fn, params, ())[1]
        flat = torch.cat([row.flatten(1) for row in found.values()], 1)
        torch.testing.assert_close(flat.as_subclass(Tensor), rows)
    weights = mf.weights(mf.upgrad(), rows @ rows.mT)
    for engine in ENGINES:
        for form in (tuple, lambda losses: losses):
            balancer = mf.Balancer(net, mf.upgrad(), mf.jacobian(engine=engine))
            net.zero_grad()
            losses = run(net)
            balancer.backward(form(losses))
            made = torch.cat([gradient(leaf).flatten() for leaf in net.parameters()])
            torch.testing.assert_close(made.as_subclass(Tensor), weights @ rows)


class Plain(Tensor):
    """A subclass that does nothing."""


class Halved(Tensor):
    """Halves the input of a linear layer, whatever tensor is asked."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.linear:
            x, *rest = args
            return super().__torch_function__(func, types, (0.5 * x, *rest), kwargs or {})
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Plain, Halved])
@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_parameters_of_a_subclass(kind, names):
    net = perceptron(4, 5, 3)
    for layer in (net[0], net[2]):
        for name in names:
            leaf = getattr(layer, name).detach().as_subclass(kind)
            setattr(layer, name, nn.Parameter(leaf))
    compare(net, lambda module: module(inputs()).square().mean(0).as_subclass(Tensor))


@pytest.mark.parametrize("where", [0, 1, 2])
def test_inputs_of_a_subclass_with_a_linear_of_its_own(where):
    net = perceptron(4, 5, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = net[0], net[2]

        def forward(self, x: Tensor) -> Tensor:
            kinds = [(Halved, Tensor), (Tensor, Halved), (Halved, Halved)][where]
            z = self.first(x.as_subclass(kinds[0])).tanh().as_subclass(Tensor)
            return self.second(z.as_subclass(kinds[1])).square().mean(0).as_subclass(Tensor)

    whole = Net()
    assert not torch.equal(whole(inputs()), perceptron(4, 5, 3)(inputs()).square().mean(0))
    compare(whole, lambda module: module(inputs()))


LIBRARY = torch.library.Library("disguised", "DEF")
for _name in ("linear", "matmul", "add", "layer_norm"):
    LIBRARY.define(f"{_name}(Tensor x, Tensor w) -> Tensor")
    LIBRARY.impl(_name, lambda x, w: torch.tanh(x @ w.mT), "CompositeImplicitAutograd")


def dispatching(name: str) -> Callable[..., Tensor]:
    """A function of this name that hands over to modes, as those of torch do."""

    def call(x: Tensor, w: Tensor) -> Tensor:
        if torch.overrides.has_torch_function((x, w)):
            return torch.overrides.handle_torch_function(call, (x, w), x, w)
        return torch.tanh(x @ w.mT)

    call.__name__ = name
    return call


def sparse_input(x: Tensor, w: Tensor) -> Tensor:
    """Of the first layer: torch refuses the batched backward in words of its own."""
    return torch.tanh(x @ w.mT if x.requires_grad else torch.sparse.mm(x.to_sparse(), w.mT))


SPELLINGS = {
    "sparse input": sparse_input, "packet linear": torch.ops.disguised.linear,
    "packet matmul": torch.ops.disguised.matmul, "packet add": torch.ops.disguised.add,
    "packet layer_norm": torch.ops.disguised.layer_norm,
    "overload": torch.ops.disguised.linear.default, "function linear": dispatching("linear"),
    "function mm": dispatching("mm"), "function __get__": dispatching("__get__"),
}  # fmt: skip


class Called(nn.Module):
    """Two weights, read by a call."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first = nn.Parameter(next(perceptron(4, 5, 3)[0].parameters()).detach())
        self.second = nn.Parameter(next(perceptron(4, 5, 3)[2].parameters()).detach())
        self.calls = [call]

    def forward(self, x: Tensor) -> Tensor:
        (call,) = self.calls
        return call(call(x, self.first), self.second)


@pytest.mark.parametrize("call", SPELLINGS.values(), ids=SPELLINGS)
def test_calls_of_every_spelling(call):
    compare(Called(call), lambda module: module(inputs()).square().mean(0))


OWN = {
    "F.linear": nn.functional.linear, "aten.linear": torch.ops.aten.linear,
    "@": lambda x, w: x @ w.T, "matmul": lambda x, w: torch.matmul(x, w.mT),
    "mm": lambda x, w: x.mm(w.t()), "aten.mm": lambda x, w: torch.ops.aten.mm(x, w.transpose(0, 1)),
    "addmm": lambda x, w: torch.addmm(x.new_zeros(len(w)), x, w.T),
    "einsum": lambda x, w: torch.einsum("ni,oi->no", x, w),
    "split": lambda x, w: torch.cat([x @ part.T for part in w.split(2)], 1),
}  # fmt: skip


@pytest.mark.parametrize("call", OWN.values(), ids=OWN)
def test_torch_s_own_spellings_are_recognised(call, formed):
    """All weights of a square network, where the Gramian needs none of their rows."""
    width, net = 40, nn.ParameterList(torch.randn(40, 40) / 40 for _ in range(2))
    params, x = mf.parameters(net), torch.randn(1, width)

    def losses(params: Any, batch: Any) -> Tensor:
        first, second = params.values()
        return call(call(x, first).tanh(), second).reshape(4, -1).square().mean(1)

    found = mf.task_gramian(losses, params, (), engine="layerwise")[1]
    shapes = list(formed)
    rows = mf.task_gradients(losses, params, ())[1]
    flat = torch.cat([row.flatten(1) for row in rows.values()], 1)
    torch.testing.assert_close(found, flat @ flat.mT)
    assert not any(shape[-2:] == (width, width) for shape in shapes)


class Checkpointed(nn.Module):
    """The body in a reentrant checkpoint, after nothing, a frozen layer or a trained one."""

    def __init__(self, lead: str) -> None:
        super().__init__()
        self.lead = nn.Linear(4, 4, dtype=torch.float64) if lead else nn.Identity()
        self.lead.requires_grad_(lead == "trained")
        self.layers = perceptron(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lead(x.clone().requires_grad_())
        z = checkpoint(self.layers[:2], x, use_reentrant=True)
        return self.layers[2](z).square().mean(0)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("lead", ["", "frozen", "trained"])
def test_reentrant_checkpoints_are_refused(lead, enabled):
    net = Checkpointed(lead)
    refused = pytest.raises(RuntimeError, match=r"reentrant .* use_reentrant=False")
    with refused, torch.set_grad_enabled(enabled):
        mf.task_gramian(lambda p, b: functional_call(net, p, (inputs(),)), mf.parameters(net), ())
    for rule in (mf.mean(), mf.upgrad()):
        for form in (tuple, lambda losses: losses):
            balancer = mf.Balancer(net, rule)
            losses = net(inputs())
            with refused:
                balancer.backward(form(losses))
            assert all(leaf.grad is None for leaf in net.parameters())


class Reentrant(torch.autograd.Function):
    """A checkpoint of one's own, whose backward calls backward()."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        return block(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.block(x), grads)
        return None, x.grad


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("rule", [mf.mean(), mf.upgrad()])
def test_a_backward_that_writes_gradients_is_refused(rule, before):
    net, lead = perceptron(4, 5, 3), nn.Linear(4, 4).double()
    whole = nn.ModuleList([lead, net])
    weight = next(net.parameters())
    if before:
        weight.grad = torch.ones_like(weight)
    for form in (tuple, lambda losses: losses):
        balancer = mf.Balancer(whole, rule)
        losses = net[2](Reentrant.apply(net[:2], lead(inputs()))).square().mean(0)
        words = r"calls backward\(\) .* of 1\.0\.weight, 1\.0\.bias"
        with pytest.raises(RuntimeError, match=words):
            balancer.backward(form(losses))
        assert lead.weight.grad is None
        assert (weight.grad is not None) == before


class Halving(torch.overrides.TorchFunctionMode):
    """Halves the input of every linear layer, as a simulation of quantised layers may."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.linear:
            args = (0.5 * args[0], *args[1:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mode_that_makes_something_else_of_a_call(engine):
    net = perceptron(4, 5, 3)
    with Halving():
        rows = literal(net(inputs()).square().mean(0), net)
    balancer = mf.Balancer(net, mf.upgrad(), mf.jacobian(engine=engine))
    with Halving():
        losses = net(inputs()).square().mean(0)
    torch.testing.assert_close(balancer.backward(losses).gramian, rows @ rows.mT)
    with torch.device("cpu"):  # a mode of torch's own
        losses = net(inputs()).square().mean(0)
    rows = literal(losses, net)
    torch.testing.assert_close(balancer.backward(losses).gramian, rows @ rows.mT)


class Neighbours(nn.Module):
    """Layers between products with a sparse matrix, of which torch batches no derivative."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        dense = torch.eye(7, dtype=torch.float64).roll(1, 0) + 0.5 * torch.eye(7).double()
        self.near = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
        self.layers = perceptron(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.near @ self.layers[1](self.layers[0](x))
        return torch.sparse.mm(self.near, self.layers[2](z)).square().mean(0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_products_with_a_sparse_matrix(layout):
    compare(Neighbours(layout), lambda module: module(inputs()))
