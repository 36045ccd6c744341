"""`mf.weights(mf.mgda(), G)` for two tasks, next to TorchJD's weighting and the solver alone.

    python -m experiments.benchmarks.weights [--tasks 2 ...] [--seconds S]

Writes weights.json and weights.md. Gramians are of Jacobians [T, 2T] of independent normal entries
in float32. A call of ours applies a fresh rule once and checks all that it is given; TorchJD's is
its weighting at its defaults, and the solver's the kernel that both would wait for. All take turns,
so that what else the machine does hits them alike; microseconds of the fastest block.
"""

from argparse import Namespace
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.record import Row, markdown
from experiments.benchmarks.runner import Axis, command
from experiments.benchmarks.solvers import Weigh, ours, torchjd

OURS, PEER, SOLVER = "mf.weights", "TorchJD", "solver alone"
POOL = 8  # different problems that calls go through in turn
MOST = 1.2  # of TorchJD's time for two tasks


def contenders() -> dict[str, Weigh]:
    """From a Gramian to MGDA's weights."""
    rule = mf.mgda()
    return {
        OURS: lambda gramian: mf.weights(rule, gramian),
        PEER: torchjd("min_norm"),
        SOLVER: ours("min_norm"),
    }


def gramians(tasks: int) -> Tensor:
    """Of different problems: `[problem, task, task]`."""
    draw = torch.Generator().manual_seed(tasks)
    jacobian = torch.randn(POOL, tasks, 2 * tasks, generator=draw)
    return jacobian @ jacobian.mT


def measure(given: Namespace, tasks: int) -> list[Row]:
    """Microseconds of every contender."""

    def on_the_next(weigh: Weigh) -> Callable[[], Any]:
        several = cycle(gramians(tasks))
        return lambda: weigh(next(several))

    calls = {name: on_the_next(weigh) for name, weigh in contenders().items()}
    taken = in_turns(calls, given.seconds * len(calls), block=2e-3)
    return [{"µs": {name: 1e6 * min(each) for name, each in taken.items()}}]


def table(rows: list[Row], line: str) -> str:
    """A number of tasks a line; `line` says how the times were taken."""
    lines = []
    for row in rows:
        times = row["µs"]
        bar = f"{MOST:.2f}" if row["tasks"] == 2 else "–"
        cells = [*(f"{time:.3g}" for time in times.values()), f"{times[OURS] / times[PEER]:.2f}"]
        lines.append([str(row["tasks"]), *cells, bar])
    return markdown(line, ["T", OURS, PEER, SOLVER, f"{OURS} / {PEER}", "bar"], lines)


AXES = {"tasks": Axis("tasks", (2,), at_least(2))}
main = command("weights", __doc__, AXES, measure, table, seconds=(0.3, "for each contender"))

if __name__ == "__main__":
    main()
