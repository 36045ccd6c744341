"""Lanes trained on every seed, as few programs as fit into memory well; and the runs that several
of GradNorm's questions share: T = 2 and T = 10, each method's lanes.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf
from common import adam
from common.device import replayed

from ..report.findings import Settings
from ..report.parts import kept
from .common import (
    LAST,
    TEN,
    Batch,
    Method,
    initial_params,
    linear_maps,
    losses,
    losses_of,
    normals,
    numpy_of,
    step_of,
)
from .lanes import (
    CHUNKS,
    EQUAL,
    EVERY_ALPHA,
    MILD,
    NOISE,
    RATIOS,
    SECOND,
    SHARPER,
    TEN_ALPHAS,
    WINDOWS,
    Lane,
    Size,
    Trace,
    size_of,
)

TEST = 200  # samples of test data
Block = tuple[int, int]  # the first seed, and the one after the last
OF_TEN = "of ten"
"""Lanes at the first two of the ten scales, for what a larger T does alone."""
TRIED = "tried"
"""Lanes that a search over static weights at T = 10 tries."""


class Options(NamedTuple):
    """Lanes as tensors, `[lane]` or `[lane, task]`: the fields of `Lane` after its name."""

    lr: Tensor
    alpha: Tensor
    weights: Tensor
    scales: Tensor
    sharpness: Tensor
    noise: Tensor
    finite: Tensor

    def targets(self, z: Tensor) -> Tensor:
        """Of one lane, at the arguments of tanh `[task, sample, output]`."""
        return self.scales[:, None, None] * torch.tanh(self.sharpness[:, None, None] * z)

    def batch(self, drawn: Any) -> Batch:
        """Of one lane and seed: fresh, or of the finite training set."""
        (x, z), (pool_x, pool_z), error = drawn
        y = self.targets(torch.where(self.finite, pool_z, z))
        if isinstance(error, Tensor):
            y = y + self.noise[:, None, None] * error
        return torch.where(self.finite, pool_x, x), y


def options_of(lanes: Sequence[Lane], device: torch.device) -> Options:
    tasks = len(lanes[0].scales)
    ones, zeros = (1.0,) * tasks, (0.0,) * tasks
    rows = (
        lane._replace(
            weights=lane.weights or ones,
            sharpness=lane.sharpness or ones,
            noise=lane.noise or zeros,
        )[1:]
        for lane in lanes
    )
    return Options(*(torch.tensor(row, device=device) for row in zip(*rows, strict=True)))


class Samples:
    """Data of some seeds, the same in every lane and method."""

    def __init__(self, tasks: int, size: Size, roots: Tensor, *, noisy: bool) -> None:
        self.tasks, self.size, self.noisy, self.roots = tasks, size, noisy, roots
        self.problem = size.problem((1.0,) * tasks)
        maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), self.problem))
        self.maps = maps(roots)
        self.pool = [self.mapped(4, i, size.batch) for i in range(CHUNKS)]

    def mapped(self, stream: int, number: int | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Inputs, and the arguments of tanh."""
        x = normals(self.roots, stream, number, count, self.size.inputs)
        return x, torch.einsum("sbi,stoi->stbo", x, self.maps)

    def batch(self, step: int | Tensor, pooled: tuple[Tensor, Tensor]) -> Any:
        """What every lane makes its batch of."""
        shape = (self.tasks, self.size.batch, self.size.outputs)
        error = normals(self.roots, 5, step, *shape) if self.noisy else ()
        return self.mapped(3, step, self.size.batch), pooled, error


def losses_on(option: Options, params: mf.types.Params, data: Any) -> Tensor:
    """Of one lane and seed, on test data or on the whole finite training set."""
    x, z = data
    return losses(params, (x, option.targets(z)))


