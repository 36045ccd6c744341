"""Runs of one rule, as one vmapped program over rates and seeds or one after the other."""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

import mtlfunc as mf
from common.cells import Cell, Refusal, Resumable
from common.files import DataError, Source
from common.progress import counted
from common.study import Numbers
from mtlfunc import Probe, Rule
from mtlfunc.types import BalanceState, Params, State

from .data import HELD_OUT, Benchmark, Held, Part, Split, augment, find, read
from .metrics import METRICS, TASKS, Scores, losses, metrics_of
from .render import CLASSES, HEIGHT, WIDTH, Views, views
from .segnet import SegNet, SegNetMTAN
from .small import Small

STATIC = "static search"
ALONE = {task: f"{task} alone" for task in TASKS}
ROOMS = Benchmark("rooms", TASKS, len(CLASSES), (HEIGHT, WIDTH), (224, 128), 8, (), False)
VALIDATION = 96  # rooms that choose rates and weights


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    data: Source | None  # NYUv2 or CityScapes; None for rooms
    epochs: int
    width: int  # of the small network; 0 takes SegNet-MTAN, and SegNet for one task alone
    halved_every: int  # epochs; 0 for a rate that falls to 0 along a cosine
    averaged: int  # last epochs whose test metrics are averaged
    held_out: bool  # choose rates on a part of the training images; else no rate is chosen
    device: str


def benchmark_of(settings: Settings) -> Benchmark:
    """The rooms, or what the folder holds."""
    return find(Path(settings.data.folder)) if settings.data else ROOMS


def weightings(tasks: Sequence[str]) -> tuple[str, ...]:
    """The static search's candidates: equal weights, and each task's loss four times as heavy."""
    equal = ["1"] * len(tasks)
    heavier = [":".join([*equal[:i], "4", *equal[i + 1 :]]) for i in range(len(tasks))]
    return (":".join(equal), *heavier)


RULES = ("mean", STATIC, "mgda", "mgda_ub", "pcgrad", "cagrad", "gradnorm", "nash_mtl", "famo")


def method(cell: Cell, net: nn.Module, tasks: Sequence[str], device: str) -> tuple[Probe, Rule]:
    """Probe and rule; the shared parameters are `trunk.*` in both networks."""
    # methods that combine gradients leave the heads the mean loss's, so that trunks compare
    trunk, plain = "trunk.*", mf.jacobian("trunk.*", heads="plain")
    measured = "trunk.up.1.*" if isinstance(net, Small) else "trunk.decode_last.0.*"
    if cell.method == STATIC:
        weight = torch.tensor([float(x) for x in cell.variant.split(":")], device=device)
        return mf.losses_only(), mf.mean(preference=weight)
    table = {
        "mean": lambda: (mf.losses_only(), mf.mean()), "mgda": lambda: (plain, mf.mgda()),
        "mgda_ub": lambda: (_at_representation(net, trunk), mf.mgda()),
        "pcgrad": lambda: (plain, mf.pcgrad()), "cagrad": lambda: (plain, mf.cagrad(0.4)),
        "gradnorm": lambda: (mf.jacobian(measured), mf.gradnorm(1.5)),
        "nash_mtl": lambda: (plain, mf.nash_mtl(rescale="sum")),
        "famo": lambda: (mf.second_evaluation(mf.losses_only()), mf.famo()),
    }  # fmt: skip
    return table["mean" if cell.method in ALONE.values() else cell.method]()


def _at_representation(net: nn.Module, trunk: str) -> Probe:
    if not isinstance(net, Small):
        raise ValueError("mgda_ub needs one representation between the trunk and every head")
    shared, heads = net.trunk, net.heads

    def own(params: Params, prefix: str) -> Params:
        return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}

    def encode(params: Params, batch: tuple[Views, Params]) -> Tensor:
        return functional_call(shared, own(params, "trunk."), (batch[0].image,))

    def decode(params: Params, z: Tensor, batch: tuple[Views, Params]) -> Any:
        outputs = {
            task: functional_call(head, own(params, f"heads.{task}."), (z,))
            for task, head in heads.items()
        }
        return losses(outputs, batch[0]), batch[1]

    return mf.representation(encode, decode, shared=trunk, heads="plain")


class Data(NamedTuple):
    """What one run reads."""

    train: Split
    validation: Split | None
    test: Split


