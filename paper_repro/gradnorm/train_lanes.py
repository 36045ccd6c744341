"""Lanes trained on every seed, as few programs as fit into memory well."""

import functools
from collections.abc import Iterator, Mapping, Sequence
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
from .common import initial_params, linear_maps, losses, losses_of
from .lanes import CHUNKS, LAST, WINDOWS, Lane, Method, Size, Trace

TEST = 200  # samples of test data
# bytes; with all seeds at once the paper's size takes 6 GB instead of 1, a third more time, and
# an interruption loses the whole program instead of a block
LARGEST = 2**25
Block = tuple[int, int]  # the first seed, and the one after the last


def step_of(method: Method, lr: Tensor, alpha: Tensor, weights: Tensor) -> mf.Step:
    if method == "weighted":
        rule, probe = mf.mean(preference=weights), mf.losses_only()
        return mf.descend(losses_of, rule, probe, mf.adam(lr), reduction="sum")
    rule = mf.gradnorm(alpha, normalize_targets=method == "normalised")
    return mf.descend(
        losses_of,
        rule,
        mf.jacobian("trunk.*" if method == "trunk" else f"{LAST}*", heads="weighted"),
        mf.adam(lr),
        reduction="sum",
    )


def lengths_of(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """‖∇_W L_i‖ `[task]`."""
    return mf.task_gramian(losses_of, params, batch, shared=f"{LAST}*")[1].diagonal().sqrt()


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

    def batch(self, drawn: Any) -> tuple[Tensor, Tensor]:
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
    rows = zip(
        *(
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
        ),
        strict=True,
    )
    found = Options(*(torch.tensor(row, device=device) for row in rows))
    return found if any(lane.sharpness for lane in lanes) else found._replace(sharpness=())


class Samples:
    """Starts and data of some seeds, the same in every lane and method."""

    def __init__(self, tasks: int, size: Size, roots: Tensor, *, noisy: bool) -> None:
        self.tasks, self.size, self.noisy, self.roots = tasks, size, noisy, roots
        self.problem = size.problem((1.0,) * tasks)
        maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), self.problem))
        self.maps = maps(self.roots)
        self.pool = [self.mapped(4, i, size.batch) for i in range(CHUNKS)]

    def starts(self) -> mf.types.Params:
        """Parameters `[seed, ...]`."""

        def start(root: Tensor) -> mf.types.Params:
            return initial_params(mf.random.fold_in(root, 0), self.problem)

        return vmap(start)(self.roots)

    def normals(self, stream: int, number: int | Tensor, *shape: int) -> Tensor:
        """Of every seed, `[seed, *shape]`."""
        at = torch.as_tensor(number, device=self.roots.device)

        def of_root(root: Tensor) -> Tensor:
            key = mf.random.fold_in(mf.random.fold_in(root, stream), at)
            return mf.random.normal(key, shape)

        if at.is_cpu:  # a key that can be read has a kernel, of the same bits
            return torch.stack([of_root(root) for root in self.roots])
        return vmap(of_root)(self.roots)

    def mapped(self, stream: int, number: int | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Inputs, and the arguments of tanh."""
        x = self.normals(stream, number, count, self.size.inputs)
        return x, torch.einsum("sbi,stoi->stbo", x, self.maps)

    def held_out(self) -> tuple[Any, Any]:
        """Test data, and the whole finite training set."""
        seen = torch.cat([x for x, _ in self.pool], 1), torch.cat([z for _, z in self.pool], 2)
        return self.mapped(2, 0, TEST), seen

    def pooled(self, step: int) -> tuple[Tensor, Tensor]:
        """Of the finite training set."""
        return self.pool[step % CHUNKS]

    def batch(self, step: int | Tensor, pooled: tuple[Tensor, Tensor]) -> Any:
        """What every lane makes its batch of."""
        shape = (self.tasks, self.size.batch, self.size.outputs)
        error = self.normals(5, step, *shape) if self.noisy else ()
        return self.mapped(3, step, self.size.batch), pooled, error


def losses_on(option: Options, params: mf.types.Params, data: Any) -> Tensor:
    """Of one lane and seed, on test data or on the whole finite training set."""
    x, z = data
    return losses(params, (x, option.targets(z)))


def evaluate(option: Options, params: mf.types.Params, test: Any) -> tuple[Tensor, Tensor]:
    """Test losses and gradient lengths of one lane and seed."""
    x, z = test
    few = x[:50], option.targets(z[:, :50])
    return losses_on(option, params, test), lengths_of(params, few)


def train(
    programs: Mapping[str, tuple[Method, Sequence[Lane]]], size: Size, settings: Settings
) -> list[Trace]:
    """Programs in their order, by their labels; workers that need the same share them out."""
    calls = {
        (label, block): functools.partial(
            train_block.now, method, lanes, size, block, settings, name
        )
        for label, (method, lanes) in programs.items()
        for block, name in blocks_of(lanes, size, settings, label)
    }
    done = train_block.together(calls)
    return [
        joined([trace for (name, _), trace in done.items() if name == label]) for label in programs
    ]


def blocks_of(
    lanes: Sequence[Lane], size: Size, settings: Settings, label: str
) -> Iterator[tuple[Block, str]]:
    """Every block and its name: as many seeds as keep each tensor of a step within LARGEST. On
    another device than the CPU all of them.
    """
    apart = len({lane._replace(name="") for lane in lanes})
    wide = max(size.width, size.batch)
    each = wide * max(size.inputs, size.width, len(lanes[0].scales) * size.outputs)
    within = LARGEST // (4 * each * apart)
    count = max(1, within) if settings.device.type == "cpu" else size.seeds
    for first in range(0, size.seeds, count):
        after = min(first + count, size.seeds)
        some = f"seeds {first + 1} to {after}" if after > first + 1 else f"seed {after}"
        yield (first, after), label + (f", {some} of {size.seeds}" if count < size.seeds else "")


def joined(blocks: Sequence[Trace]) -> Trace:
    """All seeds of one program."""
    lanes, times, *parts, excess = zip(*blocks, strict=True)
    every = (np.concatenate(part, axis=2) for part in parts)
    return Trace(lanes[0], times[0], *every, excess=np.concatenate(excess, axis=1))


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

    def step(option: Options) -> mf.Step:
        return step_of(method, option.lr, option.alpha, option.weights)

    def advance(option: Options, state: mf.TrainState, drawn: Any) -> Any:
        following, info = step(option).update(state, option.batch(drawn))
        if method == "weighted":
            return following, info.weights, info.losses[:0]
        length = info.weights * info.gramian.diagonal().sqrt()
        ratio = info.losses / state.balance.rule.initial
        target = (ratio / ratio.mean()) ** option.alpha
        target = target / target.mean() if method == "normalised" else target
        return following, info.weights, (length / length.mean() - target).abs().sum()[None]

    first = vmap(
        vmap(lambda option, p, d: step(option).init(p, option.batch(d)), (None, 0, 0)),
        (0, None, None),
    )
    forward = vmap(vmap(advance, (None, 0, 0)), (0, 0, None))
    move = replayed(lambda state, at, pooled: forward(options, state, samples.batch(at, pooled)))
    look = vmap(vmap(evaluate, (None, 0, 0)), (0, 0, None))
    drawn = samples.batch(0, samples.pooled(0))
    state, (test, seen) = first(options, samples.starts(), drawn), samples.held_out()
    finite = options.finite.nonzero().flatten()

    def measure() -> tuple[Tensor, Tensor, Tensor]:
        """Test losses, losses on the training set where it is finite, and gradient lengths."""
        out, length = look(options, state.params, test)
        known = torch.full_like(out, torch.nan)
        if len(finite):
            some, params = tree_map(lambda leaf: leaf[finite], (options, state.params))
            known[finite] = vmap(vmap(losses_on, (None, 0, 0)), (0, 0, None))(some, params, seen)
        return out, known, length

    begin = measure()
    one = torch.ones_like(begin[0])
    moments = {round(size.steps * i / WINDOWS) for i in range(1, WINDOWS + 1)}
    # written in place, as in `common.train`
    excess = one.new_empty(*one.shape[:2], size.steps if method != "weighted" else 0)
    times, record = [0], [(one, begin[1] / begin[1], begin[2], one)]
    for number in tqdm(range(size.steps), desc=label, leave=False):
        at = torch.full((), number, device=settings.device)
        state, used, left = move(state, at, samples.pooled(number))
        excess[..., number : number + 1] = left
        if number + 1 in moments:
            out, known, length = measure()
            times.append(number + 1)
            record.append((out / begin[0], known / begin[1], length, used))
    tests, trains, lengths, used = (
        torch.stack(part)[:, index].double().cpu().numpy() for part in zip(*record, strict=True)
    )
    left = excess[index].double().cpu().numpy()
    return Trace(lanes, np.array(times), tests, trains, lengths, used, left)
