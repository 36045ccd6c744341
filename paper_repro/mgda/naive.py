"""Does the naive iteration oscillate, and its average converge?

As λ → ∞ the smoothed fixed point gives the iteration u ← g_τ, τ = argmin_t ⟨g_t, u⟩."""

import itertools
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import EXPONENT, NEARLY_ALL
from ..report.decisions import Claims, Exact, Measured, Row, decided, exact
from ..report.extremes import largest
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Draws, Impossible, Option, Steps, drawn
from .common import (
    COLOURS,
    TASKS,
    families,
    gram,
    relative_gap,
    rows_of,
    shortest,
    solved,
    square,
    uniform,
)


@decided(
    "the share of runs in a cycle has an interval below 95 %, or a softmax is farther from one "
    "task than its margin allows"
)
def judge_oscillates(measured: Measured) -> Verdict:
    name = "share of runs in a cycle longer than 1, optimum no vertex"
    if measured[f"{name}, high"] < NEARLY_ALL.now:
        return "does not hold"
    if measured[f"{name}, low"] <= NEARLY_ALL.now:
        return "inconclusive"
    excess = measured["largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)"]
    return "holds" if excess <= 0 else "does not hold"


CLAIMS = {
    "SU-14": Exact(
        "If the inner products differ by far more than 1/λ, λ → ∞ gives u = g_τ, τ = "
        "argmin ⟨g_t, u⟩; the naive iteration u ← g_τ will very likely oscillate.",
        judge_oscillates,
    ),
    "SU-15": Row(
        "The naive iteration oscillates around the optimum, so the running average "
        "u_{n+1} = (n·u_n + g_τ)/(n + 1) converges to it.",
        exact(
            ("largest suboptimality over its bound *", "<=", 1 + 1e-9),
            ("exponent of n in the median gap, optimum *", "<", EXPONENT),
            only_when=("(2, 0), (0, 1): own iterates, distance from it", ">", 0),
        ),
        when="g_τ is computed at the running average, which is Frank–Wolfe; not at the iterates",
    ),
    "SU-22": Exact(
        "With the fixed step 1/(n+1) in place of the search, Frank–Wolfe coincides with "
        "the averaged smoothing iteration.",
        exact(("largest relative difference of the iterates *", "<", 1e-9)),
    ),
}
claim = Claims(CLAIMS)

MORE_COUNTS = (2154, 4642, 10000)
COUNTS = (1, 2, 5, 10, 22, 46, 100, 215, 464, 1000)


def counts_of(settings: Settings) -> tuple[int, ...]:
    """Iterations at which solvers are looked at."""
    return (
        (*COUNTS, *MORE_COUNTS)
        if settings.full
        else COUNTS
        if settings.shrink > 0.1
        else COUNTS[:6]
    )


def followed(gramians: Tensor, steps: int) -> Tensor:
    """Tasks `[time, draw]` that u ← g_τ visits, from that which the mean gradient serves worst."""
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
    """Of (2, 0) and (0, 1), in fractions: the naive iterates' average, and the min-norm point."""
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


class Naive(NamedTuple):
    """The iteration on random Gramians."""

    others: int  # runs whose optimum is not a vertex
    moving: int  # of these, those in a cycle longer than 1
    fixed: int  # runs with a vertex as optimum
    from_vertex: int  # of these, those in a cycle longer than 1
    above: float  # largest excess of 1 - max softmax over its bound
    own_gaps: Tensor  # relative gaps of the average of the iterates, optimum no vertex
    ties: dict[str, float]


