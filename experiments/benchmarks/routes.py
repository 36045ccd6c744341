"""What `engine="auto"` costs next to every way that can be asked for by hand.

    python -m experiments.benchmarks.routes [--widths W ...] [--tasks T ...] [--seconds S]

Writes routes.json and routes.md. A perceptron 64-W-W-W-T; T tasks as a vector of losses, or K
weightings of 128 samples' losses. Times of whole balanced steps with the mean as rule, on one
thread, all ways taking turns; medians. The engines: rows, whose passes are chosen, and layer
products. "auto" over the faster of these is to be at most 1.1. The second number of a cell is that
over the fastest of all ways, which has to be found by trying: rows by one batched pass and by T
single passes as well.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import Call, by_name
from experiments.benchmarks.networks import dense
from experiments.benchmarks.record import Row, markdown
from experiments.benchmarks.runner import Axis, command

BAR = 1.10
SAMPLES = 128
WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
    "auto": lambda tasks: {},
    "rows": lambda tasks: {"engine": "rows"},
    "one pass": lambda tasks: {"engine": "rows", "chunk_size": tasks},
    "single passes": lambda tasks: {"engine": "rows", "chunk_size": 1},
    "products": lambda tasks: {"engine": "layerwise"},
}


def contenders(width: int, tasks: int, weighted: bool) -> dict[str, Call]:
    """Every way to one balanced step."""
    net = dense(64, width, width, width, tasks)
    params, x = mf.parameters(net), torch.randn(SAMPLES, 64)
    matrix = torch.randn(tasks, SAMPLES)

    def losses_fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, params, x).square().mean(1 if weighted else 0)

    def step(options: dict[str, Any]) -> Call:
        given: dict[str, Any] = {"weightings": lambda x: matrix} if weighted else {}
        balance = mf.balance(losses_fn, mf.mean(), mf.jacobian(**options, **given))
        state = balance.init(params, x)
        return lambda: balance.update(params, x, state)

    return {name: step(options(tasks)) for name, options in WAYS.items()}


def measure(given: Namespace, weighted: bool, width: int, tasks: int) -> list[Row]:
    """Median seconds of every way."""
    torch.manual_seed(0)
    calls = contenders(width, tasks, weighted)
    return [{"seconds": by_name(calls, given.seconds, unit="auto")}]


def ratio(row: Row, ways: tuple[str, ...] = ("rows", "products")) -> float:
    """Of "auto" to the fastest of these ways."""
    seconds = row["seconds"]
    return seconds["auto"] / min(seconds[name] for name in ways)


def table(rows: list[Row], line: str) -> str:
    """One line a width and form, one column a number of tasks."""
    counts, lines = sorted({row["tasks"] for row in rows}), []
    for weighted in sorted({row["weighted"] for row in rows}):
        of = {(r["width"], r["tasks"]): r for r in rows if r["weighted"] == weighted}
        for width in sorted({width for width, _ in of}):
            found = [of.get((width, count)) for count in counts]
            cells = [
                "–" if row is None else f"{ratio(row):.2f} ({ratio(row, tuple(WAYS)[1:]):.2f})"
                for row in found
            ]
            lines.append(["weightings" if weighted else "vector", str(width), *cells])
    return markdown(line, ["tasks", "width", *map(str, counts)], lines)


def missed(rows: list[Row]) -> list[str]:
    """The cells above the bar."""
    return [
        f"{'weightings' if row['weighted'] else 'vector'}, width {row['width']}, {row['tasks']} "
        f"({ratio(row):.2f})"
        for row in rows
        if ratio(row) > BAR
    ]


AXES = {
    "weighted": Axis("", (False, True), bool),
    "width": Axis("widths", (16, 64, 128, 256, 512, 1024), at_least(1)),
    "tasks": Axis("tasks", (2, 3, 8, 16, 64), at_least(2)),
}
main = command("routes", __doc__, AXES, measure, table, seconds=4.0)

if __name__ == "__main__":
    main()
