"""What a step costs that is measured in its optimizer's metric, in plain balanced steps.

    python -m experiments.benchmarks.metric [--batches 64 ...] [--seconds S] [--clock cpu]
    [--out DIR]

Writes metric.json and metric.md. A step is that of a stock loop: forward pass, `mf.Balancer` with
MGDA on the trunk, Adam's step. Both take turns, each with a network of its own; medians of the
processor's time on one thread. With Adam's metric the rows of the Jacobian are needed, and without
one the layers' own forms are cheaper where samples are few.
"""

from statistics import median

import torch
from torch import nn

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks import runner
from experiments.benchmarks.measuring import Call, in_turns
from experiments.benchmarks.record import Row, markdown
from experiments.benchmarks.steps import Shared

TASKS, WIDTH, FIRST = 4, 512, 12
"""A balancer stops recording after eight steps, if it does; the first ones are not timed."""
BATCHES = (64, 128, 256)
BARS = {("Adam", 128): 1.30}


def step(batch: int, *, metric: bool) -> Call:
    """A training step of a network of its own."""
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    net, x = Shared(nn.Sequential(*layers), WIDTH, TASKS), torch.randn(batch, WIDTH)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*", metric=optimizer if metric else None)

    def call() -> None:
        optimizer.zero_grad()
        losses = net(x)
        balancer.backward(losses)
        optimizer.step()

    return call


def measure(batch: int, seconds: float, clock: str) -> dict[str, float]:
    """Median seconds of both steps."""
    calls = {"plain": step(batch, metric=False), "metric": step(batch, metric=True)}
    found = in_turns(calls, seconds, clock, least=FIRST + 7)
    return {name: median(taken[FIRST:]) for name, taken in found.items()}


def table(rows: list[Row], line: str) -> str:
    """Ratios to the plain balanced step, a batch a line; `line` says how they were taken."""
    heads = "optimizer", "samples", "balanced step, ms", "with its metric, ms", "ratio", "bar"
    lines = []
    for row in rows:
        plain, metric = row["seconds"]["plain"], row["seconds"]["metric"]
        bar = BARS.get((row["optimizer"], row["batch"]))
        cells = [row["optimizer"], str(row["batch"]), f"{1e3 * plain:.3g}", f"{1e3 * metric:.3g}"]
        lines.append([*cells, f"{metric / plain:.2f}", "–" if bar is None else f"{bar:.2f}"])
    return markdown(line, heads, lines)


def missed(rows: list[Row]) -> list[str]:
    """Where a step is above its bar."""
    found = []
    for row in rows:
        cell, ratio = (row["optimizer"], row["batch"]), row["seconds"]["metric"]
        ratio /= row["seconds"]["plain"]
        if ratio > BARS.get(cell, ratio):
            found.append(f"{cell[0]}, {cell[1]} samples ({ratio:.2f})")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = runner.parser(__doc__, 10.0)
    parser.add_argument("--batches", nargs="+", type=at_least(1), default=BATCHES)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = runner.record_of(given, "metric", ("optimizer", "batch"))

    def one(name: str, batch: int) -> list[Row]:
        taken = measure(batch, given.seconds, given.clock)
        return [{"optimizer": name, "batch": batch, "seconds": taken}]

    runner.run(given, record, [("Adam", batch) for batch in given.batches], one, table)


if __name__ == "__main__":
    main()
