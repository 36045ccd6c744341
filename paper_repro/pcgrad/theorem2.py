"""Theorem 2: is PCGrad's step no higher than the plain one where it says so?"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Figure, Findings, Settings
from .common import COLOURS, uniform
from .decisions import claim
from .quadratics import SLACK, Steps, long_steps, together


def counterexample() -> dict[str, Fraction]:
    """L(x) = x for x >= -2, x + ½(x + 2)² below: convex, ℒ = 1.

    G_1 = 3, g_2 = -2 at 0, so cos φ = -1, ξ = 0 and PCGrad does not move. t = 4.
    """
    loss = lambda x: x + Fraction(1, 2) * min(x + 2, Fraction(0)) ** 2  # noqa: E731
    g, t, kink = Fraction(3) - Fraction(2), Fraction(4), Fraction(-2)
    inner, squares = Fraction(3) * Fraction(-2), (Fraction(9), Fraction(4))
    projected = [
        Fraction(3) - inner / squares[1] * Fraction(-2),
        Fraction(-2) - inner / squares[0] * Fraction(3),
    ]
    bend = -kink / (t * g)  # the share of the step after which L'' is 1 and no longer 0
    uniform_weight = (1 - bend) * g**2
    taylor_weight = (1 - bend) ** 2 * g**2  # 2∫(1 - s) from the bend on
    return {
        "L(θ^MT)": loss(-t * g),
        "L(θ^PCGrad)": loss(-t * sum(projected)),
        "uniform curvature": uniform_weight,
        "weighted curvature": taylor_weight,
        "shortest step, uniform weight": 2 / (uniform_weight / g**2),
        "shortest step, weight 2(1 - s)": 2 / (taylor_weight / g**2),
        "step": t,
    }


def kinked(params: mf.types.Params, batch: Tensor) -> Tensor:
    """Convex in one variable: x plus bends of random strength at random places.

    G_1 = 3 and g_2 = -2 at 0, so that PCGrad does not move.
    """
    x, (strength, place) = params["x"][0], batch
    bend = 0.25 * (strength * (x + place).clamp_max(0) ** 2).sum()
    return torch.stack([3 * x + bend, -2 * x + bend])


class Weightings(NamedTuple):
    applies: Tensor  # [draw], by the uniform weight
    violates: Tensor
    weighted_applies: Tensor
    weighted_violates: Tensor


def weightings(draws: int) -> Weightings:
    def one(key: Tensor) -> Weightings:
        strength, place = mf.random.uniform(
            mf.random.fold_in(key, 0), (2, 3), torch.float64
        ).unbind()
        batch = torch.stack([strength / strength.sum(), 0.2 + 3 * place])
        t = 10 ** uniform(key, 1, 0, 1.5)
        params = {"x": torch.zeros(1, dtype=torch.float64)}
        gramian = torch.tensor([[9.0, -6.0], [-6.0, 4.0]], dtype=torch.float64)
        uniform_weight = mf.diagnostics.curvature(kinked, params, batch, lr=t, nodes=64)
        flat, taylor = (
            mf.theory.pcgrad_theorem2(gramian, t, 1.0, h).applies
            for h in (uniform_weight, mf.theory.secant_curvature(kinked, params, batch, lr=t))
        )
        violated = kinked({"x": -t.reshape(1)}, batch).sum() < -1e-9
        return Weightings(flat, flat & violated, taylor, taylor & violated)

    return vmap(one)(torch.arange(draws))


def run(settings: Settings) -> Findings:
    families = long_steps(settings)
    steps = together(families)
    # PCGrad's loss is above the plain step's
    worse = steps.plain_fall - steps.fall > steps.rounding
    corrected, printed = steps.second.applies, steps.printed.applies
    below = steps.second.difference - (steps.fall - steps.plain_fall) > steps.rounding
    exact, bends = counterexample(), weightings(settings.count(4000))
    at = {name: float(value) for name, value in exact.items()}
    implied = int((steps.second.curved & steps.conflict & ~steps.second.dominated).sum())
    numbers = {
        "draws": len(worse),
        "draws that meet the corrected hypotheses": int(corrected.sum()),
        "violations of the corrected theorem": int((worse & corrected).sum()),
        "violations of the lower bound on L(θ^MT) - L(θ^PC), conflicting draws": int(
            (below & steps.conflict).sum()
        ),
        "draws that meet the printed hypotheses": int(printed.sum()),
        "violations of the printed theorem": int((worse & printed).sum()),
        "1-D convex functions that meet them with the uniform weight": int(bends.applies.sum()),
        "violations with the uniform weight": int(bends.violates.sum()),
        "1-D convex functions that meet them with weight 2(1 - s)": int(
            bends.weighted_applies.sum()
        ),
        "violations with weight 2(1 - s)": int(bends.weighted_violates.sum()),
        "draws with (b) but not (a)": implied,
        **{f"counterexample: {name}": value for name, value in at.items()},
    }
    yield curvature_figure(steps, worse, exact)
    yield claim(
        "PC-19",
        numbers,
        f"{len(worse)} random pairs of quadratics ({', '.join(families)}), t·ℒ from .1 to 1e3; "
        "the 1-D counterexample in exact fractions and "
        "1-D convex functions with random bends. False as printed, on both counts; true with ℓ > "
        "ξℒ in (b) and the weight 2(1 - s) over the step; "
        "(a) follows from (b)",
    )


def curvature_figure(steps: Steps, worse: Tensor, exact: dict[str, Fraction]) -> Figure:
    canvas, panels = axes(1, 3, (15, 4.4))
    scale = (steps.fall - steps.plain_fall) / (steps.rounding / SLACK)
    groups = (
        (
            steps.printed.applies & ~steps.second.applies,
            "C3",
            "x",
            "printed hypotheses only",
            steps.relative,
        ),
        (steps.second.applies, "C0", ".", "corrected hypotheses", steps.relative),
    )
    for chosen, colour, marker, label, x in groups:
        at = chosen.nonzero().flatten()[:2000]
        panels[0].plot(x[at], scale[at], marker, color=colour, markersize=4, alpha=0.5, label=label)
    panels[0].axhline(0, color="black", linewidth=1)
    panels[0].set(
        xlabel="step length t·ℒ",
        ylabel="L(θ^MT) - L(θ^PC), in units of\n(t + t²ℒ)(‖g₁‖² + ‖g₂‖²)",
        xscale="log",
        yscale="symlog",
    )
    panels[0].set_yscale("symlog", linthresh=1e-4)
    panels[0].legend(markerscale=2)
    beside_counterexample(panels[1], exact)
    by_weight(panels[2])
    return Figure(
        "overshoot",
        "Theorem 2. Left: gain of a PCGrad step over the plain one on random quadratics; no "
        "draw that meets the corrected hypotheses is below 0 "
        f"({int((worse & steps.second.applies).sum())} of {int(steps.second.applies.sum())}), of "
        "those that meet the printed ones alone "
        f"{int((worse & steps.printed.applies).sum())} of {int(steps.printed.applies.sum())} "
        "are. Middle: the convex counterexample to the uniformly weighted "
        f"curvature, t = {float(exact['step']):g}. Right: on it condition (c) by either weight "
        "(fulfilled above the dotted line) and the true difference: "
        "the uniform weight admits steps for which the plain step is better (black below 0).",
        canvas,
    )


def beside_counterexample(panel: Axes, exact: dict[str, Fraction]) -> None:
    """The convex function on which PCGrad's step ends above the plain one."""
    x = np.linspace(-5, 1, 200)
    panel.plot(x, x + 0.5 * np.minimum(x + 2, 0) ** 2, color="black")
    for name, where, colour, marker in (
        ("θ, θ^PCGrad", 0.0, COLOURS["PCGrad"], "o"),
        ("θ^MT", -float(exact["step"]), COLOURS["sum"], "s"),
    ):
        panel.plot(
            where,
            where + 0.5 * min(where + 2, 0) ** 2,
            marker,
            color=colour,
            markersize=9,
            label=name,
        )
    panel.set(xlabel="x", ylabel="L(x)")
    panel.legend()


def by_weight(panel: Axes) -> None:
    """Condition (c) on it by either weight, and the true difference."""
    t = np.linspace(0.5, 12, 300)
    bend = np.clip(1 - 2 / t, 0, None)
    for curvature, colour, style, label in (
        (bend, "C3", "--", "uniform weight"),
        (bend**2, "C0", "-", "weight 2(1 - s)"),
    ):
        panel.plot(t, t * curvature / 2, color=colour, linestyle=style, label=f"t·ℓ/2, {label}")
    difference = -t + 0.5 * np.maximum(t - 2, 0) ** 2
    panel.plot(t, difference / t, color="black", label="[L(θ^MT) - L(θ^PC)] / t")
    panel.axhline(1, color="#777777", linewidth=1, linestyle=":")
    panel.axhline(0, color="#777777", linewidth=1)
    panel.set(xlabel="step length t (ℒ = 1)", ylabel="ratio; (c) is t·ℓ/2 >= 1", ylim=(-1.1, 3.2))
    panel.legend()
