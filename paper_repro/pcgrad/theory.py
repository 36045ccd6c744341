"""PCGrad's theorems (Yu et al. 2020, section 2.4): hypotheses met and conclusions violated on
random quadratics, and what they do not say.

The theorems are about the sum L = L_1 + L_2 of two losses and one step: θ^MT = θ - t·g along g =
∇L, θ^PC = θ - t·d along the sum d of the projected gradients. A draw is a pair of convex quadratics
L_t(x) = g_t·x + ½ xᵀA_t x at x = 0.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, ratio_interval, share_interval
from .common import COLOURS, PAPER, WILSON, named, normal, uniform

DIMENSIONS = (2, 5, 20)
# a conclusion is violated beyond this share of the terms that were subtracted: their rounding
SLACK = 1e-9
Batch = tuple[Tensor, Tensor]
"""Gradients at 0, `[task, dim]`, and Hessians, `[task, dim, dim]`."""


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    x, (gradients, hessians) = params["x"], batch
    return gradients @ x + 0.5 * torch.einsum("i,tij,j->t", x, hessians, x)


def edited() -> mf.Balance:
    """The paper's direction, the **sum** of the projected gradients."""
    return mf.balance(losses, mf.pcgrad(), mf.jacobian(), reduction="sum")


# ---- random quadratics ----


def draw(key: Tensor, dim: int, *, aligned: bool) -> Batch:
    """Two gradients at a random angle and ratio of lengths; Hessians with log-uniform conditioning
    from 1 to 1e4 and scales from 1e-2 to 1e2.

    `aligned` turns the gradients nearly opposite and puts the first Hessian's top eigenvector along
    their sum: there Theorem 2's hypotheses are met.
    """

    def hessian(tag: int) -> Tensor:
        basis = torch.linalg.qr(normal(key, tag, (dim, dim)))[0]
        spread, scale = uniform(key, tag + 1, 0, 4), uniform(key, tag + 2, -2, 2)
        decay = mf.random.uniform(mf.random.fold_in(key, tag + 3), (dim,), torch.float64)
        return (basis * 10 ** (scale - spread * decay)) @ basis.mT

    first, other = normal(key, 0, (dim,)), normal(key, 1, (dim,))
    first = first / torch.linalg.vector_norm(first)
    other = other - (other @ first) * first
    other = other / torch.linalg.vector_norm(other)
    angle = torch.pi - 10 ** uniform(key, 2, -3, 0) if aligned else torch.pi * uniform(key, 2, 0, 1)
    second = 10 ** uniform(key, 3, -2, 2) * (angle.cos() * first + angle.sin() * other)
    hessians = torch.stack([hessian(10), hessian(20)])
    if aligned:
        g = first + second
        top = 10 ** uniform(key, 4, -1, 2) * hessians.diagonal(dim1=-2, dim2=-1).sum()
        hessians = hessians + torch.stack(
            [top * torch.outer(g, g) / (g @ g), torch.zeros_like(hessians[0])]
        )
    return torch.stack([first, second]), hessians


class Steps(NamedTuple):
    """One plain and one PCGrad step of every draw."""

    lipschitz: Tensor  # [draw], ℒ
    relative: Tensor  # [draw], t·ℒ
    conflict: Tensor  # [draw]
    first: mf.theory.Descent
    second: mf.theory.Overshoot
    printed: mf.theory.Overshoot
    fall: Tensor  # [draw], L(0) - L(θ^PC)
    plain_fall: Tensor  # [draw], L(0) - L(θ^MT)
    rounding: Tensor  # [draw], what differences of losses are known to


def one_step(key: Tensor, dim: int, *, aligned: bool, decades: tuple[float, float]) -> Steps:
    """t·ℒ is log-uniform over `decades`."""
    batch = draw(key, dim, aligned=aligned)
    lipschitz = torch.linalg.eigvalsh(batch[1].sum(0))[-1]
    relative = 10 ** uniform(key, 5, *decades)
    t = relative / lipschitz
    params = {"x": torch.zeros(dim, dtype=torch.float64)}
    step = edited()
    direction, _, info = step.update(params, batch, step.init(params, batch))
    plain = {"x": batch[0].sum(0)}
    ends = [losses({"x": -t * d["x"]}, batch).sum() for d in (direction, plain)]
    curvature = mf.theory.secant_curvature(losses, params, batch, lr=t)
    return Steps(
        lipschitz,
        relative,
        info.gramian[0, 1] < 0,
        mf.theory.pcgrad_theorem1(info.gramian, t, lipschitz),
        mf.theory.pcgrad_theorem2(info.gramian, t, lipschitz, curvature),
        mf.theory.pcgrad_theorem2(info.gramian, t, lipschitz, curvature, printed=True),
        -ends[0],
        -ends[1],
        SLACK * (t + t**2 * lipschitz) * info.gramian.diagonal().sum(),
    )


