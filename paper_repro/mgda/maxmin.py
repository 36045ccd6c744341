"""Frank–Wolfe as smoothed max–min (essay, Su 2022): smoothing, the naive iteration and its average,
and every solver on the same Gramians.

max over u of min_t ⟨g_t, u⟩ - ½‖u‖² has the dual min over the simplex of ½ wᵀG w and the answer u =
Jᵀw. With -(1/λ) log Σ exp(-λ x_t) in place of the minimum, u = Σ softmax(-λ⟨g, u⟩)_t g_t; λ → ∞
gives the naive iteration u ← g_τ, τ = argmin_t ⟨g_t, u⟩.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import share_interval
from .common import (
    COLOURS,
    DASHES,
    TASKS,
    claim,
    families,
    gram,
    judged,
    normal,
    relative_gap,
    rows_of,
    scaled,
    shortest,
    solved,
    square,
    uniform,
)

COUNTS = (1, 2, 5, 10, 22, 46, 100, 215, 464, 1000)
MORE_COUNTS = (2154, 4642, 10000)
SMALL = 1e-6  # the relative gap that counts as reached
ENOUGH = 5000  # steps of the softmax form
ROUNDING = 1e-9


def counts_of(settings: Settings) -> tuple[int, ...]:
    """Iterations at which solvers are looked at."""
    return (
        (*COUNTS, *MORE_COUNTS)
        if settings.full
        else COUNTS
        if settings.shrink > 0.1
        else COUNTS[:6]
    )


def run(settings: Settings) -> Findings:
    yield smooth_minimum(settings)
    yield from temperatures(settings)
    yield from naive(settings)
    yield averaged_smoothing(settings)
    yield from side_by_side(settings)


# ---- the smooth minimum, and its fixed point ----


def smooth_minimum(settings: Settings) -> Claim:
    draws = settings.count(20000)
    low, high = np.inf, -np.inf
    for tasks in (2, 5, 20):
        x = normal(120 + tasks, (draws, tasks)) * 10 ** (4 * uniform(130 + tasks, (draws, 1)) - 2)
        x[0] = 1.0  # all equal: there the lower bound is attained
        sharpness = 10 ** (6 * uniform(140 + tasks, (draws,)) - 3)
        smooth = -torch.logsumexp(-sharpness[:, None] * x, -1) / sharpness
        # In units of log T/λ: 0 is the minimum itself, -1 the lower bound.
        error = (smooth - x.amin(-1)) * sharpness / np.log(tasks)
        slack = 1e-13 * (1 + (sharpness[:, None] * x).abs().amax(-1)) / np.log(tasks)
        low, high = min(low, float((error + slack).min())), max(high, float((error - slack).max()))
        tight = float(error[0])
    return claim(
        "SU-12",
        "First method: replace the minimum by -(1/λ) log Σ exp(-λ x_t), which lies between min x "
        "- log T/λ and min x.",
        judged(low >= -1 and high <= 0),
        {
            "lowest (smooth minimum - minimum)·λ/log T": low,
            "highest": high,
            "the same where all x are equal": tight,
            "draws": 3 * draws,
        },
        "normal x of sizes 1e-2 to 1e2, T = 2, 5, 20, λ from 1e-3 to 1e3, float64, rounding of "
        "λx allowed for; holds if the ratio stays within [-1, 0]",
    )


class Smoothed(NamedTuple):
    weights: Tensor  # [draw, task]
    residual: Tensor  # [draw], of w = softmax(-λGw)
    gap: Tensor  # [draw], dual less primal value of the smoothed problem


def smoothed(gramians: Tensor, sharpness: Tensor, steps: int = 60) -> Smoothed:
    """The smoothed problem max smin_λ(J d) - ½‖d‖², d = Jᵀα, by Newton's method with the best of a
    ladder of step lengths; λ `[draw]`.
    """
    unit = gramians * sharpness[:, None, None]  # only λG enters
    eye = torch.eye(gramians.shape[-1], dtype=gramians.dtype)
    lengths = torch.cat(
        [2.0 ** -torch.arange(12, dtype=gramians.dtype), torch.zeros(1, dtype=gramians.dtype)]
    )

    def value(alpha: Tensor) -> Tensor:
        rates = torch.einsum("dts,...ds->...dt", unit, alpha)
        return torch.logsumexp(-rates, -1) + 0.5 * (alpha * rates).sum(-1)

    alpha = shortest(gramians)
    for _ in range(steps):
        weights = torch.softmax(-torch.einsum("dts,ds->dt", unit, alpha), -1)
        spread = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None]
        newton = torch.linalg.solve(eye + spread @ unit, weights - alpha)
        candidates = alpha + lengths[:, None, None] * newton
        best = value(candidates).argmin(0)
        # Near the end values differ by rounding alone: full steps there.
        close = newton.abs().amax(-1) < 1e-4
        alpha = torch.where(
            close[:, None], candidates[0], candidates[best, torch.arange(len(alpha))]
        )
    rates = torch.einsum("dts,ds->dt", unit, alpha)
    weights = torch.softmax(-rates, -1)
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    dual = 0.5 * square(unit, weights) - entropy
    return Smoothed(
        weights,
        (weights - torch.softmax(-torch.einsum("dts,ds->dt", unit, weights), -1)).abs().amax(-1),
        dual + value(alpha),
    )


def temperatures(settings: Settings) -> Findings:
    draws = settings.count(200)
    sharpness = torch.logspace(-2, 4, settings.count(19), dtype=torch.float64)
    canvas, axis = axes(1, 3, (15, 4.6))
    residual = gap = 0.0
    outside = []
    for (name, gramians), colour, style in zip(
        families(draws).items(), COLOURS, DASHES, strict=False
    ):
        # λ in units of 1/mean ‖g‖²
        g = gramians / gramians.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        found = [
            smoothed(g, level.expand(draws))
            for level in tqdm(sharpness, desc=f"temperatures, {name}", leave=False)
        ]
        residual, gap = (
            max(residual, *(float(s.residual.max()) for s in found)),
            max(gap, *(float(s.gap.abs().max()) for s in found)),
        )
        least, exact = square(g, shortest(g)), shortest(g)
        # value of the smoothed problem: ½wᵀGw - entropy/λ lies within log T/λ below ½‖d*‖²
        weights = torch.stack([s.weights for s in found])
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        short = 0.5 * least - (0.5 * square(g, weights) - entropy / sharpness[:, None])
        outside.append(float((short * sharpness[:, None] / np.log(TASKS)).max()))
        rates = torch.einsum("dts,lds->ldt", g, weights)
        distance = square(g, weights - exact).sqrt() / least.sqrt()
        axis[0].plot(sharpness, short.median(-1).values, color=colour, linestyle=style, label=name)
        axis[1].plot(
            sharpness, distance.median(-1).values, color=colour, linestyle=style, label=name
        )
        axis[2].plot(
            sharpness,
            (rates < 0).any(-1).double().mean(-1),
            color=colour,
            linestyle=style,
            label=name,
        )
    axis[0].plot(
        sharpness,
        np.log(TASKS) / sharpness,
        color="#999999",
        linestyle=":",
        linewidth=2,
        label="log T/λ",
    )
    for one, label in zip(
        axis,
        (
            "½‖d*‖² - smoothed optimum (median)",
            "‖d_λ - d*‖ / ‖d*‖ (median)",
            "share of d_λ that raise a task",
        ),
        strict=True,
    ):
        one.set(xlabel="sharpness λ · mean ‖g_t‖²", ylabel=label, xscale="log")
        one.legend()
    axis[0].set_yscale("log")
    axis[1].set_yscale("log")
    yield Figure(
        "temperatures",
        f"Entropy-regularised MGDA over the sharpness λ, {draws} Gramians of {TASKS} tasks a "
        "family: optimum inside the simplex, or on a face of it. "
        "Left: the value approaches ½‖d*‖² within log T/λ. Middle: so does the direction. Right: "
        "d_λ is the mean at λ = 0 and a common descent "
        "direction only from some λ on.",
        canvas,
    )
    yield claim(
        "SU-13",
        "Stationarity of the smoothed problem: u = Σ softmax(-λ⟨g, u⟩)_t g_t.",
        judged(residual < 1e-8 and gap < 1e-6 and max(outside) <= 1 + ROUNDING),
        {
            "largest |w - softmax(-λGw)|": residual,
            "largest difference of dual and primal value, in units of 1/λ": gap,
            "largest (½‖d*‖² - smoothed optimum)·λ/log T": max(outside),
        },
        f"{2 * draws} Gramians of {TASKS} tasks, {len(sharpness)} values of λ·mean ‖g‖² from "
        "1e-2 to 1e4, Newton's method on max smin_λ(J d) - ½‖d‖²; the "
        "dual is ½wᵀGw - entropy(w)/λ; holds if the fixed point is met to 1e-8 and both values "
        "agree",
    )


# ---- the naive iteration ----


def followed(gramians: Tensor, steps: int) -> Tensor:
    """The tasks `[time, draw]` that u ← g_τ visits, from the task that the mean gradient serves
    worst.
    """
    following = gramians.argmin(-2)  # after task j comes argmin_t G_tj
    at = gramians.mean(-1).argmin(-1)
    visited = [at]
    for _ in range(steps):
        at = following.gather(1, at[:, None])[:, 0]
        visited.append(at)
    return torch.stack(visited)


def cycles(visited: Tensor) -> Tensor:
    """Lengths `[draw]` of the cycles entered: steps since the last visit of the last task."""
    again = visited[:-1].flip(0) == visited[-1]
    return again.to(torch.int8).argmax(0) + 1


def example() -> dict[str, Fraction]:
    """g_1 = (2, 0), g_2 = (0, 1): the average of the naive loop's own iterates, and the min-norm
    point.
    """
    rows = [(Fraction(2), Fraction(0)), (Fraction(0), Fraction(1))]
    inner = [[a[0] * b[0] + a[1] * b[1] for b in rows] for a in rows]
    at, visited = 0, []
    for _ in range(1000):
        visited.append(rows[at])
        at = min((0, 1), key=lambda t: inner[t][at])
    own = [sum((u[i] for u in visited), Fraction(0)) / len(visited) for i in range(2)]
    first = (inner[1][1] - inner[0][1]) / (inner[0][0] + inner[1][1] - 2 * inner[0][1])
    answer = [first * a + (1 - first) * b for a, b in zip(*rows, strict=True)]
    return {
        "own iterates, x": own[0],
        "own iterates, y": own[1],
        "min-norm point, x": answer[0],
        "min-norm point, y": answer[1],
    }


def naive(settings: Settings) -> Findings:
    draws, steps = settings.count(4000), 200
    averages = {
        name: running_average(g, counts_of(settings))
        for name, g in families(settings.count(200)).items()
    }
    yield oscillation_figure(averages)
    numbers: dict[str, float] = {}
    moving = fixed = others = from_vertex = 0
    own_gaps, above = [], -np.inf
    for tasks, spread, tag in ((3, 1.0, 150), (10, 1.0, 160), (10, 10.0, 170), (30, 3.0, 180)):
        g = gram(rows_of(draws, tasks, 2 * tasks, tag, spread=spread, common=0.5))
        exact = shortest(g)
        vertex = exact.amax(-1) > 1 - 1e-9
        visited = followed(g, steps)
        cyclic = cycles(visited) > 1
        others, moving = others + int((~vertex).sum()), moving + int((cyclic & ~vertex).sum())
        fixed, from_vertex = fixed + int(vertex.sum()), from_vertex + int((cyclic & vertex).sum())
        own = (
            torch.zeros_like(exact).scatter_add(
                1, visited[1:].T, torch.ones_like(visited[1:].T, dtype=g.dtype)
            )
            / steps
        )
        own_gaps.append(relative_gap(g, own)[~vertex])
        # Away from ties: 1 - softmax(-λx)_τ <= (T - 1) exp(-λ·distance to the runner-up).
        rates = g.mean(-1)
        low = rates.sort(-1).values
        level = 10 ** (3 * uniform(tag + 5, (draws,)) - 1) / g.diagonal(dim1=-2, dim2=-1).mean(-1)
        missing = -torch.expm1(torch.log_softmax(-level[:, None] * rates, -1).amax(-1))
        bound = (tasks - 1) * torch.exp(-level * (low[:, 1] - low[:, 0]))
        above = max(above, float((missing - bound - 1e-14).max()))
        on = exact > 1e-9
        at_best = torch.einsum("dts,ds->dt", g, exact)
        ties = (
            at_best.where(on, -torch.inf).amax(-1) - at_best.where(on, torch.inf).amin(-1)
        ) / square(g, exact)
        numbers[
            f"T = {tasks}, lengths 1 to {spread:g}: largest relative spread of ⟨g_t, u*⟩ over "
            "the tasks with weight"
        ] = float(ties[~vertex].max())
    share = share_interval(moving, others)
    numbers = {
        "share of runs in a cycle longer than 1, optimum no vertex": share.mean,
        "share of runs in a cycle longer than 1, optimum no vertex, low": share.low,
        "share of runs in a cycle longer than 1, optimum no vertex, high": share.high,
        "runs with a vertex as optimum": fixed,
        "of these, in a cycle longer than 1": from_vertex,
        "largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)": above,
    } | numbers
    yield claim(
        "SU-14",
        "If the inner products differ by far more than 1/λ, λ → ∞ gives u = g_τ, τ = argmin "
        "⟨g_t, u⟩; the naive iteration u ← g_τ will very likely oscillate.",
        judged(above <= 0)
        if share.low > 0.95
        else "inconclusive"
        if share.high > 0.95
        else "does not hold",
        numbers,
        f"{others} random Gramians with 3, 10 and 30 tasks whose optimum is no vertex, from the "
        "mean gradient; a fixed point of u ← g_τ is a vertex that "
        "is optimal. At the optimum itself all tasks with weight tie, so there the premise "
        "fails. Wilson interval",
    )
    yield own_average(torch.cat(own_gaps), averages)


class Averaged(NamedTuple):
    counts: tuple[int, ...]
    suboptimal: Tensor  # [count, draw], ½‖u_n‖² - ½‖u*‖²
    start: Tensor  # [draw], the same at the start
    diameter: Tensor  # [draw], squared
    gap: Tensor  # [count, draw], relative


def running_average(gramians: Tensor, counts: tuple[int, ...]) -> Averaged:
    """Frank–Wolfe with step 1/(n+1), after each of the counts."""
    least = square(gramians, shortest(gramians))
    weights = [
        solved(mf.solvers.frank_wolfe(count, "1/(n+1)"), gramians).weights
        for count in tqdm(counts, desc="running average", leave=False)
    ]
    diagonal = gramians.diagonal(dim1=-2, dim2=-1)
    diameter = (diagonal[:, :, None] + diagonal[:, None] - 2 * gramians).amax((-1, -2))
    start = torch.full_like(diagonal, 1 / diagonal.shape[-1])
    values = [0.5 * (square(gramians, w) - least) for w in (start, *weights)]
    return Averaged(
        counts,
        torch.stack(values[1:]),
        values[0],
        diameter,
        torch.stack([relative_gap(gramians, w) for w in weights]),
    )


def own_average(own_gap: Tensor, averages: dict[str, Averaged]) -> Claim:
    exact = example()
    away = [exact[f"own iterates, {i}"] - exact[f"min-norm point, {i}"] for i in "xy"]
    found = list(averages.values())
    counts = found[0].counts
    worst = max(
        float(
            (
                run.suboptimal[i]
                * (n + 1)
                / (run.start + 0.5 * run.diameter * sum(1 / k for k in range(2, n + 2)))
            ).max()
        )
        for run in found
        for i, n in enumerate(counts)
    )
    early = min(4, len(counts) - 2)
    slopes = [
        float(np.polyfit(np.log(counts[early:]), run.gap.median(1).values.log()[early:], 1)[0])
        for run in found
    ]
    converges, wrong = worst <= 1 + ROUNDING and max(slopes) < -0.8, away != [0, 0]
    share = share_interval(int((own_gap > 0.01).sum()), max(len(own_gap), 1))
    return claim(
        "SU-15",
        "The naive iteration oscillates around the optimum, so the running average u_{n+1} = "
        "(n·u_n + g_τ)/(n + 1) converges to it.",
        judged(converges, only_when=wrong),
        {
            "largest suboptimality over its bound (h_0 + ½diam²·Σ 1/k)/(n + 1)": worst,
            "exponent of n in the median gap, optimum inside": slopes[0],
            "exponent of n in the median gap, optimum on a face": slopes[1],
            f"largest relative gap after {counts[-1]} steps": max(
                float(run.gap[-1].max()) for run in found
            ),
            **{f"(2, 0), (0, 1): {name}": float(value) for name, value in exact.items()},
            "average of the loop's own iterates, share of Gramians with relative gap > .01": share.mean,
            "average of the loop's own iterates, share of Gramians with relative gap > .01, low": share.low,
            "average of the loop's own iterates, share of Gramians with relative gap > .01, high": share.high,
            "average of the loop's own iterates, median relative gap": float(own_gap.median())
            if len(own_gap)
            else float("nan"),
        },
        "holds only when τ is computed at the running average, which is Frank–Wolfe with step "
        "1/(n+1): suboptimality within O(log n/n) on all of "
        f"{len(found[0].start) * 2} Gramians; averaging the iterates of u ← g_τ itself is wrong, "
        "exactly so for (2, 0), (0, 1)",
    )


def oscillation_figure(averages: dict[str, Averaged]) -> Figure:
    canvas, axis = axes(1, 3, (16, 5))
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    g, count = gram(rows)[None], 60
    visited = followed(g, count)[:, 0]
    own = torch.cat(
        [rows.mean(0)[None], rows[visited].cumsum(0) / torch.arange(1, count + 2)[:, None]]
    )
    average = torch.stack(
        [
            rows.mean(0),
            *(
                (solved(mf.solvers.frank_wolfe(n, "1/(n+1)"), g).weights @ rows)[0]
                for n in range(1, count + 1)
            ),
        ]
    )
    best = (shortest(g) @ rows)[0]
    axis[0].plot(*rows.T, color="#bbbbbb", linewidth=4, zorder=1, label="hull of g_1 and g_2")
    for i, row in enumerate(rows):
        axis[0].annotate(
            "", tuple(row.tolist()), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"}
        )
        axis[0].annotate(
            f"g_{i + 1}", tuple(row.tolist()), xytext=(5, 6), textcoords="offset points"
        )
    axis[0].plot(
        *average.T,
        color=COLOURS[0],
        marker="o",
        markersize=4,
        linewidth=1,
        label="running average, τ at it",
    )
    axis[0].plot(
        *own[2:].T,
        color=COLOURS[1],
        marker="s",
        markersize=4,
        linewidth=1,
        linestyle="--",
        label="average of own iterates",
    )
    axis[0].plot(*best, "k*", markersize=15, label="min-norm point (.4, .8)")
    axis[0].set(
        xlabel="first coordinate of u",
        ylabel="second coordinate of u",
        xlim=(-0.15, 2.35),
        ylim=(-0.12, 1.75),
    )
    axis[0].legend(loc="upper right")
    steps = np.arange(count + 1)
    for points, colour, style, label in (
        (rows[visited], COLOURS[4], ":", "naive iterate u ← g_τ"),
        (own[1:], COLOURS[1], "--", "average of own iterates"),
        (average, COLOURS[0], "-", "running average, τ at it"),
    ):
        axis[1].plot(
            steps, (points - best).norm(dim=-1), color=colour, linestyle=style, label=label
        )
    axis[1].set(xlabel="iteration n", ylabel="‖u_n - u*‖", yscale="log", ylim=(6e-4, 4))
    axis[1].legend(loc="lower left")
    draws = len(averages["face"].start)
    for (name, gramians), style in zip(families(draws).items(), ("-", "--"), strict=True):
        counts = averages[name].counts
        visited = torch.nn.functional.one_hot(followed(gramians, counts[-1])[1:], TASKS).to(
            torch.float64
        )
        weights = visited.cumsum(0) / torch.arange(1, len(visited) + 1)[:, None, None]
        own_gap = torch.stack([relative_gap(gramians, weights[n - 1]) for n in counts])
        axis[2].plot(
            counts,
            own_gap.median(1).values,
            color=COLOURS[1],
            linestyle=style,
            label=f"average of own iterates, {name}",
        )
        axis[2].plot(
            counts,
            averages[name].gap.median(1).values,
            color=COLOURS[0],
            linestyle=style,
            label=f"running average, {name}",
        )
    axis[2].set(
        xlabel="iteration n", ylabel="relative duality gap (median)", xscale="log", yscale="log"
    )
    axis[2].set_ylim(bottom=5e-6)
    axis[2].legend(loc="lower left")
    return Figure(
        "oscillation",
        "The naive iteration u ← g_τ and its averages. Left and middle: g_1 = (2, 0), g_2 = (0, "
        "1); the iterate jumps between the two for ever, its own "
        "average goes to (1, .5), the running average with τ recomputed at it (Frank–Wolfe) to "
        "the min-norm point. Right: the same on "
        f"{draws} random Gramians of {TASKS} tasks a family, optimum inside the simplex or on a "
        "face.",
        canvas,
    )


def averaged_smoothing(settings: Settings) -> Claim:
    rows = rows_of(settings.count(200), 6, 12, 190, spread=3.0)
    worst = {}
    for count in (1, 10, 300):
        u = rows.mean(1)
        for n in range(1, count + 1):
            worst_served = torch.einsum("dtp,dp->dt", rows, u).argmin(-1)
            u = (n * u + rows[torch.arange(len(rows)), worst_served]) / (n + 1)
        weights = solved(mf.solvers.frank_wolfe(count, "1/(n+1)"), gram(rows)).weights
        difference = (torch.einsum("dt,dtp->dp", weights, rows) - u).norm(dim=-1) / u.norm(dim=-1)
        worst[f"largest relative difference of the iterates after {count} steps"] = float(
            difference.max()
        )
    return claim(
        "SU-22",
        "With the fixed step 1/(n+1) in place of the search, Frank–Wolfe coincides with the "
        "averaged smoothing iteration.",
        judged(max(worst.values()) < ROUNDING),
        worst,
        f"{len(rows)} random matrices of 6 gradients; u ← (n·u + g_τ)/(n + 1) on vectors against "
        "mtlfunc's Frank–Wolfe on the Gramian, both from the mean",
    )


# ---- every solver on the same Gramians ----


def softmax_descent(steps: int, rate: float | Tensor) -> mf.types.Solver:
    """w = softmax(a) and gradient descent on a, `steps` times from a = 0: ∇_a ½wᵀGw = w ∘ (Gw -
    wᵀGw). Not scale-free: `rate` multiplies G.
    """

    def solve(problem: mf.solvers.MinNorm) -> mf.Solution:
        a = torch.zeros_like(problem.gramian[0])
        for _ in range(steps):
            w = torch.softmax(a, -1)
            rates = problem.gramian @ w
            a = a - rate * w * (rates - w @ rates)
        w = torch.softmax(a, -1)
        return problem.solution(w, w, torch.full((), steps))

    return solve


def contenders(rate: float) -> dict[str, Callable[[int], mf.types.Solver]]:
    frank_wolfe = mf.solvers.frank_wolfe
    return {
        "step 1/(n+1)": lambda n: frank_wolfe(n, "1/(n+1)"),
        "step 2/(n+2)": lambda n: frank_wolfe(n, "2/(n+2)"),
        "line search": lambda n: frank_wolfe(n, "line-search"),
        "away": lambda n: frank_wolfe(n, "away"),
        "pairwise": lambda n: frank_wolfe(n, "pairwise"),
        "projected gradient": mf.solvers.projected_gradient,
        "softmax": lambda n: softmax_descent(n, rate),
    }


class Trace(NamedTuple):
    counts: list[int]  # iterations
    gaps: Tensor  # [count, draw], relative
    seconds: list[float]  # a Gramian, by count
    infeasible: float


def trace(
    make: Callable[[int], mf.types.Solver], gramians: Tensor, counts: tuple[int, ...], label: str
) -> Trace:
    gaps, seconds, infeasible = [], [], 0.0
    solved(make(1), gramians)  # first calls pay for more than themselves
    for count in tqdm(counts, desc=label, leave=False):
        start = time.perf_counter()
        weights = solved(make(count), gramians).weights
        once = [time.perf_counter() - start]
        for _ in range(2 if count < 100 else 0):
            start = time.perf_counter()
            solved(make(count), gramians)
            once.append(time.perf_counter() - start)
        seconds.append(min(once) / len(gramians))
        gaps.append(relative_gap(gramians, weights))
        infeasible = max(
            infeasible, float(-weights.min()), float((weights.sum(-1) - 1).abs().max())
        )
    return Trace(list(counts), torch.stack(gaps), seconds, infeasible)


class Grid(NamedTuple):
    """The softmax form's relative gap at every (scale of G, step, draw)."""

    scales: Tensor
    rates: Tensor
    gaps: Tensor  # [scale, rate, draw]
    steps: int


