"""A language model of Llama's shape with random weights, for what reward training does to one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.weightings import log_loss


class Size(NamedTuple):
    """How large; the defaults are those of 1.1 billion parameters."""

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


class Block(nn.Module):
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
    """Negative log-likelihoods of sequences."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.last = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.tokens(tokens[:, :-1]))
        return log_loss(self.head(self.last(x)), tokens)