def evaluate(option: Options, params: mf.types.Params, test: Any) -> tuple[Tensor, Tensor]:
    """Test losses and ‖∇_W L_i‖ `[task]` of one lane and seed."""
    x, z = test
    few = x[:50], option.targets(z[:, :50])
    gramian = mf.task_gramian(losses_of, params, few, shared=f"{LAST}*")[1]
    return losses_on(option, params, test), gramian.diagonal().sqrt()


def train(
    label: str, static: Sequence[Lane], learnt: Sequence[Lane], size: Size, settings: Settings
) -> tuple[Trace, Trace]:
    """Static weights and GradNorm; workers that need the same share its blocks out."""
    # with all seeds at once the paper's size takes 6 GB instead of 1, a third more time, and an
    # interruption loses the whole program instead of a block
    count = 2 if settings.full and settings.device.type == "cpu" else size.seeds
    blocks = [(first, min(first + count, size.seeds)) for first in range(0, size.seeds, count)]
    programs: dict[Method, Sequence[Lane]] = {"weighted": static, "gradnorm": learnt}
    calls = {
        (method, block): functools.partial(
            train_block.now,
            method,
            lanes,
            size,
            block,
            settings,
            f"{label}, {method}, seeds {block[0] + 1} to {block[1]}",
        )
        for method, lanes in programs.items()
        for block in blocks
    }
    done = train_block.together(calls)
    first, second = (
        joined([trace for (one, _), trace in done.items() if one == method]) for method in programs
    )
    return first, second


def joined(blocks: Sequence[Trace]) -> Trace:
    """All seeds of one program."""
    lanes, times, *parts = zip(*blocks, strict=True)
    return Trace(lanes[0], times[0], *(np.concatenate(part, axis=2) for part in parts))


@kept
def train_block(
    method: Method, lanes: Sequence[Lane], size: Size, seeds: Block, settings: Settings, label: str
) -> Trace:
    """All lanes on these seeds as one program. Seed s has the same start, x and maps in every lane
    and method. Lanes that differ in nothing but their name are run once.
    """
    alike = [lane._replace(name="") for lane in lanes]
    apart = list(dict.fromkeys(alike))
    index = [apart.index(lane) for lane in alike]
    options = options_of(apart, settings.device)
    roots = torch.arange(*seeds, device=settings.device)
    samples = Samples(len(lanes[0].scales), size, roots, noisy=any(lane.noise for lane in lanes))
    params = vmap(lambda root: initial_params(mf.random.fold_in(root, 0), samples.problem))(roots)
    test = samples.mapped(2, 0, TEST)
    seen = torch.cat([x for x, _ in samples.pool], 1), torch.cat([z for _, z in samples.pool], 2)
    step = functools.partial(step_of, method, optimizer=adam.gradients)

    def advance(option: Options, state: mf.TrainState, drawn: Any) -> tuple[mf.TrainState, Tensor]:
        following, info = step(*option[:3]).update(state, option.batch(drawn))
        return following, info.weights

    start = vmap(
        vmap(lambda option, p, d: step(*option[:3]).init(p, option.batch(d)), (None, 0, 0)),
        (0, None, None),
    )
    forward = vmap(vmap(advance, (None, 0, 0)), (0, 0, None))
    move = replayed(
        adam.of_lanes(options.lr, lambda state, *at: forward(options, state, samples.batch(*at)))
    )
    look = vmap(vmap(evaluate, (None, 0, 0)), (0, 0, None))
    look_back = vmap(vmap(losses_on, (None, 0, 0)), (0, 0, None))
    state = start(options, params, samples.batch(0, samples.pool[0]))
    finite = options.finite.nonzero().flatten()

    def measure() -> tuple[Tensor, Tensor, Tensor]:
        """Test losses, losses on the training set where it is finite, and gradient lengths."""
        out, length = look(options, state.params, test)
        known = torch.full_like(out, torch.nan)
        if len(finite):
            some, params = tree_map(lambda leaf: leaf[finite], (options, state.params))
            known[finite] = look_back(some, params, seen)
        return out, known, length

    first, before, length = measure()
    one = torch.ones_like(first)
    moments = {round(size.steps * i / WINDOWS) for i in range(1, WINDOWS + 1)}
    times, record = [0], [(one, before / before, length, one)]
    for number in tqdm(range(size.steps), desc=label, leave=False):
        at = torch.full((), number, device=settings.device)
        state, used = move(state, at, samples.pool[number % CHUNKS])
        if number + 1 in moments:
            out, known, length = measure()
            times.append(number + 1)
            record.append((out / first, known / before, length, used))
    found = (numpy_of(torch.stack(part)[:, index]) for part in zip(*record, strict=True))
    return Trace(lanes, np.array(times), *found)


