"""CAGrad's toy, a step and start: the official script's computation against the library's program.

    python -m experiments.benchmarks.toy

The script runs one start, float32, one autograd call a partial derivative, a bounded scalar search
for CAGrad's weight, `torch.optim.Adam`. The library runs all starts, signs and values of c at once,
compiled and vmapped, float64, exact weights. The table also says what unrolling costs and saves.
Writes toy.json.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from common.arguments import at_least
from common.problems import cagrad_toy
from experiments.benchmarks.measuring import timed
from experiments.benchmarks.record import Row
from experiments.benchmarks.runner import Axis, command


def script_losses(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """The two losses, operation by operation as the script has them."""
    floor = 0.000005
    f1 = torch.clamp((0.5 * (-x1 - 7) - torch.tanh(-x2)).abs(), floor).log() + 6
    f2 = torch.clamp((0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs(), floor).log() + 6
    q1 = ((-x1 + 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    q2 = ((-x1 - 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    c1, c2 = torch.clamp(torch.tanh(x2 * 0.5), 0), torch.clamp(torch.tanh(-x2 * 0.5), 0)
    return f1 * c1 + q1 * c2, f2 * c1 + q2 * c2


def script_rows(x: Tensor) -> Tensor:
    """`[task, 2]`: one autograd call for each of the four partial derivatives."""
    parts = (x[0], x[1])
    losses = script_losses(*parts)
    return torch.tensor(
        [
            [torch.autograd.grad(loss, part, retain_graph=True)[0].item() for part in parts]
            for loss in losses
        ]
    )


def script_cagrad(rows: Tensor, c: float = 0.5) -> Tensor:
    g1, g2 = rows[0], rows[1]
    g11, g12, g22 = g1.dot(g1).item(), g1.dot(g2).item(), g2.dot(g2).item()
    square = g11 + g22 - 2 * g12
    radius = c * 0.5 * np.sqrt(g11 + g22 + 2 * g12 + 1e-4)

    def goal(x: float) -> float:
        return (
            radius * np.sqrt(x**2 * square + 2 * x * (g12 - g22) + g22 + 1e-4)
            + 0.5 * x * square
            + (0.5 + x) * (g12 - g22)
            + g22
        )

    x = minimize_scalar(goal, bounds=(0, 1), method="bounded").x
    size = np.sqrt(x**2 * g11 + (1 - x) ** 2 * g22 + 2 * x * (1 - x) * g12 + 1e-4)
    return (0.5 * (g1 + g2) + radius / (size + 1e-4) * (x * g1 + (1 - x) * g2)) / (1 + c)


@cache
def script_microseconds(steps: int) -> float:
    """A step of one start, by the script's loop."""
    x = torch.tensor((-8.5, 7.5), requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=1e-3)

    def step() -> None:
        direction = script_cagrad(script_rows(x))
        optimizer.zero_grad()
        x.grad = direction
        optimizer.step()

    timed(step, times=20)
    return 1e6 * timed(step, times=steps)


def lanes_of(device: str = "cpu") -> Iterator[cagrad_toy.Lanes]:
    """The six starts alone, then all signs and hyper-parameters."""
    every = cagrad_toy.lanes_of("CAGrad", torch.zeros(0, 2, dtype=torch.float64, device=device))[0]
    yield cagrad_toy.Lanes(*(x[: len(cagrad_toy.STARTS)].clone() for x in every))
    yield every


def measure(lanes: cagrad_toy.Lanes, unroll: int, steps: int, *, compiled: bool = True) -> Row:
    """Seconds of compilation, and microseconds a step and start of all lanes as one program."""
    torch.compiler.reset()
    names, each = ("CAGrad",), (lanes.which, lanes.hyper, lanes.sign)
    state, calls = cagrad_toy.start_of(names, lanes), max(1, steps // unroll)
    make = cagrad_toy.compile_steps if compiled else lambda *given: cagrad_toy.advance(*given[:2])
    device = str(lanes.start.device)

    def step() -> None:
        nonlocal state
        state, _ = program(*each, state)

    begin = time.perf_counter()
    program = make(names, unroll, lanes, state)
    step()
    compilation = time.perf_counter() - begin
    timed(step, device, min(20, calls))
    taken = 1e6 * timed(step, device, calls) / (unroll * len(lanes.sign))
    return {"compilation_s": compilation, "library_us": taken}


def cell(given: Namespace, rule: str, lanes: int, unrolled: int) -> list[Row]:
    """That and the script's time of a step, which is taken once."""
    (some,) = (each for each in lanes_of() if len(each.sign) == lanes)
    row = {"script_us": script_microseconds(given.script_steps)}
    return [measure(some, unrolled, given.steps) | row]


def _steps(default: int, of: str) -> dict[str, Any]:
    said = f"steps of {of} that are timed (default: {default})"
    return {"type": at_least(1), "default": default, "help": said}


main = command(
    "toy",
    __doc__,
    {
        "rule": Axis("", ("CAGrad",)),
        "lanes": Axis("", [len(some.sign) for some in lanes_of()], int),
        "unrolled": Axis("unroll", (1, 2, 10), at_least(1)),
    },
    cell,
    more={
        "steps": _steps(20_000, "the library's programs"),
        "script_steps": _steps(2_000, "the script"),
    },
    about=("steps", "script_steps"),
)

if __name__ == "__main__":
    main()
