"""Where does CAGrad rest, and where do earlier methods?"""

import numpy as np
import torch
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Exact, Measured, decided, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings, Verdict
from .common import (
    cagrad,
    dual_cone,
    gram,
    length,
    mean_weights,
    min_norm,
    rows_of,
    stationary_rows,
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


CLAIMS = {
    "CA-03": Exact(
        "Earlier methods are heuristics without convergence guarantee and/or may stop at "
        "any Pareto-stationary point.",
        judge_stopping,
        when="of MGDA, and of PCGrad with two tasks; with three it does not even rest",
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
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    yield stopping(max(20, settings.count(150)))
    yield halting(settings)


def stopping(draws: int) -> Claim:
    opposed = rows_of(draws, 1, 6, 120)
    opposed = torch.cat([opposed, -2.5 * opposed], 1)
    three = stationary_rows(draws, 3, 6, 122)
    rest = {}
    for tasks, rows in ((2, opposed), (3, three)):
        g = gram(rows)
        scale = g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
        orders = torch.arange(tasks).expand(tasks, tasks)
        rest[tasks] = [
            length(g, w) / scale
            for w in (
                min_norm(g),
                vmap(lambda g, orders=orders: mf.weights(mf.pcgrad(orders), g))(g),
                mean_weights(g),
            )
        ]
    return claim(
        "CA-03",
        {
            f"T = {tasks}: largest ‖d‖ of {name}": float(x.max())
            for tasks, found in rest.items()
            for name, x in zip(("MGDA", "PCGrad"), found, strict=False)
        }
        | {
            f"T = {tasks}: smallest ‖d‖ of PCGrad": float(found[1].min())
            for tasks, found in rest.items()
        }
        | {f"T = {tasks}: smallest ‖g₀‖": float(found[2].min()) for tasks, found in rest.items()},
        f"{draws} Pareto-stationary draws each, two opposed gradients and three around 0, in "
        "units of the longest; the part about stopping: "
        "MGDA rests at all, PCGrad at those of "
        "two tasks; at three tasks it does not even rest there",
    )


def halting(settings: Settings) -> Claim:
    draws = settings.count(200)
    hull = outside = 0.0
    resting: dict[float, int] = {}
    least = np.inf
    opposed = rows_of(draws, 1, 12, 130)
    families = [
        stationary_rows(draws, 3, 6, 132),
        stationary_rows(draws, 5, 12, 134),
        torch.cat([opposed, -1.7 * opposed], 1),
        rows_of(draws, 3, 6, 136),
    ]
    for c in (0.0, 0.2, 0.5, 0.9, 1.0, 1.5, 3.0, 10.0):
        resting[c] = 0
        for rows in families:
            g = gram(rows)
            scale = g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
            weights = cagrad(g, c).weights
            d, shortest = length(g, weights) / scale, length(g, min_norm(g)) / scale
            still = d < 1e-7
            resting[c] += int(still.sum())
            if still.any():
                hull = largest(hull, float(shortest[still].max()))
            if c < 1:
                least = smallest(
                    least, float((d * scale / length(g, mean_weights(g)) - (1 - c)).min())
                )
            v = dual_cone(g)
            outside = largest(
                outside, float((length(g, v - mean_weights(g)) / length(g, mean_weights(g))).max())
            )
    return claim(
        "CA-18",
        {
            "largest distance of 0 from the hull where d = 0": hull,
            "c < 1: least ‖d‖/‖g₀‖ - (1 - c)": least,
            "largest c*": outside,
        }
        | {f"c = {c:g}: draws with d = 0": float(n) for c, n in resting.items()},
        f"{draws} draws each of three stationary families and a general one, lengths in units of "
        "the longest gradient, 0: below 1e-7. True "
        "for every c >= 0: below 1 d = 0 only where "
        "g₀ = 0, from 1 on at Pareto-stationary points, where d is the dual-cone projection of g₀",
    )
