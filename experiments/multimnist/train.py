"""Runs of one method in one setting: one alone, or several rates and seeds as one program."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from common.cells import Cell
from common.device import alone, replayed
from common.files import DataError, Source
from common.problems import digits as overlaid
from common.study import Numbers
from mtlfunc import Probe, Rule, Step
from mtlfunc.types import Geometry, Info, Params, State, TrainState

from . import mnist
from .architectures import ARCHITECTURES, dense, lenet, official

TASKS = ("left", "right")
ALONE = {task: f"{task} alone" for task in TASKS}
RULES = ("mean", "pcgrad", "gradnorm", "uw", "dwa")
"""What runs in every setting; in plain hard sharing on whole data sets also the following."""
MORE = ("static search", "random", "mgda", "mgda-ub", "mgda-loss+", "cagrad", "nash-mtl", "famo")
METHODS = (*RULES, *MORE, "upgrad")
PREFERENCES = ("0.1", "0.3", "0.5", "0.7", "0.9")
"""Weights of the left task; the right one has the rest."""
FRONTS = ("epo", "cosmos", "stch", "pareto mtl")
VARIANTS = {
    "static search": tuple(f"left {p}" for p in PREFERENCES),
    "cagrad": ("c 0.2", "c 0.5", "c 0.8"),  # the paper's on these data, without the limits 0 and 10
}
"""What validation chooses from besides the rate."""
MEASURED = {"task-conditioned": "trunk.head.out.*", "cross-stitch": "trunk.columns.*.second.*"}
"""Where GradNorm measures, of networks whose last shared layer is not `trunk.second`."""

AT_ONCE = 10_000  # pairs that are measured at once


class Setting(NamedTuple):
    """An architecture, and how much wider and longer than the first one's."""

    architecture: str
    wider: int = 1
    longer: int = 1
    share: float = 1  # of the images to learn from


