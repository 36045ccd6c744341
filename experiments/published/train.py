"""One run of a method on one of the benchmarks."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map

import mtlfunc as mf
from common.cells import Cell, Refusal, Resumable
from common.files import DataError, Source
from common.study import Numbers
from experiments.arena.contestants import CONTESTANTS
from mtlfunc.types import Optimizer, Params

from .benchmark import Batch, Benchmark, Split, Splits
from .celeba import CELEBA
from .cifar100 import CIFAR100
from .qm9 import QM9

BENCHMARKS: dict[str, Benchmark] = {"celeba": CELEBA, "cifar100": CIFAR100, "qm9": QM9}
RULES = tuple(CONTESTANTS)
CHOSEN = ("mean", "mgda", "pcgrad", "cagrad", "nash-mtl", "famo")
"""Rules that run where none are named."""

FACTOR, PATIENCE, LEAST = 0.7, 5, 1e-5
"""Of the rate on a plateau: what it is multiplied by, after how many epochs without gain, and the
smallest, as in Nash-MTL's and FAMO's code."""


class Settings(NamedTuple):
    """What a run depends on, next to its cell."""

    benchmark: str
    data: Source
    epochs: int
    batch: int  # samples; on CIFAR-100 of every task
    narrower: int  # what the network's widths are divided by
    most: int  # samples of each part that are used; 0 is all
    device: str


def alone(benchmark: Benchmark) -> tuple[str, ...]:
    """The methods that learn one task alone, in the order of the tasks."""
    return tuple(f"{task} alone" for task in benchmark.tasks)


@functools.lru_cache(maxsize=1)
def data_of(settings: Settings, seed: int, out: Path) -> Splits[Any]:
    """The parts, of a seed."""
    return BENCHMARKS[settings.benchmark].read(Path(settings.data.folder), seed, out)


def optimizer_of(benchmark: Benchmark, rate: float) -> Optimizer:
    """Whose state does not depend on the rate."""
    return mf.adam(rate) if benchmark.optimizer == "adam" else mf.sgd(rate, 0.9)


class Run(Resumable):
    """The state of a run between two epochs."""

    KEPT = ("params", "buffers", "balanced", "moments", "done", "seconds", "steps")
    KEPT += ("curve", "best")

    def __init__(self, settings: Settings, cell: Cell, out: Path) -> None:
        self.settings, self.cell = settings, cell
        self.benchmark = benchmark = BENCHMARKS[settings.benchmark]
        self.data, single = data_of(settings, cell.seed, out), alone(benchmark)
        self.learnt = single.index(cell.method) if cell.method in single else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            self.net = benchmark.network(settings.narrower).to(settings.device)
        self.params = mf.parameters(self.net)
        self.buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        self.batches = 1
        if self.learnt is not None:
            weight = torch.eye(len(benchmark.tasks), device=settings.device)[self.learnt]
            rule, probe = mf.mean(preference=weight), mf.losses_only()
        else:
            contestant = CONTESTANTS[cell.method]
            rule, probe = contestant.rule(), contestant.probe("trunk.*")
            self.batches = contestant.batches
            if cell.method == "dwa":  # whose unit is an epoch
                rule = mf.dwa(math.ceil(self.count(self.data.train) / settings.batch))
        self.balance = mf.balance(self.losses, rule, probe, has_aux=True)
        self.moments = optimizer_of(benchmark, cell.rate).init(self.params)
        self.balanced: Any = None
        self.seconds, self.steps = 0.0, 0
        self.curve: list[float] = []  # validation score after every epoch
        self.best: dict[str, Any] = {}

    def count(self, split: Split) -> int:
        """How many samples of a part are used."""
        return min(len(split), self.settings.most or len(split))

    def losses(self, params: Params, batch: tuple[Batch, Params]) -> tuple[Tensor, Params]:
        """The tasks' losses, and the buffers of batch norm as the step leaves them."""
        seen, buffers = batch
        after = {name: value.clone() for name, value in buffers.items()}
        outputs = functional_call(self.net, (params, after), (seen.inputs,))
        return self.benchmark.losses(outputs, seen.targets), after

    def batch(self, split: Split, index: Sequence[int]) -> Batch:
        """Some samples on the device: those of the task, where one is learnt alone."""
        found = split.take(index)
        if self.learnt is not None:
            found = self.benchmark.only(found, self.learnt)
        return tree_map(lambda leaf: leaf.to(self.settings.device), found)

    def rates(self) -> Callable[[float], float]:
        """The learning rate after a share of the epoch."""
        schedule, epochs = self.benchmark.schedule, self.settings.epochs
        rate = plateau(self.curve, self.cell.rate) if schedule == "plateau" else self.cell.rate
        if schedule == "cosine":
            return lambda share: rate * (1 + math.cos(math.pi * (self.done + share) / epochs)) / 2
        return lambda share: rate

    def advance(self) -> None:
        """Every training sample once, in an order of the seed and the epoch; then validation. Rules
        that ask for several batches get others, drawn with replacement.
        """
        self.net.train()
        generator = torch.Generator().manual_seed(1_000_003 * self.cell.seed + self.done)
        count, size = self.count(self.data.train), self.settings.batch
        order, rate = torch.randperm(count, generator=generator).tolist(), self.rates()
        for first in range(0, count, size):
            chosen = [order[first : first + size]]
            for _ in range(self.batches - 1):
                chosen.append(torch.randint(count, (size,), generator=generator).tolist())
            every = tuple((self.batch(self.data.train, i), self.buffers) for i in chosen)
            seen = every if self.batches > 1 else every[0]
            begun = time.process_time()
            with Refusal() as refusal:
                if self.balanced is None:
                    self.balanced = self.balance.init(self.params, seen, self.cell.seed)
                grads, self.balanced, info = self.balance.update(self.params, seen, self.balanced)
                optimizer = optimizer_of(self.benchmark, rate(first / count))
                self.params, self.moments = optimizer.update(grads, self.moments, self.params)
                # of several batches the statistics of the first are kept
                self.buffers = info.aux if self.batches == 1 else info.aux[0]
                self.seconds += time.process_time() - begun
                self.steps += 1
            if refusal.came:
                self.failed = True
                return
        values = self.measure(self.data.validation)
        score = self.score(values)
        self.failed = not math.isfinite(score)
        if not self.failed and (not self.curve or score > max(self.curve)):
            test = self.measure(self.data.test)
            self.best = {"epoch": self.done + 1, "validation": values, "test": test}
        self.curve.append(score)
        self.done += 1

    def score(self, values: list[float]) -> float:
        """Of validation metrics, higher is better: of one task, where it is learnt alone."""
        if self.learnt is None:
            return self.benchmark.score(values)
        return values[self.learnt] * (1 if self.benchmark.higher_is_better else -1)

    @torch.no_grad()
    def measure(self, split: Split) -> list[float]:
        """The metric by task; NaN where parameters are no longer finite."""
        if not all(bool(leaf.isfinite().all()) for leaf in self.params.values()):
            return [math.nan] * len(self.benchmark.tasks)
        self.net.eval()
        count, size, sums = self.count(split), self.settings.batch, torch.zeros(())
        for first in range(0, count, size):
            seen = self.batch(split, range(first, min(first + size, count)))
            outputs = functional_call(self.net, (self.params, self.buffers), (seen.inputs,))
            sums = sums + self.benchmark.tally(outputs, seen.targets).cpu()
        return self.benchmark.measured(sums).tolist()

    def numbers(self) -> Numbers:
        """What the run leaves."""
        tasks = self.benchmark.tasks
        chosen = [self.learnt] if self.learnt is not None else range(len(tasks))
        good = bool(self.best) and not self.failed
        nothing = [math.nan] * len(tasks)
        test = self.best["test"] if good else nothing
        return {
            "score": max(self.curve) if good else math.nan,
            "test": {tasks[i]: test[i] for i in chosen},
            "epoch": self.best["epoch"] if good else 0,
            "curve": self.curve,
            "step_ms": 1e3 * self.seconds / self.steps if self.steps else math.nan,
        }


def plateau(scores: list[float], rate: float) -> float:
    """The rate after some epochs: `torch.optim.lr_scheduler.ReduceLROnPlateau` of minus the scores,
    which is Δm on QM9.
    """
    held = torch.optim.SGD([torch.zeros(())], rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        held, "min", factor=FACTOR, patience=PATIENCE, min_lr=LEAST
    )
    for score in scores:
        schedule.step(-score)
    return held.param_groups[0]["lr"]


def perform(settings: Settings, out: Path, unfinished: Path, cell: Cell) -> Numbers:
    """Train and measure one run. `settings`: what all cells share. `out`: folder of what is kept of
    the data. `unfinished`: folder of what runs keep after every epoch, so as to go on from there.
    `cell`: rule, rate and seed. Returns `score` (best on validation samples, higher is better),
    `test` (the metric by task, after the epoch of that score), `epoch` (which that is), `curve`
    (score by epoch), `step_ms` (mean processor time of a step). A run whose numbers stop being
    finite has NaN for score and test. Raises DataError for data that cannot be read.
    """
    run = Run(settings, cell, out)
    if not run.count(run.data.train):
        raise DataError(f"{settings.data}: there is no training sample")
    return run.to_end(unfinished, settings.epochs, "epochs")
