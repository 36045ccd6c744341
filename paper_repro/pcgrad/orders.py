"""Can PCGrad's direction raise a task of three, whatever the order?"""

from __future__ import annotations

import numpy as np

from ..report.figures import arrow, axes
from ..report.findings import Claim, Figure, Findings, Settings
from .decisions import claim
from .rational import FAN, ORDERS, RAISED, Outcome, gramian_of, under_all_orders


def run(settings: Settings) -> Findings:
    found = under_all_orders(gramian_of(RAISED))
    yield raised(found)
    yield orders_figure(under_all_orders(FAN), found)


def raised(found: Outcome) -> Claim:
    worst = [min(rates) for rates in found.rates]
    numbers = {
        "orders": len(ORDERS),
        "orders under which some task is raised": sum(rate < 0 for rate in worst),
        "worst task's rate, largest over orders": float(max(worst)),
        "worst task's rate, smallest over orders": float(min(worst)),
        "library against fractions, largest difference": found.difference,
    }
    return claim(
        "PC-30",
        numbers,
        "gradients (-2, -2), (-2, 0), (2, 1) in exact fractions and through "
        "mtlfunc.pcgrad(orders), all 8 orders, d the sum of the projected gradients; "
        "holds if under each of them the direction has a negative rate g_t·d for some task",
    )


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
    panels[1].legend()
    return Figure(
        "orders",
        "PCGrad with three tasks under all 8 orders. Left: unit gradients at 120°, a "
        f"Pareto-stationary point; d is 0 for {zero} orders and one of the dashed "
        f"arrows, of length {float(max(fan.squares)) ** 0.5:.3f}, for the others. Right: an "
        "instance where some task is raised under every order.",
        canvas,
    )
