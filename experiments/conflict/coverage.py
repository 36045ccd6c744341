"""Gradients whose truth is known: how often intervals cover it, how often a look alarms falsely.

One sample's gradients are μ_s + √(c/D)·ε with c the noise scale: the trace of their covariance in
units of ‖μ‖² = 1. The noise of two tasks on the same sample has the correlation that a setting
says, and so a batch's plain inner product of mean gradients is off by that correlation times c/n.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

WIDTH = 50  # D
RATE = 0.05  # of misses, 1 - level


class Setting(NamedTuple):
    """What is drawn; two tasks whose mean gradients have length 1."""

    samples: int
    noise: float
    cosine: float
    correlation: float


SAMPLES, NOISES = (32, 64, 128), (1.0, 11.0, 100.0)
COSINES, CORRELATIONS = (-0.2, 0.0, 0.8), (-0.3, 0.0, 0.3)
SETTINGS = tuple(
    itertools.starmap(Setting, itertools.product(SAMPLES, NOISES, COSINES, CORRELATIONS))
)


def share(x: Tensor) -> float:
    """Of ones, or the mean."""
    return x.to(torch.float64).mean().item()


class Covered(NamedTuple):
    """Shares of the replicates of one setting."""

    covered: float  # the interval holds the true inner product
    false: float  # a verdict of the wrong sign; at a cosine of 0 any verdict
    naive: float  # the mean gradients of the batch have a product of the wrong sign
    bias: float  # of U, in its standard errors
    naive_bias: float  # of the product of the batch's mean gradients, in units of ‖μ‖²


def gramians(setting: Setting, replicates: int, key: Tensor) -> Tensor:
    """Gramians `[replicate, 2n, 2n]` of drawn gradients, rows as `mtlfunc.sample_gramian` has."""
    mean = torch.zeros(2, WIDTH, dtype=torch.float64)
    mean[0, 0], mean[1, 0] = 1, setting.cosine
    mean[1, 1] = math.sqrt(1 - setting.cosine**2)
    shape = (replicates, setting.samples, 2, WIDTH)
    noise = math.sqrt(setting.noise / WIDTH) * mf.random.normal(key, shape, torch.float64)
    first, second = noise.unbind(2)
    rest = math.sqrt(1 - setting.correlation**2)
    second = setting.correlation * first + rest * second
    rows = (mean + torch.stack([first, second], 2)).flatten(1, 2)
    return rows @ rows.mT


def covered(setting: Setting, replicates: int, seed: int = 0) -> Covered:
    """What `conflict` says of the pair in the replicates of a setting."""
    drawn = gramians(setting, replicates, mf.random.key(seed))
    found = vmap(lambda x: mf.diagnostics.conflict(x, tasks=2, level=1 - RATE))(drawn)
    inner, low, high = (x[:, 0, 1] for x in (found.inner, found.low, found.high))
    verdict, truth = found.verdict[:, 0, 1], setting.cosine
    plain = drawn.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))[:, :, 0, :, 1].mean((1, 2))

    return Covered(
        share((low <= truth) & (truth <= high)),
        share((verdict != 0) & (verdict != _sign(truth))),
        share(plain.sign() != _sign(truth)) if truth else math.nan,
        ((inner.mean() - truth) / (inner.std() / math.sqrt(replicates))).item(),
        share(plain - truth),
    )


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


class Alarms(NamedTuple):
    """Shares of runs in which some look gave a verdict, though there is none to give."""

    sequence: float  # by running_conflict
    peeking: float  # by the plain interval of the same estimate, at every look


def alarms(noise: float, correlation: float, runs: int, looks: int, seed: int = 0) -> Alarms:
    """Runs of two tasks at a right angle, looked at after every batch of 32."""
    setting, state = Setting(32, noise, 0.0, correlation), None
    sequence = peeking = torch.zeros(runs, dtype=torch.bool)
    look_at = mf.diagnostics.running_conflict
    for look in range(looks):
        drawn = gramians(setting, runs, mf.random.fold_in(mf.random.key(seed), look))
        dims = (None if state is None else 0, 0)
        found, state = vmap(lambda s, x: look_at(s, x, tasks=2, level=1 - RATE), dims)(state, drawn)
        sequence = sequence | (found.verdict[:, 0, 1] != 0)
        total, variance = state.inner[:, 0, 1], state.variance[:, 0, 1]
        peeking = peeking | (total.abs() > 1.96 * variance.sqrt())
    return Alarms(sequence.double().mean().item(), peeking.double().mean().item())


TAILED = {"Gaussian": 0.8, "Student": 0.8, "noisy": 0.8, "rare": -0.48}
"""Families of noise, and the true inner product."""


def tailed(family: str, samples: int, runs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gradients `[run, sample, task, 20]` of two tasks, and which samples are the rare ones.
    "Student": three degrees of freedom. "noisy": one sample in ten has thirty times the noise.
    "rare": one in fifty conflicts so strongly that the product of all is -.48; the others agree.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(runs, samples, *shape, generator=generator, dtype=torch.float64)

    mean = torch.zeros(2, 20, dtype=torch.float64)
    mean[0, 0], mean[1, :2] = 1, torch.tensor([0.8, 0.6])
    noise = normal(2, 20) / math.sqrt(20)
    share = 0.02 if family == "rare" else 0.1
    hit = torch.rand(runs, samples, generator=generator) < share
    if family == "rare":
        mean[1] = mean[0]
        strong = math.sqrt((0.98**2 + 0.48) / share**2) * torch.eye(2, 20, dtype=torch.float64)[1]
        rows = torch.stack([strong, -strong]) - mean
        return mean + 0.3 * noise + hit[..., None, None] * rows, hit
    if family == "noisy":
        noise = noise * (1 + 29 * hit[..., None, None])
    if family == "Student":
        noise = noise * (3 / normal(3).square().sum(-1)).sqrt()[..., None, None]
    return mean + noise, hit


class Tails(NamedTuple):
    """Shares of the replicates of one family."""

    covered: float  # the interval holds the true inner product
    plain: float  # intervals on the wrong side of 0
    false: float  # verdicts of the wrong sign: the others of these are withheld
    said: float  # verdicts of the right sign
    unseen: float  # batches with fewer than two of the rare samples, whose premise fails


def tails(family: str, samples: int, replicates: int, seed: int = 0) -> Tails:
    """What `conflict` says of the pair in the replicates of a family."""
    vectors, hit = tailed(family, samples, replicates, seed)
    rows, truth = vectors.flatten(1, 2), TAILED[family]
    found = vmap(lambda x: mf.diagnostics.conflict(x, tasks=2, level=1 - RATE))(rows @ rows.mT)
    low, high, verdict = (x[:, 0, 1] for x in (found.low, found.high, found.verdict))

    return Tails(
        share((low <= truth) & (truth <= high)), share(high < 0 if truth > 0 else low > 0),
        share(verdict == -_sign(truth)), share(verdict == _sign(truth)),
        share(hit.sum(1) < 2) if family == "rare" else 0.0,
    )  # fmt: skip
