"""Two overlaid digits, one small network: the arena's one problem with real data."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf
from common.problems.digits import Pairs, Splits, digits, splits
from mtlfunc.studies.arena import BenchmarkProblem
from mtlfunc.types import Params

SIZES = {"trunk.0": (32, 100), "trunk.1": (16, 32), "left": (10, 16), "right": (10, 16)}
TAKEN = 64


def losses(params: Params, batch: Pairs) -> Tensor:
    """Cross-entropies `[2]` of the left and the right digit, in nats."""
    h = batch.canvases
    for name in ("trunk.0", "trunk.1"):
        h = F.relu(F.linear(h, params[f"{name}.weight"], params[f"{name}.bias"]))
    return torch.stack(
        [
            F.cross_entropy(
                F.linear(h, params[f"{head}.weight"], params[f"{head}.bias"]), batch.labels[:, i]
            )
            for i, head in enumerate(HEADS)
        ]
    )


HEADS = ("left", "right")


def problem() -> BenchmarkProblem:
    source = digits(torch.get_default_device())

    def draw(key: Tensor) -> tuple[Params, Splits]:
        params: Params = {}
        for i, (name, (out, into)) in enumerate(SIZES.items()):
            params[f"{name}.weight"] = (
                mf.random.normal(mf.random.fold_in(key, i), (out, into)) * (2 / into) ** 0.5
            )
            params[f"{name}.bias"] = params[f"{name}.weight"].new_zeros(out)
        return params, splits(source, mf.random.fold_in(key, len(SIZES)))

    def batch(data: Splits, key: Tensor) -> Pairs:
        chosen = (mf.random.uniform(key, (TAKEN,), torch.float64) * len(data.train.labels)).long()
        return Pairs(*(leaf.index_select(0, chosen) for leaf in data.train))

    return BenchmarkProblem(
        "Two overlaid 8 x 8 digits by one ReLU trunk (100-32-16) and two linear heads, batches "
        f"of {TAKEN} of 4,312 pairs (common/problems/digits.py has the data). "
        "Test cross-entropies; the score is 1 at chance. The front is not known.",
        draw,
        losses,
        torch.zeros(2, dtype=torch.float64),
        torch.full((2,), math.log(10), dtype=torch.float64),
        None,
        steps=120,
        rates=(0.00316, 0.01, 0.0316, 0.1),
        shared="trunk.*",
        batch=batch,
        evaluate=lambda params, data: losses(params, data.test),
    )
