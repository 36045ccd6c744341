"""Memory of a step of ResNet-18 for small images with a head for each task.

    python -m experiments.benchmarks.memory [--cases resnet-2 ...]

Writes memory.json and memory.md. Counted are the bytes of all storages that operations return and
that are alive at once in the second of two steps, those of parameters aside: the same on every
machine. The contenders are those of `experiments.benchmarks.steps`.
"""

from argparse import Namespace

import torch

from common import memory
from experiments.benchmarks import steps
from experiments.benchmarks.record import Row, markdown
from experiments.benchmarks.runner import Axis, command

CASES = {f"resnet-{tasks}": f"{tasks} tasks, 8 images" for tasks in (2, 3, 40)}


def measured(given: Namespace, case: str) -> list[Row]:
    """MiB of every contender's step, as a row of the record."""
    torch.manual_seed(0)
    net, x = steps.CASES[case].make()
    calls = steps.contenders(net, x)
    found = {name: memory.peak(call, net.parameters()) for name, call in calls.items()}
    return [{"MiB": {name: size / 2**20 for name, size in found.items()}}]


def table(rows: list[Row], line: str) -> str:
    """A case a line, a contender a column."""
    names = list(dict.fromkeys(name for row in rows for name in row["MiB"]))
    cells = [
        [CASES[row["case"]], *(f"{row['MiB'][x]:,.0f}" if x in row["MiB"] else "–" for x in names)]
        for row in rows
    ]
    return markdown(line, ["MiB of ResNet-18", *names], cells)


AXES = {"case": Axis("cases", list(CASES))}
main = command("memory", __doc__, AXES, measured, table)

if __name__ == "__main__":
    main()
