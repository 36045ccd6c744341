"""Runs of one method in one setting, as one vmapped program over rates and seeds."""

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from experiments.common.cells import Cell
from experiments.common.files import DataError, Source
from experiments.common.progress import counted
from experiments.common.study import Numbers
from experiments.digits import data as overlaid
from mtlfunc import Probe, Rule, Step
from mtlfunc.types import Info, Params, TrainState

from . import mnist
from .architectures import ARCHITECTURES, dense, lenet, official

TASKS = ("left", "right")
ALONE = {task: f"{task} alone" for task in TASKS}
RULES = ("mean", "pcgrad", "gradnorm", "uw", "dwa")
MEASURED = {"task-conditioned": "trunk.head.out.*", "cross-stitch": "trunk.columns.*.second.*"}
"""Where GradNorm measures, of networks whose last shared layer is not `trunk.second`."""

VALIDATION = 10_000
"""Of MNIST's training images, those that choose rates; a small folder keeps at least half."""

AT_ONCE = 10_000
"""Pairs that are measured at once."""


class Setting(NamedTuple):
    """An architecture, and how much wider and longer than the first one's."""

    architecture: str
    wider: int = 1
    longer: int = 1


SETTINGS: dict[str, Setting] = {
    "hard sharing": Setting("hard sharing"),
    "twice as wide": Setting("hard sharing", wider=2),
    "twice as long": Setting("hard sharing", longer=2),
    "task-conditioned": Setting("task-conditioned"),
    "soft attention": Setting("soft attention"),
    "cross-stitch": Setting("cross-stitch"),
}
BASE = "hard sharing"


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    data: Source | None  # a folder of MNIST; None for scikit-learn's digits
    epochs: int
    batch: int
    # SGD with momentum .9, whose rate is .85 times as large after every tenth of the epochs, as in
    # the official code; else Adam, whose rate falls to 0 along a cosine
    papers: bool
    device: str


class Pairs(NamedTuple):
    """Canvases with two labels; under vmap both leaves have the seed first."""

    canvases: Tensor  # [pair, pixel] from 0 to 1, or uint8 [pair, 28, 28]
    labels: Tensor  # [pair, 2]


class Splits(NamedTuple):
    """Parts that share no source image."""

    train: Pairs
    validation: Pairs
    test: Pairs


