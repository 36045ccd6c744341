"""What does solving for the weights cost within a training step?"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf

from ..report.bounds import A_FIFTH
from ..report.counting import operations
from ..report.decisions import Claims, Exact, Measured, Row, decided, exact, named_so
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings, Verdict
from .common import gram, rows_of
from .network import SAMPLES, in_turns, losses, network, step_of, trunk_size


@decided("no way to solve takes a fifth of a step's operations in any cell", trained=False)
def judge_inner_iteration(measured: Measured) -> Verdict:
    names = named_so(measured, "*: operations of the solver over the step's")
    shares = [measured[name] for name in names]
    if max(shares) <= A_FIFTH.now:
        return "does not hold"
    return "holds" if min(shares) > A_FIFTH.now else "holds only when"


TIMED = True  # a processor's time or memory, which another device has not
CLAIMS = {
    "SU-25": Row(
        "Smoothing and Frank–Wolfe both run an inner iteration at every training step, so the cost "
        "is considerable.",
        judge_inner_iteration,
        when="the iteration works on vectors rather than the Gramian: at 32 tasks and 303,104 "
        "parameters it takes {Frank–Wolfe on vectors, 100 iterations, T = 32, P = 303104, batch of "
        "32: operations of the solver over the step's} times a step's operations with batches of "
        "32, {Frank–Wolfe on vectors, 100 iterations, T = 32, P = 303104, batch of 512: operations "
        "of the solver over the step's} times with 512",
    ),
    "SU-26": Exact(
        "Inner products of gradients need computing once a step: ⟨g_t, Σ w_s g_s⟩ = Σ w_s "
        "G_ts, only w changes.",
        exact(
            ("largest difference of weights, vectors against Gramian", "<", 1e-9),
            ("operations of the Gramian over 2T²P", "<", 1 + 1e-9),
            ("operations of all iterations on the Gramian, *", "<", 1),
        ),
    ),
}
claim = Claims(CLAIMS)


def on_vectors(rows: Tensor, steps: int) -> Tensor:
    """Frank–Wolfe, step 1/(n+1), with inner products of long vectors at every iteration."""
    weights = rows.new_full((len(rows),), 1 / len(rows))
    for n in range(1, steps + 1):
        toward = F.one_hot((rows @ (weights @ rows)).argmin(), len(rows)).to(weights)
        weights = weights + (toward - weights) / (n + 1)
    return weights


def gramian_once() -> Claim:
    tasks, size, steps = 8, 10000, 200
    solve = mf.solvers.frank_wolfe(steps, "1/(n+1)")
    drawn = [rows_of(1, tasks, size, 420 + 2 * i, spread=4.0)[0] for i in range(4)]
    differences = [
        float(
            (on_vectors(rows, steps) - solve(mf.solvers.min_norm(gram(rows))).weights).abs().max()
        )
        for rows in drawn
    ]
    rows = drawn[0]  # counts are the same for all
    counts = {
        "vectors": operations(lambda: on_vectors(rows, steps)),
        "Gramian": operations(lambda: gram(rows)),
    }
    whole = operations(lambda: solve(mf.solvers.min_norm(gram(rows))))
    once = counts["Gramian"] / (2 * tasks**2 * size)
    return claim(
        "SU-26",
        {
            "largest difference of weights, vectors against Gramian": largest(differences),
            "operations of the Gramian over 2T²P": once,
            "operations of all iterations on the Gramian, the Gramian included, over those on "
            "vectors": whole / counts["vectors"],
        },
        f"T = {tasks}, P = {size}, {steps} iterations of Frank–Wolfe, counted floating-point "
        "operations of matrix products",
    )


TASKS, WIDTHS, ITERATIONS = (2, 8, 32), (32, 128, 512), 100
EXACT = "exact, on the Gramian"
LOOP = f"Frank–Wolfe on the Gramian, {ITERATIONS} iterations"
VECTORS = f"Frank–Wolfe on vectors, {ITERATIONS} iterations"
SOLVERS = {EXACT: mf.solvers.auto(), LOOP: mf.solvers.frank_wolfe(ITERATIONS)}
BATCHES = (SAMPLES, 512)
Cell = tuple[int, int]
"""Tasks and width."""
Times = dict[tuple[str, int, int], float]
"""Seconds of a solve, or of MGDA's whole step, by (solver or "step", tasks, width)."""
Shares = dict[str, dict[Cell, float]]
"""The solver's operations over those of the step without it, by solver and cell."""


