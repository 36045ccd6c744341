"""A small network for digits and WRN-28-2 for photographs: a trunk, and a linear head a task."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Net(nn.Module):
    """Outputs of one head on a batch of images."""

    def __init__(self, trunk: nn.Module, width: int, heads: Mapping[str, int]) -> None:
        """`width` features come from the trunk; `heads` are outputs by name."""
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in heads.items()})

    def forward(
        self, images: Float[Tensor, "image channel h w"], head: str
    ) -> Float[Tensor, "image output"]:
        return self.heads[head](self.trunk(images))


class Small(nn.Module):
    """Two convolutions and a layer on top, for images of 8 x 8 pixels and one channel. The windows
    of the first convolution are taken from the images, which need no gradient, and those of the
    second do not overlap: with weights of their own for every run both are products of matrices,
    several times faster on a CPU than grouped convolutions. Layer norm, so that a loss is a pure
    function of parameters.
    """

    WIDTH = 64

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(9, 8)
        self.second = nn.Linear(4 * 8, 16)
        self.norm = nn.LayerNorm(16 * 16)
        self.last = nn.Linear(16 * 16, self.WIDTH)

    def forward(self, images: Float[Tensor, "image 1 8 8"]) -> Float[Tensor, "image 64"]:
        padded = F.pad(images[:, 0], (1, 1, 1, 1))
        windows = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        x = F.relu(self.first(torch.stack(windows, -1)))
        x = x.reshape(-1, 4, 2, 4, 2, 8).transpose(2, 3).reshape(-1, 16, 4 * 8)
        return F.relu(self.last(F.relu(self.norm(self.second(x).flatten(1)))))


class Wide(nn.Module):
    """A wide residual network (Zagoruyko and Komodakis 2016) of depth 6n + 4, up to its features.
    Three groups of n blocks of two convolutions, with batch norm and ReLU before each.
    """

    def __init__(self, depth: int = 28, widen: int = 2, base: int = 16) -> None:
        """Raises ValueError for a depth that is not 6n + 4."""
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth: expected 6n + 4 with n >= 1, got {depth}")
        widths = [base, *(base * widen * 2**i for i in range(3))]
        self.stem = nn.Conv2d(3, base, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            *(
                _Block(widths[i + (j > 0)], widths[i + 1], 2 if i > 0 and j == 0 else 1)
                for i in range(3)
                for j in range((depth - 4) // 6)
            )
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.width = widths[3]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "image 3 h w"]) -> Float[Tensor, "image feature"]:
        return F.relu(self.norm(self.blocks(self.stem(images)))).mean((-2, -1))


class _Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(out)])
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(width, out, 3, stride, padding=1, bias=False),
                nn.Conv2d(out, out, 3, padding=1, bias=False),
            ]
        )
        self.across = nn.Conv2d(width, out, 1, stride, bias=False) if width != out else None

    def forward(self, x: Tensor) -> Tensor:
        ready = F.relu(self.norms[0](x))
        found = self.convs[1](F.relu(self.norms[1](self.convs[0](ready))))
        # where the width changes, the path around the block starts from what is normalised
        return found + (x if self.across is None else self.across(ready))