def two_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Static weights and GradNorm: of several scales, of other difficulty, and with few data."""
    size = size_of(settings)
    plain, sharp = deviation_of(1.0), deviation_of(SHARPER)
    others = [
        lane
        for lr in size.mild
        for lane in (
            Lane("sharper", lr, scales=(1 / plain, 1 / sharp), sharpness=(1.0, SHARPER)),
            Lane("noisy", lr, scales=(1 / plain,) * 2, noise=(0.0, NOISE)),
            Lane("finite", lr, scales=MILD, finite=True),
        )
    ]
    of_ten = [Lane(OF_TEN, lr, scales=TEN[:2]) for lr in size.mild]
    scaled = [
        Lane(f"scales, {ratio:g}", lr, scales=(1.0, ratio))
        for ratio in RATIOS[:-1]
        for lr in size.mild
    ]
    grid = [
        Lane(f"static, {second:g}", lr, weights=(1.0, second))
        for second in (1.0, *SECOND)
        for lr in size.two
    ]
    learnt = [Lane(f"GradNorm, {alpha:g}", lr, alpha) for alpha in EVERY_ALPHA for lr in size.two]
    ratios = [
        Lane(f"ratio {ratio:g}, {alpha:g}", lr, alpha, scales=(1.0, ratio))
        for ratio in (RATIOS[0], RATIOS[-1])
        for alpha in EVERY_ALPHA
        for lr in size.mild
    ]
    return train(
        "T = 2",
        [*scaled, *grid, *others, *of_ten],
        [*learnt, *others, *ratios, *of_ten],
        size,
        settings,
    )


def ten_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Static weights, equal ones and what a search tries (1/L_i(0), random ones), and GradNorm."""
    size = size_of(settings)
    equal = [Lane(EQUAL, lr, scales=TEN) for lr in size.ten]
    finite = [Lane("finite", lr, scales=TEN, finite=True) for lr in size.ten]
    weights = tuple(scale**-2 for scale in TEN)
    fixed = [Lane(TRIED, lr, scales=TEN, weights=weights) for lr in size.ten]
    search = random_lanes(TRIED, TEN, size.draws, size.ten)
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha, scales=TEN)
        for alpha in TEN_ALPHAS
        for lr in size.ten
    ]
    static = [*equal, *finite, *fixed, *search]
    return train("T = 10", static, [*learnt, *finite], size, settings)


def random_lanes(
    name: str, scales: tuple[float, ...], draws: int, rates: tuple[float, ...]
) -> list[Lane]:
    """Weights that are log-uniform over three decades, as many as σ² spans, each with a rate."""
    key = mf.random.key(10)
    drawn = 10 ** (-3 * mf.random.uniform(mf.random.fold_in(key, 0), (draws, len(scales))))
    which = (mf.random.uniform(mf.random.fold_in(key, 1), (draws,)) * len(rates)).long()
    return [
        Lane(name, rates[int(i)], scales=scales, weights=tuple(w.tolist()))
        for w, i in zip(drawn, which, strict=True)
    ]


def deviation_of(sharpness: float) -> float:
    """Of tanh(sharpness·z), z ~ N(0, 1)."""
    z = torch.linspace(-6, 6, 10001, dtype=torch.float64)
    return float(torch.tanh(sharpness * z).square() @ torch.softmax(-z.square() / 2, 0)) ** 0.5
