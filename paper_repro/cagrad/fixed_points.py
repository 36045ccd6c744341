"""Where does CAGrad rest, and where do earlier methods?"""

import numpy as np
import torch
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Exact, Measured, decided, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings, Verdict
from .common import cagrad, gram, length, min_norm, rows_of, stationary_rows, threshold


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


CLAIMS = {
    "CA-03": Exact(
        "Earlier methods are heuristics without convergence guarantee and/or may stop at "
        "any Pareto-stationary point.",
        judge_stopping,
        when="of MGDA, and of PCGrad with two tasks; with three it does not rest at each of them",
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
    yield stopping(max(20, settings.count(150)))
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
        "longest gradient, 0: below 1e-7; c from 0 to 10, below 1 d = 0 only where g₀ = 0",
    )