SETTINGS: dict[str, Setting] = {
    "hard sharing": Setting("hard sharing"), "twice as wide": Setting("hard sharing", wider=2),
    "twice as long": Setting("hard sharing", longer=2),
    "task-conditioned": Setting("task-conditioned"), "soft attention": Setting("soft attention"),
    "cross-stitch": Setting("cross-stitch"),
}  # fmt: skip
BASE, TENTH = "hard sharing", "a tenth of the images"
OF_DATA = {TENTH: Setting("hard sharing", share=0.1)}  # settings of whole data sets alone


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    data: Source | None  # a folder; None for scikit-learn's digits
    epochs: int
    batch: int
    # SGD with momentum .9, whose rate is .85 times as large after every tenth of the epochs, as in
    # the official code; else Adam, whose rate falls to 0 along a cosine
    papers: bool
    device: str
    set: str = "mnist"  # one of `mnist.MIXTURES`
    most: int | None = None  # training images, the first ones, and a sixth as many to test on


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
        left, right = (_read(settings.data, which) for which in mnist.MIXTURES[settings.set])
        count = min(len(left["train"][0]), len(right["train"][0]))
        count = min(settings.most or count, count)
        held = max(count // 6, 1)  # of 60,000 images 10,000 choose rates
        tests = settings.most and math.ceil(settings.most / 6)
        kept = count - held
        bounds = {"train": (0, kept), "held out": (kept, count), "t10k": (0, tests)}
        key, found = mf.random.key(seed), []
        for i, (part, (low, high)) in enumerate(bounds.items()):
            file = "t10k" if part == "t10k" else "train"
            both = [(x[low:high], y[low:high]) for x, y in (left[file], right[file])]
            found.append(Pairs(*mnist.pairs(both[0], both[1], mf.random.fold_in(key, i))))
        if kept < settings.batch:
            raise DataError(
                f"{settings.data}: {kept} training images are left beside {count} that choose "
                f"rates, fewer than one batch of {settings.batch}"
            )
    return Splits(*(Pairs(*(leaf.to(settings.device) for leaf in part)) for part in found))


@functools.lru_cache(maxsize=2)
def _read(source: Source, which: str) -> dict[str, mnist.Images]:
    return mnist.read(Path(source.folder), which)


def seen(canvases: Tensor) -> Tensor:
    """What a network sees: MNIST's pixels with about zero mean and unit variance, one channel."""
    if canvases.dtype == torch.uint8:  # its channels last, which a CPU pools three times as fast
        return ((canvases.to(torch.float32) / 255 - 0.1307) / 0.3081).unsqueeze(-1).movedim(-1, -3)
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
    cell: Cell, net: nn.Module, epoch: int, settings: Settings
) -> tuple[Probe, Rule, tuple[str, ...]]:
    """Probe, rule, and the tasks that are learnt; `epoch` is a number of steps."""
    name, device = cell.method, settings.device
    for i, (task, single) in enumerate(ALONE.items()):
        if name == single:
            weight = torch.eye(len(TASKS), device=device)[i]
            return mf.losses_only(), mf.mean(preference=weight), (task,)
    # with the mean loss's gradient in all heads trunks compare; `papers` has each rule's own heads
    trunk, papers = mf.jacobian("trunk.*", heads="plain"), mf.jacobian("trunk.*")
    plain = mf.losses_only()
    left = float(cell.variant.split()[-1]) if cell.variant else 0.4  # a weight, or CAGrad's c
    weights = torch.tensor([left, 1 - left], device=device)
    architecture = (SETTINGS | OF_DATA)[cell.problem].architecture
    over = MEASURED.get(architecture, "trunk.second.*")
    probe, rule = {
        "mean": lambda: (plain, mf.mean()),
        "pcgrad": lambda: (trunk, mf.pcgrad()),
        "gradnorm": lambda: (mf.jacobian(over), mf.gradnorm(0.12)),
        "uw": lambda: (plain, mf.uw(0.025)),
        "dwa": lambda: (plain, mf.dwa(epoch)),
        "static search": lambda: (plain, mf.mean(preference=weights)),
        "random": lambda: (plain, mf.rlw()),
        "mgda": lambda: (trunk, mf.mgda()),
        "mgda, own heads": lambda: (papers, mf.mgda()),
        "mgda-ub": lambda: (_representation(net), mf.mgda()),
        "mgda-loss+": lambda: (trunk, official_mgda()),
        "cagrad": lambda: (trunk, mf.cagrad(c=left)),
        "nash-mtl": lambda: (trunk, mf.nash_mtl()),
        "nash-mtl, weighted heads": lambda: (papers, mf.nash_mtl()),
        "nash-mtl, sum 1": lambda: (papers, mf.nash_mtl(rescale="sum")),
        "famo": lambda: (mf.second_evaluation(plain), mf.famo()),
        "upgrad": lambda: (trunk, mf.upgrad()),
        "epo": lambda: (trunk, mf.epo(weights)),
        "cosmos": lambda: (
            plain,
            mf.cosmos(8.0 if settings.set == "mixed" else 2.0, preference=weights),
        ),
        "stch": lambda: (plain, mf.stch(0.05, preference=weights)),
        "pareto mtl": lambda: (trunk, mf.pareto_mtl(weights.flip(0), _rays(device), 2 * epoch)),
    }[name]()
    return probe, rule, TASKS


def _rays(device: str) -> Tensor:
    lefts = torch.tensor([float(p) for p in PREFERENCES], device=device)
    return torch.stack([lefts, 1 - lefts], -1)


def official_mgda() -> Rule:
    """MGDA as the official code takes it with "loss+": the weights are those of gradients divided
    by their loss and length, and apply to the gradients as they are.
    """
    inner = mf.mgda()

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = geometry.gramian
        assert gramian is not None
        size = geometry.losses * gramian.diagonal().sqrt()
        size = torch.where(size > 0, size, 1.0)
        return inner.update(geometry._replace(gramian=gramian / size[:, None] / size), state)

    return Rule(inner.init, update, frozenset({"gramian", "losses", "present"}))


def timed(factors: Tensor) -> Rule:
    """The mean loss, in step n times `factors[n]`."""

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Tensor)
        factor = factors.gather(0, state.reshape(1))
        return (factor / len(TASKS)).expand(len(TASKS)), state + 1

    def init(losses: Tensor, key: object) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=losses.device)

    return Rule(init, update, frozenset())


