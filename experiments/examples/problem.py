"""What the examples train: three regressions on one trunk, on data that conflict."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

TASKS = 3


class Net(nn.Module):
    """A shared trunk, and a head for each task.

    `mtlfunc` needs no base class and no hook: only names, here `trunk.*`.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
            self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(TASKS))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x `[sample, 8]` to predictions `[sample, task]`."""
        z = self.trunk(x)
        return torch.cat([head(z) for head in self.heads], 1)


def batches(
    count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """Batches of inputs `[sample, 8]` and targets `[sample, task]`, of tasks that conflict.

    Args:
        count: how many.
        size: samples in each.
        seed: of the data.
        dtype: of inputs and targets.
    """
    draw = torch.Generator().manual_seed(seed)
    teacher = torch.randn(8, TASKS, generator=draw, dtype=torch.float64) / 8**0.5
    x = torch.randn(count, size, 8, generator=draw, dtype=torch.float64)
    noise = torch.randn(count, size, TASKS, generator=draw, dtype=torch.float64)
    y = ((x @ teacher).sin() + 0.1 * noise) * torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64)
    return list(zip(x.to(dtype), y.to(dtype), strict=True))


def on(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    """The losses `[task]` of a batch, as a function of the network in any precision."""
    return lambda net: (net(x.to(next(net.parameters()).dtype)) - y).square().mean(0)


def difference(
    net: nn.Module,
    losses_of: Callable[[nn.Module], Tensor],
    weights: Tensor,
    heads: Literal["mean", "weighted"] = "weighted",
) -> float:
    """How far `.grad` is from a loop over the tasks, in float64, with the same weights.

    Args:
        net: with its `.grad`; a copy in float64 is differentiated, one task at a time.
        losses_of: from a network of this kind to losses `[task]`.
        weights: `[task]`.
        heads: what the parameters called `heads.*` got.

    Returns:
        ‖difference‖ / ‖gradient‖ over all parameters.
    """
    double = copy.deepcopy(net).double()
    double.__dict__.pop("forward", None)  # a wrapper of the original's, from Accelerate
    losses, apart, length = losses_of(double), 0.0, 0.0
    own = dict(double.named_parameters())
    rows = [
        torch.autograd.grad(x, list(own.values()), retain_graph=True, materialize_grads=True)
        for x in losses
    ]
    for name, leaf, *row in zip(own, net.parameters(), *rows, strict=True):
        mean = heads == "mean" and name.startswith("heads.")
        mine = torch.full_like(weights, 1 / len(weights)) if mean else weights.detach()
        expected = torch.tensordot(mine.double(), torch.stack(row), 1)
        found = torch.zeros_like(expected) if leaf.grad is None else leaf.grad.double()
        apart += float((found - expected).square().sum())
        length += float(expected.square().sum())
    return math.sqrt(apart / length)