def split(settings: Settings, seed: int) -> Splits:
    """Pairs of a seed: of digits its own division, of MNIST its own partners."""
    if settings.data is None:
        parts = overlaid.splits(overlaid.digits(), mf.random.key(seed))
        found = [Pairs(part.canvases, part.labels) for part in parts]
    else:
        held = _read(settings.data)
        images, labels = held["train"]
        count = min(VALIDATION, len(images) // 2)
        kept = len(images) - count
        parts = [(images[:kept], labels[:kept]), (images[kept:], labels[kept:]), held["t10k"]]
        key = mf.random.key(seed)
        found = [
            Pairs(*mnist.pairs(*part, mf.random.fold_in(key, i))) for i, part in enumerate(parts)
        ]
        if kept < settings.batch:
            raise DataError(
                f"{settings.data}: {kept} training images are left beside {count} that choose "
                f"rates, fewer than one batch of {settings.batch}"
            )
    return Splits(*(Pairs(*(leaf.to(settings.device) for leaf in part)) for part in found))


@functools.lru_cache(maxsize=1)
def _read(source: Source) -> dict[str, tuple[Tensor, Tensor]]:
    return mnist.read(Path(source.folder))


def seen(canvases: Tensor) -> Tensor:
    """What a network sees: MNIST's pixels with about zero mean and unit variance, one channel."""
    if canvases.dtype == torch.uint8:
        return ((canvases.to(torch.float32) / 255 - 0.1307) / 0.3081).unsqueeze(-3)
    return canvases


def network(settings: Settings, setting: Setting, seed: int) -> nn.Module:
    """Its first weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = ARCHITECTURES[setting.architecture]
        if settings.data:
            return make(lenet, 50 * setting.wider, official)
        return make(dense(100, 64 * setting.wider), 32 * setting.wider)


def masks(net: nn.Module, key: Tensor) -> Params:
    """The keys of a step for the layers of a network that drop features."""
    return {name: mf.random.fold_in(key, i) for i, (name, _) in enumerate(net.named_buffers())}


def method_of(
    name: str, architecture: str, epoch: int, device: str
) -> tuple[Probe, Rule, tuple[str, ...]]:
    """Probe, rule, and the tasks that are learnt; `epoch` is a number of steps."""
    trunk = "trunk.*"
    for i, (task, alone) in enumerate(ALONE.items()):
        if name == alone:
            weight = torch.eye(len(TASKS), device=device)[i]
            return mf.losses_only(), mf.mean(preference=weight), (task,)
    measured = MEASURED.get(architecture, "trunk.second.*")
    probe, rule = {
        "mean": lambda: (mf.losses_only(), mf.mean()),
        "pcgrad": lambda: (mf.jacobian(trunk), mf.pcgrad()),
        "gradnorm": lambda: (
            mf.jacobian(trunk, measure=measured, heads="weighted"),
            mf.gradnorm(0.12),
        ),
        "uw": lambda: (mf.losses_only(), mf.uw(0.025)),
        "dwa": lambda: (mf.losses_only(), mf.dwa(epoch)),
    }[name]()
    return probe, rule, TASKS


def together(settings: Settings, cells: Sequence[Cell]) -> list[Numbers]:
    """Cells that differ in rate and seed, as one vmapped program.

    Args:
        settings: what all cells share.
        cells: method, rate, seed, and as the problem one of `SETTINGS`.

    Returns:
        of each cell `score` (mean accuracy of the learnt tasks on validation pairs), `test` and
        `train` (accuracies by learnt task after the last step), `steps`, `step_ms` (a run's share
        of the median processor time of a step) and `parameters`. Of a run whose numbers stop being
        finite the first three are NaN.
    """
    name, setting = cells[0].method, SETTINGS[cells[0].problem]
    seeds, device = sorted({cell.seed for cell in cells}), settings.device
    lanes = torch.tensor([seeds.index(cell.seed) for cell in cells], device=device)
    rates = torch.tensor([cell.rate for cell in cells], device=device)
    keys = torch.tensor(seeds, device=device)
    data = Splits(*(_stacked(parts) for parts in zip(*_splits(settings, seeds), strict=True)))
    nets = [network(settings, setting, seed).to(device) for seed in seeds]
    params, net = {k: v[lanes] for k, v in mf.stack(nets).items()}, nets[0]
    count, epochs = data.train.labels.shape[1], settings.epochs * setting.longer
    per_epoch = count // settings.batch
    probe, rule, learnt = method_of(name, setting.architecture, per_epoch, device)

    def losses(params: Params, batch: tuple[Pairs, Tensor]) -> tuple[Tensor, ...]:
        pairs, key = batch
        outputs = functional_call(net, params | masks(net, key), (seen(pairs.canvases),))
        return tuple(F.cross_entropy(out, pairs.labels[:, i]) for i, out in enumerate(outputs))

    def method(rate: Tensor) -> Step:
        optimizer = mf.sgd(rate, 0.9) if settings.papers else mf.adam(rate)
        return mf.descend(losses, rule, probe, optimizer)

    def init(params: Params, batch: tuple[Pairs, Tensor], rate: Tensor, key: Tensor) -> TrainState:
        return method(rate).init(params, batch, mf.random.fold_in(key, 11))

    def update(
        state: TrainState, batch: tuple[Pairs, Tensor], rate: Tensor
    ) -> tuple[TrainState, Info]:
        return method(rate).update(state, batch)

    def batch_of(index: Tensor, step: int) -> tuple[Pairs, Tensor]:
        """Of each lane, from an index of pairs for each seed, and the key of the step's masks."""
        pairs = Pairs(*(leaf[lanes[:, None], index[lanes]] for leaf in data.train))
        return pairs, vmap(lambda key: mf.random.fold_in(mf.random.fold_in(key, 12), step))(
            keys[lanes]
        )

    net.train()
    first = torch.arange(settings.batch, device=device).expand(len(seeds), -1)
    state = vmap(init)(params, batch_of(first, 0), rates, keys[lanes])
    advance, times = vmap(update), []
    finite = torch.ones(len(cells), dtype=torch.bool, device=device)
    doing = f"{cells[0].problem}, {name}, {len(cells)} runs together"
    for epoch in counted(range(epochs), doing, "epochs"):
        drawn = functools.partial(_order, epoch=epoch, count=count)
        order = vmap(drawn)(keys)
        for i in range(per_epoch):
            share = (epoch * per_epoch + i) / (epochs * per_epoch)
            chosen = order[:, i * settings.batch : (i + 1) * settings.batch]
            batch = batch_of(chosen, epoch * per_epoch + i)
            start = time.process_time()
            state, info = advance(state, batch, rates * rate_at(settings, share))
            times.append(time.process_time() - start)
            finite &= info.losses.isfinite().all(-1)
    step_ms = 1e3 * sorted(times)[len(times) // 2] / len(cells)
    measured = {
        part: torch.where(finite[:, None], _accuracies(net, state.params, pairs, lanes), math.nan)
        for part, pairs in data._asdict().items()
    }
    shared = {
        "steps": epochs * per_epoch,
        "step_ms": step_ms,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    return [
        _numbers({part: right[lane] for part, right in measured.items()}, learnt) | shared
        for lane in range(len(cells))
    ]


def _numbers(measured: dict[str, Tensor], learnt: Sequence[str]) -> Numbers:
    """A run's accuracies `[task]` by part, of the tasks that it learnt."""
    own = {
        part: {task: float(right[TASKS.index(task)]) for task in learnt}
        for part, right in measured.items()
    }
    score = sum(own["validation"].values()) / len(learnt)
    return {"score": score, "test": own["test"], "train": own["train"]}


def rate_at(settings: Settings, share: float) -> float:
    """The learning rate after a share of the steps, relative to the first."""
    if settings.papers:
        return 0.85 ** int(10 * share)
    return (1 + math.cos(math.pi * share)) / 2


def _order(key: Tensor, epoch: int, count: int) -> Tensor:
    return mf.random.permutation(mf.random.fold_in(mf.random.fold_in(key, 10), epoch), count)


def _splits(settings: Settings, seeds: list[int]) -> list[Splits]:
    return [split(settings, seed) for seed in seeds]


def _stacked(parts: tuple[Pairs, ...]) -> Pairs:
    return Pairs(*(torch.stack(leaves) for leaves in zip(*parts, strict=True)))


@torch.no_grad()
def _accuracies(net: nn.Module, params: Params, pairs: Pairs, lanes: Tensor) -> Tensor:
    """Shares of right answers `[lane, task]`; nothing is dropped."""
    net.eval()

    def right(params: Params, canvases: Tensor, labels: Tensor) -> Tensor:
        outputs = functional_call(net, params, (seen(canvases),))
        answers = torch.stack([head.argmax(-1) for head in outputs], -1)
        return (answers == labels).sum(0)

    total = torch.zeros(len(lanes), len(TASKS), dtype=torch.int64, device=lanes.device)
    for canvases, labels in zip(
        pairs.canvases.split(AT_ONCE, 1), pairs.labels.split(AT_ONCE, 1), strict=True
    ):
        total += vmap(right)(params, canvases[lanes], labels[lanes])
    return total.to(torch.float64) / pairs.labels.shape[1]
