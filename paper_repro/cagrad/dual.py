"""Does the dual give the direction of the largest worst rate in the ball?"""

import time

import numpy as np
import torch

import mtlfunc as mf

from ..report.findings import Claim, Findings, Settings, judged
from .common import PAPER, cagrad, gram, rows_of, unit_of


def run(settings: Settings) -> Findings:
    draws = settings.count(200)
    gap = tight = conic = sampled = 0.0
    for tasks in (2, 3, 10):
        rows = rows_of(draws, tasks, 20, 50 + tasks)
        g = gram(rows)
        scale = g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
        for c in (0.1, 0.4, 0.8, 1.0, 3.0):
            found = cagrad(g, c)
            d, g0 = torch.einsum("dt,dtp->dp", found.weights, rows), rows.mean(1)
            gap = max(gap, float((found.gap / (scale * d.norm(dim=-1))).max()))
            tight = max(
                tight, float(((d - g0).norm(dim=-1) / (c * g0.norm(dim=-1)) - 1).abs().max())
            )
            for i in range(2):
                other = mf.solvers.cvx()(mf.solvers.cagrad(g[i], c))
                conic = max(
                    conic, float((found.value[i] - other.value).abs() / unit_of(g[i : i + 1])[0])
                )
            ball = rows_of(draws, 100, 20, 60 + tasks)
            ball = g0[:, None] + c * g0.norm(dim=-1)[:, None, None] * ball / ball.norm(
                dim=-1, keepdim=True
            )
            best = torch.einsum("dtp,dnp->dnt", rows, ball).amin(-1).amax(-1)
            sampled = max(sampled, float(((best - found.rates.amin(-1)) / unit_of(g)).max()))
    setting = f"{draws} draws each of 2, 3 and 10 tasks in 20 parameters, c = .1, .4, .8, 1, 3"
    yield Claim(
        "CA-10",
        PAPER,
        "Primal: max over d of min_i ⟨g_i, d⟩ subject to ‖d - g₀‖ <= c‖g₀‖.",
        judged(gap < 1e-10 and tight < 1e-9 and sampled <= 0),
        {
            "largest duality gap over longest gradient times ‖d‖": gap,
            "largest |‖d - g₀‖/(c‖g₀‖) - 1|": tight,
            "best of 100 random points of the sphere above it": sampled,
        },
        f"{setting}; holds if d is feasible, the gap closed and no random point of the sphere "
        "better (relative)",
    )
    yield Claim(
        "CA-16",
        PAPER,
        "Dual: min over the simplex of g_w·g₀ + √φ‖g_w‖, φ = c²‖g₀‖²; d = g₀ + (√φ/‖g_w‖) g_w.",
        judged(gap < 1e-10 and tight < 1e-9 and conic < 1e-5),
        {
            "largest duality gap over longest gradient times ‖d‖": gap,
            "largest |‖d - g₀‖/(c‖g₀‖) - 1|": tight,
            "largest difference to the conic solver's value": conic,
        },
        f"{setting}; strong duality and a tight ball, values as those of cvxpy and Clarabel. "
        "While g_w is not 0; at Pareto-stationary points see CA-18",
    )
    yield size_matters()


def size_matters() -> Claim:
    """The solver's time against the number of parameters."""
    seconds, unknowns = {}, {}
    for size in (1_000, 100_000):
        rows = rows_of(2, 10, size, 70)
        batch = gram(rows)
        solve = mf.solvers.auto()
        times = []
        for g in batch.repeat(50, 1, 1):
            start = time.perf_counter()
            solve(mf.solvers.cagrad(g, 0.5))
            times.append(time.perf_counter() - start)
        seconds[size], unknowns[size] = float(np.median(times)), batch.shape[-1]
    ratio = seconds[100_000] / seconds[1_000]
    return Claim(
        "CA-15",
        PAPER,
        "The primal has the model's dimension, the dual only T unknowns.",
        judged(len(set(unknowns.values())) == 1 and 0.5 < ratio < 2),
        {f"unknowns of the dual at P = {size}": float(n) for size, n in unknowns.items()}
        | {f"microseconds for the dual at P = {size}": 1e6 * s for size, s in seconds.items()},
        "ten tasks, median of 100 solutions given the Gramian; holds if a hundred times the "
        "parameters changes the time by less than a factor of 2",
    )
