"""Runs of one rule, as one vmapped program over rates and seeds or one after the other."""

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from common.cells import Cell, Refusal, Resumable
from common.files import Source
from common.progress import counted
from common.study import Numbers
from mtlfunc import Probe, Rule
from mtlfunc.types import Balance, BalanceState, Params, State

from .data import CIFAR10, DIGITS, Benchmark, Data, divide, values
from .networks import Net, Small, Wide
from .tasks import MAIN, Task, tasks

ALONE = "main alone"
RULES = ("mean", "mgda", "pcgrad", "cagrad", "gradnorm")


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    data: Source | None  # CIFAR-10; None for digits
    auxiliaries: tuple[str, ...]
    steps: int
    batch: int  # images of a task in a step
    # the rate falls to a fifth after this share of the steps; 0 for a fall to 0 along a cosine
    fifth_after: float
    keep_every: int  # steps after which an unfinished run is kept; 0 for never
    device: str


def benchmark_of(settings: Settings) -> Benchmark:
    return CIFAR10 if settings.data else DIGITS


def tasks_of(settings: Settings, method: str) -> dict[str, Task]:
    """What a method learns, the main task first."""
    benchmark = benchmark_of(settings)
    every = tasks(benchmark.size, benchmark.channels, benchmark.look)
    names = [MAIN] if method == ALONE else [MAIN, *settings.auxiliaries]
    return {name: every[name] for name in names}


def method_of(name: str, net: Net) -> tuple[Probe, Rule]:
    """Probe and rule; the shared parameters are `trunk.*` in both networks."""
    # methods that combine gradients leave the heads the mean loss's, so that trunks compare
    plain = mf.jacobian("trunk.*", heads="plain")
    last = "last"
    if not isinstance(net.trunk, Small):
        last = f"blocks.{len(list(net.trunk.get_submodule('blocks').children())) - 1}"
    measured = f"trunk.{last}.*"
    return {
        ALONE: lambda: (mf.losses_only(), mf.mean()),
        "mean": lambda: (mf.losses_only(), mf.mean()),
        "mgda": lambda: (plain, mf.mgda()),
        "pcgrad": lambda: (plain, mf.pcgrad()),
        "cagrad": lambda: (plain, mf.cagrad(0.4)),
        "gradnorm": lambda: (mf.jacobian(measured), mf.gradnorm(1.0)),
    }[name]()


