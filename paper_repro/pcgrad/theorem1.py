"""Theorem 1: does PCGrad reach the optimum, or opposed gradients?"""

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import EXCEPTION
from ..report.decisions import Measured, Row, decided, sided
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import Interval, named, share_interval
from ..report.parts import kept
from .quadratics import DIMENSIONS, Batch, convex_pair, edited, losses, study


@decided("a draw that meets the hypotheses falls by less than promised", trained=False)
def first_theorem(measured: Measured) -> Verdict:
    if measured["violations of the promised fall"] > 0:
        return "does not hold"
    neither = measured["long runs that end with neither cos < -.999 nor excess < 1e-6"]
    return "holds" if neither == 0 and measured["of these, conflicting"] > 0 else "inconclusive"


CLAIMS = {
    "PC-17": Row(
        "Theorem 1: for convex L_1, L_2 and t <= 1/ℒ PCGrad converges to a point with cos "
        "φ = -1 or to the minimum of L_1 + L_2.",
        first_theorem,
    ),
    "PC-18": Row(
        "Alternative (a), cos φ = -1, is hard to reach, so that in practice the method "
        "nearly always reaches the optimum.",
        # not the angle: it is 180° also at the minimum of the sum, wherever the tasks disagree
        sided(("dim *: share with an excess above 1 % of the initial gap", "<", EXCEPTION)),
    ),
}


def run(settings: Settings) -> Findings:
    short = study(settings.count(20000 if settings.full else 4000), (-3, 0))
    shares, neither, runs = ends_of_pairs(settings)
    applies = short.first.applies
    violations = applies & (short.first.decrease - short.fall > short.rounding)
    yield Claim(
        "PC-17",
        {
            "draws that meet the hypotheses": applies.sum(),
            "of these, conflicting": (applies & short.conflict).sum(),
            "violations of the promised fall": violations.sum(),
            "long runs that end with neither cos < -.999 nor excess < 1e-6": neither,
        },
        f"random pairs of convex quadratics in {', '.join(map(str, DIMENSIONS))} dimensions, "
        f"conditioning 1 to 1e4, t·ℒ from 1e-3 to 1; long runs: {runs}. Two tasks, L "
        "bounded below, convergence in the sense of a subsequence",
    )
    numbers: dict[str, float] = {}
    for dim, share in shares.items():
        numbers |= named(f"dim {dim}: share with an excess above 1 % of the initial gap", share)
    yield Claim("PC-18", numbers, f"{runs}. 95 % Wilson intervals")


def ends_of_pairs(settings: Settings) -> tuple[dict[int, Interval], int, str]:
    """By dimension the share of long runs that end more than 1 % of the initial gap above the
    optimum; how many come to neither of the theorem's alternatives; the runs in words.
    """
    draws = settings.count(800 if settings.full else 96)
    steps = settings.count(3000 if settings.full else 2000)
    ends = {dim: ends_in(dim, draws, steps) for dim in (2, 10, 50)}
    above = {dim: int((excess > 0.01).sum()) for dim, (_, excess) in ends.items()}
    neither = sum(int(((cos > -0.999) & (excess > 1e-6)).sum()) for cos, excess in ends.values())
    about = f"{draws} random pairs in each of 2, 10, 50 dimensions, {steps} steps of 1/ℒ"
    return {dim: share_interval(count, draws) for dim, count in above.items()}, neither, about


@kept
def ends_in(dim: int, draws: int, steps: int) -> tuple[Tensor, Tensor]:
    """Where PCGrad with t = 1/ℒ from a random start ends on random pairs: cos φ, and the excess
    over the minimum of the sum, relative to the start; `[draw]`.
    """
    x, batch, lipschitz, least = vmap(convex_pair, (0, None))(torch.arange(draws), dim)
    move = edited()
    # the same for all: two tasks need no random order
    first = move.init({"x": x[0]}, (batch[0][0], batch[1][0]))

    def advance(x: Tensor, batch: Batch, lipschitz: Tensor) -> Tensor:
        return x - move.update({"x": x}, batch, first)[0]["x"] / lipschitz

    def of_all(x: Tensor) -> tuple[Tensor, Tensor]:
        total = vmap(lambda x, batch: losses({"x": x}, batch).sum())(x, batch)
        gramian = vmap(lambda x, batch: mf.task_gramian(losses, {"x": x}, batch)[1])(x, batch)
        return total - least, vmap(mf.diagnostics.cosines)(gramian)[:, 0, 1]

    start = of_all(x)[0]
    forward = replayed(lambda x, *rest: (vmap(advance)(x, *rest),))
    for _ in tqdm(range(steps), desc=f"pairs of quadratics in dim {dim}", leave=False):
        (x,) = forward(x, batch, lipschitz)
    end, cosine = of_all(x)
    return cosine, end / start
