"""SegNet, and SegNet with an attention of every task on its features: MTAN (Liu, Johns and Davison
2019).

SegNet has VGG-16's widths, and max-pooling whose places the decoder puts values back to. Alone it
learns one task, as the networks do that the papers' Δm is measured against. In MTAN it is shared:
for every task and scale, two convolutions of 1 x 1 on what the task has so far and on the scale's
first features make a mask in [0, 1] for its last ones; what the mask leaves is brought to the next
scale by a convolution that the tasks share.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import DEPTH, NORMAL, SEGMENT, Outputs

WIDTHS = (64, 128, 256, 512, 512)


def _conv(into: int, out: int, count: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(out if i else into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


def _mask(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(into, out, 1), nn.BatchNorm2d(out), nn.ReLU()),
        *(nn.Conv2d(out, out, 1), nn.BatchNorm2d(out), nn.Sigmoid()),
    )


def _predict(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, channels, 1))


class Body(nn.Module):
    """SegNet without its prediction."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        before = [3, *widths[:-1]]
        again = [1 if i < 2 else 2 for i in range(len(widths))]
        self.encode_first = nn.ModuleList(map(_conv, before, widths))
        self.encode_last = nn.ModuleList(map(_conv, widths, widths, again))
        lower = [widths[0], *widths[:-1]]
        self.decode_first = nn.ModuleList(map(_conv, widths, lower))
        self.decode_last = nn.ModuleList(map(_conv, lower, lower, again))

    def forward(self, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Per scale, finest first: first and last features of the encoder; the decoder's input and
        last features, coarsest first.
        """
        down, places, sizes, up = [], [], [], []
        for first, last in zip(self.encode_first, self.encode_last, strict=True):
            begun = first(x)
            done = last(begun)
            down.append((begun, done))
            sizes.append(done.shape[-2:])
            x, where = F.max_pool2d(done, 2, return_indices=True)
            places.append(where)
        for i in reversed(range(len(down))):
            spread = F.max_unpool2d(x, places[i], [2, 2], output_size=list(sizes[i]))
            x = self.decode_last[i](self.decode_first[i](spread))
            up.append((spread, x))
        return down, up


class Shared(Body):
    """SegNet and the convolutions between the tasks' scales."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(widths)
        after, lower = [*widths[1:], widths[-1]], [widths[0], *widths[:-1]]
        self.task_down = nn.ModuleList(map(_conv, widths, after))
        self.task_up = nn.ModuleList(map(_conv, widths, lower))


class Attention(nn.Module):
    """The masks and the prediction of one task."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        lower = [widths[0], *widths[:-1]]
        into = [widths[0], *(2 * width for width in widths[1:])]
        self.encode = nn.ModuleList(map(_mask, into, widths))
        self.decode = nn.ModuleList(
            _mask(width + less, less) for width, less in zip(widths, lower, strict=True)
        )
        self.predict = _predict(widths[0], channels)

    def forward(
        self, shared: Shared, down: list[tuple[Tensor, Tensor]], up: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        x = down[0][0][:, :0]  # of the task there is nothing yet
        for mask, bring, (first, last) in zip(self.encode, shared.task_down, down, strict=True):
            x = F.max_pool2d(bring(mask(torch.cat([first, x], 1)) * last), 2)
        for i, (spread, last) in zip(reversed(range(len(up))), up, strict=True):
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.decode[i](torch.cat([spread, shared.task_up[i](larger)], 1)) * last
        return self.predict(x)


def _channels(classes: int) -> dict[str, int]:
    return {SEGMENT: classes, DEPTH: 1, NORMAL: 3}


def _start(net: nn.Module) -> None:
    """First weights as the papers' code draws them."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


class SegNet(nn.Module):
    """One task's prediction at the image's resolution, whose sides are multiples of 32."""

    def __init__(self, classes: int, task: str, widths: Sequence[int] = WIDTHS) -> None:
        """Weights as the papers' code draws them."""
        super().__init__()
        self.trunk = Body(widths)
        self.heads = nn.ModuleDict({task: _predict(widths[0], _channels(classes)[task])})
        _start(self)

    def forward(self, image: Tensor) -> Outputs:
        _, up = self.trunk(image)
        return {task: head(up[-1][1]) for task, head in self.heads.items()}


class SegNetMTAN(nn.Module):
    """Predictions at the image's resolution, whose sides are multiples of 32."""

    def __init__(self, classes: int, tasks: Sequence[str], widths: Sequence[int] = WIDTHS) -> None:
        """Attention for `tasks` alone; weights as the papers' code draws them."""
        super().__init__()
        self.trunk = Shared(widths)
        self.heads = nn.ModuleDict(
            {task: Attention(widths, _channels(classes)[task]) for task in tasks}
        )
        _start(self)

    def forward(self, image: Tensor) -> Outputs:
        down, up = self.trunk(image)
        return {task: head(self.trunk, down, up) for task, head in self.heads.items()}
