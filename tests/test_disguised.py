"""Parameters, inputs, calls and checkpoints that are not what they look like, by every engine, pure
and live, against one `torch.autograd.grad` a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf

ENGINES = ("layerwise", "rows", "auto")


def network(width: int = 5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double()


def inputs(count: int = 7) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def literal(losses: Tensor, net: nn.Module) -> Tensor:
    """Rows [task, parameter]."""
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    flat = [torch.cat([grad.flatten() for grad in row]) for row in rows]
    return torch.stack(flat).as_subclass(Tensor)


def compare(net: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
    """Gramians of each engine, rows, and a live step of UPGrad, with the literal rows."""
    rows = literal(run(net), net)

    def vector(params: Any, batch: Any) -> Tensor:
        return run(lambda *given: functional_call(net, params, given))

    def scalars(params: Any, batch: Any) -> tuple[Tensor, ...]:
        return tuple(vector(params, batch))

    params = mf.parameters(net)
    for losses_fn in (vector, scalars):
        for engine in ENGINES:
            found = mf.task_gramian(losses_fn, params, (), engine=engine)[1]
            torch.testing.assert_close(found.as_subclass(Tensor), rows @ rows.mT)
        found = mf.task_gradients(losses_fn, params, ())[1]
        flat = torch.cat([row.flatten(1) for row in found.values()], 1)
        torch.testing.assert_close(flat.as_subclass(Tensor), rows)
    weights = mf.weights(mf.upgrad(), rows @ rows.mT)
    for engine in ENGINES:
        for form in (tuple, lambda losses: losses):
            balancer = mf.Balancer(net, mf.upgrad(), engine=engine)
            net.zero_grad()
            with balancer:
                losses = run(net)
            balancer.backward(form(losses))
            made = torch.cat([leaf.grad.flatten() for leaf in net.parameters()])
            torch.testing.assert_close(made.as_subclass(Tensor), weights @ rows)


# --- parameters and inputs of a subclass --------------------------------------------------------


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
    net = network()
    for layer in (net[0], net[2]):
        for name in names:
            leaf = getattr(layer, name).detach().as_subclass(kind)
            setattr(layer, name, nn.Parameter(leaf))
    compare(net, lambda module: module(inputs()).square().mean(0).as_subclass(Tensor))
