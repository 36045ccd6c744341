"""The networks that are timed, their losses and their data, from a seed."""

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad

import mtlfunc as mf

CLASSES = 10


def dense(*widths: int, between: type[nn.Module] = nn.ReLU, last: bool = False) -> nn.Sequential:
    """Linear layers with an activation between each two, and behind the `last` one if asked."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), between())]
    return nn.Sequential(*layers[: None if last else -1])


def convolutions(*widths: int) -> nn.Sequential:
    """Convolutions with batch norm."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


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


class Of(nn.Module):
    """Losses of a network on a batch."""

    def __init__(self, net: nn.Module, losses: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.net, self.losses = net, losses

    def forward(self, batch: Any) -> Tensor:
        return self.losses(self.net, batch)


cross_entropy = partial(F.cross_entropy, reduction="none")
Squares = partial(Of, losses=lambda net, x: net(x).square().mean(1))  # squared errors of samples


# What steps take


class Shared(nn.Module):
    """A trunk, and one head a task on its features: a linear one on their mean over positions, or
    a dense decoder of its own.
    """

    def __init__(self, trunk: nn.Module, width: int, tasks: int, *, dense: bool = False) -> None:
        super().__init__()
        self.trunk, self.dense = trunk, dense
        self.heads = nn.ModuleList(
            nn.Sequential(convolutions(width, width, width), nn.Conv2d(width, 1, 1))
            if dense
            else nn.Linear(width, 1)
            for _ in range(tasks)
        )

    def features(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        z = z[0] if isinstance(z, tuple) else z  # a recurrent trunk's outputs
        if self.dense or z.ndim == 2:
            return z
        return z.flatten(2).mean(2) if z.ndim == 4 else z.mean(1)

    def above(self, z: Tensor) -> list[Tensor]:
        """Losses of features."""
        return [(head(z) - k).square().mean() for k, head in enumerate(self.heads)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.above(self.features(x))


class Physics(nn.Module):
    """-u'' = f on [0, 1] with u = 0 at both ends: residual and boundary share all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = dense(1, 64, 64, 1, between=nn.Tanh), nn.ModuleList()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        (du,) = grad(self.trunk(x).sum(), x, create_graph=True)
        (ddu,) = grad(du.sum(), x, create_graph=True)
        residual = ddu + math.pi**2 * (math.pi * x).sin()
        ends = self.trunk(torch.linspace(0, 1, 2, device=x.device)[:, None])
        return [residual.square().mean(), ends.square().mean()]


# What weightings of samples take


def log_loss(scores: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of each sequence, in float32 at least."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return cross_entropy(scores.to(wide).mT, tokens[:, 1:]).sum(1)


class Attention(nn.Module):
    """Attention and two dense layers, each after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1))
        y = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.back(F.gelu(self.wide(self.between(x))))


class GPT(nn.Module):
    """Negative log-likelihoods of sequences, by a transformer with a table of positions."""

    def __init__(
        self, layers: int, width: int, length: int, heads: int = 4, words: int = 64
    ) -> None:
        super().__init__()
        self.tokens, self.places = (nn.Embedding(n, width) for n in (words, length))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        x = self.tokens(tokens[:, :-1]) + self.places(places)
        return log_loss(self.head(self.last(self.blocks(x))), tokens)


class Size(NamedTuple):
    """Of a model of Llama's shape; the defaults are those of 1.1 billion parameters."""

    layers: int = 22
    width: int = 2048
    wide: int = 5632
    heads: int = 32
    groups: int = 4  # of heads that share keys and values
    vocabulary: int = 32_000


def turned(x: Tensor) -> Tensor:
    """Su et al. 2021: pairs of entries turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    rates = 1e4 ** -(torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Grouped(nn.Module):
    """Attention with grouped keys and values, and a gated layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, each = size.width, size.width // size.heads
        self.heads, self.groups = size.heads, size.groups
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, each * size.groups, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, size.wide, bias=False) for _ in range(2))
        self.down = nn.Linear(size.wide, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q = self.q(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (f(y).unflatten(-1, (self.groups, -1)).transpose(1, 2) for f in (self.k, self.v))
        k, v = (z.repeat_interleave(self.heads // self.groups, 1) for z in (turned(k), v))
        seen = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Negative log-likelihoods of sequences, with random weights: what reward training sees."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.Sequential(*(Grouped(size) for _ in range(size.layers)))
        self.last = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.tokens(tokens[:, :-1]))
        return log_loss(self.head(self.last(x)), tokens)


# What Gramians take


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
        batch = tuple(x.to(device, dtype if x.is_floating_point() else None) for x in self.batch)
        return self._replace(module=module, batch=batch)


Outputs = partial(Of, losses=lambda net, batch: (net(batch[0]) - batch[1]).square().mean(0))
"""A task is one output: its squared error, averaged over the batch."""
Samples = partial(Of, losses=lambda net, batch: cross_entropy(net(batch[0]), batch[1]))
"""Cross-entropy of every sample."""


class Heads(nn.Module):
    """Every task has a head, and a target of its own for the same input."""

    def __init__(self, trunk: nn.Module, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        z = self.trunk(batch[0])
        return tuple(F.mse_loss(head(z), y) for head, y in zip(self.heads, batch[1], strict=True))


def _by_jets(net: nn.Module, x: Tensor) -> Tensor:
    return mf.physics.laplacian(net, dict(net.named_parameters()), x).laplacian[:, 0]


def _by_autograd(net: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    first = grad(net(x).sum(), x, create_graph=True)[0]
    each = range(x.shape[1])
    second = [grad(first[:, i].sum(), x, create_graph=True)[0][:, i] for i in each]
    return torch.stack(second).sum(0)


WIDTHS = (128, 256)
LAPLACIANS = {"jets": _by_jets, "autograd": _by_autograd}


def residuals(way: str, width: int, tasks: int, batch: int, image: int) -> Problem:
    """Δu - f at every point of the plane, as physics losses have it; a last bias does not enter."""
    net = dense(2, width, width, width, between=nn.Tanh, last=True)
    net.append(nn.Linear(width, 1, bias=False))
    module = Of(net, lambda net, batch: LAPLACIANS[way](net, batch[0]) - batch[1])
    return Problem(module, (torch.rand(batch, 2), torch.randn(batch)), per_sample=True)


def mlp_samples(tasks: int, batch: int, image: int) -> Problem:
    module = Samples(dense(512, 512, 512, 512, CLASSES))
    x, y = torch.randn(batch, 512), torch.randint(CLASSES, (batch,))
    return Problem(module, (x, y), per_sample=True)


def mlp_tasks(tasks: int, batch: int, image: int) -> Problem:
    module = Outputs(dense(1024, 1024, 1024, 1024, tasks))
    return Problem(module, (torch.randn(batch, 1024), torch.randn(batch, tasks)))


def resnet(tasks: int, batch: int, image: int) -> Problem:
    module = Outputs(resnet18(tasks))
    return Problem(module, (torch.randn(batch, 3, image, image), torch.randn(batch, tasks)))


def decoder() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 1)),
    )


def decoders(tasks: int, batch: int, image: int) -> Problem:
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
    trunk = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    module = Heads(trunk, [decoder() for _ in range(tasks)])
    x, y = torch.randn(batch, 3, image, image), torch.randn(tasks, batch, 1, image, image)
    return Problem(module, (x, y), "trunk.*")


class Family(NamedTuple):
    """Problems of any size."""

    make: Callable[[int, int, int], Problem]  # of tasks, batch and the images' side
    what: str
    size: tuple[int, int] = (1, 256)  # tasks and batch, as the page shows them


PROBLEMS = {
    "mlp-sample": Family(mlp_samples, "MLP 3×512, {batch} samples", (1, 128)),
    "mlp-task": Family(mlp_tasks, "MLP 3×1024, {tasks} tasks, batch {batch}", (40, 128)),
    "resnet18": Family(resnet, "ResNet-18, {image}×{image}, {tasks} tasks, batch {batch}", (4, 8)),
    "decoders": Family(decoders, "{tasks} dense decoders, {image}×{image}, batch {batch}", (4, 8)),
    **{
        f"{way}-{width}-sample": Family(
            partial(residuals, way, width), f"Laplacian by {way}, 3×{width}, {{batch}} points"
        )
        for way in LAPLACIANS
        for width in WIDTHS
    },
}


def problem(family: str, tasks: int, batch: int, image: int, seed: int = 0) -> Problem:
    """A problem in float32 on the CPU; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PROBLEMS[family].make(tasks, batch, image)
