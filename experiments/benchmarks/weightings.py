"""The time of the Gramian and combined gradient of K weightings of samples, in plain steps.

    python -m experiments.benchmarks.weightings [--networks mlp ...] [--tasks K ...] [--seconds S]

Writes weightings.json and weightings.md. A plain step is one forward pass and one `backward()` of
the samples' mean loss. Every contender makes the losses, the Gramian of K tasks A ℓ with normal
random A, and leaves their combination by fixed weights in `.grad`; no solver is timed. All take
turns, so that what else the machine does hits them alike; smallest of the processor's times on one
thread. Peers: K passes, a loop of `torch.autograd.grad` whose rows are multiplied and combined; and
TorchJD where it is installed, its Gramian without rows and one more `backward()`.
"""

import copy
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import Call, by_name
from experiments.benchmarks.networks import GPT, Squares, dense
from experiments.benchmarks.record import Row, markdown, units
from experiments.benchmarks.runner import Axis, command
from experiments.benchmarks.steps import write
from mtlfunc.types import Balance


def _convolutions() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 64, 10),
    )  # fmt: skip
    return Squares(net), torch.randn(32, 3, 32, 32)


class Case(NamedTuple):
    make: Callable[[], tuple[nn.Module, Tensor]]
    what: str
    bars: dict[int, float]  # for K tasks, plain steps at most


CASES = {
    "mlp": Case(
        lambda: (Squares(dense(512, 512, 512, 512)), torch.randn(128, 512)),
        "MLP 3 × 512, 128 samples",
        {64: 3.0},
    ),
    "convolutions": Case(_convolutions, "convolutions, 32 images", {}),
    "gpt": Case(
        lambda: (GPT(3, 128, 64), torch.randint(64, (24, 65))),
        "GPT, 3 layers, width 128, 24 × 64 tokens",
        {64: 3.0},
    ),
}
LEAST = 1.1  # at K = 2, times K passes
LOOP, OURS = "K passes", ("mf.Balancer", "mf.balance")
NAMES = (LOOP, "TorchJD", *OURS)


def pure_step(net: nn.Module, matrix: Tensor) -> Balance:
    """Gradients of the mean of the tasks `matrix @ losses`, and their Gramian, as a function."""
    return mf.balance(
        lambda params, batch: functional_call(net, params, (batch,)),
        mf.mean(),
        mf.jacobian(weightings=lambda batch: matrix),
    )


def plain_step(net: nn.Module, x: Tensor) -> Call:
    """Of the samples' mean loss."""

    def plain() -> None:
        net.zero_grad()
        net(x).mean().backward()

    return plain


def contenders(net: nn.Module, x: Tensor, tasks: int) -> dict[str, Call]:
    """A plain step, and every way to a Gramian and a combination; each starts without gradients."""
    leaves = list(net.parameters())
    matrix = torch.randn(tasks, len(x), device=x.device)
    weights = torch.full((tasks,), 1 / tasks, device=x.device)

    def loop() -> None:
        net.zero_grad()
        rows = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in matrix @ net(x)]
        jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])
        gramian = jacobian @ jacobian.T
        write(weights.to(gramian) @ jacobian, leaves)

    @cache  # at the first step: a Balancer takes TorchJD's hooks, if they come later, for its own
    def balancer() -> mf.Balancer:
        return mf.Balancer(net, mf.mean())

    def live() -> None:
        net.zero_grad()
        balancer().backward(net(x), weightings=matrix)

    step = pure_step(net, matrix)
    state = step.init(mf.parameters(net), x)

    def pure() -> None:
        mf.assign_gradients(net, step.update(mf.parameters(net), x, state)[0])

    found = {"plain": plain_step(net, x), LOOP: loop, "mf.Balancer": live, "mf.balance": pure}
    try:
        from torchjd.autogram import Engine
    except ImportError:
        return found
    engine = Engine(apart := copy.deepcopy(net), batch_dim=None)  # its hooks stay on the modules

    def peer() -> None:
        apart.zero_grad()
        losses = matrix @ apart(x)
        engine.compute_gramian(losses)
        (weights @ losses).backward()

    return found | {"TorchJD": peer}


def measure(given: Namespace, network: str, tasks: int) -> list[Row]:
    """Smallest seconds of every contender that runs."""
    torch.manual_seed(0)
    calls = contenders(*CASES[network].make(), tasks)
    return [{"seconds": by_name(calls, given.seconds, min)}]


def table(rows: list[Row], line: str) -> str:
    """Ratios to the plain step, a network and K a line; `line` says how they were taken."""
    lines = []
    for row in rows:
        seconds, bar = row["seconds"], bar_of(row)
        cells = [CASES[row["network"]].what, str(row["tasks"]), f"{1e3 * seconds['plain']:.3g}"]
        lines.append([*cells, *units(seconds, NAMES), f"{bar:.2f}" if bar else "–"])
    return markdown(line, ["network", "K", "plain step, ms", *NAMES, "bar"], lines)


def bar_of(row: Row) -> float | None:
    """Plain steps that ours may take at most, where there is a bar."""
    if row["tasks"] == 2:
        return LEAST * row["seconds"][LOOP] / row["seconds"]["plain"]
    return CASES[row["network"]].bars.get(row["tasks"])


def missed(rows: list[Row]) -> list[str]:
    """Where one of ours is above its bar."""
    return [
        f"{row['network']}, K = {row['tasks']}: {name}"
        for row in rows
        for name in OURS
        if (bar := bar_of(row)) and row["seconds"][name] > bar * row["seconds"]["plain"]
    ]


AXES = {
    "network": Axis("networks", list(CASES)),
    "tasks": Axis("tasks", [2, 4, 16, 64], at_least(1)),
}
SECONDS = 8.0, "for all contenders of a network and K"
main = command("weightings", __doc__, AXES, measure, table, seconds=SECONDS)

if __name__ == "__main__":
    main()