def _representation(net: nn.Module) -> Probe:
    """Of a network with hard sharing: what its body gives, and its heads."""

    def part(params: Params, name: str) -> Params:
        return {k.removeprefix(name): x for k, x in params.items() if k.startswith(name)}

    def encode(params: Params, batch: tuple[Pairs, Tensor]) -> Tensor:
        pairs, key = batch
        inner = part(params | masks(net, key), "trunk.")
        return functional_call(net.get_submodule("trunk"), inner, (seen(pairs.canvases),))

    def decode(params: Params, z: Tensor, batch: tuple[Pairs, Tensor]) -> tuple[Tensor, ...]:
        pairs, key = batch
        every, heads = params | masks(net, key), net.get_submodule("heads")
        return tuple(
            F.cross_entropy(
                functional_call(head, part(every, f"heads.{i}."), (z,)), pairs.labels[:, i]
            )
            for i, head in enumerate(heads.children())
        )

    return mf.representation(encode, decode, shared="trunk.*", heads="plain")


def together(
    settings: Settings,
    cells: Sequence[Cell],
    factors: Tensor | None = None,
    watch: Callable[[Info], object] = lambda info: None,
) -> list[Numbers]:
    """Cells that differ in rate and seed, several as one vmapped program. `settings`: what all
    cells share. `cells`: method, rate, seed, and as the problem one of `SETTINGS` or of `OF_DATA`.
    `factors`: what multiplies the mean loss of each cell, whose method is `mean`, `[cell, step]`.
    `watch`: called with what every step says of itself. Returns of each cell `score` (mean accuracy
    of the learnt tasks on validation pairs), `test` and `train` (accuracies by learnt task after
    the last step), `loss` (on test pairs), `steps`, `step_ms` (a run's share of the median
    processor time of a step) and `parameters`. Of a run whose numbers stop being finite the first
    four are NaN.
    """
    setting = (SETTINGS | OF_DATA)[cells[0].problem]
    seeds, device = sorted({cell.seed for cell in cells}), settings.device
    lanes = torch.tensor([seeds.index(cell.seed) for cell in cells], device=device)
    rates = torch.tensor([cell.rate for cell in cells], device=device)
    keys = torch.tensor(seeds, device=device)
    splits = zip(*(split(settings, seed) for seed in seeds), strict=True)
    data = Splits(*(Pairs(*map(torch.stack, zip(*parts, strict=True))) for parts in splits))
    nets = [network(settings, setting, seed).to(device) for seed in seeds]
    params, net = {k: v[lanes] for k, v in mf.stack(nets).items()}, nets[0]
    count, epochs = data.train.labels.shape[1], settings.epochs * setting.longer
    count = math.ceil(setting.share * count)
    batch_size = min(settings.batch, count)
    per_epoch = count // batch_size
    own = [] if factors is None else [factors.to(device)]
    probe, rule, learnt = method_of(cells[0], net, per_epoch, settings)
    lift = alone if len(cells) == 1 else vmap

    def losses(params: Params, batch: tuple[Pairs, Tensor]) -> tuple[Tensor, ...]:
        pairs, key = batch
        outputs = functional_call(net, params | masks(net, key), (seen(pairs.canvases),))
        return tuple(F.cross_entropy(out, pairs.labels[:, i]) for i, out in enumerate(outputs))

    def method(rate: Tensor, *factors: Tensor) -> Step:
        optimizer = mf.sgd(rate, 0.9) if settings.papers else mf.adam(rate)
        return mf.descend(losses, timed(*factors) if factors else rule, probe, optimizer)

    def init(params: Params, batch: tuple[Pairs, Tensor], key: Tensor, *own: Tensor) -> TrainState:
        return method(*own).init(params, batch, mf.random.fold_in(key, 11))

    def update(
        state: TrainState, batch: tuple[Pairs, Tensor], *own: Tensor
    ) -> tuple[TrainState, Info]:
        return method(*own).update(state, batch)

    def batch_of(index: Tensor, step: int) -> tuple[Pairs, Tensor]:
        """Of each lane, from an index of pairs for each seed, and the key of the step's masks."""
        pairs = Pairs(*(leaf[lanes[:, None], index[lanes]] for leaf in data.train))
        return pairs, vmap(lambda key: mf.random.fold_in(mf.random.fold_in(key, 12), step))(
            keys[lanes]
        )

    net.train()
    first = torch.arange(batch_size, device=device).expand(len(seeds), -1)
    state = lift(init)(params, batch_of(first, 0), keys[lanes], rates, *own)
    total = epochs * per_epoch

    def batches() -> Iterator[tuple[Any, ...]]:
        for epoch in range(epochs):
            order = vmap(functools.partial(_order, epoch=epoch, count=count))(keys)
            for i in range(per_epoch):
                step = epoch * per_epoch + i
                chosen = order[:, i * batch_size : (i + 1) * batch_size]
                yield batch_of(chosen, step), rates * rate_at(settings, step / total), *own

    # a device waits for Python unless steps are recorded
    advance = lift(update) if device == "cpu" else replayed(lift(update))
    state, finite, times = _learn(advance, state, batches(), watch)
    shared = {
        "steps": total,
        "step_ms": 1e3 * sorted(times)[len(times) // 2] / len(cells),
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    measured, losses_of = {}, torch.empty(0)
    for part, pairs in data._asdict().items():
        right, losses_of = _measured(net, state.params, pairs, lanes)  # the last part is the test
        measured[part] = right.where(finite[:, None], math.nan)
    measured["loss"] = losses_of.where(finite[:, None], math.nan)
    return [
        _numbers({part: each[lane] for part, each in measured.items()}, learnt) | shared
        for lane in range(len(cells))
    ]


def _learn(
    advance: Callable[..., Any],
    state: TrainState,
    batches: Iterable[tuple[Any, ...]],
    watch: Callable[[Info], object],
) -> tuple[TrainState, Tensor, list[float]]:
    """The last state, which lanes kept finite losses, and the processor time of each step; ends as
    soon as none does, where a run alone is refused instead.
    """
    finite, times = torch.ones((), dtype=torch.bool), []
    for batch, rates, *own in batches:
        start = time.process_time()
        try:
            state, info = advance(state, batch, rates, *own)
            watch(info)
            finite = finite.to(rates.device) & info.losses.isfinite().all(-1)
        except ValueError as error:
            if "NaN" not in str(error):
                raise
            finite = torch.zeros(rates.shape, dtype=torch.bool, device=rates.device)
        times.append(time.process_time() - start)
        if not finite.any():
            break
    return state, finite, times


def _numbers(measured: dict[str, Tensor], learnt: Sequence[str]) -> Numbers:
    """A run's accuracies `[task]` by part and its test losses, of the tasks that it learnt."""
    own = {
        part: {task: float(each[TASKS.index(task)]) for task in learnt}
        for part, each in measured.items()
    }
    score = sum(own.pop("validation").values()) / len(learnt)
    return {"score": score} | own


def rate_at(settings: Settings, share: float) -> float:
    """The learning rate after a share of the steps, relative to the first."""
    if settings.papers:
        return 0.85 ** int(10 * share)
    return (1 + math.cos(math.pi * share)) / 2


def _order(key: Tensor, epoch: int, count: int) -> Tensor:
    return mf.random.permutation(mf.random.fold_in(mf.random.fold_in(key, 10), epoch), count)


@torch.no_grad()
def _measured(net: nn.Module, params: Params, pairs: Pairs, lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of right answers and mean losses `[lane, task]`; nothing is dropped."""
    net.eval()

    def sums(params: Params, canvases: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(net, params, (seen(canvases),))
        answers = torch.stack([head.argmax(-1) for head in outputs], -1)
        losses = [
            F.cross_entropy(head, labels[:, i], reduction="sum") for i, head in enumerate(outputs)
        ]
        return (answers == labels).sum(0).double(), torch.stack(losses).double()

    lift = alone if len(lanes) == 1 else vmap
    total = [torch.zeros(len(lanes), len(TASKS), dtype=torch.float64, device=lanes.device)] * 2
    for canvases, labels in zip(
        pairs.canvases.split(AT_ONCE, 1), pairs.labels.split(AT_ONCE, 1), strict=True
    ):
        more = lift(sums)(params, canvases[lanes], labels[lanes])
        total = [a + b for a, b in zip(total, more, strict=True)]
    right, losses = (x / pairs.labels.shape[1] for x in total)
    return right, losses
