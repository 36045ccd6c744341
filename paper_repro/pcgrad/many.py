"""PCGrad with three tasks (Yu et al. 2020, Algorithm 1): orders, restored conflicts, and where runs
on three quadratics end.

The theorems stop at two tasks. With three a later projection may restore a conflict that an earlier
one removed, and the answer depends on the order.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import mean_interval
from .common import PAPER, arrow, named

Vector = list[Fraction]
Matrix = list[Vector]
FAN: Matrix = [[Fraction(1) if i == j else Fraction(-1, 2) for j in range(3)] for i in range(3)]
"""The Gramian of three unit gradients at 120°; all that PCGrad reads of them."""
RAISED = [[-2, -2], [-2, 0], [2, 1]]
"""Gradients of the smallest instance found whose direction raises a task whatever the order."""
ORDERS = list(
    itertools.product(
        *[list(itertools.permutations([j for j in range(3) if j != i])) for i in range(3)]
    )
)
"""All 8 choices of each task's order of the other two."""


# ---- exact arithmetic ----


def times(matrix: Matrix, x: Vector) -> Vector:
    return [sum((a * b for a, b in zip(row, x, strict=True)), Fraction(0)) for row in matrix]


def exact_coefficients(gramian: Matrix, orders: tuple[tuple[int, ...], ...]) -> Vector:
    """Algorithm 1 on the Gramian: coefficients of the **sum** of the projected gradients."""
    total = [Fraction(0)] * 3
    for task, order in enumerate(orders):
        own = [Fraction(int(i == task)) for i in range(3)]
        for j in order:
            inner = times(gramian, own)[j]
            if inner < 0:
                own[j] -= inner / gramian[j][j]
        total = [a + b for a, b in zip(total, own, strict=True)]
    return total


def gramian_of(gradients: list[list[int]]) -> Matrix:
    return [
        [Fraction(sum(a * b for a, b in zip(g, h, strict=True))) for h in gradients]
        for g in gradients
    ]


def library_coefficients(gramian: Matrix, orders: tuple[tuple[int, ...], ...]) -> Tensor:
    matrix = torch.tensor([[float(x) for x in row] for row in gramian], dtype=torch.float64)
    rows = torch.tensor([[task, *order] for task, order in enumerate(orders)])
    return 3 * mf.weights(mf.pcgrad(rows), matrix)


class Outcome(NamedTuple):
    """Of one instance under all 8 orders."""

    coefficients: list[Vector]
    rates: list[Vector]  # g_t·d
    squares: list[Fraction]  # ‖d‖²
    difference: float  # from the library, largest


def under_all_orders(gramian: Matrix) -> Outcome:
    coefficients = [exact_coefficients(gramian, orders) for orders in ORDERS]
    rates = [times(gramian, c) for c in coefficients]
    squares = [
        sum((a * b for a, b in zip(c, r, strict=True)), Fraction(0))
        for c, r in zip(coefficients, rates, strict=True)
    ]
    library = torch.stack([library_coefficients(gramian, orders) for orders in ORDERS])
    exact = torch.tensor([[float(x) for x in c] for c in coefficients], dtype=torch.float64)
    return Outcome(coefficients, rates, squares, float((library - exact).abs().max()))


def raised() -> tuple[Claim, Outcome]:
    found = under_all_orders(gramian_of(RAISED))
    worst = [min(rates) for rates in found.rates]
    numbers = {
        "orders": len(ORDERS),
        "orders under which some task is raised": sum(rate < 0 for rate in worst),
        "worst task's rate, largest over orders": float(max(worst)),
        "worst task's rate, smallest over orders": float(min(worst)),
        "library against fractions, largest difference": found.difference,
    }
    claim = Claim(
        "PC-30",
        PAPER,
        "All theory covers two tasks; projections may clash when there are more.",
        "holds" if max(worst) < 0 and found.difference < 1e-12 else "does not hold",
        numbers,
        "gradients (-2, -2), (-2, 0), (2, 1) in exact fractions and through "
        "mtlfunc.pcgrad(orders), all 8 orders, d the sum of the projected gradients; "
        "holds if under each of them the direction has a negative rate g_t·d for some task",
    )
    return claim, found


