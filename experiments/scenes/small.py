"""The network of the stand-in: an encoder at a quarter of the resolution, a small head a task."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import DEPTH, NORMAL, SEGMENT, Outputs

STRIDE = 4


class Small(nn.Module):
    """Group norm only: every sample alone, so that a loss is a pure function of parameters."""

    def __init__(self, classes: int, tasks: Sequence[str], width: int = 32) -> None:
        """Heads for `tasks` alone."""
        super().__init__()
        self.trunk = Trunk(width)
        channels = {SEGMENT: classes, DEPTH: 1, NORMAL: 3}
        self.heads = nn.ModuleDict({task: Head(width, channels[task]) for task in tasks})

    def forward(self, image: Tensor) -> Outputs:
        """Predictions at the image's resolution, whose sides are multiples of 4."""
        shared = self.trunk(image)
        return {task: head(shared) for task, head in self.heads.items()}


class Trunk(nn.Module):
    """Patches of 4 x 4 pixels with their place, convolutions on three scales, joined again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(5 * STRIDE**2, width)
        self.down = nn.ModuleList(_Block(width, 2) for _ in range(2))
        self.bottom = _Block(width, 1)
        self.up = nn.ModuleList(_Block(width, 1) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(torch.cat([4 * image - 2, _place(image)], 1), STRIDE)
        x = F.silu(_by_place(self.patches, patches))
        scales = []
        for block in self.down:
            scales.append(x)
            x = block(x)
        x = x + self.bottom(x)
        for block, finer in zip(self.up, reversed(scales), strict=True):
            x = F.interpolate(x, size=finer.shape[-2:], mode="nearest") + finer
            x = x + block(x)
        return x


class _Block(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1)
        self.norm = nn.GroupNorm(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


def _by_place(layer: nn.Linear, x: Tensor) -> Tensor:
    """A convolution with a 1 x 1 kernel, as the matrix product that it is: faster on a CPU."""
    return layer(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


def _place(image: Tensor) -> Tensor:
    """Two channels: how far right and how far down a pixel is, from -1 to 1."""
    down = torch.linspace(-1, 1, image.shape[-2], dtype=image.dtype, device=image.device)
    right = torch.linspace(-1, 1, image.shape[-1], dtype=image.dtype, device=image.device)
    both = torch.stack([right.expand(len(down), -1), down[:, None].expand(-1, len(right))])
    return both.expand(len(image), -1, -1, -1)


class Head(nn.Module):
    """One convolution, then all pixels of a patch at once."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Linear(width, channels * STRIDE**2)
        self.out.bias.data.fill_(3.0 if channels == 1 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        # smooth: with rectifiers some seeds' heads for depth died at the higher rates
        return F.pixel_shuffle(_by_place(self.out, F.silu(self.mix(x))), STRIDE)
