"""Theorem 2: is PCGrad's step no higher than the plain one where it says so?"""

import math
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Measured, Row, decided
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.options import Draws, Impossible, Option, drawn
from . import theorems
from .common import COLOURS, uniform
from .quadratics import DIMENSIONS, Steps, study


@decided(
    "the corrected hypotheses (ℓ > ξℒ, weight 2(1 - s)) do not suffice, either; in part if a draw "
    "meets the printed ones and not the conclusion",
    trained=False,
)
def second_theorem(measured: Measured) -> Verdict:
    right = (
        measured["violations of the corrected theorem"] == 0
        and measured["violations with weight 2(1 - s)"] == 0
        and measured["draws that meet the corrected hypotheses"] > 0
    )
    plain, pcgrad, step, shortest = (
        measured[f"counterexample: {what}"]
        for what in ("L(θ^MT)", "L(θ^PCGrad)", "step", "shortest step, uniform weight")
    )
    by_example = plain < pcgrad and step >= shortest
    if measured["violations of the printed theorem"] > 0 or by_example:
        return "holds only when" if right else "does not hold"
    return "holds" if right else "inconclusive"


CLAIMS = {
    "PC-19": Row(
        "Theorem 2: with curvature >= ℓ‖g‖², (a) cos φ <= -Φ, (b) ℓ >= ξ and (c) t >= "
        "2/(ℓ - ξℒ), L(θ^PCGrad) <= L(θ^MT).",
        second_theorem,
        when="(b) reads ℓ > ξℒ and the curvature has the weight 2(1 - s) over the step",
    )
}


def counterexample() -> dict[str, Fraction]:
    """L(x) = x for x >= -2, x + ½(x + 2)² below: convex, ℒ = 1. g_1 = 3, g_2 = -2 at 0, so cos φ =
    -1, ξ = 0 and PCGrad does not move. t = 4.
    """
    one, two, t = Fraction(3), Fraction(-2), Fraction(4)
    g, inner = one + two, one * two
    projected = (one - inner / two**2 * two) + (two - inner / one**2 * one)
    flat = 2 / (t * g)  # the share of the step up to the bend; from there on L'' is 1
    return {
        "L(θ^MT)": convex(-t * g),
        "L(θ^PCGrad)": convex(-t * projected),
        "shortest step, uniform weight": 2 / (1 - flat),
        "step": t,
    }


