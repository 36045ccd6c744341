"""Can PCGrad's direction raise a task of three, whatever the order?"""

from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..report.decisions import Exact, exact
from ..report.figures import arrow, axes, shades
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.options import Impossible, Option, drawn
from .rational import FAN, RAISED, Outcome, gramian_of, orders_of, under_all_orders

CLAIMS = {
    "PC-30": Exact(
        "All theory covers two tasks; projections may clash when there are more.",
        exact(
            ("worst task's rate, largest over orders", "<", 0),
            ("library against fractions, largest difference", "<", 1e-12),
        ),
    )
}


def run(settings: Settings) -> Findings:
    found = under_all_orders(gramian_of(RAISED))
    worst = [min(rates) for rates in found.rates]
    yield Claim(
        "PC-30",
        {
            "orders under which some task is raised": sum(rate < 0 for rate in worst),
            "worst task's rate, largest over orders": max(worst),
            "library against fractions, largest difference": found.difference,
        },
        "gradients (-2, -2), (-2, 0), (2, 1) in exact fractions and through "
        f"mtlfunc.pcgrad(orders), all {len(worst)} orders, d the sum of the projected gradients",
    )
    angle = np.pi / 2 + 2 * np.pi / 3 * np.arange(3)
    fan = np.stack([np.cos(angle), np.sin(angle)], 1)  # stationary: they sum to 0
    yield under_orders("fan", under_all_orders(FAN), fan)
    yield under_orders("orders", found, np.array(RAISED, dtype=float))


@drawn
def all_orders(
    gradients: Annotated[
        tuple[tuple[float, float], ...],
        Option("gradients in the plane, as x,y; two to four tasks", -1e6, 1e6, 2),
    ] = ((-2.0, -2.0), (-2.0, 0.0), (2.0, 1.0)),
) -> Figure:
    """PCGrad's direction under every order of projection, and the rates of all tasks."""
    if len(gradients) > 4:
        raise Impossible("gradients: expected at most four, as the orders are ((T - 1)!)^T")
    if any(x == 0 and y == 0 for x, y in gradients):
        raise Impossible("gradients: expected none that is 0")
    fractions = [[Fraction(x), Fraction(y)] for x, y in gradients]
    return under_orders("orders", under_all_orders(gramian_of(fractions)), np.array(gradients))


def under_orders(name: str, found: Outcome, gradients: np.ndarray) -> Figure:
    """The directions in the plane, and each task's rate, orders from the worst to the best."""
    canvas, (plane, panel) = axes(1, 2, (12, 4.8))
    count, reach = len(gradients), float(np.abs(gradients).max())
    directions = np.array(found.coefficients, dtype=float) @ gradients
    for task, (colour, g) in enumerate(zip(shades(count), gradients, strict=True)):
        arrow(plane, np.zeros(2), g, colour)
        look: dict[str, Any] = {
            "color": colour,
            "ha": "center",
            "va": "center",
            "fontsize": "large",
        }
        x, y = g + 0.09 * reach * g / np.linalg.norm(g)
        plane.text(x, y, f"$g_{task + 1}$", **look)
    apart = np.unique(directions.round(9), axis=0)
    for d in apart:
        if np.linalg.norm(d) > 1e-9 * reach:
            arrow(plane, np.zeros(2), d, "black", "--", 1.2)
    zero = sum(square == 0 for square in found.squares)
    every = "PCGrad's direction d, an order each"
    plane.plot([], [], "--", color="black", linewidth=1.2, label=every)
    if zero:
        plane.plot(0, 0, "o", color="black", label=f"d = 0, under {zero} of the orders")
    both = np.concatenate([gradients, directions, [[0, 0]]])
    low, high = both.min(0) - 0.2 * reach, both.max(0) + 0.2 * reach
    plane.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    plane.set(xlabel="θ₁", ylabel="θ₂", aspect="equal")
    plane.legend()
    rates = np.array(found.rates, dtype=float)
    order = rates.min(1).argsort(kind="stable")
    for task, colour in enumerate(shades(count)):
        label = f"task {task + 1}, g = ({gradients[task][0]:.3g}, {gradients[task][1]:.3g})"
        at = np.arange(1, len(order) + 1) + 0.12 * (task - (count - 1) / 2)  # side by side
        size = 7 if len(order) <= 20 else 2
        panel.plot(at, rates[order, task], "osD^"[task], color=colour, markersize=size, label=label)
    panel.axhline(0, color="black", linewidth=1)
    raised = int((rates.min(1) < 0).sum())
    panel.set(
        xlabel=f"the {len(order)} orders, by the rate of the worst task",
        ylabel="rate $g_t$·d; below 0: the task is raised",
    )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend()
    longest = float(max(found.squares)) ** 0.5
    return Figure(
        name,
        f"PCGrad with {count} tasks under all {len(order)} orders of projection. Left: gradients "
        f"(solid) and the directions d that the orders give (dashed, {len(apart)} of them apart, "
        f"the longest {longest:.3f}; 0 under {zero} orders). Right: each task's rate; a task is "
        f"raised under {raised} of the orders.",
        canvas,
        [
            {"order": orders, "d": d.tolist(), "rates": own.tolist()}
            for orders, d, own in zip(orders_of(count), directions, rates, strict=True)
        ],
    )