def softmax_grid(gramians: Tensor, steps: int) -> Grid:
    scales, rates = (
        torch.logspace(-4, 4, 3, dtype=torch.float64),
        torch.logspace(-4, 8, 25, dtype=torch.float64),
    )
    g = (scales[:, None, None, None, None] * scaled(gramians)[None, None]).expand(
        -1, len(rates), -1, -1, -1
    )
    a = torch.zeros(g.shape[:-1], dtype=torch.float64)
    for _ in tqdm(range(steps), desc="softmax form", leave=False):
        w = torch.softmax(a, -1)
        speed = (g @ w[..., None])[..., 0]
        a = a - rates[:, None, None] * w * (speed - (w * speed).sum(-1, keepdim=True))
    flat = relative_gap(g.reshape(-1, *g.shape[-2:]), torch.softmax(a, -1).flatten(0, -2))
    return Grid(scales, rates, flat.reshape(g.shape[:3]), steps)


def best_rate(grids: list[Grid]) -> float:
    """The step with the smallest median gaps at scale 1, averaged over the grids in their
    logarithm.
    """
    middle = len(grids[0].scales) // 2
    logs = [grid.gaps[middle].median(-1).values.clamp_min(1e-17).log() for grid in grids]
    return float(grids[0].rates[torch.stack(logs).sum(0).argmin()])