def network(settings: Settings, seed: int) -> Net:
    """With a head for every task that may be learnt; first weights are a function of the seed."""
    benchmark = benchmark_of(settings)
    every = tasks(benchmark.size, benchmark.channels, benchmark.look)
    heads = {every[name].head: every[name].outputs for name in (MAIN, *settings.auxiliaries)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.data:
            trunk = Wide()
            return Net(trunk, trunk.width, heads)
        return Net(Small(), Small.WIDTH, heads)


Batch = dict[str, tuple[Tensor, Tensor]]  # by task: views, and what is to be said of them


def draw(data: Data, key: Tensor, learnt: dict[str, Task], settings: Settings) -> Batch:
    """The batch of one step: a batch of each task of its own, drawn with replacement."""
    benchmark, found = benchmark_of(settings), {}
    for i, (name, task) in enumerate(learnt.items()):
        own = mf.random.fold_in(key, i)
        source = data.labelled if name == MAIN else data.unlabelled
        drawn = mf.random.uniform(mf.random.fold_in(own, 0), (settings.batch,), torch.float64)
        index = (drawn * len(source)).long()
        images = values(source.index_select(0, index), benchmark)
        views, target = task.views(images, mf.random.fold_in(own, 1))
        found[name] = (views, data.labels.index_select(0, index) if name == MAIN else target)
    return found


class Lane(NamedTuple):
    """What a run carries from step to step."""

    params: Params
    buffers: Params
    balance: BalanceState
    moments: State


class Seen(NamedTuple):
    """What is kept of a step."""

    weights: Tensor  # [task], sum 1
    losses: Tensor  # [task]
    descent: Tensor  # [task]: 1 where the direction lowers the task's loss to first order


class Program(NamedTuple):
    """A method as pure functions of one run."""

    net: Net
    learnt: dict[str, Task]
    balance: Balance

    def init(self, params: Params, buffers: Params, batch: Batch, key: Tensor) -> Lane:
        state = self.balance.init(params, (batch, buffers), key)
        return Lane(params, buffers, state, mf.adam(1.0).init(params))

    def step(self, lane: Lane, batch: Batch, rate: Tensor) -> tuple[Lane, Seen]:
        """One step of Adam along the rule's direction."""
        grads, state, info = self.balance.update(lane.params, (batch, lane.buffers), lane.balance)
        params, moments = mf.adam(rate).update(grads, lane.moments, lane.params)
        weights = info.weights / info.weights.sum()
        falls = info.rates > 0 if info.rates.numel() else torch.full_like(weights, math.nan)
        return Lane(params, info.aux, state, moments), Seen(
            weights, info.losses, falls.to(weights.dtype)
        )

    def right(self, lane: Lane, images: Tensor, labels: Tensor) -> Tensor:
        """Which answers are right."""
        outputs = functional_call(self.net, (lane.params, lane.buffers), (images, MAIN))
        return outputs.argmax(-1) == labels


def program_of(settings: Settings, method: str) -> Program:
    """Probe, rule and losses of a method."""
    net, learnt = network(settings, 0).to(settings.device), tasks_of(settings, method)

    def losses(params: Params, seen: tuple[Batch, Params]) -> tuple[Any, Params]:
        batch, before = seen
        found, after = [], before
        for name, task in learnt.items():
            images, target = batch[name]
            # statistics of batch norm follow the main task alone, which is what is tested
            own = {key: value.clone() for key, value in before.items()}
            outputs = functional_call(net, (params, own), (images, task.head))
            found.append(task.loss(outputs, target))
            if name == MAIN:
                after = own
        return tuple(found), after

    probe, rule = method_of(method, net)
    return Program(net, learnt, mf.balance(losses, rule, probe, has_aux=True))


def rate_at(settings: Settings, share: float) -> float:
    """The learning rate after a share of the steps, relative to the first."""
    if settings.fifth_after:
        return 0.2 if share >= settings.fifth_after else 1.0
    return (1 + math.cos(math.pi * share)) / 2


def together(settings: Settings, cells: Sequence[Cell]) -> list[Numbers]:
    """Digits: cells that differ in rate and seed, as one vmapped program; see `alone`."""
    first = cells[0]
    program = program_of(settings, first.method)
    seeds = sorted({cell.seed for cell in cells})
    lanes = torch.tensor([seeds.index(cell.seed) for cell in cells], device=settings.device)
    rates = torch.tensor([cell.rate for cell in cells], device=settings.device)
    keys = torch.tensor(seeds, device=settings.device)
    data = _stacked([_data(settings, first.problem, seed) for seed in seeds])
    nets = [network(settings, seed).to(settings.device) for seed in seeds]
    params, buffers = mf.stack(nets), {}

    def batches(step: int) -> Batch:
        """Drawn once a seed, whatever the number of rates."""

        def one(data: Data, seed: Tensor) -> Batch:
            return draw(data, _key(seed, step), program.learnt, settings)

        drawn = vmap(one)(data, keys)
        return {name: (views[lanes], said[lanes]) for name, (views, said) in drawn.items()}

    lane = vmap(program.init, (0, None, 0, 0))(
        {name: value[lanes] for name, value in params.items()}, buffers, batches(0), keys[lanes]
    )
    advance, seen = vmap(program.step), []
    times = []
    doing = f"{first.problem}, {first.method}, {len(cells)} runs together"
    for step in counted(range(settings.steps), doing, "steps"):
        batch = batches(step)
        start = time.process_time()
        lane, kept = advance(lane, batch, rates * rate_at(settings, step / settings.steps))
        times.append(time.process_time() - start)
        seen.append(kept)
    accuracy = {}
    for name in ("validation", "test"):
        images = values(getattr(data, name), benchmark_of(settings))[lanes]
        right = vmap(program.right)(lane, images, getattr(data, f"{name}_labels")[lanes])
        accuracy[name] = right.to(torch.float64).mean(-1).tolist()
    parts = [
        Seen(*(torch.stack(leaves)[:, i] for leaves in zip(*seen, strict=True)))
        for i in range(len(cells))
    ]
    # a lane's share of the vmapped step
    step_ms = 1e3 * sorted(times)[len(times) // 2] / len(cells)
    return [
        _numbers(program, part, validation, test, step_ms)
        for part, validation, test in zip(
            parts, accuracy["validation"], accuracy["test"], strict=True
        )
    ]


def alone(settings: Settings, unfinished: Path, cell: Cell) -> Numbers:
    """Train and measure one run. `settings`: what all cells share. `unfinished`: folder of what
    long runs keep as they go, so as to go on from there. `cell`: method, rate, seed, and as the
    problem how many labels there are. Returns `score` (accuracy on validation images, NaN for a run
    whose numbers stop being finite), `test` (accuracy), and by task `weights` (mean over steps, sum
    1), `losses` (of the last steps), `descends` (share of the steps whose direction lowers the
    task's loss to first order, NaN where no gradients are measured); `step_ms`, median processor
    time of a step.
    """
    return Run(settings, cell).to_end(unfinished, settings.steps, "steps", settings.keep_every)


class Run(Resumable):
    """The state of one run between two steps."""

    KEPT = ("lane", "done", "seen", "times")

    def __init__(self, settings: Settings, cell: Cell) -> None:
        self.settings, self.cell = settings, cell
        self.program = program_of(settings, cell.method)
        self.data = _data(settings, cell.problem, cell.seed)
        net = network(settings, cell.seed).to(settings.device)
        buffers = {name: value.clone() for name, value in net.named_buffers()}
        self.key = torch.tensor(cell.seed, device=settings.device)
        self.lane = self.program.init(mf.parameters(net), buffers, self._batch(0), self.key)
        self.seen: list[Seen] = []  # each of some steps, the step first
        self.times: list[float] = []

    def _batch(self, step: int) -> Batch:
        learnt = self.program.learnt
        return draw(self.data, _key(self.key, step), learnt, self.settings)

    def advance(self) -> None:
        """One step."""
        batch, settings = self._batch(self.done), self.settings
        rate = self.cell.rate * rate_at(settings, self.done / settings.steps)
        self.program.net.train()
        start = time.process_time()
        with Refusal() as refusal:
            now = torch.tensor(rate, device=settings.device)
            self.lane, seen = self.program.step(self.lane, batch, now)
            self.times.append(time.process_time() - start)
            self.seen.append(Seen(*(leaf.cpu()[None] for leaf in seen)))
            self.done += 1
        self.failed = refusal.came

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of right answers, with the statistics that batch norm has kept."""
        self.program.net.eval()
        right = 0
        for some, truth in zip(images.split(1000), labels.split(1000), strict=True):
            shown = values(some, benchmark_of(self.settings))
            right += int(self.program.right(self.lane, shown, truth).sum())
        return right / len(labels)

    def numbers(self) -> Numbers:
        """What the run leaves."""
        data, good = self.data, not self.failed
        validation = self.accuracy(data.validation, data.validation_labels) if good else math.nan
        test = self.accuracy(data.test, data.test_labels) if good else math.nan
        step_ms = 1e3 * sorted(self.times)[len(self.times) // 2] if self.times else math.nan
        nothing = Seen(*[torch.full((1, len(self.program.learnt)), math.nan)] * 3)
        seen = _joined(self.seen or [nothing])
        return _numbers(self.program, seen, validation, test, step_ms)

    def keep(self, path: Path) -> None:
        """Write all that `resume` needs, whole."""
        self.seen = [_joined(self.seen)]  # a file of three tensors a step takes minutes to write
        super().keep(path)


def _joined(parts: list[Seen]) -> Seen:
    return Seen(*(torch.cat(leaves) for leaves in zip(*parts, strict=True)))


def _key(seed: Tensor, step: int) -> Tensor:
    """Of the draws of a step."""
    return mf.random.fold_in(mf.random.fold_in(mf.random.key(seed), 1), step)


def _data(settings: Settings, problem: str, seed: int) -> Data:
    data = _divided(settings.data, int(problem.split(maxsplit=1)[0]), seed)
    return Data(*(leaf.to(settings.device) for leaf in data))


@functools.lru_cache(maxsize=2)
def _divided(source: Source | None, labels: int, seed: int) -> Data:
    return divide(source, labels, seed)


def _stacked(parts: list[Data]) -> Data:
    return Data(*(torch.stack(leaves) for leaves in zip(*parts, strict=True)))


def _numbers(
    program: Program, seen: Seen, validation: float, test: float, step_ms: float
) -> Numbers:
    """Of one run; of one whose numbers stopped being finite, NaN."""
    good = bool(torch.isfinite(seen.losses).all() & torch.isfinite(seen.weights).all())

    def by_task(rows: Tensor) -> dict[str, float]:
        return dict(zip(program.learnt, rows.double().mean(0).tolist(), strict=True))

    return {
        "score": validation if good else math.nan, "test": test if good else math.nan,
        "weights": by_task(seen.weights),
        "losses": by_task(seen.losses[-max(len(seen.losses) // 20, 1) :]),
        "descends": by_task(seen.descent), "step_ms": step_ms,
    }  # fmt: skip


def count_of(net: nn.Module) -> int:
    """Parameters of the trunk."""
    return sum(p.numel() for name, p in net.named_parameters() if name.startswith("trunk."))
