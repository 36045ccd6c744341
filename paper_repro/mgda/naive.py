"""Does the naive iteration oscillate, and its average converge?

As λ → ∞ the smoothed fixed point gives the iteration u ← g_τ, τ = argmin_t ⟨g_t, u⟩."""

import itertools
import math
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import EXPONENT, NEARLY_ALL
from ..report.decisions import Exact, Measured, Row, decided, exact
from ..report.extremes import largest
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Draws, Impossible, Option, Steps, drawn
from .common import (
    TASKS,
    families,
    gram,
    mixed,
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
    name = "share of runs in a cycle longer than 1"
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

COUNTS = (1, 2, 5, 10, 22, 46, 100, 215, 464, 1000, 2154, 4642, 10000)


def counts_of(settings: Settings) -> tuple[int, ...]:
    """Iterations at which solvers are looked at."""
    return COUNTS if settings.full else COUNTS[:10] if settings.shrink > 0.1 else COUNTS[:6]


def run(settings: Settings) -> Findings:
    counts, draws = counts_of(settings), settings.count(200)
    averages = [running_average(g, counts) for g in families(draws).values()]
    yield oscillation(draws=draws, most=counts[-1])
    yield oscillates(settings.count(4000))
    yield converges(averages, counts, draws)
    yield averaged_smoothing(draws)


def followed(gramians: Tensor, steps: int) -> Tensor:
    """Tasks `[time, draw]` that u ← g_τ visits, from that which the mean gradient serves worst."""
    following = gramians.argmin(-2)  # after task j comes argmin_t G_tj
    visited = [gramians.mean(-1).argmin(-1)]
    for _ in range(steps):
        visited.append(following.gather(1, visited[-1][:, None])[:, 0])
    return torch.stack(visited)


def oscillates(draws: int) -> Claim:
    """The iteration from the mean gradient."""
    moving, above = [], -np.inf
    for tasks, spread, tag in ((3, 1.0, 150), (10, 1.0, 160), (10, 10.0, 170), (30, 3.0, 180)):
        g = gram(rows_of(draws, tasks, 2 * tasks, tag, spread=spread, common=0.5))
        visited = followed(g, 200)
        again = visited[:-1].flip(0) == visited[-1]  # the cycle: back to the last visit of a task
        moving.append(again.to(torch.int8).argmax(0) > 0)
        # away from ties: 1 - softmax(-λx)_τ <= (T - 1) exp(-λ·distance to the runner-up)
        rates = g.mean(-1)
        low = rates.sort(-1).values
        level = 10 ** (3 * uniform(tag + 5, (draws,)) - 1) / g.diagonal(dim1=-2, dim2=-1).mean(-1)
        missing = -torch.expm1(torch.log_softmax(-level[:, None] * rates, -1).amax(-1))
        bound = (tasks - 1) * torch.exp(-level * (low[:, 1] - low[:, 0]))
        above = largest(above, missing - bound - 1e-14)
    runs = torch.cat(moving)
    return Claim(
        "SU-14",
        {
            **named(
                "share of runs in a cycle longer than 1",
                share_interval(int(runs.sum()), len(runs)),
            ),
            "largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)": above,
        },
        f"{len(runs)} random Gramians with 3, 10 and 30 tasks, from the mean gradient. At the "
        "optimum itself all tasks with weight tie. Wilson interval",
    )


def running_average(gramians: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, float]:
    """Frank–Wolfe with step 1/(n+1): relative gaps `[count, draw]`, and the largest of
    ½‖u_n‖² - ½‖u*‖² over its bound.
    """
    least, gaps, worst = square(gramians, shortest(gramians)), [], 0.0
    diagonal = gramians.diagonal(dim1=-2, dim2=-1)
    diameter = (diagonal[:, :, None] + diagonal[:, None] - 2 * gramians).amax((-1, -2))
    start = 0.5 * (gramians.mean((-1, -2)) - least)
    for n in tqdm(counts, desc="running average", leave=False):
        weights = solved(mf.solvers.frank_wolfe(n, "1/(n+1)"), gramians).weights
        bound = (start + 0.5 * diameter * sum(1 / k for k in range(2, n + 2))) / (n + 1)
        worst = largest(worst, 0.5 * (square(gramians, weights) - least) / bound)
        gaps.append(relative_gap(gramians, weights))
    return torch.stack(gaps), worst


def example() -> tuple[list[Fraction], list[Fraction]]:
    """Of (2, 0) and (0, 1), in fractions: the naive iterates' average, and the min-norm point."""
    rows = np.array([[Fraction(2), Fraction(0)], [Fraction(0), Fraction(1)]])
    inner = rows @ rows.T
    visited = [0]
    while len(visited) < 1000:
        visited.append(int(inner[visited[-1]].argmin()))
    first = (inner[1, 1] - inner[0, 1]) / (inner[0, 0] + inner[1, 1] - 2 * inner[0, 1])
    answer = first * rows[0] + (1 - first) * rows[1]
    return (rows[visited].sum(0) / len(visited)).tolist(), answer.tolist()


def converges(averages: list[tuple[Tensor, float]], counts: tuple[int, ...], draws: int) -> Claim:
    early = min(4, len(counts) - 2)
    inside, face = (
        np.polyfit(np.log(counts[early:]), gaps.median(1).values.log()[early:], 1)[0]
        for gaps, _ in averages
    )
    return Claim(
        "SU-15",
        {
            "largest suboptimality over its bound (h_0 + ½diam²·Σ 1/k)/(n + 1)": largest(
                worst for _, worst in averages
            ),
            "exponent of n in the median gap, optimum inside": inside,
            "exponent of n in the median gap, optimum on a face": face,
            "(2, 0), (0, 1): own iterates, distance from it": math.dist(*example()),
        },
        f"suboptimality within O(log n/n) on all of {2 * draws} Gramians; averaging the iterates "
        "of u ← g_τ itself is wrong, exactly so for (2, 0), (0, 1): (1, ½) is not (.4, .8)",
    )


def averaged_smoothing(draws: int) -> Claim:
    rows = rows_of(draws, 6, 12, 190, spread=3.0)
    off = {}
    for count in (1, 10, 300):
        u = rows.mean(1)
        for n in range(1, count + 1):
            worst_served = torch.einsum("dtp,dp->dt", rows, u).argmin(-1)
            u = (n * u + rows[torch.arange(len(rows)), worst_served]) / (n + 1)
        weights = solved(mf.solvers.frank_wolfe(count, "1/(n+1)"), gram(rows)).weights
        difference = (mixed(weights, rows) - u).norm(dim=-1) / u.norm(dim=-1)
        off[f"largest relative difference of the iterates after {count} steps"] = difference.max()
    return Claim(
        "SU-22",
        off,
        f"{draws} random matrices of 6 gradients; u ← (n·u + g_τ)/(n + 1) on vectors against "
        "mtlfunc's Frank–Wolfe on the Gramian, both from the mean",
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
        (rows[visited], "C4", ":", "naive iterate u ← g_τ"),
        (own[1:], "C1", "--", "average of own iterates"),
        (average, "C0", "-", "running average, τ at it"),
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
    on_families(panels[2], counts, draws)
    shown = ", ".join(f"({x:g}, {y:g})" for x, y in gradients)
    return Figure(
        "oscillation",
        f"The naive iteration u ← g_τ and its averages. First and second: the gradients {shown}; "
        "the iterate jumps between tasks, its own average need not meet the min-norm point (star), "
        "the running average with τ recomputed at it (Frank–Wolfe) does. Third: the same on "
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
    panel.plot(*average.T, "o-", color="C0", label="running average, τ at it", **small)
    panel.plot(*own[2:].T, "s--", color="C1", label="average of own iterates", **small)
    panel.plot(*best, "k*", markersize=15, label=f"min-norm point ({best[0]:.3g}, {best[1]:.3g})")
    panel.set(xlabel="first coordinate of u", ylabel="second coordinate of u")
    panel.margins(0.15)
    panel.legend()


def on_families(panel: Axes, counts: tuple[int, ...], draws: int) -> None:
    """Median gaps of both averages."""
    for (name, gramians), style in zip(families(draws).items(), ("-", "--"), strict=True):
        visited = torch.nn.functional.one_hot(followed(gramians, counts[-1])[1:], TASKS).double()
        weights = visited.cumsum(0) / torch.arange(1, len(visited) + 1)[:, None, None]
        own_gaps = torch.stack([relative_gap(gramians, weights[n - 1]) for n in counts])
        for gaps, colour, label in (
            (own_gaps, "C1", "average of own iterates"),
            (running_average(gramians, counts)[0], "C0", "running average"),
        ):
            middle = gaps.median(1).values
            panel.plot(counts, middle, style, color=colour, label=f"{label}, {name}")
    panel.set(
        xlabel="iteration n", ylabel="relative duality gap (median)", xscale="log", yscale="log"
    )
    panel.legend()
