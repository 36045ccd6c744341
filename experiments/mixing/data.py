"""Two sets of four domains made of scikit-learn's digits, and a target: the digits as they are."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

import mtlfunc as mf
from common.problems.digits import Digits

PROBLEMS = {
    "one helps": ("noisy", "flipped", "turned", "random"),
    "all help": ("noisy 1", "noisy 2", "noisy 3", "noisy 4"),
}
"""Where one helps: the target's digits with noise on the pixels and wrong labels; with the labels
9 - y; on their side, with their labels; with any label. Where all help: the first, of a quarter of
the images each.
"""
COUNT = 4
TRAIN, TARGET, VALIDATION = 1000, 40, 250  # images; the others are for the test
WRONG, NOISE = 0.4, 0.3  # the share of labels that are drawn at random; deviation of every pixel


class Part(NamedTuple):
    images: Float[Tensor, "*domain image 64"]
    labels: Int[Tensor, "*domain image"]


class Task(NamedTuple):
    """No image is in two of the parts."""

    domains: Part  # [domain, image]
    target: Part  # the few that `align` and "target alone" see
    validation: Part
    test: Part


def task(problem: str, source: Digits, seed: Int[Tensor, ""]) -> Task:
    """The parts, by a seed."""
    order = mf.random.permutation(mf.random.fold_in(seed, 0), len(source.labels))
    ends = [TRAIN, TRAIN + TARGET, TRAIN + TARGET + VALIDATION]
    (x, y), target, validation, test = (
        Part(source.images[some].flatten(1), source.labels[some])
        for some in order.tensor_split(ends)
    )
    keys = [mf.random.fold_in(seed, number) for number in (1, 2, 3)]
    anything = (10 * mf.random.uniform(keys[0], (TRAIN,))).long()
    noisy = x + NOISE * mf.random.normal(keys[1], (TRAIN, 64))
    mostly = torch.where(mf.random.uniform(keys[2], (TRAIN,)) < WRONG, anything, y)
    if problem == "all help":
        parts = Part(noisy.unflatten(0, (COUNT, -1)), mostly.unflatten(0, (COUNT, -1)))
    else:
        turned = x.unflatten(1, (8, 8)).rot90(1, (1, 2)).flatten(1)
        parts = Part(torch.stack([noisy, x, turned, x]), torch.stack([mostly, 9 - y, y, anything]))
    return Task(parts, target, validation, test)
