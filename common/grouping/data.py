"""Two families of six yes-or-no questions: draws of tasks, and data by a seed."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

import mtlfunc as mf
from common.problems.digits import Digits

TASKS = 6
FAMILIES = ("digits", "planted")
"""Digits: is its label one of five that the draw chose (three tasks), is the image brighter in one
random smooth pattern than the median image (three tasks). Planted: the signs of three mixtures of
two features of x, and of three mixtures of two other features; which tasks go together is drawn.
"""
SIZES = (150, 200, 800)  # training, validation and test samples
INPUTS, FEATURES = 20, 2  # of "planted"; features of a set


class Part(NamedTuple):
    x: Float[Tensor, "*seed sample input"]
    y: Float[Tensor, "*seed sample task"]  # 0 or 1


class Data(NamedTuple):
    """No sample is in two of the parts."""

    train: Part
    validation: Part
    test: Part


def together(draw: Tensor) -> Tensor:
    """Which of two sets of features every task of a planted draw reads, `[task]`, three each."""
    return mf.random.permutation(mf.random.fold_in(draw, 0), TASKS) % 2


def questions(family: str, source: Digits, draw: Tensor, seed: Tensor) -> Data:
    """The tasks of a draw, on the samples of a seed."""
    first, second, _ = SIZES
    if family == "digits":
        order = mf.random.permutation(seed, len(source.labels))[: sum(SIZES)]
        every = Part(source.images.flatten(1), _of_digits(source, draw))
        x, y = (leaf.index_select(0, order) for leaf in every)
    else:
        x = mf.random.normal(mf.random.fold_in(seed, 1), (sum(SIZES), INPUTS))
        y = _planted(x, draw)
    ends = (first, first + second)
    parts = zip(x.tensor_split(ends), y.tensor_split(ends), strict=True)
    return Data(*(Part(*part) for part in parts))


def _of_digits(source: Digits, draw: Tensor) -> Tensor:
    keys = [mf.random.fold_in(draw, number) for number in range(TASKS)]
    chosen = torch.stack([mf.random.permutation(key, 10)[:5] for key in keys[:3]])
    asked = [(source.labels[:, None] == some).any(1) for some in chosen]
    noise = torch.stack([mf.random.normal(key, (1, 4, 4)) for key in keys[3:]])
    patterns = F.interpolate(noise, (8, 8), mode="bilinear").flatten(1)
    seen = source.images.flatten(1) @ patterns.mT
    return torch.stack([*asked, *(seen > seen.median(0).values).unbind(1)], 1).to(seen)


def _planted(x: Tensor, draw: Tensor) -> Tensor:
    def normal(number: int, *shape: int) -> Tensor:
        return mf.random.normal(mf.random.fold_in(draw, number), shape)

    features = (2 * x @ normal(1, INPUTS, 2 * FEATURES) / INPUTS**0.5).tanh()
    own = F.one_hot(together(draw), 2).repeat_interleave(FEATURES, 1)  # [task, feature]
    return (features @ (own * normal(2, TASKS, 2 * FEATURES)).mT > 0).to(x)
