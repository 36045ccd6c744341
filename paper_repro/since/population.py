"""Does a population find a grid's best static weights with fewer runs where there are more tasks?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.grids import at_edge
from ..report.intervals import half_width, named, ratio_interval
from .common import Data, losses, network, normal
from .decisions import claim

TASKS = (2, 3, 4)
INPUTS, HIDDEN, TRAIN, HELD_OUT = 8, 4, 64, 256
LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # log10 of every weight but the first in the grid
RUNS, ROUNDS, REPLACED = 10, 10, 2  # of a population; runs that are replaced after a round
STEP = 2.0  # the factor by which a copied run's weights are multiplied or divided
RATE = 1e-2


class Problem(NamedTuple):
    """Of one seed; targets have unlike scales."""

    start: mf.types.Params
    train: Data
    valid: Data
    test: Data
    scale: Tensor  # [task], the variance of the targets in training


def drawn(seed: Tensor, tasks: int) -> Problem:
    key = mf.random.fold_in(mf.random.key(41), seed)
    x = normal(key, 0, TRAIN + 2 * HELD_OUT, INPUTS)
    clean = (2 * x @ normal(key, 1, INPUTS, 2 * tasks) / INPUTS**0.5).tanh()
    clean = clean @ normal(key, 2, 2 * tasks, tasks)
    spread = 10 ** (mf.random.uniform(mf.random.fold_in(key, 3), (tasks,)).double() - 0.5)
    y = spread * (clean + 0.3 * normal(key, 4, len(x), tasks))
    parts = [
        Data(*part) for part in zip(*(z.split([TRAIN, HELD_OUT, HELD_OUT]) for z in (x, y)), strict=True)
    ]
    return Problem(network(key, INPUTS, HIDDEN, tasks), *parts, parts[0].y.var(0))


class Race:
    """Runs with static weights side by side, `[seed, run]`."""

    def __init__(self, problems: Problem, logs: Tensor) -> None:
        """`logs[seed, run, task]`: log10 of the weights."""
        self.problems, self.logs = problems, logs
        start = vmap(vmap(lambda p, log: self._step(log).init(p.start, p.train), (None, 0)))
        self.state = start(problems, logs)

    @staticmethod
    def _step(logs: Tensor) -> mf.Step:
        rule = mf.mean(preference=10**logs)
        return mf.descend(losses, rule, mf.losses_only(), mf.adam(RATE))

    def train(self, steps: int) -> None:
        def move(problem: Problem, log: Tensor, state: mf.TrainState) -> mf.TrainState:
            return self._step(log).update(state, problem.train)[0]

        forward = vmap(vmap(move, (None, 0, 0)))
        for _ in range(steps):
            self.state = forward(self.problems, self.logs, self.state)

    def scores(self, part: str) -> Tensor:
        """Mean over tasks of the loss over the targets' variance, `[seed, run]`."""

        def score(problem: Problem, params: mf.types.Params) -> Tensor:
            return (losses(params, getattr(problem, part)) / problem.scale).mean()

        return vmap(vmap(score, (None, 0)))(self.problems, self.state.params)

    def evolve(self, key: Tensor) -> None:
        """The worst runs go on from the best ones, with other weights."""
        seeds, runs = self.logs.shape[:2]
        order = self.scores("valid").argsort(1)
        worst = order[:, -REPLACED:]
        source = torch.arange(runs).expand(seeds, -1).scatter(1, worst, order[:, :REPLACED])
        rows = torch.arange(seeds)[:, None]
        self.state = tree_map(lambda leaf: leaf[rows, source], self.state)
        up = mf.random.uniform(key, tuple(self.logs.shape)) < 0.5
        moved = torch.zeros(seeds, runs, 1).scatter(1, worst[..., None], 1.0)
        turn = np.log10(STEP) * torch.where(up, 1.0, -1.0)
        self.logs = self.logs[rows, source] + moved * turn

    def ended(self) -> np.ndarray:
        """The test score of the run that is best on validation data, `[seed]`."""
        best = self.scores("valid").argmin(1, keepdim=True)
        return self.scores("test").gather(1, best).flatten().numpy()


class Ends(NamedTuple):
    """Test scores, `[seed]`, and the runs that each search took."""

    grid: np.ndarray
    population: np.ndarray
    draws: np.ndarray  # as many random weights as the population has runs
    runs: int  # of the grid
    edge: bool  # its best weights lie, in most seeds, at its edge


def searched(tasks: int, settings: Settings, steps: int) -> Ends:
    seeds = torch.arange(settings.seeds)
    problems = vmap(lambda seed: drawn(seed, tasks))(seeds)
    key = mf.random.fold_in(mf.random.key(42), tasks)
    level = torch.tensor(LEVELS, dtype=torch.float64)
    points = torch.cartesian_prod(*[level] * (tasks - 1)).reshape(-1, tasks - 1)
    points = torch.cat([torch.zeros(len(points), 1), points], 1)
    span = LEVELS[-1] - LEVELS[0]
    random = span * mf.random.uniform(key, (2, len(seeds), RUNS, tasks)).double() + LEVELS[0]
    grid, population, draws = (
        Race(problems, logs) for logs in (points.expand(len(seeds), -1, -1), *random)
    )
    grid.train(steps)
    draws.train(steps)
    for number in range(ROUNDS):
        population.train(steps // ROUNDS)
        if number + 1 < ROUNDS:
            population.evolve(mf.random.fold_in(key, number + 1))
    best = points[grid.scores("valid").argmin(1), 1:]
    outside = (best.abs() == LEVELS[-1]).any(1).double().mean()
    ends = (race.ended() for race in (grid, population, draws))
    return Ends(*ends, runs=len(points), edge=bool(outside > 0.5))


def run(settings: Settings) -> Findings:
    steps = max(ROUNDS, settings.count(200) // ROUNDS * ROUNDS)
    found = {tasks: searched(tasks, settings, steps) for tasks in tqdm(TASKS, leave=False)}
    yield fewer_runs(found, steps, settings)
    yield scores(found, steps, settings)
