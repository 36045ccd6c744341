"""What does solving for the weights cost within a training step?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, judged
from .common import COLOURS, DASHES, claim, gram, rows_of
from .network import SAMPLES, in_turns, losses, network, operations, step_of, trunk_size


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
    differences, counts, whole = [], {}, 0
    for i in range(4):
        rows = rows_of(1, tasks, size, 420 + 2 * i, spread=4.0)[0]
        differences.append(
            float(
                (on_vectors(rows, steps) - solve(mf.solvers.min_norm(gram(rows))).weights)
                .abs()
                .max()
            )
        )
        counts = {
            "vectors": operations(lambda rows=rows: on_vectors(rows, steps)),
            "Gramian": operations(lambda rows=rows: gram(rows)),
        }
        whole = operations(lambda rows=rows: solve(mf.solvers.min_norm(gram(rows))))
    once = counts["Gramian"] / (2 * tasks**2 * size)
    return claim(
        "SU-26",
        "Inner products of gradients need computing once a step: ⟨g_t, Σ w_s g_s⟩ = Σ w_s G_ts, "
        "only w changes.",
        judged(max(differences) < 1e-9 and abs(once - 1) < 1e-9 and whole < counts["vectors"]),
        {
            "largest difference of weights, vectors against Gramian": max(differences),
            "operations of the Gramian over 2T²P": once,
            "operations of all iterations on the Gramian, the Gramian included, over those on "
            "vectors": whole / counts["vectors"],
        },
        f"T = {tasks}, P = {size}, {steps} iterations of Frank–Wolfe, counted floating-point "
        "operations of matrix products",
    )


TASKS, WIDTHS = (2, 8, 32), (32, 128, 512)
SOLVERS = {"exact": mf.solvers.auto(), "Frank–Wolfe, 100 steps": mf.solvers.frank_wolfe(100)}
Times = dict[tuple[str, int, int], float]
"""Seconds of a solve, or of MGDA's whole step, by (solver or "step", tasks, width)."""
Shares = dict[str, dict[tuple[int, int], float]]
"""The solver's share of a step, by solver and (tasks, width)."""


def timed(turns: int) -> tuple[Times, dict[int, int]]:
    """Times, and the number of shared parameters by width."""
    calls: dict[tuple[str, int, int], Callable[[], Any]] = {}
    sizes: dict[int, int] = {}
    for count, width in itertools.product(TASKS, WIDTHS):
        params, batch = network(count, width)
        sizes[width] = trunk_size(params)
        calls["step", count, width] = step_of(count, width, mf.jacobian("trunk.*"))
        g = mf.task_gramian(losses, params, batch, shared="trunk.*")[1]
        calls |= {
            (name, count, width): lambda g=g, solve=solve: solve(mf.solvers.min_norm(g))
            for name, solve in SOLVERS.items()
        }
    return in_turns(calls, turns, "solver and step"), sizes


def run(settings: Settings) -> Findings:
    yield gramian_once()
    turns = settings.count(9)
    best, sizes = timed(turns)
    shares: Shares = {name: {} for name in SOLVERS}
    for name, count, width in itertools.product(SOLVERS, TASKS, WIDTHS):
        own = best[name, count, width]
        rest = best["step", count, width] - best["exact", count, width]
        shares[name][count, width] = own / (rest + own) if rest > 0 else 1.0
    yield figure(shares, sizes, turns)
    yield inner_iteration(shares, sizes, best)


def figure(shares: Shares, sizes: dict[int, int], turns: int) -> Figure:
    canvas, panels = axes(1, 2, (13, 4.8))
    for panel, (name, found) in zip(panels, shares.items(), strict=True):
        for count, colour, style in zip(TASKS, COLOURS, DASHES, strict=False):
            panel.plot(
                [sizes[width] for width in WIDTHS],
                [found[count, width] for width in WIDTHS],
                color=colour,
                linestyle=style,
                marker="o",
                label=f"T = {count}",
            )
        panel.set(
            title=f"solver: {name}",
            xlabel="shared parameters P",
            ylabel="solver's share of a training step",
            xscale="log",
            yscale="log",
            ylim=(1e-3, 1.1),
        )
        panel.legend()
    return Figure(
        "solver-share",
        f"Share of MGDA's step that the inner problem takes: a ReLU network, batch of {SAMPLES}, "
        f"eager, {torch.get_num_threads()} thread(s), best of {turns} "
        "turns. Left: the exact active-set kernel. Right: a hundred iterations of Frank–Wolfe in "
        "eager torch.",
        canvas,
    )


def inner_iteration(shares: Shares, sizes: dict[int, int], best: Times) -> Claim:
    small = max(shares["exact"].values())
    loop = shares["Frank–Wolfe, 100 steps"]
    return claim(
        "SU-25",
        "Both schemes run an inner iteration at every training step, so the cost is considerable.",
        "holds only when"
        if max(loop.values()) > 0.2 and small < 0.5 * max(loop.values())
        else "holds"
        if small > 0.2
        else "does not hold",
        {
            f"{name}, T = {count}, P = {sizes[width]}: share of the step": share
            for name, found in shares.items()
            for (count, width), share in found.items()
        }
        | {f"{name}, T = 32: µs a solve": 1e6 * best[name, 32, 512] for name in SOLVERS},
        "holds only when the iteration is interpreted op by op, and most of all on small "
        "networks; on the Gramian an exact compiled solve is a small part of "
        f"the step, at most {100 * small:.0f} % here. Considerable: above 20 %",
    )