@functools.lru_cache(maxsize=32)  # of the seeds that run together; rooms take 14 MB each
def data_of(settings: Settings, seed: int) -> Data:
    """Rooms of this seed, drawn for each; or the folder's images, the same for all seeds."""
    if settings.data:
        benchmark = benchmark_of(settings)
        train, test = read(Path(settings.data.folder), benchmark)
        if not settings.held_out:
            return Data(train, None, test)
        chosen = range(0, len(train), HELD_OUT)
        kept = tuple(i for i in range(len(train)) if i not in chosen)
        return Data(Part(train, kept), Part(train, tuple(chosen)), test)
    key = mf.random.key(seed)
    counts = (ROOMS.counts[0], VALIDATION, ROOMS.counts[1])
    return Data(*(Held(views(mf.random.fold_in(key, i), n)) for i, n in enumerate(counts)))


def network(settings: Settings, benchmark: Benchmark, tasks: Sequence[str], seed: int) -> nn.Module:
    """Its first weights are a function of the seed, the trunk's whatever the tasks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.width:
            return Small(benchmark.classes, tasks, settings.width)
        if len(tasks) == 1:
            return SegNet(benchmark.classes, tasks[0])
        return SegNetMTAN(benchmark.classes, tasks)


def perform(settings: Settings, unfinished: Path, cell: Cell) -> Numbers:
    """Train and measure one run. `settings`: what all cells share. `unfinished`: folder of what
    long runs keep after every epoch, so as to go on from there. `cell`: rule, rate and seed.
    Returns `score` (validation), `test`, `pooled` (the same with LibMTL's averages) and
    `validation` by metric, `weights` by task (mean over steps), `step_ms` (median processor time,
    of several runs together a run's share), `losses` (training loss of the last epoch by task). A
    run whose numbers stop being finite has NaN everywhere.
    """
    return Run(settings, cell).to_end(unfinished, settings.epochs, "epochs", not settings.width)


def together(settings: Settings, unfinished: Path, cells: Sequence[Cell]) -> list[Numbers]:
    """Rooms: cells that differ in rate and seed, as one vmapped program; see `perform`."""
    if len(cells) == 1:  # faster than one lane
        return [perform(settings, unfinished, cells[0])]
    runs = [Run(settings, cell) for cell in cells]
    lanes, advance = _stacked([run.lane for run in runs]), torch.vmap(runs[0].step)
    doing = f"{cells[0].method}, {len(cells)} runs together"
    for _ in counted(range(settings.epochs), doing, "epochs"):
        for drawn in zip(*(run.batches() for run in runs), strict=True):
            seen = _stacked([batch for batch, _ in drawn])
            rates = torch.tensor([rate for _, rate in drawn], device=settings.device)
            start = time.process_time()
            lanes, weights, found = advance(lanes, seen, rates)
            seconds = (time.process_time() - start) / len(runs)
            for run, weighed, lost in zip(runs, weights, found, strict=True):
                run.took(weighed, lost, seconds)
        for i, run in enumerate(runs):
            run.lane = tree_map(lambda leaf, i=i: leaf[i], lanes)
            run.ends_epoch()
    return [run.numbers() for run in runs]


def _stacked(trees: Sequence[Any]) -> Any:
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


class Lane(NamedTuple):
    """What a run carries from step to step."""

    params: Params
    buffers: Params
    balance: BalanceState
    moments: State


class Run(Resumable):
    """The state of a run between two epochs."""

    KEPT = ("lane", "done", "times", "weights", "tests", "pooled")

    def __init__(self, settings: Settings, cell: Cell) -> None:
        self.settings, self.cell, self.benchmark = settings, cell, benchmark_of(settings)
        learns = {method: [task] for task, method in ALONE.items()}
        self.tasks = learns.get(cell.method, self.benchmark.tasks)
        self.data = data_of(settings, cell.seed)
        self.net = network(settings, self.benchmark, self.tasks, cell.seed).to(settings.device)
        params = mf.parameters(self.net)
        buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        probe, rule = method(cell, self.net, self.tasks, settings.device)
        self.balance = mf.balance(self.losses, rule, probe, has_aux=True)
        state = self.balance.init(params, (self.batch([0, 1]), buffers), cell.seed)
        self.lane = Lane(params, buffers, state, mf.adam(cell.rate).init(params))
        self.times: list[float] = []
        self.weights: list[list[float]] = []
        self.last: list[list[float]] = []
        self.tests: list[dict[str, float]] = []
        self.pooled: list[dict[str, float]] = []

    def losses(self, params: Params, batch: tuple[Views, Params]) -> tuple[Any, Params]:
        """The tasks' losses, and the buffers of batch norm as the step leaves them."""
        seen, buffers = batch
        after = {name: value.clone() for name, value in buffers.items()}
        return losses(functional_call(self.net, (params, after), (seen.image,)), seen), after

    def batch(self, index: Sequence[int], split: Split | None = None) -> Views:
        """Some images, on the device."""
        found = (split or self.data.train).take(index)
        return Views(*(leaf.to(self.settings.device) for leaf in found))

    def rate(self, share: float) -> float:
        """The learning rate after a share of an epoch."""
        settings = self.settings
        if settings.halved_every:
            return self.cell.rate * 0.5 ** (self.done // settings.halved_every)
        return self.cell.rate * (1 + math.cos(math.pi * (self.done + share) / settings.epochs)) / 2

    def batches(self) -> Iterator[tuple[Views, float]]:
        """Every training image once, in an order that the seed and the epoch fix, and the rate."""
        self.net.train()
        generator = torch.Generator().manual_seed(1_000_003 * self.cell.seed + self.done)
        order = torch.randperm(len(self.data.train), generator=generator).tolist()
        size, self.last = self.benchmark.batch, []
        for first in range(0, len(order), size):
            seen = self.batch(order[first : first + size])
            if self.benchmark.augmented:
                seen = augment(seen, generator)
            yield seen, self.rate(first / len(order))

    def step(
        self, lane: Lane, seen: Views, rate: float | Tensor
    ) -> tuple[Lane, Float[Tensor, " task"], Float[Tensor, " task"]]:
        """One step of Adam along the rule's direction: the run after it, weights and losses."""
        grads, state, info = self.balance.update(lane.params, (seen, lane.buffers), lane.balance)
        params, moments = mf.adam(rate).update(grads, lane.moments, lane.params)
        return Lane(params, info.aux, state, moments), info.weights, info.losses

    def took(self, weights: Tensor, losses: Tensor, seconds: float) -> None:
        """Keep what a step leaves."""
        self.weights.append(weights.tolist())
        self.last.append(losses.tolist())
        self.times.append(seconds)

    def advance(self) -> None:
        """Every training image once."""
        for seen, rate in self.batches():
            start = time.process_time()
            with Refusal() as refusal:
                self.lane, weights, found = self.step(self.lane, seen, rate)
                self.took(weights, found, time.process_time() - start)
            if refusal.came:
                self.failed = True
                return
        self.ends_epoch()

    def ends_epoch(self) -> None:
        """Measure on test images where the epoch is among those that are averaged."""
        self.done += 1
        self.failed |= not all(math.isfinite(x) for step in self.last for x in step)
        if not self.failed and self.done > self.settings.epochs - self.settings.averaged:
            scores = self.scores(self.data.test)
            self.tests.append(scores.result())
            self.pooled.append(scores.pooled())

    @torch.no_grad()
    def scores(self, split: Split) -> Scores:
        """All metrics of the learnt tasks, batch by batch as the papers do. Raises DataError where
        no pixel of the split is known of a task.
        """
        self.net.eval()
        scores = Scores(self.benchmark.classes)
        size = self.benchmark.batch if self.settings.data else 64
        for first in range(0, len(split), size):
            seen = self.batch(range(first, min(first + size, len(split))), split)
            scores.add(functional_call(self.net, self.lane[:2], (seen.image,)), seen)
        found = scores.result()
        missing = [name for name in metrics_of(self.tasks) if name not in found]
        if missing:
            raise DataError(
                f"{self.settings.data}: among {len(split)} images to be measured on no pixel is "
                f"known, so that there is no {', '.join(missing)}; labels below 0, depths of 0 and "
                "normals of 0 count as unknown"
            )
        return scores

    def numbers(self) -> Numbers:
        """What the run leaves."""
        names = list(metrics_of(self.tasks))
        nothing = dict.fromkeys(names, math.nan)
        good = not self.failed and all(
            math.isfinite(value) for test in self.tests for value in test.values()
        )
        validation = (
            self.scores(self.data.validation).result() if good and self.data.validation else nothing
        )

        def mean(tests: list[dict[str, float]]) -> dict[str, float]:
            return {k: sum(t[k] for t in tests) / len(tests) for k in names} if good else nothing

        return {
            "score": score(validation) if self.data.validation else 0.0, "validation": validation,
            "test": mean(self.tests), "pooled": mean(self.pooled),
            "weights": _by_task(self.tasks, self.weights),
            "losses": _by_task(self.tasks, self.last),
            "step_ms": 1e3 * sorted(self.times)[len(self.times) // 2] if self.times else math.nan,
        }  # fmt: skip


def score(validation: dict[str, float]) -> float:
    """Mean over metrics of ± log, higher is better: to first order Δm, up to a constant that is the
    same for every rule, so that no baseline has to be known.
    """
    terms = [
        math.log(max(value, 1e-6)) * (1 if METRICS[name].higher_is_better else -1)
        for name, value in validation.items()
    ]
    return sum(terms) / len(terms)


def _by_task(tasks: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    columns = zip(*rows, strict=True) if rows else [[math.nan]] * len(tasks)
    return {
        task: sum(each) / len(each) for task, each in zip(tasks, map(list, columns), strict=True)
    }
