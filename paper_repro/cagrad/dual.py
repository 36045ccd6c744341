"""Does the dual give the direction of the largest worst rate in the ball?"""

import torch

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import BALL, cagrad, gram, rows_of, unit_of

TIMED = True  # the conic solver runs on a processor
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


def run(settings: Settings) -> Findings:
    draws = settings.count(200)
    gap = tight = conic = sampled = 0.0
    for tasks in (2, 3, 10):
        rows = rows_of(draws, tasks, 20, 50 + tasks)
        g, g0, ball = gram(rows), rows.mean(1), rows_of(draws, 100, 20, 60 + tasks)
        longest, radius = rows.norm(dim=-1).amax(-1), g0.norm(dim=-1)
        sphere = ball / ball.norm(dim=-1, keepdim=True)
        for c in (0.1, 0.4, 0.8, 1.0, 3.0):
            found = cagrad(g, c)
            d = torch.einsum("dt,dtp->dp", found.weights, rows)
            gap = largest(gap, float((found.gap / (longest * d.norm(dim=-1))).max()))
            tight = largest(tight, float(((d - g0).norm(dim=-1) / (c * radius) - 1).abs().max()))
            for i in range(2):
                other = mf.solvers.cvx()(mf.solvers.cagrad(g[i], c)).value
                conic = largest(conic, float(((found.value - other).abs() / unit_of(g))[i]))
            points = g0[:, None] + c * radius[:, None, None] * sphere
            best = torch.einsum("dtp,dnp->dnt", rows, points).amin(-1).amax(-1)
            sampled = largest(sampled, float(((best - found.rates.amin(-1)) / unit_of(g)).max()))
    solved = {BALL[0].name: gap, BALL[1].name: tight}
    setting = f"{draws} draws each of 2, 3 and 10 tasks in 20 parameters, c = .1, .4, .8, 1, 3"
    yield Claim(
        "CA-10", solved | {"best of 100 random points of the sphere above it": sampled}, setting
    )
    yield Claim(
        "CA-16",
        solved | {"largest difference to the conic solver's value": conic},
        f"{setting}; strong duality and a tight ball, values as those of cvxpy and Clarabel. "
        "While g_w is not 0; at Pareto-stationary points see CA-18",
    )
    tasks, small, large, solve = 10, 1_000, 100_000, mf.solvers.active_set()
    few, many = (
        [solve(mf.solvers.cagrad(g, 0.5)) for g in gram(rows_of(20, tasks, size, 70))]
        for size in (small, large)
    )
    steps = "operations of the dual at P = 100000 over those at P = 1000"
    yield Claim(
        "CA-15",
        {
            "unknowns of the dual, T = 10, less T": many[0].weights.numel() - tasks,
            "unknowns of the primal at P = 100000 over those at P = 1000": large / small,
            steps: sum(one.steps for one in many) / sum(one.steps for one in few),
        },
        "ten tasks, 20 solutions given the Gramian; operations: faces, of "
        "one size, that the active set solves",
    )
