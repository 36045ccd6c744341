"""What the questions share: a small network of tasks with drawn teachers, rank correlations."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

import mtlfunc as mf

from ..report.intervals import Interval


def normal(key: Tensor, tag: int, *shape: int) -> Tensor:
    return mf.random.normal(mf.random.fold_in(key, tag), shape, torch.float64)


def flat(leaves: mf.types.Params) -> Tensor:
    """One vector of all entries, in the leaves' order."""
    return torch.cat([leaf.flatten() for leaf in leaves.values()])


def unflat(vector: Tensor, like: mf.types.Params) -> mf.types.Params:
    """Leaves of these names and shapes, from such a vector."""
    parts = vector.split([leaf.numel() for leaf in like.values()])
    return {
        name: part.reshape(leaf.shape)
        for (name, leaf), part in zip(like.items(), parts, strict=True)
    }


def network(key: Tensor, inputs: int, hidden: int, tasks: int) -> mf.types.Params:
    """A tanh layer that the tasks share, `trunk.*`, and a linear output per task."""
    return {
        "trunk.weight": normal(key, 101, inputs, hidden) / inputs**0.5,
        "trunk.bias": 0 * normal(key, 102, hidden),
        "heads": normal(key, 103, hidden, tasks) / hidden**0.5,
    }


def outputs(params: mf.types.Params, x: Tensor) -> Tensor:
    """`[..., sample, task]`."""
    return (x @ params["trunk.weight"] + params["trunk.bias"]).tanh() @ params["heads"]


class Data(NamedTuple):
    x: Tensor  # [sample, input]
    y: Tensor  # [sample, task]


def sample_losses(params: mf.types.Params, data: Data) -> Tensor:
    """`[sample, task]`."""
    return (outputs(params, data.x) - data.y).square()


def losses(params: mf.types.Params, data: Data) -> Tensor:
    return sample_losses(params, data).mean(0)


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Interval:
    """Spearman's, with the 95 % interval of Fisher's z: of variance 1.06/(n - 3) (Fieller 1957)."""
    from scipy.stats import spearmanr  # half a second

    x, y = np.asarray(x, float), np.asarray(y, float)
    found = float(np.asarray(spearmanr(x, y))[0])
    half = 1.96 * math.sqrt(1.06 / (len(x) - 3)) if len(x) > 3 else math.inf
    z = math.atanh(np.clip(found, -1 + 1e-12, 1 - 1e-12))  # NaN stays NaN
    return Interval(found, math.tanh(z - half), math.tanh(z + half))