def study(draws: int, decades: tuple[float, float]) -> dict[str, Steps]:
    """All draws of every dimension and family, each in one vmap."""
    found = {}
    for dim in DIMENSIONS:
        for aligned in (False, True):
            keys = torch.arange(draws) + 1_000_000 * dim + 100_000 * aligned
            name = f"{'nearly opposite' if aligned else 'any angle'}, dim {dim}"
            found[name] = vmap(
                lambda key, dim=dim, aligned=aligned: one_step(
                    key, dim, aligned=aligned, decades=decades
                )
            )(keys)
    return found


def together(found: dict[str, Steps]) -> Steps:
    return tree_map(lambda *leaves: torch.cat(leaves), *found.values())


# ---- Theorem 1 ----


def theorem1(settings: Settings) -> Findings:
    draws = settings.count(20000 if settings.full else 4000)
    short, long = together(study(draws, (-3, 0))), together(study(max(4, draws // 5), (0, 1)))
    short_of = [s.first.decrease - s.fall > s.rounding for s in (short, long)]
    violations = int((short_of[0] & short.first.applies).sum())
    beyond = (
        share_interval(int((short_of[1] & long.conflict).sum()), int(long.conflict.sum()))
        if bool(long.conflict.any())
        else share_interval(0, 1)
    )
    met, conflicting = (
        int(short.first.applies.sum()),
        int((short.first.applies & short.conflict).sum()),
    )
    ends = pair_ends(settings)
    neither = sum(int(((end.cosine > -0.999) & (end.excess > 1e-6)).sum()) for end in ends.values())
    canvas, axis = axes(1, 2, (12, 4.4))
    # Non-conflicting pairs have d = g, for which the bound is the descent lemma's own.
    for steps, marker in ((short, "."), (long, "x")):
        for conflict, colour, label in (
            (True, COLOURS["PCGrad"], "conflict"),
            (False, "C0", "no conflict"),
        ):
            chosen = (steps.conflict == conflict).nonzero().flatten()[:1500]
            ratio = (steps.fall / steps.first.decrease)[chosen]
            axis[0].plot(
                steps.relative[chosen],
                ratio,
                marker,
                color=colour,
                markersize=3,
                alpha=0.5,
                label=label if steps is short else None,
            )
    axis[0].axhline(1, color="black", linewidth=1)
    axis[0].axvline(1, color="black", linewidth=1, linestyle="--")
    axis[0].set(
        xlabel="step length t·ℒ",
        ylabel="fall of L in one step / promised fall",
        xscale="log",
        ylim=(-1, 4),
    )
    axis[0].legend(frameon=False, markerscale=3, loc="lower left")
    for (dim, end), colour, style in zip(
        ends.items(), ("C0", "C1", "#444444"), ("-", "--", ":"), strict=True
    ):
        ordered = np.sort(np.clip(end.excess.numpy(), 1e-17, None))
        axis[1].step(
            ordered,
            np.linspace(0, 1, len(ordered)),
            color=colour,
            linestyle=style,
            label=f"{dim} dimensions",
            where="post",
        )
    axis[1].axvline(1e-2, color="black", linewidth=1, linestyle="--")
    axis[1].set(
        xlabel="(L at the end - min L) / (L at the start - min L)",
        ylabel="share of pairs with at most that",
        xscale="log",
        ylim=(0, 1.02),
    )
    axis[1].legend(frameon=False)
    yield Figure(
        "descent",
        "Theorem 1. Left: fall of the summed loss in one PCGrad step over the promised (t/2)(1 - "
        "cos²φ)‖g‖² or (t/2)‖g‖²: never below 1 up to "
        "t = 1/ℒ (dashed), often beyond; the axis is cut at 4. Right: where long runs end, "
        f"{ends_text(ends)}; dashed: 1 % of the initial gap.",
        canvas,
    )
    yield Claim(
        "PC-17",
        PAPER,
        "Theorem 1: for convex L_1, L_2 and t <= 1/ℒ PCGrad converges to a point with cos φ = -1 "
        "or to the minimum of L_1 + L_2.",
        "does not hold" if violations else "inconclusive" if neither else "holds",
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
    yield rare(ends)


class Ends(NamedTuple):
    cosine: Tensor  # [draw]
    excess: Tensor  # [draw], over the minimum of the sum, relative to the start
    steps: int


def pair_ends(settings: Settings) -> dict[int, Ends]:
    """Long PCGrad runs with t = 1/ℒ on random convex pairs with different minimisers, from a random
    start.
    """
    draws, steps = (
        settings.count(800 if settings.full else 96),
        settings.count(3000 if settings.full else 2000),
    )
    return {dim: _ends(dim, draws, steps) for dim in (2, 10, 50)}


def convex_pair(key: Tensor, dim: int) -> tuple[mf.types.Params, Batch, Tensor, Tensor]:
    """Start, a pair with Wishart Hessians and normal minimisers, ℒ, and the minimum of the sum."""
    factors, centres = normal(key, 0, (2, dim, dim)), normal(key, 1, (2, dim))
    hessians = factors @ factors.mT / dim + 1e-2 * torch.eye(dim, dtype=torch.float64)
    batch = (-torch.einsum("tij,tj->ti", hessians, centres), hessians)
    best = torch.linalg.solve(hessians.sum(0), -batch[0].sum(0))
    params = {"x": 2 * normal(key, 2, (dim,))}
    return (
        params,
        batch,
        torch.linalg.eigvalsh(hessians.sum(0))[-1],
        losses({"x": best}, batch).sum(),
    )


def _ends(dim: int, draws: int, steps: int) -> Ends:
    params, batch, lipschitz, least = vmap(lambda key: convex_pair(key, dim))(torch.arange(draws))
    move = edited()

    def advance(params: mf.types.Params, batch: Batch, lipschitz: Tensor) -> mf.types.Params:
        direction, _, _ = move.update(params, batch, move.init(params, batch))
        return {"x": params["x"] - direction["x"] / lipschitz}

    forward = vmap(advance)
    start = vmap(losses)(params, batch).sum(-1)
    for _ in tqdm(range(steps), desc=f"pairs of quadratics, dim {dim}", leave=False):
        params = forward(params, batch, lipschitz)
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
    seldom, negligible = opposite.high < 0.05, all(share.high < 0.05 for share in shares.values())
    return Claim(
        "PC-18",
        PAPER,
        "Alternative (a), cos φ = -1, is hard to reach, so that in practice the method nearly "
        "always reaches the optimum.",
        "holds" if seldom and negligible else "holds only when" if seldom else "does not hold",
        numbers,
        f"{ends_text(ends)}; holds if (a) is rarer than 5 % and so is an excess above 1 %. cos φ "
        "= -1 at every Pareto-stationary point with two "
        f"non-zero gradients, the optimum included when the tasks disagree. {WILSON}",
    )


# ---- Theorem 2 ----


def counterexample() -> dict[str, Fraction]:
    """L(x) = x for x >= -2, x + ½(x + 2)² below: convex, ℒ = 1; g_1 = 3, g_2 = -2 at 0, so cos φ =
    -1, ξ = 0 and PCGrad does not move. t = 4.
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
    """Convex in one variable: x plus bends of random strength at random places; g_1 = 3 and g_2 =
    -2 at 0, so that PCGrad does not move.
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


def theorem2(settings: Settings) -> Findings:
    draws = settings.count(20000 if settings.full else 4000)
    families = study(draws, (-1, 3))
    steps = together(families)
    # PCGrad's loss is above the plain step's
    worse = steps.plain_fall - steps.fall > steps.rounding
    corrected, printed = steps.second.applies, steps.printed.applies
    below = steps.second.difference - (steps.fall - steps.plain_fall) > steps.rounding
    exact, bends = counterexample(), weightings(settings.count(4000))
    at = {name: float(value) for name, value in exact.items()}
    uniform_false = (
        exact["L(θ^MT)"] < exact["L(θ^PCGrad)"]
        and exact["step"] >= exact["shortest step, uniform weight"]
    )
    dropped = int((corrected & (steps.plain_fall > steps.rounding)).sum())
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
    right = (
        numbers["violations of the corrected theorem"] == 0
        and numbers["violations with weight 2(1 - s)"] == 0
    )
    false = numbers["violations of the printed theorem"] > 0 and uniform_false
    yield curvature_figure(steps, worse, exact)
    yield Claim(
        "PC-19",
        PAPER,
        "Theorem 2: with curvature >= ℓ‖g‖², (a) cos φ <= -Φ, (b) ℓ >= ξ and (c) t >= 2/(ℓ - "
        "ξℒ), L(θ^PCGrad) <= L(θ^MT).",
        ("holds only when" if right else "does not hold")
        if false
        else ("holds" if right else "inconclusive"),
        numbers,
        f"{len(worse)} random pairs of quadratics ({', '.join(families)}), t·ℒ from .1 to 1e3; "
        "the 1-D counterexample in exact fractions and "
        "1-D convex functions with random bends. False as printed, on both counts; true with ℓ > "
        "ξℒ in (b) and the weight 2(1 - s) over the step; "
        "(a) follows from (b)",
    )
    yield from faster(steps, dropped, settings)


def curvature_figure(steps: Steps, worse: Tensor, exact: dict[str, Fraction]) -> Figure:
    canvas, axis = axes(1, 3, (15, 4.4))
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
        axis[0].plot(x[at], scale[at], marker, color=colour, markersize=4, alpha=0.5, label=label)
    axis[0].axhline(0, color="black", linewidth=1)
    axis[0].set(
        xlabel="step length t·ℒ",
        ylabel="L(θ^MT) - L(θ^PC), in units of\n(t + t²ℒ)(‖g₁‖² + ‖g₂‖²)",
        xscale="log",
        yscale="symlog",
    )
    axis[0].set_yscale("symlog", linthresh=1e-4)
    axis[0].legend(frameon=False, markerscale=2, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    x = np.linspace(-5, 1, 200)
    axis[1].plot(x, x + 0.5 * np.minimum(x + 2, 0) ** 2, color="black")
    for name, where, colour, marker in (
        ("θ, θ^PCGrad", 0.0, COLOURS["PCGrad"], "o"),
        ("θ^MT", -float(exact["step"]), COLOURS["sum"], "s"),
    ):
        axis[1].plot(
            where,
            where + 0.5 * min(where + 2, 0) ** 2,
            marker,
            color=colour,
            markersize=9,
            label=name,
        )
    axis[1].set(xlabel="x", ylabel="L(x)")
    axis[1].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    t = np.linspace(0.5, 12, 300)
    bend = np.clip(1 - 2 / t, 0, None)
    for curvature, colour, style, label in (
        (bend, "C3", "--", "uniform weight"),
        (bend**2, "C0", "-", "weight 2(1 - s)"),
    ):
        axis[2].plot(t, t * curvature / 2, color=colour, linestyle=style, label=f"t·ℓ/2, {label}")
    difference = -t + 0.5 * np.maximum(t - 2, 0) ** 2
    axis[2].plot(t, difference / t, color="black", label="[L(θ^MT) - L(θ^PC)] / t")
    axis[2].axhline(1, color="#777777", linewidth=1, linestyle=":")
    axis[2].axhline(0, color="#777777", linewidth=1)
    axis[2].set(xlabel="step length t (ℒ = 1)", ylabel="ratio; (c) is t·ℓ/2 >= 1", ylim=(-1.1, 3.2))
    axis[2].legend(frameon=False, loc="upper left")
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


# ---- what Theorem 2 says in words ----


LEVELS = (0.1, 0.01, 0.001)
RELATIVE = (0.25, 0.5, 1.0, 1.5, 1.9, 3.0, 6.0)


def race(dim: int, draws: int, steps: int) -> np.ndarray:
    """Excess of the sum over its minimum, in units of its start, `[method, step, pair, rate]`; the
    rates are `RELATIVE`/ℒ.
    """
    params, batch, lipschitz, least = vmap(lambda key: convex_pair(key, dim))(
        torch.arange(draws) + 10_000
    )
    rates = torch.tensor(RELATIVE, dtype=torch.float64)
    start = vmap(losses)(params, batch).sum(-1)
    trails = []
    for rule in (mf.mean(), mf.pcgrad()):
        move = mf.balance(losses, rule, mf.jacobian(), reduction="sum")

        def advance(
            x: Tensor, rate: Tensor, batch: Batch, lipschitz: Tensor, move: mf.Balance = move
        ) -> tuple[Tensor, Tensor]:
            params = {"x": x}
            direction, _, info = move.update(params, batch, move.init(params, batch))
            return x - rate / lipschitz * direction["x"], info.losses.sum()

        forward = vmap(vmap(advance, (0, 0, None, None)), (0, None, 0, 0))
        x, trail = params["x"][:, None].expand(-1, len(rates), -1), []
        for _ in tqdm(range(steps), desc=f"race in dim {dim}", leave=False):
            x, loss = forward(x, rates, batch, lipschitz)
            x = x.clamp(-1e8, 1e8)  # a diverging run must not end the others
            trail.append((loss - least[:, None]) / (start - least)[:, None])
        trails.append(torch.stack(trail))
    return torch.stack(trails).numpy()


def faster(steps: Steps, dropped: int, settings: Settings) -> Findings:
    draws, count = settings.count(400 if settings.full else 120), settings.count(300)
    numbers: dict[str, float] = {
        "draws that meet Theorem 2": int(steps.second.applies.sum()),
        "of these, the plain step lowers L": dropped,
        "of these, t <= 1/ℒ (Theorem 1 applies)": int(
            (steps.second.applies & steps.first.applies).sum()
        ),
    }
    ratios: dict[str, Interval] = {}
    canvas, axis = axes(1, 2, (11, 4.4))
    for panel, dim in zip(axis, (2, 10), strict=True):
        excess = race(dim, draws, count)
        for index, (name, method) in enumerate((("sum", "plain"), ("PCGrad", "PCGrad"))):
            # [step, pair], the best rate at every step
            best = np.nanmin(np.where(np.isfinite(excess[index]), excess[index], np.inf), -1)
            middle = np.maximum(np.quantile(best, [0.25, 0.5, 0.75], axis=1), 1e-16)
            at = np.arange(count) + 1
            panel.plot(
                at, middle[1], color=COLOURS[name], linestyle="-" if index else "--", label=method
            )
            panel.fill_between(
                at, middle[0], middle[2], color=COLOURS[name], alpha=0.2, linewidth=0
            )
        panel.set(
            xlabel=f"step ({dim} dimensions)",
            ylabel="(L - min L) / (L at the start - min L)",
            yscale="log",
            xscale="log",
            ylim=(1e-10, 2),
        )
        panel.legend(frameon=False)
        for level in LEVELS:
            reached = excess <= level
            when = np.where(reached.any(1), reached.argmax(1), count).min(-1)  # [method, pair]
            label = f"dim {dim}, to {level:g} of the initial gap"
            for index, name in enumerate(("plain", "PCGrad")):
                numbers |= {
                    f"{label}: share that gets there, {name}": float((when[index] < count).mean())
                }
            ratios[label] = ratio_interval(when[1] + 1.0, when[0] + 1.0)
            numbers |= named(f"{label}: steps of PCGrad over plain", ratios[label])
    yield Figure(
        "race",
        "Whole trajectories, each method at its best of the rates "
        f"{', '.join(f'{r:g}' for r in RELATIVE)} times 1/ℒ, pair by pair and step by step, on "
        f"{draws} random convex pairs: median and quartiles. PCGrad loses where it stalls at a "
        "Pareto point.",
        canvas,
    )
    won, lost = (
        [label for label, ratio in ratios.items() if side(ratio)]
        for side in (lambda r: r.high < 1, lambda r: r.low > 1)
    )
    yield Claim(
        "PC-20",
        PAPER,
        "With conflict, a large gap of magnitudes, high curvature and a large enough step PCGrad "
        "converges faster than plain descent.",
        verdict_of(
            [ratio.high < 1 for ratio in ratios.values()],
            [ratio.low > 1 for ratio in ratios.values()],
        ),
        numbers,
        f"{draws} random convex pairs in 2 and 10 dimensions, {count} steps, best of seven rates "
        "for each method and pair; a pair that does not get there "
        f"counts as {count} steps. PCGrad is first: {'; '.join(won) or 'never'}; last: "
        f"{'; '.join(lost) or 'never'}. "
        "Theorem 2 compares single steps with t >= 2/ℓ, for which the plain step does not lower "
        "L at all. 95 % t intervals of log ratios, paired",
    )


# ---- the three conditions, one by one ----


def factorial(settings: Settings) -> Findings:
    """Conflict, unequal lengths and curvature, on or off: how often does a PCGrad step end below
    the plain one?
    """
    draws, dim = settings.count(2000), 10
    cells: dict[tuple[bool, ...], Tensor] = {}

    def one(key: Tensor, conflict: bool, unequal: bool, curved: bool) -> tuple[Tensor, Tensor]:
        first, other = normal(key, 0, (dim,)), normal(key, 1, (dim,))
        first = first / torch.linalg.vector_norm(first)
        other = other - (other @ first) * first
        other = other / torch.linalg.vector_norm(other)
        angle = torch.pi * (uniform(key, 2, 0.7, 0.95) if conflict else uniform(key, 2, 0.05, 0.45))
        second = (0.1 if unequal else 1.0) * (angle.cos() * first + angle.sin() * other)
        g = first + second
        root = normal(key, 3, (dim, dim))
        noise = root @ root.mT / (torch.linalg.matrix_norm(root, 2) ** 2)
        # With t = 1: along g the curvature is 4 (the plain step overshoots) or at most .2 (it does
        # not).
        along = torch.outer(g, g) / (g @ g)
        hessian = 0.2 * noise + (3.9 if curved else 0.0) * along
        batch = (torch.stack([first, second]), torch.stack([hessian, torch.zeros_like(hessian)]))
        params, step = {"x": torch.zeros(dim, dtype=torch.float64)}, edited()
        d = step.update(params, batch, step.init(params, batch))[0]["x"]
        matched = g * torch.linalg.vector_norm(d) / torch.linalg.vector_norm(g)
        plain, edited_end, long = (losses({"x": -x}, batch).sum() for x in (g, d, matched))
        return (plain - edited_end) / (g @ g), (long - edited_end) / (g @ g)

    for cell in itertools.product((False, True), repeat=3):
        cells[cell] = torch.stack(vmap(lambda key, cell=cell: one(key, *cell))(torch.arange(draws)))
    labels = {
        cell: ", ".join(
            word if on else f"no {word}"
            for word, on in zip(("conflict", "gap", "curvature"), cell, strict=True)
        )
        for cell in cells
    }
    numbers: dict[str, float] = {}
    winners: list[list[tuple[bool, ...]]] = [[], []]
    canvas, axis = axes(1, 2, (13, 4.4))
    for index, against in enumerate(("the plain step", "a plain step of the same length")):
        share = np.array(
            [
                [
                    float((gain[index] > 1e-9).double().mean()),
                    float((gain[index] < -1e-9).double().mean()),
                ]
                for gain in cells.values()
            ]
        )
        for (cell, label), (better, worse) in zip(labels.items(), share, strict=True):
            numbers |= {
                f"{label}; against {against}: share of wins": better,
                f"{label}; against {against}: share of losses": worse,
            }
            if share_interval(round(better * draws), draws).low > 0.5:
                winners[index].append(cell)
        y = np.arange(len(cells))[::-1]
        axis[index].barh(y, share[:, 0], color="C0", label="PCGrad's step ends lower")
        axis[index].barh(
            y,
            -share[:, 1],
            color="C3",
            hatch="//",
            edgecolor="white",
            label="the other step ends lower",
        )
        axis[index].axvline(0, color="black", linewidth=1)
        for height in y[share.sum(1) == 0]:
            axis[index].text(0.03, height, "level", va="center", color="#555555")
        axis[index].set_yticks(y, list(labels.values()) if index == 0 else [""] * len(cells))
        axis[index].set_xticks([-1, -0.5, 0, 0.5, 1], ["100 %", "50 %", "0", "50 %", "100 %"])
        axis[index].set(xlabel=f"against {against}: share of {draws} draws", xlim=(-1.05, 1.05))
    canvas.legend(
        *axis[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    yield Figure(
        "factorial",
        "The three conditions on and off (angle of 126–171° or 9–81°, lengths 1 : 10 or 1 : 1, "
        "curvature along g of about 4/t or at most .2/t), one "
        "step of PCGrad against the plain one, and against the plain direction at PCGrad's "
        "length; level: no draw differs. Without conflict "
        "there is nothing to tell apart. With equal lengths PCGrad's direction is (1 - cos φ) g, "
        "a longer plain step: that alone wins on flat ground.",
        canvas,
    )
    every = (True, True, True)
    only = [found == [every] for found in winners]
    lists = ["; ".join(labels[cell] for cell in found) or "none" for found in winners]
    yield Claim(
        "PC-03",
        PAPER,
        "Harmful interference needs three things together: conflict, very unequal magnitudes, "
        "strong curvature.",
        "holds" if all(only) else "holds only when" if any(only) else "does not hold",
        numbers,
        f"{draws} random quadratics a cell, {dim} dimensions, t = 1; holds if PCGrad's step ends "
        "below the other (in most draws) in the cell with all "
        f"three alone. Against the plain step it does in: {lists[0]}. Against a plain step of "
        f"PCGrad's length in: {lists[1]}",
    )


def run(settings: Settings) -> Findings:
    yield from factorial(settings)
    yield from theorem2(settings)
    yield from theorem1(settings)
