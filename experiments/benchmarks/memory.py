"""Memory of a step of ResNet-18 for small images with a head for each task.

    python -m experiments.benchmarks.memory [--cases steps-2 ...]

Writes memory.json and memory.md. Counted are the bytes of all storages that operations return and
that are alive at once in the second of two steps, those of parameters aside: the same on every
machine. `steps-T`: the contenders of `experiments.benchmarks.steps` on 8 images and T tasks.
`functions-T`: tasks with 16 images of their own each, whose losses are functions or live together.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlfunc as mf
from common import memory
from experiments.benchmarks import steps
from experiments.benchmarks.networks import resnet18
from experiments.benchmarks.record import Row, markdown
from experiments.benchmarks.runner import Axis, command


def peak(net: nn.Module, step: Callable[[], Any]) -> float:
    """MiB of the second of two steps, each from no gradient on."""

    def call() -> None:
        net.zero_grad()
        step()

    found = memory.peak(call, net.parameters()) / 2**20
    net.zero_grad()
    return found


def of_functions(tasks: int, batch: int = 16, image: int = 32) -> dict[str, float]:
    """MiB of tasks with images of their own."""
    torch.manual_seed(0)
    trunk, heads = resnet18(64), nn.ModuleList(nn.Linear(64, 10) for _ in range(tasks))
    net = nn.ModuleDict({"trunk": trunk, "heads": heads})
    data = [(torch.randn(batch, 3, image, image), torch.randint(10, (batch,))) for _ in heads]
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")

    def loss(task: int) -> Tensor:
        x, y = data[task]
        return F.cross_entropy(heads[task](trunk(x)), y)

    row = sum(p.numel() * p.element_size() for p in trunk.parameters()) / 2**20
    in_turn = [partial(loss, task) for task in range(tasks)]
    return {
        "one task alone": peak(net, lambda: loss(0).backward()),
        "rows of the trunk": tasks * row,
        "functions": peak(net, lambda: balancer.backward(in_turn)),
        "losses together": peak(
            net, lambda: balancer.backward([loss(task) for task in range(tasks)])
        ),
    }


def of_steps(case: str) -> dict[str, float]:
    """MiB of every contender's step."""
    torch.manual_seed(0)
    net, x = steps.CASES[case].make()
    return {name: peak(net, call) for name, call in steps.contenders(net, x).items()}


CASES: dict[str, tuple[str, Callable[[], dict[str, float]]]] = {
    "steps-2": ("2 tasks, 8 images", partial(of_steps, "resnet-2")),
    "steps-3": ("3 tasks, 8 images", partial(of_steps, "resnet-3")),
    "steps-40": ("40 tasks, 8 images", partial(of_steps, "resnet-40")),
    "functions-3": ("3 tasks, 16 images for each", partial(of_functions, 3)),
    "functions-8": ("8 tasks, 16 images for each", partial(of_functions, 8)),
}


def measured(given: Namespace, case: str) -> list[Row]:
    """A row of the record."""
    return [{"MiB": CASES[case][1]()}]


def tables(rows: list[Row], line: str) -> str:
    """A table of the contenders' steps and one of functions, each with a case a line."""
    parts = [f"{line}\n"] if line else []
    for kind in ("steps", "functions"):
        held = {row["case"]: row["MiB"] for row in rows if row["case"].startswith(kind)}
        if held:
            names = list(dict.fromkeys(name for found in held.values() for name in found))
            cells = [
                [CASES[case][0], *(f"{found[x]:,.0f}" if x in found else "–" for x in names)]
                for case, found in held.items()
            ]
            parts += [markdown("", ["MiB of ResNet-18", *names], cells), ""]
    return "\n".join(parts)


AXES = {"case": Axis("cases", list(CASES))}
main = command("memory", __doc__, AXES, measured, tables)

if __name__ == "__main__":
    main()
