"""The problems whose Gramians are timed: networks, their losses and their data, from a seed."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlfunc as mf

CLASSES = 10


class Problem(NamedTuple):
    module: nn.Module  # module(batch) -> losses [task], [sample], or a tuple of T scalars
    batch: tuple[Tensor, ...]
    shared: str = "*"  # the glob that the Gramian sums over
    per_sample: bool = False

    @property
    def trunk(self) -> nn.Module:
        """The parameters that the Gramian sums over, as a module."""
        return self.module.get_submodule(self.shared.removesuffix("*").removesuffix("."))

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> "Problem":
        """A copy elsewhere, in another precision."""
        module = copy.deepcopy(self.module).to(device=device, dtype=dtype)
        batch = tuple(
            x.to(device=device, dtype=dtype) if x.is_floating_point() else x.to(device)
            for x in self.batch
        )
        return self._replace(module=module, batch=batch)


class Outputs(nn.Module):
    """A task is one output: its squared error, averaged over the batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean(0)


class Samples(Outputs):
    """Cross-entropy of every sample."""

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


class Heads(nn.Module):
    """Every task has a head, and a target of its own for the same input."""

    def __init__(self, trunk: nn.Module, heads: list[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        x, targets = batch
        features = self.trunk(x)
        return tuple(
            F.mse_loss(head(features), y) for head, y in zip(self.heads, targets, strict=True)
        )


class OwnInputs(Heads):
    """Every task has an input of its own too, so that the trunk is called T times."""

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            F.mse_loss(head(self.trunk(x)), y)
            for head, x, y in zip(self.heads, *batch, strict=True)
        )


def mlp(width: int, outputs: int) -> nn.Sequential:
    """Three hidden layers as wide as the input."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class Block(nn.Module):
    """He et al. 2016: two 3×3 convolutions and a shortcut, with group normalisation."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(32, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(32, after)
        self.shortcut = nn.Sequential()  # nothing
        if before != after or stride > 1:
            across = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(across, nn.GroupNorm(32, after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet18(outputs: int) -> nn.Sequential:
    """ResNet-18 for small images: a 3×3 stem without pooling, 11.2 million parameters."""
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
    for before, after in pairwise((64, 64, 128, 256, 512)):
        layers += [Block(before, after, 1 if before == after else 2), Block(after, after, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs))


def decoder() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 1)),
    )


def _by_jets(net: nn.Module, x: Tensor) -> Tensor:
    return mf.physics.laplacian(net, dict(net.named_parameters()), x).laplacian[:, 0]


def _by_autograd(net: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    first = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
    second = [
        torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i]
        for i in range(x.shape[1])
    ]
    return torch.stack(second).sum(0)


WIDTHS = (128, 256)
LAPLACIANS = {"jets": _by_jets, "autograd": _by_autograd}


class Residuals(nn.Module):
    """Δu - f at every point of the plane, as physics losses have it."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        pairs = pairwise((2, width, width, width))
        layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.Tanh())]
        # a last bias would not enter
        self.net = nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
        self.laplacian = LAPLACIANS[way]

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, f = batch
        return self.laplacian(self.net, x) - f


def residuals(way: str, width: int, tasks: int, batch: int, image: int) -> Problem:
    module = Residuals(width, way)
    return Problem(module, (torch.rand(batch, 2), torch.randn(batch)), per_sample=True)


def mlp_samples(tasks: int, batch: int, image: int) -> Problem:
    module = Samples(mlp(512, CLASSES))
    x, y = torch.randn(batch, 512), torch.randint(CLASSES, (batch,))
    return Problem(module, (x, y), per_sample=True)


def mlp_tasks(tasks: int, batch: int, image: int) -> Problem:
    return Problem(Outputs(mlp(1024, tasks)), (torch.randn(batch, 1024), torch.randn(batch, tasks)))


def resnet(tasks: int, batch: int, image: int) -> Problem:
    module = Outputs(resnet18(tasks))
    return Problem(module, (torch.randn(batch, 3, image, image), torch.randn(batch, tasks)))


def decoders(tasks: int, batch: int, image: int) -> Problem:
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
    )
    module = Heads(trunk, [decoder() for _ in range(tasks)])
    x, y = torch.randn(batch, 3, image, image), torch.randn(tasks, batch, 1, image, image)
    return Problem(module, (x, y), "trunk.*")


def own_inputs(tasks: int, batch: int, image: int) -> Problem:
    trunk = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    module = OwnInputs(trunk, [nn.Linear(256, 1) for _ in range(tasks)])
    x, y = torch.randn(tasks, batch, 128), torch.randn(tasks, batch, 1)
    return Problem(module, (x, y), "trunk.*")


class Family(NamedTuple):
    """Problems of any size."""

    make: Callable[[int, int, int], Problem]  # of tasks, batch and the images' side
    what: str
    size: tuple[int, int]  # tasks and batch, as the page shows them


PROBLEMS = {
    "mlp-sample": Family(mlp_samples, "MLP 3×512, {batch} samples", (1, 128)),
    "mlp-task": Family(mlp_tasks, "MLP 3×1024, {tasks} tasks, batch {batch}", (40, 128)),
    "resnet18": Family(resnet, "ResNet-18, {image}×{image}, {tasks} tasks, batch {batch}", (4, 8)),
    "decoders": Family(decoders, "{tasks} dense decoders, {image}×{image}, batch {batch}", (4, 8)),
    "own-inputs": Family(
        own_inputs, "{tasks} tasks with inputs of their own, batch {batch}", (8, 64)
    ),
} | {
    f"{way}-{width}-sample": Family(
        partial(residuals, way, width), f"Laplacian by {way}, 3×{width}, {{batch}} points", (1, 256)
    )
    for way in LAPLACIANS
    for width in WIDTHS
}


def problem(family: str, tasks: int, batch: int, image: int, seed: int = 0) -> Problem:
    """A problem in float32 on the CPU; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PROBLEMS[family].make(tasks, batch, image)
