"""What does one advantage made of several rewards do to each of them?"""

import itertools
from collections import Counter
from math import gcd

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, share_interval
from .common import normal

CLAIMS = {
    "SI-13": Exact(
        "2026 (our words): a reward rises to first order where its covariance with the scalarised "
        "advantage is positive.",
        exact(
            ("natural gradient: largest difference of the rate from the covariance", "<", 1e-9),
            only_when=(
                "plain gradient: share of rewards that fall though their covariance is positive",
                ">",
                0.0,
            ),
        ),
        when="the step is along the natural gradient",
    ),
    "SI-14": Exact(
        "Liu et al. 2026: to sum rewards and then normalise maps different rewards to one "
        "advantage; to normalise each before the sum keeps more of them apart.",
        exact(
            ("*: advantages that more than one reward shares, sum first", ">", 0),
            ("*: advantages, each first less sum first", ">", 0),
        ),
    ),
}

ACTIONS, REWARDS = 6, 3


def run(settings: Settings) -> Findings:
    yield covariance(settings.count(2000))
    yield collisions()


def covariance(draws: int) -> Claim:
    """A softmax policy over six actions, one step along its plain and its natural gradient."""

    def one(seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = mf.random.key(seed)
        logits, rewards = normal(key, 0, ACTIONS), normal(key, 1, REWARDS, ACTIONS)
        policy = logits.softmax(0)
        centred = rewards - (rewards @ policy)[:, None]
        advantage = (centred / (centred.square() @ policy).sqrt()[:, None]).sum(0)
        # rows of the gradients of every reward and of the advantage's own objective
        rows = jacrev(lambda x: torch.cat([rewards, advantage[None]]) @ x.softmax(0))(logits)
        fisher = policy.diag() - policy.outer(policy)
        natural = torch.linalg.pinv(fisher, hermitian=True) @ rows[-1]
        return centred @ (policy * advantage), rows[:-1] @ rows[-1], rows[:-1] @ natural

    expected, plain, natural = vmap(one)(torch.arange(draws))
    rises = expected > 1e-9
    share = share_interval(int((rises & (plain < -1e-9)).sum()), int(rises.sum()))
    off = (natural - expected).abs().max()
    label = "plain gradient: share of rewards that fall though their covariance is positive"
    return Claim(
        "SI-13",
        {"natural gradient: largest difference of the rate from the covariance": off}
        | named(label, share),
        f"{draws} draws of a softmax policy over {ACTIONS} actions with {REWARDS} rewards; the "
        "advantage is the sum of the rewards, each normalised under the policy. Along the plain "
        "gradient an action's part of a rate is times its probability once more. Wilson's interval",
    )


def summed(matrix: np.ndarray) -> tuple[float, ...]:
    """The advantage of `[rollout, reward]` of integers, summed then normalised, as integers. (s -
    mean)/deviation is the same for two groups where n·s - Σs, over its greatest common divisor, is.
    """
    total = matrix.sum(1)
    centred = len(total) * total - total.sum()
    return tuple(int(x) // (gcd(*map(int, centred)) or 1) for x in centred)


def each_first(matrix: np.ndarray) -> tuple[float, ...]:
    """Each reward normalised over the rollouts, then the sum; to nine digits."""
    deviation = matrix.std(0)
    parts = (matrix - matrix.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return tuple((np.round(parts.sum(1), 9) + 0.0).tolist())


def advantages(rollouts: int, rewards: int) -> tuple[Counter, Counter]:
    """How many different groups of binary rewards, up to the order of the rollouts and a reward
    that all have, each advantage stands for: of the sum first, and of each reward first.
    """
    vectors = itertools.product((0, 1), repeat=rewards)
    groups = map(np.array, itertools.combinations_with_replacement(vectors, rollouts))
    kinds = {str(sorted((x - x.min(0)).tolist())): x for x in groups}
    first, later = (
        Counter(tuple(sorted(way(group))) for group in kinds.values())
        for way in (summed, each_first)
    )
    return first, later


def collisions() -> Claim:
    numbers: dict[str, float] = {}
    for rollouts, rewards in ((2, 2), (4, 2), (4, 3), (6, 2)):
        first, later = advantages(rollouts, rewards)
        label = f"{rollouts} rollouts, {rewards} rewards: advantages"
        shared = sum(count > 1 for count in first.values())
        numbers |= {
            f"{label} that more than one reward shares, sum first": shared,
            f"{label}, each first less sum first": len(later) - len(first),
        }
    return Claim(
        "SI-14",
        numbers,
        "all groups of binary rewards but for the order of the rollouts and for a reward that all "
        "have, in whole numbers; a reward that does not vary counts 0, and no constant is added "
        "to the deviation",
    )
