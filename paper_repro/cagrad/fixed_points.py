"""Where do CAGrad and earlier methods rest, and are those special cases of it?"""

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import NEARLY_ALL
from ..report.decisions import Exact, Measured, decided, ends, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import (
    angle,
    cagrad,
    gram,
    length,
    min_norm,
    rows_of,
    stationary_rows,
    threshold,
    unit_of,
)


@decided("PCGrad does not rest at two opposed gradients, or MGDA does not", trained=False)
def judge_stopping(measured: Measured) -> Verdict:
    rest = {
        tasks: all(
            measured[f"T = {tasks}: largest ‖d‖ of {name}"] < 1e-7 for name in ("MGDA", "PCGrad")
        )
        for tasks in (2, 3)
    }
    if not rest[2]:
        return "does not hold"
    return "holds" if rest[3] else "holds only when"


@decided(
    "no c gives DualProj's direction, nor 95 % of PCGrad's by the interval of the share",
    trained=False,
)
def special_cases(measured: Measured) -> Verdict:
    name = "T = {}: share of PCGrad's directions met by some c"
    threshold = measured["c*: draws with the wrong sign at .95 c* and 1.05 c*"] == 0
    dualproj = threshold and measured["c*: largest relative distance of d to DualProj's"] < 1e-6
    pcgrad = [ends(measured, name.format(t)) for t in (2, 3)]
    if all(low > NEARLY_ALL.now for low, _ in pcgrad):
        return "holds" if dualproj else "holds only when"
    if any(high < NEARLY_ALL.now for _, high in pcgrad):
        return "holds only when" if dualproj else "does not hold"
    return "inconclusive"


CLAIMS = {
    "CA-03": Exact(
        "Earlier methods are heuristics without convergence guarantee and/or may stop at "
        "any Pareto-stationary point.",
        judge_stopping,
        when="of MGDA, and of PCGrad with two tasks; with three it does not rest at each of them",
    ),
    "CA-13": Exact(
        "Earlier methods in general are special cases.",
        special_cases,
        when="of DualProj, and of PCGrad with two tasks, with another c at every step",
    ),
    "CA-18": Exact(
        "Fixed points of CAGrad are Pareto stationary (stated for c >= 1).",
        exact(
            ("largest distance of 0 from the hull where d = 0", "<", 1e-6),
            ("c < 1: least ‖d‖/‖g₀‖ - (1 - c)", ">", -1e-7),
            ("largest c*", "<", 1 + 1e-9),
            ("c = 1*: draws with d = 0", ">", 0),
        ),
    ),
}


def run(settings: Settings) -> Findings:
    draws = max(20, settings.count(150))
    yield stopping(draws)
    yield earlier(draws)
    yield halting(settings.count(200))


def stopping(draws: int) -> Claim:
    opposed = rows_of(draws, 1, 6, 120)
    numbers: dict[str, float] = {}
    for tasks, rows in (
        (2, torch.cat([opposed, -2.5 * opposed], 1)),
        (3, stationary_rows(draws, 3, 6, 122)),
    ):
        g, orders = gram(rows), torch.arange(tasks).expand(tasks, tasks)
        pcgrad = vmap(lambda g, orders=orders: mf.weights(mf.pcgrad(orders), g))(g)
        for name, weights in {"MGDA": min_norm(g), "PCGrad": pcgrad}.items():
            d = length(g, weights) / rows.norm(dim=-1).amax(-1)
            numbers[f"T = {tasks}: largest ‖d‖ of {name}"] = float(d.max())
    return Claim(
        "CA-03",
        numbers,
        f"{draws} Pareto-stationary draws each, two opposed gradients and three around 0, in units "
        "of the longest; the part about stopping",
    )


def halting(draws: int) -> Claim:
    opposed = rows_of(draws, 1, 12, 130)
    families = [
        stationary_rows(draws, 3, 6, 132),
        stationary_rows(draws, 5, 12, 134),
        torch.cat([opposed, -1.7 * opposed], 1),
        rows_of(draws, 3, 6, 136),
    ]
    hull, least, outside = 0.0, np.inf, 0.0
    resting = dict.fromkeys((0.0, 0.2, 0.5, 0.9, 1.0, 1.5, 3.0, 10.0), 0)
    for rows in families:
        g, scale, mean = gram(rows), rows.norm(dim=-1).amax(-1), rows.mean(1).norm(dim=-1)
        shortest = length(g, min_norm(g)) / scale
        outside = largest(outside, float(threshold(g)[0].max()))
        for c in resting:
            d = length(g, cagrad(g, c).weights)
            still = d / scale < 1e-7
            resting[c] += int(still.sum())
            hull = largest(hull, *shortest[still].tolist())
            if c < 1:
                least = smallest(least, float((d / mean - (1 - c)).min()))
    return Claim(
        "CA-18",
        {
            "largest distance of 0 from the hull where d = 0": hull,
            "c < 1: least ‖d‖/‖g₀‖ - (1 - c)": least,
            "largest c*": outside,
        }
        | {f"c = {c:g}: draws with d = 0": n for c, n in resting.items() if c >= 1},
        f"{draws} draws each of three stationary families and a general one, in units of the "
        "longest gradient, 0: below 1e-7; c from 0 to 10",
    )


def against_dualproj(draws: int) -> dict[str, float]:
    """DualProj's direction against CAGrad's at c = c*, on draws with a conflict to remove."""
    wrong, away = 0, 0.0
    for tasks in (2, 3, 5, 10):
        g = gram(rows_of(draws, tasks, tasks + 1, 100 + tasks, spread=0.3))
        c, v = threshold(g)
        some = c > 1e-3
        g, c, v = g[some], c[some], v[some]
        below, above = (cagrad(g, x * c).rates.amin(-1) / unit_of(g) for x in (0.95, 1.05))
        wrong += int((below > -1e-9).sum() + (above < -1e-9).sum())
        away = largest(away, float((length(g, cagrad(g, c).weights - v) / length(g, v)).max()))
    return {
        "c*: draws with the wrong sign at .95 c* and 1.05 c*": wrong,
        "c*: largest relative distance of d to DualProj's": away,
    }


def nearest_to_pcgrad(draws: int, tasks: int, grid: Tensor) -> Tensor:
    """Of conflicting draws the least angle of CAGrad's direction to PCGrad's."""
    g = gram(rows_of(draws, tasks, 3, 110 + tasks))
    g = g[(g < 0).flatten(1).any(-1)]
    orders = torch.arange(tasks).expand(tasks, tasks)
    pcgrad = vmap(lambda g: mf.weights(mf.pcgrad(orders), g))(g)
    return torch.stack([angle(g, cagrad(g, c).weights, pcgrad) for c in grid]).amin(0)


def earlier(draws: int) -> Claim:
    """Directions of DualProj and PCGrad."""
    numbers = against_dualproj(draws)
    grid = torch.tensor([*np.linspace(0, 1, 101), *np.logspace(0, 3, 50)[1:]])
    for tasks in (2, 3):
        apart = nearest_to_pcgrad(draws, tasks, grid)
        met = share_interval(int((apart < 0.02).sum()), len(apart))
        numbers |= named(f"T = {tasks}: share of PCGrad's directions met by some c", met)
    return Claim(
        "CA-13",
        numbers,
        f"DualProj's direction at c = c*, {draws} draws each of 2, 3, 5 and 10 tasks; PCGrad's "
        f"(order 0, 1, 2) against {len(grid)} values of c, on draws with a conflict in 3 "
        "parameters, met: within .02 radians",
    )
