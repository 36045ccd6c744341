"""Does the dual give the direction of the largest worst rate in the ball?"""

import time

import numpy as np
import torch

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import BALL, cagrad, gram, rows_of, unit_of

TIMED = True  # a processor's time or memory, which another device has not
CLAIMS = {
    "CA-10": Exact(
        "Primal: max over d of min_i ⟨g_i, d⟩ subject to ‖d - g₀‖ <= c‖g₀‖.",
        exact(*BALL, ("best of 100 random points of the sphere above it", "<=", 0)),
    ),
    "CA-15": Exact(
        "The primal has the model's dimension, the dual only T unknowns.",
        exact(
            ("unknowns of the dual, T = 10, less T", "==", 0),
            ("operations of the dual at P = 100000 over those at P = 1000", "<=", 2),
            ("unknowns of the primal at P = 100000 over those at P = 1000", "==", 100),
        ),
    ),
    "CA-16": Exact(
        "Dual: min over the simplex of g_w·g₀ + √φ‖g_w‖, φ = c²‖g₀‖²; d = g₀ + (√φ/‖g_w‖) g_w.",
        exact(*BALL, ("largest difference to the conic solver's value", "<", 1e-5)),
    ),
}
claim = Claims(CLAIMS)


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
            gap = largest(gap, float((found.gap / (scale * d.norm(dim=-1))).max()))
            tight = largest(
                tight, float(((d - g0).norm(dim=-1) / (c * g0.norm(dim=-1)) - 1).abs().max())
            )
            for i in range(2):
                other = mf.solvers.cvx()(mf.solvers.cagrad(g[i], c))
                conic = largest(
                    conic, float((found.value[i] - other.value).abs() / unit_of(g[i : i + 1])[0])
                )
            ball = rows_of(draws, 100, 20, 60 + tasks)
            ball = g0[:, None] + c * g0.norm(dim=-1)[:, None, None] * ball / ball.norm(
                dim=-1, keepdim=True
            )
            best = torch.einsum("dtp,dnp->dnt", rows, ball).amin(-1).amax(-1)
            sampled = largest(sampled, float(((best - found.rates.amin(-1)) / unit_of(g)).max()))
    setting = f"{draws} draws each of 2, 3 and 10 tasks in 20 parameters, c = .1, .4, .8, 1, 3"
    yield claim(
        "CA-10",
        {
            "largest duality gap over longest gradient times ‖d‖": gap,
            "largest |‖d - g₀‖/(c‖g₀‖) - 1|": tight,
            "best of 100 random points of the sphere above it": sampled,
        },
        setting,
    )
    yield claim(
        "CA-16",
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
    """What the solver does against the number of parameters, given the Gramian."""
    tasks, sizes = 10, (1_000, 100_000)
    work: dict[int, float] = {}
    numbers: dict[str, float] = {}
    for size in sizes:
        batch = gram(rows_of(20, tasks, size, 70))
        found = [mf.solvers.active_set()(mf.solvers.cagrad(g, 0.5)) for g in batch]
        # a face of n tasks takes 2n³/3 + 2n² operations, at most
        face = 2 * tasks**3 / 3 + 2 * tasks**2
        work[size] = face * float(np.mean([one.steps for one in found]))
        start = time.perf_counter()
        for g in batch:
            mf.solvers.active_set()(mf.solvers.cagrad(g, 0.5))
        seconds = (time.perf_counter() - start) / len(batch)
        numbers |= {
            f"unknowns of the primal at P = {size}": size,
            f"operations of the dual at P = {size}, at most": work[size],
            f"microseconds for the dual at P = {size}": 1e6 * seconds,
        }
        numbers["unknowns of the dual, T = 10, less T"] = float(
            max(one.weights.numel() for one in found) - tasks
        )
    numbers |= {
        "unknowns of the primal at P = 100000 over those at P = 1000": sizes[1] / sizes[0],
        "operations of the dual at P = 100000 over those at P = 1000": work[sizes[1]]
        / work[sizes[0]],
    }
    return claim(
        "CA-15",
        numbers,
        "ten tasks, 20 solutions given the Gramian; operations: faces that the active set solves "
        "times those of one, time beside",
    )
