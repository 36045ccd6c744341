"""Lanes trained on every seed, as few programs as fit into memory well."""

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
from common.device import replayed

from ..report.findings import Settings
from ..report.parts import kept
from .common import (
    LAST,
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
from .lanes import CHUNKS, WINDOWS, Lane, Size, Trace

TEST = 200  # samples of test data
# bytes; with all seeds at once the paper's size takes 6 GB instead of 1, a third more time, and
# an interruption loses the whole program instead of a block
LARGEST = 2**25
Block = tuple[int, int]  # the first seed, and the one after the last


class Options(NamedTuple):
    """Lanes as tensors, `[lane]` or `[lane, task]`. () is a sharpness of 1 in all of them: the
    targets but for their scale are then the same in every lane, and found once.
    """

    lr: Tensor
    alpha: Tensor
    weights: Tensor
    scales: Tensor
    sharpness: Tensor | tuple[()]
    noise: Tensor
    finite: Tensor

    def bent(self, z: Tensor) -> Tensor:
        """tanh of one lane, at its arguments `[task, sample, output]`."""
        if isinstance(self.sharpness, Tensor):
            z = self.sharpness[:, None, None] * z
        return torch.tanh(z)

    def targets(self, z: Tensor) -> Tensor:
        """Of one lane."""
        return self.scales[:, None, None] * self.bent(z)

    def batch(self, drawn: Any) -> Batch:
        """Of one lane and seed: fresh, or of the finite training set."""
        (x, z), (pool_x, pool_z), error = drawn
        if isinstance(self.sharpness, Tensor):
            bent = self.bent(torch.where(self.finite, pool_z, z))
        else:
            bent = torch.where(self.finite, self.bent(pool_z), self.bent(z))
        y = self.scales[:, None, None] * bent
        if isinstance(error, Tensor):
            y = y + self.noise[:, None, None] * error
        return torch.where(self.finite, pool_x, x), y


def options_of(lanes: Sequence[Lane], device: torch.device) -> Options:
    tasks = len(lanes[0].scales)
    ones, zeros = (1.0,) * tasks, (0.0,) * tasks
    rows = (
        (
            lane.lr,
            lane.alpha,
            lane.weights or ones,
            lane.scales,
            lane.sharpness or ones,
            lane.noise or zeros,
            lane.finite,
        )
        for lane in lanes
    )
    found = Options(*(torch.tensor(row, device=device) for row in zip(*rows, strict=True)))
    return found if any(lane.sharpness for lane in lanes) else found._replace(sharpness=())


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
        for block in blocks_of(lanes, size, settings)
    }
    done = train_block.together(calls)
    first, second = (
        joined([trace for (one, _), trace in done.items() if one == method]) for method in programs
    )
    return first, second


def blocks_of(lanes: Sequence[Lane], size: Size, settings: Settings) -> list[Block]:
    """As many seeds as keep each tensor of a step within LARGEST. On another device than the CPU
    all of them.
    """
    apart = len({lane._replace(name="") for lane in lanes})
    wide = max(size.width, size.batch)
    each = wide * max(size.inputs, size.width, len(lanes[0].scales) * size.outputs)
    within = max(1, LARGEST // (4 * each * apart))
    count = within if settings.device.type == "cpu" else size.seeds
    return [(first, min(first + count, size.seeds)) for first in range(0, size.seeds, count)]


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

    def step(option: Options) -> mf.Step:
        return step_of(method, option.lr, option.alpha, option.weights)

    def advance(option: Options, state: mf.TrainState, drawn: Any) -> tuple[mf.TrainState, Tensor]:
        following, info = step(option).update(state, option.batch(drawn))
        return following, info.weights

    start = vmap(
        vmap(lambda option, p, d: step(option).init(p, option.batch(d)), (None, 0, 0)),
        (0, None, None),
    )
    forward = vmap(vmap(advance, (None, 0, 0)), (0, 0, None))
    move = replayed(lambda state, at, pooled: forward(options, state, samples.batch(at, pooled)))
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
