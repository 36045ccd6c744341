"""Theorem 1: does PCGrad reach the optimum, or opposed gradients?"""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import EXCEPTION
from ..report.decisions import Measured, Row, decided, sided
from ..report.figures import axes, shades
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Draws, Option, drawn
from ..report.parts import kept
from .common import WILSON
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
    draws = settings.count(800 if settings.full else 96)
    steps = settings.count(3000 if settings.full else 2000)
    ends = {dim: ends_in(dim, draws, steps) for dim in (2, 10, 50)}
    runs = ends_text(ends, draws, steps)
    applies = short.first.applies
    violations = applies & (short.first.decrease - short.fall > short.rounding)
    neither = [((end.cosine > -0.999) & (end.excess > 1e-6)).sum() for end in ends.values()]
    yield Claim(
        "PC-17",
        {
            "draws that meet the hypotheses": applies.sum(),
            "of these, conflicting": (applies & short.conflict).sum(),
            "violations of the promised fall": violations.sum(),
            "long runs that end with neither cos < -.999 nor excess < 1e-6": sum(neither),
        },
        f"random pairs of convex quadratics in {', '.join(map(str, DIMENSIONS))} dimensions, "
        f"conditioning 1 to 1e4, t·ℒ from 1e-3 to 1; long runs: {runs}. Two tasks, L "
        "bounded below, convergence in the sense of a subsequence",
    )
    numbers: dict[str, float] = {}
    for dim, end in ends.items():
        share = share_interval(int((end.excess > 0.01).sum()), len(end.excess))
        numbers |= named(f"dim {dim}: share with an excess above 1 % of the initial gap", share)
    yield Claim("PC-18", numbers, f"{runs}. {WILSON}")


@drawn
def ends(
    dimensions: Annotated[tuple[int, ...], Option("dimensions", 1, 1000)] = (2, 10, 50),
    draws: Draws = 96,
    steps: Annotated[int, Option("steps of 1/ℒ", 1)] = 2000,
) -> Figure:
    """Where long PCGrad runs on random convex pairs end: excess over the minimum, angle."""
    found = {dim: ends_in(dim, draws, steps) for dim in sorted(set(dimensions))}
    canvas, panels = axes(1, 2, (12, 4.4))
    colours = shades(len(found), ("C0", "C1", "#444444", "C2"))
    for i, ((dim, end), colour) in enumerate(zip(found.items(), colours, strict=True)):
        look: dict[str, Any] = {"color": colour, "label": f"{dim} dimensions"}
        excess = end.excess.clamp_min(1e-17)
        shares = np.linspace(0, 1, len(excess))
        dash = ("-", "--", ":")[i % 3]
        panels[0].step(excess.sort().values, shares, where="post", linestyle=dash, **look)
        panels[1].plot(excess, end.cosine, "osD^"[i % 4], markersize=4, **look)
    panels[0].axvline(1e-2, color="black", linewidth=1, linestyle="--")
    panels[0].set(ylabel="share of pairs with at most that", ylim=(0, 1.02))
    panels[1].set(ylabel="cos φ at the end")
    for panel in panels:
        panel.set(xlabel="(L at the end - min L) / (L at the start - min L)", xscale="log")
        panel.legend()
    return Figure(
        "ends",
        "PCGrad with steps of 1/ℒ on random convex pairs: "
        f"{ends_text(found, draws, steps)}. Left: where they end; dashed: 1 % of the initial gap. "
        "Right: cos φ there; it is -1 at the minimum of the sum, too, wherever the tasks disagree.",
        canvas,
        [
            {"dimensions": dim, "excess": float(excess), "cosine": float(cosine)}
            for dim, end in found.items()
            for excess, cosine in zip(end.excess, end.cosine, strict=True)
        ],
    )


class Ends(NamedTuple):
    """Where long runs ended."""

    cosine: Tensor  # [draw]
    excess: Tensor  # [draw], over the minimum of the sum, relative to the start


@kept
def ends_in(dim: int, draws: int, steps: int) -> Ends:
    """Of PCGrad with t = 1/ℒ from a random start, on random pairs in `dim` dimensions."""
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
    return Ends(cosine, end / start)


def ends_text(dimensions: Iterable[int], draws: int, steps: int) -> str:
    """Of `ends_in`."""
    dims = ", ".join(map(str, dimensions))
    return f"{draws} random pairs in each of {dims} dimensions, {steps} steps of 1/ℒ"
