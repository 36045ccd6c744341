"""Three small problems with conflicting tasks, as modules that give a loss a task."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from common.problems.digits import digits, splits
from experiments.multimnist.architectures import HardSharing, dense
from mtlfunc.types import Params

Losses = list[Tensor]


class Problem(NamedTuple):
    """A network, its data, and which parameters the tasks share."""

    module: nn.Module
    losses: Callable[[nn.Module, tuple[Tensor, ...]], Losses]
    data: tuple[Tensor, ...]  # every one [sample, ...]
    shared: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters that the tasks share."""
        names = (name for name, _ in self.module.named_parameters())
        return tuple(x for x in names if self.shared == "*" or x.startswith("trunk"))

    def by_sample(self, params: Params, batch: tuple[Tensor, ...]) -> Tensor:
        """Losses `[sample, task]` at other parameters: cross-entropies, or squared errors."""
        out = functional_call(self.module, params, (batch[0],))
        if not isinstance(out, tuple):
            return (out - batch[1]).square()
        pairs = zip(out, batch[1].unbind(1), strict=True)
        return torch.stack([F.cross_entropy(x, y, reduction="none") for x, y in pairs], 1)

    def to(self, device: torch.device) -> "Problem":
        """The same there: what is drawn does not depend on the device."""
        return self._replace(
            module=self.module.to(device), data=tuple(x.to(device) for x in self.data)
        )


def _regression(module: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
    x, y = batch
    return list((module(x) - y).square().mean(0).unbind())


def bottleneck(seed: int) -> Problem:
    """One output that three tasks want to be three different functions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        x, wish = torch.randn(128, 8), torch.randn(8, 3)
    y = (x @ wish / 8**0.5).tanh() * torch.tensor([1.0, 3.0, 0.5])
    return Problem(module, _regression, (x, y), "*")


class Tokens(nn.Module):
    """A transformer of one layer, whose mean over 12 tokens three linear heads read."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.heads = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.trunk(x).mean(1))


def transformer(seed: int) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, x, wish = Tokens(), torch.randn(256, 12, 16), torch.randn(16, 3)
    y = (x @ wish).amax(1) * torch.tensor([1.0, 3.0, 0.5]) / 4
    return Problem(module, _regression, (x, y), "trunk.*")


def two_digits(seed: int) -> Problem:
    """The left and the right one of two overlaid digits (`experiments.multimnist`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = HardSharing(dense(100, 64), 32)
    pairs = splits(digits(), mf.random.key(seed)).train

    def losses(module: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        left, right = module(batch[0])
        return [F.cross_entropy(left, batch[1][:, 0]), F.cross_entropy(right, batch[1][:, 1])]

    return Problem(module, losses, (pairs.canvases, pairs.labels), "trunk.*")


NETWORKS: dict[str, Callable[[int], Problem]] = {
    "bottleneck": bottleneck, "digits": two_digits, "transformer": transformer,
}  # fmt: skip
