"""How rewards become advantages, and which rule weighs these."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

import mtlfunc as mf

TINY = 1e-4  # what TRL adds to a deviation


def advantages(kind: str, rewards: Tensor, shares: Tensor) -> Tensor:
    """What each reward makes of every answer of a group, [reward, group, answer]. `kind`:
    `"centred"`: less the group's mean, which makes A ℓ the gradients of the expected rewards.
    `"GDPO"`: then divided by the reward's own deviation in the group (arXiv:2601.05242, eq. 4,
    before its batch-wise normalisation, which is one factor). `"GRPO"`: divided by the deviation of
    the rewards' sum. `rewards`: [reward, group, answer]. `shares`: how much of its group an answer
    is, [group, answer], sums 1: equal for samples, probabilities where all answers are enumerated.
    """
    found = rewards - (shares * rewards).sum(-1, keepdim=True)
    if kind == "centred":
        return found
    spread = found.sum(0, keepdim=True) if kind == "GRPO" else found
    return found / ((shares * spread.square()).sum(-1, keepdim=True).sqrt() + TINY)


class Method(NamedTuple):
    kind: str  # of its advantages
    rule: Callable[[], mf.Rule]


METHODS = {
    "sum": Method("centred", mf.mean), "GRPO": Method("GRPO", mf.mean),
    "GDPO": Method("GDPO", mf.mean), "MGDA": Method("centred", mf.mgda),
    "CAGrad": Method("centred", lambda: mf.cagrad(0.5)), "UPGrad": Method("centred", mf.upgrad),
    "align": Method("centred", lambda: mf.align(0.1, "mean")),
}  # fmt: skip
"""GRPO's and GDPO's advantages are summed; rules weigh those of the expected rewards."""
