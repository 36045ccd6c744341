"""Two digits on one canvas: MultiMNIST's recipe on scikit-learn's 1,797 images of 8 x 8 pixels."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

import mtlfunc as mf

# Of the right digit, down and to the right: canvases of 10 × 10, of a digit's 64 pixels 36 shared,
# 56 % (MultiMNIST: 62 %).
OFFSET = 2
PARTNERS = 4  # right digits drawn for every left one
SHARES = (0.6, 0.2, 0.2)


class Digits(NamedTuple):
    """Single digits."""

    images: Float[Tensor, "image 8 8"]  # in [0, 1]
    labels: Int[Tensor, " image"]


class Pairs(NamedTuple):
    """Composites of two digits, the source images that they are made of, and the two labels."""

    canvases: Float[Tensor, "pair pixel"]
    labels: Int[Tensor, "pair 2"]  # left, right
    sources: Int[Tensor, "pair 2"]


class Splits(NamedTuple):
    """Parts that share no source image: partners are drawn within each part."""

    train: Pairs
    validation: Pairs
    test: Pairs


def digits(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Digits:
    """All images, grey values 0 … 16 scaled to [0, 1]."""
    from sklearn.datasets import load_digits  # half a second

    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=dtype, device=device).reshape(-1, 8, 8) / 16
    return Digits(images, torch.as_tensor(labels, dtype=torch.int64, device=device))


def overlay(
    left: Num[Tensor, "*batch h w"], right: Num[Tensor, "*batch h w"], offset: int = OFFSET
) -> Num[Tensor, "*batch tall wide"]:
    """Two images on one canvas, pixelwise the larger value.

    Args:
        left: in the upper left corner.
        right: `offset` pixels down and to the right of it.
        offset: in pixels.
    """
    return torch.maximum(F.pad(left, (0, offset, 0, offset)), F.pad(right, (offset, 0, offset, 0)))


def pairs(source: Digits, members: Int[Tensor, " member"], key: Int[Tensor, ""]) -> Pairs:
    """Canvases of which every member is the left digit of `PARTNERS`.

    Args:
        source: all single digits.
        members: the images to take; the right digit is drawn uniformly from them, with replacement.
        key: of the draws.
    """
    left = members.repeat(PARTNERS)
    drawn = (mf.random.uniform(key, (len(left),), torch.float64) * len(members)).long()
    right = members.index_select(0, drawn)
    canvases = overlay(source.images.index_select(0, left), source.images.index_select(0, right))
    labels = torch.stack(
        [source.labels.index_select(0, left), source.labels.index_select(0, right)], -1
    )
    return Pairs(canvases.flatten(1), labels, torch.stack([left, right], -1))


def splits(source: Digits, key: Int[Tensor, ""]) -> Splits:
    """The pairs of a random division into 60 % training, 20 % validation and 20 % test images."""
    count = len(source.labels)
    order = mf.random.permutation(mf.random.fold_in(key, 0), count)
    first, second = round(SHARES[0] * count), round((SHARES[0] + SHARES[1]) * count)
    parts = (order[:first], order[first:second], order[second:])
    return Splits(
        *(pairs(source, part, mf.random.fold_in(key, 1 + i)) for i, part in enumerate(parts))
    )