def with_bends(key: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a step meets the corrected hypotheses, and whether the plain one then ends below
    PCGrad's: on a convex function of one variable, x plus bends of random strength at random
    places, with g_1 = 3 and g_2 = -2 at 0, so that PCGrad does not move.
    """
    strength, place = mf.random.uniform(mf.random.fold_in(key, 0), (2, 3), torch.float64).unbind()
    strength, place = strength / strength.sum(), 0.2 + 3 * place

    def losses(params: mf.types.Params, batch: None) -> Tensor:
        x = params["x"][0]
        bend = 0.25 * (strength * (x + place).clamp_max(0) ** 2).sum()
        return torch.stack([3 * x + bend, -2 * x + bend])

    t = 10 ** uniform(key, 1, 0, 1.5)
    gramian = torch.tensor([[9.0, -6.0], [-6.0, 4.0]], dtype=torch.float64)
    start = {"x": torch.zeros(1, dtype=torch.float64)}
    curvature = theorems.secant_curvature(losses, start, None, lr=t)
    met = theorems.pcgrad_theorem2(gramian, t, 1.0, curvature).applies
    return met, met & (losses({"x": -t.reshape(1)}, None).sum() < -1e-9)


@drawn
def overshoot(
    draws: Draws = 4000,
    shortest: Annotated[float, Option("shortest step t·ℒ", 1e-6, 1e6)] = 0.1,
    longest: Annotated[float, Option("longest step t·ℒ", 1e-6, 1e6)] = 1e3,
) -> Figure:
    """Where PCGrad's step ends above the plain one, and what Theorem 2 promises."""
    if not shortest < longest:
        raise Impossible(f"longest: expected more than shortest, {shortest:g}, got {longest:g}")
    found = study(draws, (math.log10(shortest), math.log10(longest)))
    figure = overshoot_figure(found)
    if not figure.numbers:
        raise Impossible(f"draws: too few of {draws} meet the hypotheses; expected more")
    return figure


def run(settings: Settings) -> Findings:
    steps = study(settings.count(20000 if settings.full else 4000), (-1, 3))
    corrected, printed = steps.second.applies, steps.printed.applies
    met, violated = vmap(with_bends)(torch.arange(settings.count(4000)))
    yield overshoot_figure(steps)
    yield Claim(
        "PC-19",
        {
            "draws that meet the corrected hypotheses": corrected.sum(),
            "violations of the corrected theorem": (steps.worse & corrected).sum(),
            "violations of the printed theorem": (steps.worse & printed).sum(),
            "violations with weight 2(1 - s)": violated.sum(),
            **{f"counterexample: {name}": float(value) for name, value in counterexample().items()},
        },
        f"{len(corrected)} random pairs of quadratics in {', '.join(map(str, DIMENSIONS))} "
        "dimensions, half of them nearly opposite, t·ℒ from .1 to 1e3; a 1-D counterexample in "
        f"exact fractions, and {len(met)} 1-D convex functions with random bends",
    )


def overshoot_figure(steps: Steps) -> Figure:
    canvas, (left, middle, right) = axes(1, 3, (17, 5))
    found = by_length(left, steps)
    x = np.linspace(-5, 1, 200)
    middle.plot(x, convex(x), color="black")
    middle.plot(0, convex(0.0), "o", color=COLOURS["PCGrad"], label="start, and PCGrad's end")
    middle.plot(-4, convex(-4.0), "o", color=COLOURS["sum"], label="the plain step's end: lower")
    middle.legend()
    middle.set(xlabel="x", ylabel="L(x)", title="One convex function, a plain step along g = 1")
    t = np.linspace(0.5, 8, 300)
    right.plot(t, convex(-t), color="black")
    right.axhline(0, color="#777777", linewidth=1)
    # (c) is t·ℓ >= 2 with ℓ = 1 - 2/t by the uniform weight, (1 - 2/t)² by 2(1 - s)
    printed, corrected = 4.0, 3 + 5**0.5
    right.axvline(printed, color="C1", linewidth=2, label="printed: from here on")
    right.axvline(corrected, color="C0", linewidth=2, label="corrected: from here on")
    right.legend()
    wrong = t[(t >= printed) & (t <= corrected)]
    right.fill_between(wrong, convex(-wrong), 0, color="C1", alpha=0.35, linewidth=0)
    right.set(
        xlabel="step length t (ℒ = 1)",
        ylabel="L(plain step's end) - L(PCGrad's end)",
        title="Below 0 the plain step is better",
    )
    return Figure(
        "overshoot",
        "Theorem 2: PCGrad's step ends no higher than the plain one where its hypotheses are met. "
        f"First: {len(steps.fall)} random pairs of quadratics, the share in which it ends higher, "
        "of those that meet the hypotheses as printed and as corrected (log axis of t·ℒ, a point "
        "for a third of a decade). Second: a convex function with ℒ = 1 and g_1 = 3, g_2 = -2 at "
        "0, where PCGrad does not move; t = 4. Third: on it the difference "
        "of both ends by the step's length; with the printed curvature, of uniform weight, the "
        "theorem promises that the curve is at or above 0 right of the orange line, with weight "
        "2(1 - s) right of the blue one.",
        canvas,
        found,
    )


def convex(x: Any) -> Any:
    """The counterexample's sum of losses, of a fraction or of an array."""
    return x + np.minimum(x + 2, 0 * x) ** 2 / 2


THIRDS, FEWEST = 3, 20
"""Bins of step lengths in a decade, and the draws of a share."""


def by_length(panel: Axes, steps: Steps) -> list[dict[str, float | str]]:
    """The share of draws in which PCGrad's step ends higher, by its length; the records."""
    worse = steps.worse.numpy()
    places = np.floor(THIRDS * np.log10(steps.relative.numpy())).astype(int)
    records: list[dict[str, float | str]] = []
    for name, overshoot, colour, style in (
        ("hypotheses as printed", steps.printed, "C1", "o-"),
        ("as corrected", steps.second, "C0", "s-"),
    ):
        met = overshoot.applies.numpy()
        at = [place for place in np.unique(places) if (met & (places == place)).sum() >= FEWEST]
        groups = [worse[met & (places == place)] for place in at]
        lengths = [10 ** ((place + 0.5) / THIRDS) for place in at]
        shares = [100 * group.mean() for group in groups]
        panel.plot(lengths, shares, style, color=colour, label=name)
        records += [
            {"hypotheses": name, "t·ℒ": at, "draws": len(group), "share that ends higher": share}
            for at, group, share in zip(lengths, groups, shares, strict=True)
        ]
    panel.set(
        xlabel="step length t·ℒ",
        ylabel="% of draws in which PCGrad's step ends higher",
        xscale="log",
        ylim=(-3, 103),
        title="Random quadratics that meet the hypotheses",
    )
    panel.legend()
    return records
