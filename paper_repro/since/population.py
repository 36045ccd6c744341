"""Does a population find a grid's best static weights with fewer runs?"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import MATCH
from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, ratio_interval
from .common import Data, losses, network, normal

CLAIMS = {
    "SI-15": Row(
        "Royer et al. 2023: population-based training searches efficiently for the weights of a "
        "scalarization when there are many tasks: it finds a grid's best with fewer runs.",
        sided(
            ("T = *: the population's loss over the grid's best", "<", MATCH),
            ("T = *: the population's loss over as many draws'", "<", 1),
        ),
        instead="benchmarks of images",
    )
}

TASKS = (3, 4)
INPUTS, HIDDEN = 8, 4
SPLIT = (64, 256, 256)  # samples to train on, to choose by and to test
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


def drawn(seed: Tensor, tasks: int) -> Problem:
    key = mf.random.fold_in(mf.random.key(41), seed)
    x = normal(key, 0, sum(SPLIT), INPUTS)
    clean = (2 * x @ normal(key, 1, INPUTS, 2 * tasks) / INPUTS**0.5).tanh()
    clean = clean @ normal(key, 2, 2 * tasks, tasks)
    spread = 10 ** (mf.random.uniform(mf.random.fold_in(key, 3), (tasks,)).double() - 0.5)
    y = spread * (clean + 0.3 * normal(key, 4, len(x), tasks))
    train, valid, test = map(Data, x.split(SPLIT), y.split(SPLIT))
    return Problem(network(key, INPUTS, HIDDEN, tasks), train, valid, test)


class Race:
    """Runs with static weights side by side, `[seed, run]`."""

    def __init__(self, problems: Problem, logs: Tensor) -> None:
        """`logs[seed, run, task]`: log10 of the weights."""
        self.problems, self.logs = problems, logs

        def step_of(log: Tensor) -> mf.Step:
            rule = mf.mean(preference=10**log)
            return mf.descend(losses, rule, mf.losses_only(), mf.adam(RATE))

        start = vmap(vmap(lambda p, log: step_of(log).init(p.start, p.train), (None, 0)))
        every = vmap(vmap(lambda p, log, s: step_of(log).update(s, p.train)[:1], (None, 0, 0)))
        self.state = start(problems, logs)
        self.move = replayed(lambda state, problems, logs: every(problems, logs, state))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            (self.state,) = self.move(self.state, self.problems, self.logs)

    def scores(self, part: str) -> Tensor:
        """Mean over tasks of the loss over the targets' variance, `[seed, run]`."""

        def score(problem: Problem, params: mf.types.Params) -> Tensor:
            return (losses(params, getattr(problem, part)) / problem.train.y.var(0)).mean()

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


def searched(tasks: int, seeds: int, steps: int) -> list[np.ndarray]:
    """Test scores `[seed]` of a grid, of a population, and of as many random weights."""
    problems = vmap(lambda seed: drawn(seed, tasks))(torch.arange(seeds))
    key = mf.random.fold_in(mf.random.key(42), tasks)
    level = torch.tensor(LEVELS, dtype=torch.float64)
    points = torch.cartesian_prod(level[2:3], *[level] * (tasks - 1)).expand(seeds, -1, -1)
    span = LEVELS[-1] - LEVELS[0]
    random = span * mf.random.uniform(key, (2, seeds, RUNS, tasks)).double() + LEVELS[0]
    races = grid, population, draws = [Race(problems, logs) for logs in (points, *random)]
    grid.train(steps)
    draws.train(steps)
    for number in range(ROUNDS):
        population.train(steps // ROUNDS)
        if number + 1 < ROUNDS:
            population.evolve(mf.random.fold_in(key, number + 1))
    return [race.ended() for race in races]


def run(settings: Settings) -> Findings:
    steps = max(ROUNDS, settings.count(200) // ROUNDS * ROUNDS)
    numbers: dict[str, float] = {}
    for tasks in tqdm(TASKS, leave=False):
        grid, population, draws = searched(tasks, settings.seeds, steps)
        label = f"T = {tasks}: the population's loss over"
        numbers |= named(f"{label} the grid's best", ratio_interval(population, grid))
        numbers |= named(f"{label} as many draws'", ratio_interval(population, draws))
    yield Claim(
        "SI-15",
        numbers,
        f"regressions of tasks of unlike scales on a shared layer of {HIDDEN} units, {steps} steps "
        f"of Adam {RATE:g}, {settings.seeds} seeds. A grid of {len(LEVELS)} weights a task (1/100 "
        f"to 100) but for the first; a population of {RUNS} that begin at random weights between "
        f"these, of which the worst {REPLACED} go on from the best {REPLACED} after each of "
        f"{ROUNDS} rounds, each weight times or over {STEP:g}; as many random weights that stay. "
        "Mean over tasks of the test loss over the targets' variance, of the run that is best on "
        "validation data. Geometric means of ratios paired by seed, 95 % t intervals",
    )
