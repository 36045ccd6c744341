"""Losses of operations, and their rows by one backward pass each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mtlfunc.types import Params
from tests.support.operations import DOUBLE, OPERATIONS, constant

Batch = tuple[Tensor, ...]


class Losses:
    """T losses, quadratic in the outputs of K operations whose inputs a batch (s, u) moves."""

    def __init__(self, names: tuple[str, ...], tasks: int) -> None:
        self.operations, self.tasks = [OPERATIONS[name] for name in names], tasks
        self.scales = [1.0] * len(names)
        values = self.parts(literal(self, self.params(0)))
        self.scales = [1 / (float(value.abs()) ** 0.5 or 1.0) for value in values]

    def params(self, network: int) -> Params:
        """Another point for each of three networks."""
        return {
            f"{k}.{i}": x * (1 + 0.1 * network * constant(*x.shape, 4 + i)[..., i])
            for k, operation in enumerate(self.operations)
            for i, x in enumerate(operation.inputs)
        }

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        total = torch.zeros(self.tasks, dtype=DOUBLE)
        for k, (operation, scale) in enumerate(zip(self.operations, self.scales, strict=True)):
            inputs = [params[f"{k}.{i}"] for i in range(len(operation.inputs))]
            if batch:
                s, u = batch
                moves = [
                    0.2 * s[k] * constant(*x.shape, 1 + i)[..., i] for i, x in enumerate(inputs)
                ]
                inputs = [
                    (x + move) * (1 + 0.05 * u.reshape(()))
                    for x, move in zip(inputs, moves, strict=True)
                ]
            leaves = tree_leaves(operation.call(*inputs))
            reals = [torch.view_as_real(x) if x.is_complex() else x for x in leaves]
            out = torch.cat([x.flatten() for x in reals])
            first, second = constant(2, self.tasks, out.shape[0])
            total = total + scale * (first @ out + second @ out.square())
        return total

    def parts(self, rows: Params) -> Tensor:
        """A function of the Gramian of every operation's rows alone, [K]."""
        mixed = constant(self.tasks, self.tasks)
        values = [torch.zeros((), dtype=DOUBLE) for _ in self.operations]
        for name, row in rows.items():
            flat = row.reshape(len(row), -1)
            k = int(name.split(".")[0])
            values[k] = values[k] + (flat * (mixed @ flat)).sum()
        return torch.stack(values)


def stacked(networks: list[Params]) -> Params:
    return {name: torch.stack([params[name] for params in networks]) for name in networks[0]}


def literal(losses: Callable[[Params, Batch], Tensor], params: Params, batch: Batch = ()) -> Params:
    """Rows {name: [task, *shape]}, one backward pass each."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in params.values()]
    rows = [
        torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        for value in losses(dict(zip(params, leaves, strict=True)), batch)
    ]
    return {
        name: torch.stack(found)
        for name, found in zip(params, zip(*rows, strict=True), strict=True)
    }
