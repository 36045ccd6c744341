"""One run: a method on a problem for some seconds, and its error on the way."""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.cells import Cell
from mtlfunc.types import Params

from .methods import METHODS, Steps
from .problems import PROBLEMS, Problem

MARKS = 24  # times at which the error is taken, even over the run
CPU = torch.device("cpu")


class Settings(NamedTuple):
    seconds: float
    grid: int  # points of the reference along an axis


def relative_error(net: nn.Module, params: Params, x: Tensor, exact: Tensor) -> float:
    """‖u - u*‖ / ‖u*‖ over some points; NaN where the network gives it."""
    with torch.no_grad():
        u = functional_call(net, params, (x,))[:, 0]
        return float((u - exact).norm() / exact.norm())


def seconds_now(device: torch.device) -> float:
    """This process's processor time; on another device the clock, after all work there is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def trained(
    problem: Problem, method: str, setting: float, seed: int, seconds: float, device: torch.device,
    look: Callable[[Params], float],
) -> tuple[list[float], Params, int]:  # fmt: skip
    """What `look` saw of the parameters at every mark, the last of these, and the steps taken. Only
    steps that ended before a mark count for it. What every process pays once, such as the
    compilation of kernels, is paid by a first step of another run.
    """

    def begun() -> Steps:
        net = problem.network(seed).to(device)
        return METHODS[method].way(problem, net, problem.batches(seed, device), setting)

    next(begun())
    kept = _copy(dict(problem.network(seed).to(device).named_parameters()))
    steps, seen, clock = begun(), [], 0.0
    for taken in itertools.count():
        start = seconds_now(device)
        params = next(steps)
        clock += seconds_now(device) - start
        while len(seen) < MARKS and clock > seconds * (len(seen) + 1) / MARKS:
            seen.append(look(kept))
        if len(seen) == MARKS:
            return seen, kept, taken
        kept = _copy(params)
    raise AssertionError("steps go on for ever")


def _copy(params: Params) -> Params:
    return {name: leaf.detach().clone() for name, leaf in params.items()}


def perform(settings: Settings, device: torch.device, cell: Cell) -> dict[str, Any]:
    """The relative error at every mark; the score is -log10 of the last."""
    problem = PROBLEMS[cell.problem]
    x, exact = (leaf.to(device) for leaf in problem.solution(settings.grid))
    module = problem.network(cell.seed).to(device)

    def look(params: Params) -> float:
        return relative_error(module, params, x, exact)

    seen, kept, steps = trained(
        problem, cell.method, cell.rate, cell.seed, settings.seconds, device, look
    )
    with torch.no_grad():
        field = functional_call(module, kept, (x,))[:, 0]
    score = -math.log10(seen[-1]) if 0 < seen[-1] < math.inf else -math.inf
    shown = [float(f"{u:.5g}") for u in field.tolist()]
    return {"errors": seen, "steps": steps, "score": score, "field": shown}
