"""One rule on one problem: all seeds and all learning rates as one vmapped program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ...core import random
from ...core.optim import adam
from ...probes import losses_only
from ...rules import mean
from ...training import balance
from ...types import Batch, Optimizer, Params, Probe, Rule
from .problems import BenchmarkProblem

STATIC = "static search"  # the baseline to beat: the best constant weights of a grid
TUNING = 1_000_000  # seeds from here on choose rates and static weights, those from 0 are reported


class Contestant(NamedTuple):
    """A rule and the probe it measures with, both made for every problem."""

    rule: Callable[[], Rule]
    probe: Callable[[str], Probe]  # from the glob of the shared parameters
    batches: int = 1  # independent ones a step; from 2 on the probe gets a tuple of them
    logs: bool = False  # whether it balances the logarithms of the losses


class Settings(NamedTuple):
    """Of a study; equal ones give equal results."""

    seeds: int = 16  # that results are taken on
    tuning: int = 8  # other seeds, that learning rates and static weights are chosen on
    budget: float = 1.0  # times the problem's own number of steps
    optimizer: Callable[[Tensor], Optimizer] = adam  # of the learning rate, which falls to 0


class Cell(NamedTuple):
    """One rule on one problem, at every configuration (a learning rate; for the static search also
    weights) and seed, tuning seeds first.
    """

    lr: Float[Tensor, " config"]
    weights: Float[Tensor, "config task"] | None  # of the static search
    start: Float[Tensor, "seed task"]
    losses: Float[Tensor, "config seed task"]  # at the end
    step_ms: float  # median wall time of one step of all configurations and seeds together
    error: str  # what the rule raised; empty if nothing


def _now(device: torch.device) -> float:
    """Seconds of the wall clock, when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compete(problem: BenchmarkProblem, contestant: Contestant | None, settings: Settings) -> Cell:
    """All tuning and reporting seeds of a rule at all learning rates in one vmapped program;
    nothing that it raises comes through.

    Step k is `descend` with the optimizer at learning rate lr·(1 - k/steps). A seed's key fixes
    start, data and batches, the same for every rule, and the rule's own randomness.

    Args:
        contestant: None is the static search: the mean with every weight vector of `static_grid` at
            every learning rate.
    """
    tasks = len(problem.ideal)
    seeds = torch.cat([TUNING + torch.arange(settings.tuning), torch.arange(settings.seeds)])
    lr = torch.tensor(problem.rates, dtype=torch.float64)
    weights = torch.full_like(lr[:1, None], 1 / tasks).expand(-1, tasks)
    weights = weights if contestant else static_grid(tasks)
    grids = lr[:, None].expand(-1, len(weights)), weights.expand(len(lr), -1, -1)
    configs = [grid.flatten(0, 1) for grid in grids]
    times: list[float] = []
    steps = max(1, round(settings.budget * problem.steps))
    evaluate = problem.evaluate or problem.losses

    def run(seed: Tensor, lr: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [task] at the start and at the end of one run."""
        key = random.key(seed)
        rival = contestant or Contestant(lambda: mean(preference=weights), lambda _: losses_only())
        params, data = problem.draw(random.fold_in(key, 0))

        def losses(params: Params, batch: Batch) -> Tensor:
            found = problem.losses(params, batch)
            return found.log() if rival.logs else found

        method = balance(losses, rival.rule(), rival.probe(problem.shared))
        start = evaluate(params, data)

        def batch_of(k: int) -> Batch:
            """That of step k, or a tuple of them; the first one is the same for every rule."""
            this = random.fold_in(random.fold_in(key, 1), k)
            keys = (this if i == 0 else random.fold_in(this, i) for i in range(rival.batches))
            drawn = tuple(problem.batch(data, key) for key in keys)
            return drawn if rival.batches > 1 else drawn[0]

        state = method.init(params, batch_of(0), random.fold_in(key, 2))
        moments = settings.optimizer(lr).init(params)
        for k in range(steps):
            batch = batch_of(k)
            began = _now(lr.device)
            grads, state, _ = method.update(params, batch, state)
            optimizer = settings.optimizer(lr * (1 - k / steps))
            params, moments = optimizer.update(grads, moments, params)
            times.append(_now(lr.device) - began)
        return start, evaluate(params, data)

    error = ""
    try:
        start, losses = vmap(vmap(run, (0, None, None)), (None, 0, 0))(seeds, *configs)
        start, losses = start[0].double(), losses.double()
    except Exception as raised:  # whatever a rule under study does is a finding, not a traceback
        error = _explain_error(raised)
        nothing = torch.full((len(configs[0]), len(seeds), tasks), torch.nan, dtype=torch.float64)
        start, losses = nothing[0], nothing
    median = 1e3 * sorted(times)[len(times) // 2] if times else float("nan")
    searched = configs[1] if contestant is None else None
    return Cell(configs[0], searched, start, losses, median, error)


def static_grid(tasks: int) -> Float[Tensor, "point task"]:
    """Weights whose ratios to the last one run from 1/100 to 100: 9 for two tasks, 25 for three."""
    ticks = torch.linspace(-2, 2, 9 if tasks == 2 else 5, dtype=torch.float64)
    powers = torch.cartesian_prod(*[ticks] * (tasks - 1)).reshape(-1, tasks - 1)
    ratios = torch.cat([10**powers, torch.ones(len(powers), 1, dtype=torch.float64)], -1)
    return ratios / ratios.sum(-1, keepdim=True)


def _explain_error(raised: Exception) -> str:
    """One line of an exception, or what to do about the commonest ones."""
    line = (str(raised).strip().splitlines() or [""])[0]
    if line.startswith("vmap:"):
        why = "reads a value" if ".item()" in line else "does what vmap cannot"
        why = "branches on a value" if "control flow" in line else why
        cure = "use torch.where, and no .item(), float() or boolean indexing"
        line = f"{why}, but all seeds run in one vmap: {cure}"
    return f"{type(raised).__name__}: {line[:200]}"