def side_by_side(settings: Settings) -> Findings:
    draws = settings.count(32)
    counts = counts_of(settings)
    each = {name: scaled(g) for name, g in families(draws).items()}
    both = torch.cat(list(each.values()))
    budget = settings.count(30000 if settings.full else ENOUGH)
    grids = {name: softmax_grid(g[: settings.count(16)], budget) for name, g in each.items()}
    rate = best_rate(list(grids.values()))
    traces = {name: trace(make, both, counts, name) for name, make in contenders(rate).items()}
    exact = trace(lambda n: mf.solvers.active_set(), both, (1,), "active set")
    mean_faces = float(solved(mf.solvers.active_set(), both).steps.double().mean())
    yield solvers_figure(traces, exact, mean_faces, draws, rate)
    yield line_search(traces, both, draws)
    yield from unconstrained(grids, traces, exact)


def solvers_figure(
    traces: dict[str, Trace], exact: Trace, faces: float, draws: int, rate: float
) -> Figure:
    canvas, axis = axes(2, 2, (14, 10))
    for row, (family, part) in enumerate(
        (("optimum inside the simplex", slice(0, draws)), ("optimum on a face", slice(draws, None)))
    ):
        by_count, by_time = axis[2 * row], axis[2 * row + 1]
        for (name, found), colour, style in zip(traces.items(), COLOURS, DASHES, strict=False):
            gap = found.gaps[:, part].clamp_min(1e-17)
            middle = gap.median(1).values
            for one, x in ((by_count, found.counts), (by_time, [1e6 * s for s in found.seconds])):
                one.plot(
                    x, middle, color=colour, linestyle=style, marker="o", markersize=3, label=name
                )
            by_count.fill_between(
                found.counts,
                gap.quantile(0.1, 1),
                gap.quantile(0.9, 1),
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        gap = exact.gaps[0, part].clamp_min(1e-17).median()
        by_count.plot(faces, gap, "k*", markersize=14, label="active set (faces solved)")
        by_time.plot(1e6 * exact.seconds[0], gap, "k*", markersize=14, label="active set")
        _gap_axis(by_count, f"{family}", "iterations")
        _gap_axis(by_time, f"{family}", "time a Gramian, µs")
    canvas.legend(*axis[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Figure(
        "solvers",
        f"Relative duality gap of every solver on the same {2 * draws} Gramians of {TASKS} "
        "tasks, against iterations (median, band from the 10 % to the 90 % "
        "quantile) and against wall-clock time, all Gramians of a call in one batch. Softmax: "
        f"gradient descent on logits, step {rate:g}/max ‖g‖², the best "
        "of a grid. Gaps below 1e-17 are drawn there.",
        canvas,
    )


def _gap_axis(axis: Axes, title: str, x: str) -> None:
    axis.set(
        title=title,
        xlabel=x,
        ylabel="relative duality gap",
        xscale="log",
        yscale="log",
        ylim=(3e-18, 3),
    )


def reached(found: Trace, part: slice, level: float) -> float:
    """The first count whose median gap over some draws is at most `level`; infinite if there is
    none.
    """
    middle = found.gaps[:, part].median(1).values
    return next(
        (float(n) for n, gap in zip(found.counts, middle, strict=True) if gap <= level),
        float("inf"),
    )


def line_search(traces: dict[str, Trace], gramians: Tensor, draws: int) -> Claim:
    # One step of the search from equal weights is the T = 2 problem of the mean and the task it
    # serves worst.
    mean = torch.full_like(gramians[:, 0], 1 / TASKS)
    toward = torch.nn.functional.one_hot(
        (gramians @ mean[:, :, None])[..., 0].argmin(-1), TASKS
    ).to(mean)
    pair = torch.stack([mean, toward], 1)
    two = shortest(pair @ gramians @ pair.mT)
    by_hand = torch.einsum("dk,dkt->dt", two, pair)
    difference = float((by_hand - solved(mf.solvers.frank_wolfe(1), gramians).weights).abs().max())
    rules = [
        name
        for name in traces
        if name in ("step 1/(n+1)", "step 2/(n+2)", "line search", "away", "pairwise")
    ]
    infeasible = max(traces[name].infeasible for name in rules)
    numbers: dict[str, float] = {
        "one searched step against the closed form for T = 2, largest difference of weights": difference,
        "all steps, largest negative weight or |Σw - 1|": infeasible,
    }
    arrives = []
    for place, part in (("inside", slice(0, draws)), ("face", slice(draws, None))):
        ends = {name: float(traces[name].gaps[-1, part].median()) for name in rules}
        first = {name: reached(traces[name], part, 1e-3) for name in rules}
        arrives.append(first["line search"] < float("inf"))
        numbers |= {
            f"optimum {place}, {name}: iterations to a median relative gap of 1e-3": first[name]
            for name in rules
            if first[name] < float("inf")
        }
        numbers |= {
            f"optimum {place}, {name}: median relative gap at the end": ends[name] for name in rules
        }
    return claim(
        "SU-21",
        "T > 2: Frank–Wolfe, towards τ = argmin ⟨g_t, Σ w g⟩, with a search on the segment from "
        "w to e_τ, which is the T = 2 problem; it suits convex sets.",
        judged(difference < ROUNDING and infeasible < ROUNDING) if all(arrives) else "inconclusive",
        numbers,
        f"{len(gramians)} Gramians of {TASKS} tasks, {traces['line search'].counts[-1]} "
        "iterations, seen at the figure's counts; holds if a step "
        "is the T = 2 problem, iterates stay feasible and the gap falls to 1e-3. On a face the "
        "search zig-zags, no faster than the fixed steps; "
        "away and pairwise steps reach rounding",
    )


def unconstrained(grids: dict[str, Grid], traces: dict[str, Trace], exact: Trace) -> Findings:
    middle = len(next(iter(grids.values())).scales) // 2
    numbers: dict[str, float] = {}
    tuned, single, spans = {}, {}, {}
    for name, grid in grids.items():
        shares = (grid.gaps < SMALL).double().mean(-1)  # [scale, rate]
        tuned[name] = float(shares[middle].max())
        single[name] = float(shares.mean(0).max())
        best = int(grid.gaps[middle].median(-1).values.argmin())
        working = (
            grid.rates[shares[middle] >= 0.9 * shares[middle].max()]
            if tuned[name] > 0
            else grid.rates[:0]
        )
        spans[name] = float(working.max() / working.min()) if len(working) else 0.0
        numbers |= {
            f"{name}: share that reaches a relative gap of 1e-6 at the best step": tuned[name],
            f"{name}: best step times max ‖g‖²": float(grid.rates[best]),
            f"{name}: median relative gap there": float(grid.gaps[middle, best].median()),
        }
    # A vertex is stationary however bad: start near the wrong one.
    steps, draws = grids["interior"].steps, grids["interior"].gaps.shape[-1]
    g = scaled(families(draws)["interior"])
    weights = torch.softmax(
        torch.nn.functional.one_hot(torch.zeros(len(g), dtype=torch.int64), TASKS) * 20.0, -1
    ).to(g)
    speed = torch.einsum("dts,ds->dt", g, weights)
    slope = (weights * (speed - (weights * speed).sum(-1, keepdim=True))).abs().amax(-1)
    numbers |= {
        "at softmax weights within 1e-8 of one task: largest slope in the logits, units of max "
        "‖g‖²": float(slope.max()),
        "at softmax weights within 1e-8 of one task: median relative gap": float(
            relative_gap(g, weights).median()
        ),
    }
    inside, face = tuned["interior"] >= 0.95, tuned["face"] >= 0.95
    yield claim(
        "SU-23",
        "Unconstrained alternative: w = softmax(a) and plain gradient descent on a.",
        "holds"
        if inside and face
        else "holds only when"
        if inside or face
        else "inconclusive"
        if steps < ENOUGH
        else "does not hold",
        numbers,
        f"reaches a relative gap of 1e-6 in {steps} steps at the best of 25 step lengths, "
        f"{draws} Gramians a family; needs an optimum inside the simplex, "
        "since boundary optima lie at infinity (median gap "
        f"{numbers['face: median relative gap there']:.0e} there) and vertices are stationary",
    )
    yield sensitivity_figure(grids, draws)
    at_scales = {}
    for name, make in {
        "Frank–Wolfe, pairwise, 1000 steps": lambda: mf.solvers.frank_wolfe(1000, "pairwise"),
        "active set": mf.solvers.active_set,
    }.items():
        shares = []
        for scale in (1e-4, 1e4):
            both = scale * torch.cat(
                [scaled(part) for part in families(max(4, draws // 4)).values()]
            )
            shares.append(
                float((relative_gap(both, solved(make(), both).weights) < SMALL).double().mean())
            )
        at_scales[f"{name}: least share over scales 1e-4 and 1e4 of G"] = min(shares)
    yield claim(
        "SU-24",
        "Why nobody uses the unconstrained form; perhaps to avoid tuning a learning rate.",
        "does not hold"
        if min(single.values()) > 0.95
        else "inconclusive"
        if not inside
        else "holds"
        if min(tuned.values()) > 0.95
        else "holds only when",
        {
            f"{name}: share that reaches 1e-6, best single step for scales 1e-4 to 1e4": value
            for name, value in single.items()
        }
        | {
            f"{name}: share that reaches 1e-6, step tuned to the scale": value
            for name, value in tuned.items()
        }
        | {
            f"{name}: ratio of the largest to the smallest step within 90 % of the best share": value
            for name, value in spans.items()
        }
        | at_scales
        | {
            "time of the softmax form over the active set's, at the last count": traces[
                "softmax"
            ].seconds[-1]
            / exact.seconds[0]
        },
        "motives cannot be measured; judged is whether the step is what stands in the way. No "
        "step serves all scales of G (1e-4 to 1e4), and the step is the "
        "only obstacle when the optimum lies inside the simplex; on a face the tuned form is "
        f"too slow as well ({steps} steps). Frank–Wolfe has no step to "
        "tune and none of them sees the scale",
    )


def sensitivity_figure(grids: dict[str, Grid], draws: int) -> Figure:
    canvas, axis = axes(1, 2, (13, 4.8))
    for one, (name, grid) in zip(axis, grids.items(), strict=True):
        for i, (scale, colour, style) in enumerate(zip(grid.scales, COLOURS, DASHES, strict=False)):
            middle = grid.gaps[i].median(-1).values.clamp_min(1e-17)
            one.plot(
                grid.rates,
                middle,
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3,
                label=f"max ‖g‖² = {float(scale):.0e}",
            )
        place = "inside the simplex" if name == "interior" else "on a face"
        one.set(
            title=f"optimum {place}",
            xlabel="step length on the logits",
            ylabel="relative duality gap (median)",
            xscale="log",
            yscale="log",
        )
        one.axhline(SMALL, color="#999999", linestyle=":")
    axis[1].legend(loc="lower center", bbox_to_anchor=(0.5, 0.05))
    steps = next(iter(grids.values())).steps
    return Figure(
        "softmax",
        f"The softmax form after {steps} steps against its step length, {draws} Gramians of "
        f"{TASKS} tasks a family at three scales: the steps that work move "
        "with the scale of the gradients. Dotted: the gap of 1e-6 that counts as reached.",
        canvas,
    )
