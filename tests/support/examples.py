"""A loop's rows by plain autograd, and what training must do to its losses."""

import torch
from torch import Tensor, nn

from tests.support import oracles


def rows_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The trunk's Jacobian [task, parameter] and the heads' mean gradient, by plain autograd."""
    trunk = [leaf for name, leaf in net.named_parameters() if name.startswith("trunk.")]
    heads = [leaf for name, leaf in net.named_parameters() if name.startswith("heads.")]
    losses = (net(batch[0]) - batch[1]).square().mean(0)
    rows = oracles.rows_of(losses, trunk)
    return rows, torch.cat([x.flatten() for x in torch.autograd.grad(losses.mean(), heads)])


def falls(seen: Tensor, *, factor: float = 0.6) -> None:
    count = len(seen) // 4
    assert (seen[-count:].mean(0) < factor * seen[:count].mean(0)).all()