def followed_far(draws: int, steps: int) -> Naive:
    """From the mean gradient, with 3, 10 and 30 tasks."""
    ties: dict[str, float] = {}
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
        ones = torch.ones_like(visited[1:].T, dtype=g.dtype)
        own = torch.zeros_like(exact).scatter_add(1, visited[1:].T, ones) / steps
        own_gaps.append(relative_gap(g, own)[~vertex])
        # Away from ties: 1 - softmax(-λx)_τ <= (T - 1) exp(-λ·distance to the runner-up).
        rates = g.mean(-1)
        low = rates.sort(-1).values
        level = 10 ** (3 * uniform(tag + 5, (draws,)) - 1) / g.diagonal(dim1=-2, dim2=-1).mean(-1)
        missing = -torch.expm1(torch.log_softmax(-level[:, None] * rates, -1).amax(-1))
        bound = (tasks - 1) * torch.exp(-level * (low[:, 1] - low[:, 0]))
        above = largest(above, float((missing - bound - 1e-14).max()))
        on = exact > 1e-9
        at_best = torch.einsum("dts,ds->dt", g, exact)
        high, least = at_best.where(on, -torch.inf), at_best.where(on, torch.inf)
        tie = (high.amax(-1) - least.amin(-1)) / square(g, exact)
        ties[
            f"T = {tasks}, lengths 1 to {spread:g}: largest relative spread of ⟨g_t, u*⟩ over "
            "the tasks with weight"
        ] = float(tie[~vertex].max())
    return Naive(others, moving, fixed, from_vertex, above, torch.cat(own_gaps), ties)


def run(settings: Settings) -> Findings:
    averages = {
        name: running_average(g, counts_of(settings))
        for name, g in families(settings.count(200)).items()
    }
    yield oscillation(draws=settings.count(200), most=counts_of(settings)[-1])
    found = followed_far(settings.count(4000), 200)
    yield oscillates(found)
    yield own_average(found.own_gaps, averages)
    yield averaged_smoothing(settings)


def oscillates(found: Naive) -> Claim:
    share = share_interval(found.moving, found.others)
    label = "share of runs in a cycle longer than 1, optimum no vertex"
    return claim(
        "SU-14",
        {
            **named(label, share),
            "runs with a vertex as optimum": found.fixed,
            "of these, in a cycle longer than 1": found.from_vertex,
            "largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)": found.above,
            **found.ties,
        },
        f"{found.others} random Gramians with 3, 10 and 30 tasks whose optimum is no vertex, from "
        "the mean gradient; a fixed point of u ← g_τ is a vertex that "
        "is optimal. At the optimum itself all tasks with weight tie, so there the premise "
        "fails. Wilson interval",
    )