def orders_figure(fan: Outcome, found: Outcome) -> Figure:
    canvas, panels = axes(1, 2, (11, 4.6))
    angle = np.pi / 2 + 2 * np.pi / 3 * np.arange(3)
    gradients = np.stack([np.cos(angle), np.sin(angle)], 1)
    colours = ("C0", "C1", "C2")
    for task in range(3):
        arrow(panels[0], np.zeros(2), gradients[task], colours[task])
        x, y = 1.1 * gradients[task]
        panels[0].text(
            x, y, f"g{'₁₂₃'[task]}", color=colours[task], ha="center", va="center", fontsize=13
        )
    directions = np.array([[float(x) for x in c] for c in fan.coefficients]) @ gradients
    for d in directions:
        if np.linalg.norm(d) > 1e-9:
            arrow(panels[0], np.zeros(2), d, "black", "--", 1.2)
    panels[0].plot(0, 0, "o", color="black")
    zero = sum(square == 0 for square in fan.squares)
    panels[0].set(xlabel="θ₁", ylabel="θ₂", xlim=(-1.3, 1.3), ylim=(-0.9, 1.3), aspect="equal")
    for task in range(3):
        rates = [float(rates[task]) for rates in found.rates]
        panels[1].plot(
            range(1, len(ORDERS) + 1),
            rates,
            "osD"[task],
            color=colours[task],
            label=f"task {task + 1}, g = ({RAISED[task][0]}, {RAISED[task][1]})",
        )
    panels[1].axhline(0, color="black", linewidth=1)
    names = ["\n".join("".join(str(j + 1) for j in order) for order in orders) for orders in ORDERS]
    panels[1].set_xticks(range(1, len(ORDERS) + 1), names)
    panels[1].set(
        xlabel="orders of tasks 1, 2 and 3, from top to bottom",
        ylabel="rate g_t·d; below 0: the task is raised",
    )
    panels[1].legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize="small"
    )
    return Figure(
        "orders",
        "PCGrad with three tasks under all 8 orders. Left: unit gradients at 120°, a "
        f"Pareto-stationary point; d is 0 for {zero} orders and one of the dashed "
        f"arrows, of length {float(max(fan.squares)) ** 0.5:.3f}, for the others. Right: an "
        "instance where some task is raised under every order.",
        canvas,
    )


# ---- runs on three quadratics ----


CURVATURES = {"equal curvatures": (1.0, 1.0, 1.0), "curvatures 1, 4, 1/4": (1.0, 4.0, 0.25)}
CONSTANT = (0.1, 0.03, 0.01)
STARTS = 6


def centres() -> Tensor:
    angle = torch.pi / 2 + 2 * torch.pi / 3 * torch.arange(3, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], -1)


def losses(params: mf.types.Params, curvatures: Tensor) -> Tensor:
    """½ a_t ‖θ - c_t‖², the centres c_t on the unit circle at 120°."""
    return 0.5 * curvatures * (params["x"] - centres()).square().sum(-1)


def minimum(curvatures: tuple[float, ...]) -> np.ndarray:
    """Of the sum."""
    a = np.array(curvatures)
    return a @ centres().numpy() / a.sum()


class Runs(NamedTuple):
    """Axes: curvatures, fixed or random order, step rule (constant ones, then 1/k), start, seed,
    and time where there is one.
    """

    path: np.ndarray  # [..., time, 2], thinned, logarithmic in time
    times: np.ndarray
    ball: np.ndarray  # [...], mean distance from the minimum of the sum over the second half
    centre: np.ndarray  # [..., 2], mean over the second half
    end: np.ndarray  # [..., 2]


