"""Four ways in which two tasks share a network, on a body of two stages.

`trunk.*` is what both tasks' losses reach, `heads.*` what one of them has to itself.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import mtlfunc as mf

DIGITS = 10
Stage = Callable[[], tuple[nn.Module, int]]
"""A first stage, from images to features before their ReLU, and how many these are."""


def dense(pixels: int, width: int) -> Stage:
    """One layer, of an image as a vector."""
    return lambda: (nn.Sequential(nn.Flatten(), nn.Linear(pixels, width)), width)


class Drop(nn.Module):
    """Sets about half of what passes to 0 while the network is in training mode. As the official
    code of Sener and Koltun 2018 has it, the rest is not doubled, so that features are about twice
    as large when the network is measured. The mask is a function of the buffer `key`, which every
    step sets (`train.masks`).
    """

    key: Tensor

    def __init__(self, channels: bool = False) -> None:
        """With `channels` whole channels are set to 0, the same ones in all images of a batch."""
        super().__init__()
        self.channels = channels
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (1, x.shape[1], 1, 1) if self.channels else tuple(x.shape)
        return x * (mf.random.uniform(self.key, shape) < 0.5)


def lenet() -> tuple[nn.Module, int]:
    """The convolutions of the official MultiLeNet for 28 x 28 pixels (Sener and Koltun 2018): 10,
    then 20 channels of 5 x 5, of which half are dropped, each halved by its maxima.
    """
    body = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), Drop(channels=True), nn.MaxPool2d(2)),
    )
    return nn.Sequential(body, nn.Flatten()), 320


Head = Callable[[int], nn.Module]  # from the number of features to logits


def linear(width: int) -> nn.Module:
    """One layer."""
    return nn.Sequential(OrderedDict(out=nn.Linear(width, DIGITS)))


def official(width: int) -> nn.Module:
    """The head of the official MultiLeNet: two layers, dropout between them."""
    layers = {"hidden": nn.Linear(width, width), "relu": nn.ReLU(), "drop": Drop()}
    return nn.Sequential(OrderedDict(layers | {"out": nn.Linear(width, DIGITS)}))


Logits = tuple[Float[Tensor, "pair 10"], Float[Tensor, "pair 10"]]


class Body(nn.ModuleDict):
    """Both stages: from images to features."""

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self["second"](F.relu(self["first"](images))))


class HardSharing(nn.Module):
    """One body, two heads."""

    def __init__(self, stage: Stage, width: int, head: Head = linear) -> None:
        super().__init__()
        first, features = stage()
        self.trunk = Body({"first": first, "second": nn.Linear(features, width)})
        self.heads = nn.ModuleList(head(width) for _ in range(2))

    def forward(self, images: Tensor) -> Logits:
        z = self.trunk(images)
        return self.heads[0](z), self.heads[1](z)


class TaskConditioned(nn.Module):
    """One body and one head for both: the task is an input, added to the first stage's features. As
    if its number, one-hot, were appended to the image of a dense first stage.
    """

    def __init__(self, stage: Stage, width: int, head: Head = linear) -> None:
        super().__init__()
        first, features = stage()
        self.trunk = nn.ModuleDict(
            {"first": first, "second": nn.Linear(features, width), "head": head(width)}
        )
        # what is not shared: the features of each task's number
        self.heads = nn.ModuleList(nn.Linear(1, features, bias=False) for _ in range(2))

    def forward(self, images: Tensor) -> Logits:
        features, trunk = self.trunk["first"](images), self.trunk

        def one(task: nn.Module) -> Tensor:
            told = features + task(features.new_ones(1))
            return trunk["head"](F.relu(trunk["second"](F.relu(told))))

        return one(self.heads[0]), one(self.heads[1])


class SoftAttention(nn.Module):
    """A shared body; each task has a mask on each stage's features (Liu, Johns and Davison 2019).
    The second stage's mask sees the shared features and what the first mask let through.
    """

    def __init__(self, stage: Stage, width: int, head: Head = linear) -> None:
        super().__init__()
        first, features = stage()
        self.trunk = nn.ModuleDict({"first": first, "second": nn.Linear(features, width)})
        self.heads = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": nn.Linear(features, features),
                    "through": nn.Linear(features, width),
                    "second": nn.Linear(2 * width, width),
                    "out": head(width),
                }
            )
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> Logits:
        one = F.relu(self.trunk["first"](images))
        two = F.relu(self.trunk["second"](one))

        def attended(own: nn.Module) -> Tensor:
            assert isinstance(own, nn.ModuleDict)
            seen = F.relu(own["through"](own["first"](one).sigmoid() * one))
            return own["out"](own["second"](torch.cat([two, seen], -1)).sigmoid() * two)

        return attended(self.heads[0]), attended(self.heads[1])


class CrossStitch(nn.Module):
    """A body for each task; after each stage both see mixtures of the two (Misra et al. 2016). The
    mixtures start at .9 of the own and .1 of the other features.
    """

    def __init__(self, stage: Stage, width: int, head: Head = linear) -> None:
        super().__init__()
        columns = []
        for _ in range(2):
            first, features = stage()
            columns.append(nn.ModuleDict({"first": first, "second": nn.Linear(features, width)}))
        self.trunk = _Columns(columns)
        self.heads = nn.ModuleList(head(width) for _ in range(2))

    def forward(self, images: Tensor) -> Logits:
        left, right = self.trunk(images)
        return self.heads[0](left), self.heads[1](right)


class _Columns(nn.Module):
    def __init__(self, columns: list[nn.ModuleDict]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        start = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen = [images, images]
        for stage, stitch in zip(("first", "second"), self.stitches, strict=True):
            own = [
                F.relu(column.get_submodule(stage)(x))
                for column, x in zip(self.columns, seen, strict=True)
            ]
            seen = [stitch[i, 0] * own[0] + stitch[i, 1] * own[1] for i in (0, 1)]
        return seen[0], seen[1]


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "hard sharing": HardSharing, "task-conditioned": TaskConditioned,
    "soft attention": SoftAttention, "cross-stitch": CrossStitch,
}  # fmt: skip
"""Each is made of a stage, a number of features and, by default linear, heads."""