class Costs(NamedTuple):
    """Counted, and timed next to it."""

    shares: Shares  # of a batch of `SAMPLES`
    larger: Shares  # of the larger one
    best: Times
    sizes: dict[int, int]  # shared parameters, by width


def counted(turns: int) -> Costs:
    """Operations of a step's passes and Gramian, and of ways to solve for the weights. The step's
    are counted as it runs (matrix products alone); the solvers' are their formulas: a face solved
    takes 2T³/3 + 2T², an iteration on the Gramian 2T², one on vectors two products with the
    Jacobian, 4TP.
    """
    calls: dict[tuple[str, int, int], Callable[[], Any]] = {}
    shares, larger = ({name: {} for name in (EXACT, LOOP, VECTORS)} for _ in BATCHES)
    sizes: dict[int, int] = {}
    for tasks, width in itertools.product(TASKS, WIDTHS):
        params, batch = network(tasks, width)
        size = sizes[width] = trunk_size(params)
        step = calls["step", tasks, width] = step_of(tasks, width, mf.jacobian("trunk.*"))
        g = mf.task_gramian(losses, params, batch, shared="trunk.*")[1]
        for name, solve in SOLVERS.items():
            calls[name, tasks, width] = lambda g=g, solve=solve: solve(mf.solvers.min_norm(g))
        faces = float(mf.solvers.active_set()(mf.solvers.min_norm(g)).steps)
        other = step_of(tasks, width, mf.jacobian("trunk.*"), samples=BATCHES[1])
        for found, whole in ((shares, operations(step)), (larger, operations(other))):
            found[EXACT][tasks, width] = faces * (2 * tasks**3 / 3 + 2 * tasks**2) / whole
            found[LOOP][tasks, width] = ITERATIONS * 2 * tasks**2 / whole
            found[VECTORS][tasks, width] = ITERATIONS * 4 * tasks * size / whole
    return Costs(shares, larger, in_turns(calls, turns, "solver and step"), sizes)


def run(settings: Settings) -> Findings:
    yield gramian_once()
    turns = settings.count(5)
    costs = counted(turns)
    yield inner_iteration(costs)


def inner_iteration(costs: Costs) -> Claim:
    numbers: dict[str, float] = {
        f"{name}, T = {tasks}, P = {costs.sizes[width]}, batch of {batch}: operations of the "
        "solver over the step's": share
        for batch, part in zip(BATCHES, (costs.shares, costs.larger), strict=True)
        for name, found in part.items()
        for (tasks, width), share in found.items()
    }
    spans = [
        f"{min(part[VECTORS].values()):.2g} to {max(part[VECTORS].values()):.2g}"
        for part in (costs.shares, costs.larger)
    ]
    for name in SOLVERS:
        share = costs.best[name, TASKS[-1], WIDTHS[0]] / costs.best["step", TASKS[-1], WIDTHS[0]]
        numbers[f"{name}, T = {TASKS[-1]}, P = {costs.sizes[WIDTHS[0]]}: time over the step's"] = (
            share
        )
    return claim(
        "SU-25",
        numbers,
        f"{ITERATIONS} iterations take {spans[0]} of a step's operations at a batch of "
        f"{BATCHES[0]}, {spans[1]} at {BATCHES[1]}; on the Gramian, and in the exact way, a small "
        "part of them at either. Considerable: above a fifth; decided by counts, time stands "
        "beside",
    )
