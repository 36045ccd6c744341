"""Theorem 1: does PCGrad reach the optimum, or opposed gradients?"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import EXCEPTION
from ..report.decisions import Claims, Measured, Row, decided, sided
from ..report.figures import axes, shades
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Draws, Option, drawn
from ..report.parts import kept
from .common import WILSON
from .quadratics import DIMENSIONS, Batch, Steps, convex_pair, edited, losses, study, together


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
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    draws = settings.count(20000 if settings.full else 4000)
    short, long = together(study(draws, (-3, 0))), together(study(max(4, draws // 5), (0, 1)))
    ends = pair_ends(settings)
    yield theorem1(short, long, ends)
    yield rare(ends)


def theorem1(short: Steps, long: Steps, ends: dict[int, Ends]) -> Claim:
    short_of = [s.first.decrease - s.fall > s.rounding for s in (short, long)]
    violations = int((short_of[0] & short.first.applies).sum())
    beyond = (
        share_interval(int((short_of[1] & long.conflict).sum()), int(long.conflict.sum()))
        if bool(long.conflict.any())
        else share_interval(0, 1)
    )
    met = int(short.first.applies.sum())
    conflicting = int((short.first.applies & short.conflict).sum())
    neither = sum(int(((end.cosine > -0.999) & (end.excess > 1e-6)).sum()) for end in ends.values())
    return claim(
        "PC-17",
        {
            "draws that meet the hypotheses": met,
            "of these, conflicting": conflicting,
            "violations of the promised fall": violations,
            **named("share of conflicting draws below it for t·ℒ from 1 to 10", beyond),
            "long runs": sum(len(end.excess) for end in ends.values()),
            "long runs that end with neither cos < -.999 nor excess < 1e-6": neither,
        },
        f"{met} random pairs of convex quadratics in {', '.join(map(str, DIMENSIONS))} "
        "dimensions, conditioning 1 to 1e4, "
        f"t·ℒ from 1e-3 to 1; {ends_text(ends)}. Two tasks, L bounded below, convergence in the "
        "sense of a subsequence; convexity only makes "
        f"g = 0 the minimum. {WILSON}",
    )


TINTS = ("C0", "C1", "#444444", "C2")


def excesses(panel: Axes, ends: dict[int, Ends]) -> None:
    """How far above the minimum of the sum runs end, by dimensions."""
    looks = zip(shades(len(ends), TINTS), itertools.cycle(("-", "--", ":")), strict=False)
    for (dim, end), (colour, style) in zip(ends.items(), looks, strict=True):
        ordered = np.sort(np.clip(end.excess.numpy(), 1e-17, None))
        panel.step(
            ordered,
            np.linspace(0, 1, len(ordered)),
            color=colour,
            linestyle=style,
            label=f"{dim} dimensions",
            where="post",
        )
    panel.axvline(1e-2, color="black", linewidth=1, linestyle="--")
    panel.set(
        xlabel="(L at the end - min L) / (L at the start - min L)",
        ylabel="share of pairs with at most that",
        xscale="log",
        ylim=(0, 1.02),
    )
    panel.legend()


@drawn
def ends(
    dimensions: Annotated[tuple[int, ...], Option("dimensions", 1, 1000)] = (2, 10, 50),
    draws: Draws = 96,
    steps: Annotated[int, Option("steps of 1/ℒ", 1)] = 2000,
) -> Figure:
    """Where long PCGrad runs on random convex pairs end: excess over the minimum, angle."""
    found = {dim: ends_in(dim, draws, steps) for dim in sorted(set(dimensions))}
    canvas, panels = axes(1, 2, (12, 4.4))
    excesses(panels[0], found)
    colours = shades(len(found), TINTS)
    for i, ((dim, end), colour) in enumerate(zip(found.items(), colours, strict=True)):
        excess = end.excess.clamp_min(1e-17)
        look: dict[str, Any] = {"color": colour, "markersize": 4, "label": f"{dim} dimensions"}
        panels[1].plot(excess, end.cosine, "osD^"[i % 4], **look)
    panels[1].set(
        xlabel="(L at the end - min L) / (L at the start - min L)",
        ylabel="cos φ at the end",
        xscale="log",
    )
    panels[1].legend()
    return Figure(
        "ends",
        f"PCGrad with steps of 1/ℒ on random convex pairs: {ends_text(found)}. Left: where they "
        "end; dashed: 1 % of the initial gap. Right: cos φ there; it is -1 at the minimum of the "
        "sum, too, wherever the tasks disagree.",
        canvas,
        [
            {"dimensions": dim, "excess": float(excess), "cosine": float(cosine)}
            for dim, end in found.items()
            for excess, cosine in zip(end.excess, end.cosine, strict=True)
        ],
    )


@kept
def ends_in(dim: int, draws: int, steps: int) -> Ends:
    """Of random pairs in `dim` dimensions."""
    return _ends(vmap(lambda key: convex_pair(key, dim))(torch.arange(draws)), steps)


class Ends(NamedTuple):
    """Where long runs ended."""

    cosine: Tensor  # [draw]
    excess: Tensor  # [draw], over the minimum of the sum, relative to the start
    steps: int


def pair_ends(settings: Settings) -> dict[int, Ends]:
    """Long PCGrad runs with t = 1/ℒ on random convex pairs with different minimisers. From a random
    start.
    """
    draws = settings.count(800 if settings.full else 96)
    steps = settings.count(3000 if settings.full else 2000)
    found = {
        dim: vmap(lambda key, dim=dim: convex_pair(key, dim))(torch.arange(draws))
        for dim in (2, 10, 50)
    }
    # pairs in 2 dimensions cost almost nothing next to those in 10
    both = _ends(together({2: padded(found[2], 10), 10: found[10]}), steps)
    halves = zip(both.cosine.split(draws), both.excess.split(draws), strict=True)
    few = {dim: Ends(*half, steps) for dim, half in zip((2, 10), halves, strict=True)}
    return few | {50: _ends(found[50], steps)}


Pairs = tuple[mf.types.Params, Batch, Tensor, Tensor]
"""What `convex_pair` returns, a draw each."""


def padded(pairs: Pairs, dim: int) -> Pairs:
    """The same pairs in more dimensions, on which no loss depends: nothing moves along them."""
    params, (gradients, hessians), lipschitz, least = pairs
    more = dim - params["x"].shape[-1]
    batch = F.pad(gradients, (0, more)), F.pad(hessians, (0, more, 0, more))
    return {"x": F.pad(params["x"], (0, more))}, batch, lipschitz, least


def _ends(pairs: Pairs, steps: int) -> Ends:
    params, batch, lipschitz, least = pairs
    move = edited()
    # the same for all: two tasks need no random order
    first = move.init({"x": params["x"][0]}, (batch[0][0], batch[1][0]))

    def advance(params: mf.types.Params, batch: Batch, lipschitz: Tensor) -> mf.types.Params:
        direction, _, _ = move.update(params, batch, first)
        return {"x": params["x"] - direction["x"] / lipschitz}

    every = vmap(advance)
    forward = replayed(lambda params, *rest: (every(params, *rest),))
    start = vmap(losses)(params, batch).sum(-1)
    for _ in tqdm(range(steps), desc="pairs of quadratics", leave=False):
        (params,) = forward(params, batch, lipschitz)
    gramian = vmap(lambda p, b: mf.task_gramian(losses, p, b)[1])(params, batch)
    excess = (vmap(losses)(params, batch).sum(-1) - least) / (start - least)
    return Ends(vmap(mf.diagnostics.cosines)(gramian)[:, 0, 1], excess, steps)


def ends_text(ends: dict[int, Ends]) -> str:
    end = next(iter(ends.values()))
    return (
        f"{len(end.excess)} random pairs in each of {', '.join(map(str, ends))} dimensions, "
        f"{end.steps} steps of 1/ℒ"
    )


def rare(ends: dict[int, Ends]) -> Claim:
    opposite = share_interval(
        sum(int((end.cosine < -0.999).sum()) for end in ends.values()),
        sum(len(end.cosine) for end in ends.values()),
    )
    numbers = named("share that ends with cos φ < -.999", opposite)
    shares = {
        dim: share_interval(int((end.excess > 0.01).sum()), len(end.excess))
        for dim, end in ends.items()
    }
    for dim, end in ends.items():
        numbers |= named(
            f"dim {dim}: share with an excess above 1 % of the initial gap", shares[dim]
        )
        numbers |= {
            f"dim {dim}: largest excess": float(end.excess.max()),
            f"dim {dim}: median excess": float(end.excess.median()),
        }
    return claim(
        "PC-18",
        numbers,
        f"{ends_text(ends)}. The angle, beside, decides nothing: cos φ = -1 at every "
        "Pareto-stationary point with two non-zero gradients, the optimum included when the tasks "
        f"disagree. X-01 is this sentence on CAGrad's toy. {WILSON}",
    )