class Averaged(NamedTuple):
    """The running average on a family of Gramians."""

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
    square = sum((exact[f"own iterates, {i}"] - exact[f"min-norm point, {i}"]) ** 2 for i in "xy")
    found = list(averages.values())
    counts = found[0].counts
    worst = largest(
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
    share = share_interval(int((own_gap > 0.01).sum()), max(len(own_gap), 1))
    return claim(
        "SU-15",
        {
            "largest suboptimality over its bound (h_0 + ½diam²·Σ 1/k)/(n + 1)": worst,
            "exponent of n in the median gap, optimum inside": slopes[0],
            "exponent of n in the median gap, optimum on a face": slopes[1],
            f"largest relative gap after {counts[-1]} steps": largest(
                float(run.gap[-1].max()) for run in found
            ),
            **{f"(2, 0), (0, 1): {name}": float(value) for name, value in exact.items()},
            "(2, 0), (0, 1): own iterates, distance from it": float(square) ** 0.5,
            **named(
                "average of the loop's own iterates, share of Gramians with relative gap > .01",
                share,
            ),
            "average of the loop's own iterates, median relative gap": float(own_gap.median())
            if len(own_gap)
            else float("nan"),
        },
        f"suboptimality within O(log n/n) on all of {len(found[0].start) * 2} Gramians; averaging "
        "the iterates of u ← g_τ itself is wrong, exactly so for (2, 0), (0, 1)",
    )


@drawn
def oscillation(
    gradients: Annotated[
        tuple[tuple[float, float], ...], Option("gradients in the plane, as x,y", -1e6, 1e6, 2)
    ] = ((2.0, 0.0), (0.0, 1.0)),
    steps: Steps = 60,
    draws: Draws = 200,
    most: Annotated[int, Option("iterations on the random Gramians", 2, 100_000)] = 1000,
) -> Figure:
    """The naive iteration on the worst-served task, the average of its iterates, Frank–Wolfe."""
    canvas, panels = axes(1, 3, (16, 5))
    rows = torch.tensor(gradients, dtype=torch.float64)
    if bool((rows == 0).all(-1).any()):
        raise Impossible("gradients: expected none that is 0")
    g = gram(rows)[None]
    visited = followed(g, steps)[:, 0]
    mean = rows.mean(0)[None]
    own = torch.cat([mean, rows[visited].cumsum(0) / torch.arange(1, steps + 2)[:, None]])
    weights = [
        solved(mf.solvers.frank_wolfe(n, "1/(n+1)"), g).weights
        for n in tqdm(range(1, steps + 1), desc="Frank-Wolfe", leave=False)
    ]
    average = torch.cat([mean, torch.cat(weights) @ rows])
    best = (shortest(g) @ rows)[0]
    in_the_plane(panels[0], rows, own, average, best)
    found = []
    for points, colour, style, label in (
        (rows[visited], COLOURS[4], ":", "naive iterate u ← g_τ"),
        (own[1:], COLOURS[1], "--", "average of own iterates"),
        (average, COLOURS[0], "-", "running average, τ at it"),
    ):
        away = (points - best).norm(dim=-1)
        panels[1].plot(np.arange(steps + 1), away, style, color=colour, label=label)
        found += [
            {"iterate": label, "n": n, "u": u.tolist(), "distance": float(far)}
            for n, (u, far) in enumerate(zip(points, away, strict=True))
        ]
    panels[1].set(xlabel="iteration n", ylabel="‖u_n - u*‖", yscale="log")
    panels[1].legend()
    counts = tuple(sorted({round(most ** (i / 9)) for i in range(10)}))
    averages = {name: running_average(g, counts) for name, g in families(draws).items()}
    on_families(panels[2], averages, draws)
    shown = ", ".join(f"({x:g}, {y:g})" for x, y in gradients)
    return Figure(
        "oscillation",
        f"The naive iteration u ← g_τ and its averages. Left and middle: the gradients {shown}; "
        "the iterate jumps between tasks, its own average need not meet the min-norm point (star), "
        "the running average with τ recomputed at it (Frank–Wolfe) does. Right: the same on "
        f"{draws} random Gramians of {TASKS} tasks a family, optimum inside the simplex or on a "
        "face.",
        canvas,
        found,
    )


def in_the_plane(panel: Axes, rows: Tensor, own: Tensor, average: Tensor, best: Tensor) -> None:
    """Both averages next to the two gradients and the min-norm point."""
    among = [i for i, j in itertools.combinations(range(len(rows)), 2) for i in (i, j)]
    panel.plot(*rows[among].T, color="#bbbbbb", linewidth=4, zorder=1, label="between gradients")
    for i, row in enumerate(rows.tolist()):
        panel.annotate("", tuple(row), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
        panel.annotate(f"g_{i + 1}", tuple(row), xytext=(5, 6), textcoords="offset points")
    small: dict[str, Any] = {"markersize": 4, "linewidth": 1}
    panel.plot(*average.T, "o-", color=COLOURS[0], label="running average, τ at it", **small)
    panel.plot(*own[2:].T, "s--", color=COLOURS[1], label="average of own iterates", **small)
    panel.plot(*best, "k*", markersize=15, label=f"min-norm point ({best[0]:.3g}, {best[1]:.3g})")
    panel.set(xlabel="first coordinate of u", ylabel="second coordinate of u")
    panel.margins(0.15)
    panel.legend()


def on_families(panel: Axes, averages: dict[str, Averaged], draws: int) -> None:
    """Median gaps of both averages."""
    for (name, gramians), style in zip(families(draws).items(), ("-", "--"), strict=True):
        counts = averages[name].counts
        visited = torch.nn.functional.one_hot(followed(gramians, counts[-1])[1:], TASKS).double()
        weights = visited.cumsum(0) / torch.arange(1, len(visited) + 1)[:, None, None]
        own_gap = torch.stack([relative_gap(gramians, weights[n - 1]) for n in counts])
        for gap, colour, label in (
            (own_gap, COLOURS[1], "average of own iterates"),
            (averages[name].gap, COLOURS[0], "running average"),
        ):
            middle = gap.median(1).values
            panel.plot(counts, middle, style, color=colour, label=f"{label}, {name}")
    panel.set(
        xlabel="iteration n", ylabel="relative duality gap (median)", xscale="log", yscale="log"
    )
    panel.legend()


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
        worst,
        f"{len(rows)} random matrices of 6 gradients; u ← (n·u + g_τ)/(n + 1) on vectors against "
        "mtlfunc's Frank–Wolfe on the Gramian, both from the mean",
    )
