"""CAGrad's toy, a step and start: the official script's computation against the library's compiled,
vmapped program, in one run.

    python -m experiments.benchmarks.toy

The script runs one start, float32, one autograd call a partial derivative, a bounded scalar search
for CAGrad's weight, `torch.optim.Adam`. The library runs all starts, signs and values of c at once,
float64, exact weights. The table also says what unrolling costs and saves.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

from mtlfunc.core.files import write_whole
from paper_repro.cagrad import toy as cagrad_toy

OUT = Path(__file__).parent / "out"
BAR = 100


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
    """`[task, 2]`: one autograd call for each of the four partial derivatives, each with respect to
    one coordinate.
    """
    parts = (x[0], x[1])
    losses = script_losses(*parts)
    return torch.tensor(
        [
            [torch.autograd.grad(loss, part, retain_graph=True)[0].item() for part in parts]
            for loss in losses
        ]
    )


def script_mean(rows: Tensor) -> Tensor:
    return rows.mean(0)


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


SCRIPT = {"GD": script_mean, "CAGrad": script_cagrad}


def script_run(name: str, start: tuple[float, float], steps: int) -> Tensor:
    """Points `[steps + 1, 2]` of the script's loop."""
    x = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=1e-3)
    points = [x.detach().clone()]
    for _ in range(steps):
        direction = SCRIPT[name](script_rows(x))
        optimizer.zero_grad()
        x.grad = direction
        optimizer.step()
        points.append(x.detach().clone())
    return torch.stack(points)


def script_microseconds(name: str, steps: int) -> float:
    """A step of one start."""
    script_run(name, (-8.5, 7.5), 20)
    begin = time.perf_counter()
    script_run(name, (-8.5, 7.5), steps)
    return 1e6 * (time.perf_counter() - begin) / steps


def library_microseconds(
    name: str, unroll: int, lanes: cagrad_toy.Lanes, steps: int
) -> tuple[float, float]:
    """(seconds of compilation, microseconds a step and start) of all lanes as one compiled program."""
    torch.compiler.reset()
    program = torch.compile(cagrad_toy.advance(name, unroll), dynamic=False, fullgraph=True)
    state = vmap(lambda hyper, sign, x: cagrad_toy.step_of(name, hyper).init({"x": x}, sign))(
        lanes.hyper, lanes.sign, lanes.start
    )
    begin = time.perf_counter()
    state, _ = program(lanes.hyper, lanes.sign, state)
    compilation = time.perf_counter() - begin
    for _ in range(20):
        state, _ = program(lanes.hyper, lanes.sign, state)
    calls = max(1, steps // unroll)
    begin = time.perf_counter()
    for _ in range(calls):
        state, _ = program(lanes.hyper, lanes.sign, state)
    return compilation, 1e6 * (time.perf_counter() - begin) / (calls * unroll * len(lanes.sign))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--steps",
        type=int,
        default=20_000,
        help="steps of the library's programs that are timed (default: 20000)",
    )
    parser.add_argument(
        "--script-steps",
        type=int,
        default=2_000,
        help="steps of the script that are timed (default: 2000)",
    )
    parser.add_argument(
        "--unroll",
        type=int,
        nargs="+",
        default=[1, 2, 10],
        help="steps a compiled call (default: 1 2 10)",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    rows = []
    for name in SCRIPT:
        script = script_microseconds(name, given.script_steps)
        everything = cagrad_toy.lanes_of(name, torch.zeros(0, 2, dtype=torch.float64))[0]
        only = cagrad_toy.Lanes(*(x[: len(cagrad_toy.STARTS)].clone() for x in everything))
        for label, lanes in {
            "six starts": only,
            "all signs and hyper-parameters": everything,
        }.items():
            if label != "six starts" and len(lanes.sign) == len(only.sign):
                continue
            for unroll in tqdm(given.unroll, desc=f"{name}, {label}", leave=False):
                compilation, library = library_microseconds(name, unroll, lanes, given.steps)
                rows.append(
                    {
                        "rule": name,
                        "lanes": len(lanes.sign),
                        "unrolled": unroll,
                        "compilation_s": compilation,
                        "library_us": library,
                        "script_us": script,
                    }
                )
                write_whole(
                    given.out / "toy.json",
                    lambda file: file.write(
                        json.dumps({"machine": machine, "rows": rows}, indent=1).encode()
                    ),
                )
                tqdm.write(
                    f"{name:<7} {len(lanes.sign):>4} lanes, {unroll:>2} steps a call: "
                    f"{library:8.3f} µs a step and start (compiled in {compilation:.0f} s), "
                    f"script {script:.0f} µs: "
                    f"{script / library:.0f}×{'' if script / library >= BAR else f', below {BAR}×'}"
                )


if __name__ == "__main__":
    main()
