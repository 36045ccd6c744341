"""What a step costs that is measured in its optimizer's metric, in plain balanced steps.

    python -m experiments.benchmarks.metric [--batches 64 ...] [--seconds S]

Writes metric.json and metric.md. A step is that of a stock loop: forward pass, `mf.Balancer` with
MGDA on the trunk, Adam's step. Both take turns, each with a network of its own; medians of the
processor's time on one thread. With Adam's metric the rows of the Jacobian are needed, and without
one the layers' own forms are cheaper where samples are few.
"""

from argparse import Namespace

import torch

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import Call, by_name
from experiments.benchmarks.networks import Shared, dense
from experiments.benchmarks.record import Row, markdown, units
from experiments.benchmarks.runner import Axis, command

TASKS, WIDTH = 4, 512
BARS = {128: 1.30}
"""By batch."""


def step(batch: int, *, metric: bool) -> Call:
    """A training step of a network of its own."""
    torch.manual_seed(0)
    trunk = dense(WIDTH, WIDTH, WIDTH, WIDTH, last=True)
    net, x = Shared(trunk, WIDTH, TASKS), torch.randn(batch, WIDTH)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*", metric=optimizer if metric else None)

    def call() -> None:
        optimizer.zero_grad()
        losses = net(x)
        balancer.backward(losses)
        optimizer.step()

    return call


def measure(given: Namespace, optimizer: str, batch: int) -> list[Row]:
    """Median seconds of both steps."""
    calls = {"plain": step(batch, metric=False), "metric": step(batch, metric=True)}
    return [{"seconds": by_name(calls, given.seconds)}]


def table(rows: list[Row], line: str) -> str:
    """Ratios to the plain balanced step, a batch a line; `line` says how they were taken."""
    heads = "optimizer", "samples", "balanced step, ms", "with its metric, ms", "ratio", "bar"
    lines = []
    for row in rows:
        times = [f"{1e3 * row['seconds'][name]:.3g}" for name in ("plain", "metric")]
        bar = f"{BARS[row['batch']]:.2f}" if row["batch"] in BARS else "–"
        ratio = units(row["seconds"], ["metric"])
        lines.append([row["optimizer"], str(row["batch"]), *times, *ratio, bar])
    return markdown(line, heads, lines)


def missed(rows: list[Row]) -> list[str]:
    """Where a step is above its bar."""
    ratios = [(row, row["seconds"]["metric"] / row["seconds"]["plain"]) for row in rows]
    return [
        f"{row['optimizer']}, {row['batch']} samples ({ratio:.2f})"
        for row, ratio in ratios
        if ratio > BARS.get(row["batch"], ratio)
    ]


AXES = {"optimizer": Axis("", ("Adam",)), "batch": Axis("batches", (64, 128, 256), at_least(1))}
main = command("metric", __doc__, AXES, measure, table, seconds=10.0)

if __name__ == "__main__":
    main()