def runs(settings: Settings) -> Runs:
    """Every combination as a lane; fixed order is 1, 2, 3 for every task, as in the official code."""
    seeds, steps = max(2, settings.seeds // 4), settings.count(30000 if settings.full else 3000)
    shape = (len(CURVATURES), 2, len(CONSTANT) + 1, STARTS, seeds)
    lanes = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    curvatures = torch.tensor(list(CURVATURES.values()), dtype=torch.float64)[lanes[:, 0]]
    random, rule, start, seed = lanes[:, 1].bool(), lanes[:, 2], lanes[:, 3], lanes[:, 4]
    angle = 2 * torch.pi * (start + 0.25) / STARTS
    x = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    constant = torch.tensor([*CONSTANT, 0.0], dtype=torch.float64)[rule]
    least = torch.tensor(np.stack([minimum(a) for a in CURVATURES.values()]))[lanes[:, 0]]

    def advance(
        x: Tensor, curvatures: Tensor, random: Tensor, constant: Tensor, key: Tensor, time: Tensor
    ) -> Tensor:
        orders = torch.where(
            random,
            mf.random.permutation(mf.random.fold_in(key, time), 3, rows=3),
            torch.arange(3).expand(3, 3),
        )
        step = mf.balance(losses, mf.pcgrad(orders), mf.jacobian(), reduction="sum")
        params = {"x": x}
        direction, _, _ = step.update(params, curvatures, step.init(params, curvatures))
        return x - torch.where(constant > 0, constant, 1 / (time + 5)) * direction["x"]

    forward, zero = vmap(advance, (0, 0, 0, 0, 0, None)), torch.zeros((), dtype=torch.int64)
    times = np.unique(np.geomspace(1, steps, 120).astype(int))
    path, distance, middle, half = (
        [x],
        torch.zeros(len(lanes), dtype=torch.float64),
        torch.zeros_like(x),
        steps - steps // 2,
    )
    for time in tqdm(range(steps), desc="three quadratics", leave=False):
        x = forward(x, curvatures, random, constant, seed, zero + time)
        if time + 1 in times:
            path.append(x)
        if time >= half:
            distance, middle = distance + (x - least).norm(dim=-1), middle + x
    late = steps - half
    final = x.reshape(*shape, 2).numpy()
    trail = torch.stack(path, 1).reshape(*shape, len(path), 2).numpy()
    return Runs(
        trail,
        np.concatenate([[0], times]),
        (distance / late).reshape(shape).numpy(),
        (middle / late).reshape(*shape, 2).numpy(),
        final,
    )


def spread(points: np.ndarray) -> float:
    """Largest distance of `[..., 2]` from their mean."""
    flat = points.reshape(-1, 2)
    return float(np.linalg.norm(flat - flat.mean(0), axis=1).max())


def runs_figure(found: Runs) -> Figure:
    canvas, panels = axes(2, 3, (14, 8.6))
    for row, (name, curvatures) in enumerate(CURVATURES.items()):
        corner = centres().numpy()
        for column, kind in enumerate(("fixed order", "random order")):
            panel = panels[3 * row + column]
            panel.fill(*corner.T, color="#dddddd", zorder=-2, label="Pareto set")
            for start in range(STARTS):
                trail = found.path[row, column, -1, start, 0]
                panel.plot(*trail.T, color=("C0", "C1")[column], linewidth=0.9)
                panel.plot(
                    *trail[-1],
                    "o",
                    color="black",
                    markerfacecolor="white",
                    markersize=6,
                    zorder=3,
                    label="end points" if start == 0 else None,
                )
            panel.plot(
                *found.path[row, column, 0, 0, 0].T,
                color="black",
                linewidth=0.6,
                label=f"constant step {CONSTANT[0]:g}, one start",
            )
            panel.plot(
                *minimum(curvatures),
                "*",
                color="C3",
                markeredgecolor="black",
                markersize=14,
                zorder=4,
                label="minimum of the sum",
            )
            panel.set(
                xlabel="θ₁",
                ylabel="θ₂",
                title=f"{name}, {kind}, steps 1/(k + 5)",
                xlim=(-2.2, 2.2),
                ylim=(-2.2, 2.2),
                aspect="equal",
            )
        panels[3 * row].legend(frameon=True, fontsize="small", loc="lower right")
        panel = panels[3 * row + 2]
        means = np.linalg.norm(found.centre[row, :, :-1] - minimum(curvatures), axis=-1)
        for measured, colour, style, marker, label in (
            (found.ball[row, 0, :-1], "C0", "--", "o", "fixed order: iterates"),
            (found.ball[row, 1, :-1], "C1", "-", "s", "random order: iterates"),
            (means[1], "black", ":", "D", "random order: mean of the iterates"),
        ):
            panel.plot(
                CONSTANT,
                measured.reshape(len(CONSTANT), -1).mean(1),
                marker=marker,
                color=colour,
                linestyle=style,
                label=label,
            )
        panel.set(
            xlabel="constant step",
            ylabel="distance from the minimum of the sum",
            xscale="log",
            ylim=(0, None),
            title=name,
        )
        panel.set_xticks(CONSTANT, [f"{step:g}" for step in CONSTANT])
        panel.minorticks_off()
        panel.legend(frameon=False, fontsize="small")
    return Figure(
        "runs",
        f"PCGrad on three quadratics whose minimisers lie at 120°, {found.times[-1]:,} steps "
        f"from {STARTS} starts. Left and middle: paths with steps 1/(k + 5) "
        "and, thin, a constant one, under one fixed order and under random ones (first seed). "
        "Right: constant steps, distance from the minimum of the sum in "
        "the second half of the run (mean over starts and seeds).",
        canvas,
    )


def rest(fan: Outcome, found: Runs) -> Claim:
    numbers: dict[str, float] = {
        "120°: orders of 8 with d = 0": sum(square == 0 for square in fan.squares),
        "120°: ‖d‖² under the other orders, smallest": float(
            min(square for square in fan.squares if square)
        ),
        "120°: ‖d‖² under the other orders, largest": float(max(fan.squares)),
        "120°: largest coefficient of the mean direction, less their mean": float(
            max(_centred(fan))
        ),
        "library against fractions, largest difference": fan.difference,
    }
    settled, still = [], []
    for row, (name, curvatures) in enumerate(CURVATURES.items()):
        ends = found.end[row, 1, -1]
        numbers |= {f"{name}, random order, 1/k: spread of the end points": spread(ends)}
        numbers |= {
            f"{name}, random order, 1/k: mean end, θ_{i + 1}": float(ends.reshape(-1, 2).mean(0)[i])
            for i in (0, 1)
        }
        numbers |= {
            f"{name}: minimum of the sum, θ_{i + 1}": float(minimum(curvatures)[i]) for i in (0, 1)
        }
        settled.append(spread(ends) < 0.1)
        for i, step in enumerate(CONSTANT):
            around = float(
                np.linalg.norm(found.end[row, 1, i] - found.centre[row, 1, i], axis=-1).mean()
            )
            numbers |= {
                f"{name}, random order, step {step:g}: distance of the last iterate from the "
                "run's mean": around
            }
            still.append(around < 1e-3)
    stays = any(square == 0 for square in fan.squares)
    return Claim(
        "PC-31",
        PAPER,
        "Open: three gradients at 120°, a stationary point; does PCGrad rest there, and does it "
        "converge for three tasks?",
        "holds" if all(still) and stays else "holds only when" if all(settled) else "does not hold",
        numbers,
        f"all 8 orders in exact fractions; three quadratics, {STARTS} starts, "
        f"{found.end.shape[4]} seeds, {found.times[-1]:,} steps. Under random orders it "
        "moves on by a random walk with mean 0; constant steps leave a ball that shrinks with "
        "the step, steps of 1/k settle (end points within .1) at one "
        "point, which is the minimum of the sum only in the symmetric case",
    )


def _centred(fan: Outcome) -> Vector:
    """The direction's mean over orders; g_1 + g_2 + g_3 = 0, so a common constant does not count."""
    mean = [
        sum((c[i] for c in fan.coefficients), Fraction(0)) / len(fan.coefficients) for i in range(3)
    ]
    return [abs(x - sum(mean, Fraction(0)) / 3) for x in mean]


def order_matters(found: Runs) -> Claim:
    numbers: dict[str, float] = {}
    unbiased, independent = [], []
    for row, (name, curvatures) in enumerate(CURVATURES.items()):
        for column, kind in enumerate(("fixed", "random")):
            ends = found.end[row, column, -1]  # [start, seed, 2]
            bias = (
                mean_interval(np.linalg.norm(ends.mean(0) - minimum(curvatures), axis=-1))
                if column
                else None
            )
            distance = float(np.linalg.norm(ends.reshape(-1, 2).mean(0) - minimum(curvatures)))
            by_start = spread(ends.mean(1))
            numbers |= {
                f"{name}, {kind} order: distance of the mean end point": distance,
                f"{name}, {kind} order: spread over starts": by_start,
            }
            if bias:
                numbers |= named(f"{name}, random order: distance of a seed's mean end point", bias)
                unbiased.append(distance < 0.05)
                independent.append(by_start < 0.1)
    return Claim(
        "PC-32",
        PAPER,
        "With many tasks the random order of the projections takes care of the bias that one "
        "order would have.",
        "holds" if all(unbiased) else "holds only when" if any(unbiased) else "does not hold",
        numbers,
        f"three quadratics, steps 1/k, {STARTS} starts, {found.end.shape[4]} seeds; holds if the "
        "mean end point lies within .05 of the minimum of the sum. "
        "It does for: "
        f"{'; '.join(name for name, ok in zip(CURVATURES, unbiased, strict=True) if ok) or 'none'}. End points that do not depend on the start "
        "(within .1), random order: "
        f"{'; '.join(name for name, ok in zip(CURVATURES, independent, strict=True) if ok) or 'none'}. 95 % t intervals over seeds",
    )


def run(settings: Settings) -> Findings:
    claim, instance = raised()
    yield claim
    fan = under_all_orders(FAN)
    yield orders_figure(fan, instance)
    found = runs(settings)
    yield runs_figure(found)
    yield rest(fan, found)
    yield order_matters(found)
