"""The whole truth: every group of tasks trained, on every seed, in one vmapped program."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from mtlfunc.types import Params

from .data import TASKS, Data, Part

WIDTHS = (16, 6)
RATE, BATCH, EVERY = 1e-2, 50, 20
"""Adam's rate, the same for every group; samples of a step; steps between two measurements."""
GROUPS = tuple(
    tuple(t for t in range(TASKS) if mask >> t & 1)
    for mask in sorted(range(1, 2**TASKS), key=int.bit_count)
)
"""All 2^T - 1 of them, the small ones first: every task alone, then the pairs."""
Tick = Callable[[int], object]


class Net(nn.Module):
    """A narrow trunk that all tasks share, and one logit a task."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(inputs, WIDTHS[0]), nn.ReLU(), nn.Linear(*WIDTHS), nn.ReLU()
        )
        self.heads = nn.Linear(WIDTHS[1], TASKS)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.trunk(x))


_skeletons = {inputs: Net(inputs) for inputs in (20, 64)}


def logits(params: Params, x: Tensor) -> Float[Tensor, "sample task"]:
    return functional_call(_skeletons[x.shape[-1]], params, (x,))


def sample_losses(params: Params, part: Part) -> Float[Tensor, "sample task"]:
    """Cross-entropies, in nats."""
    return F.binary_cross_entropy_with_logits(logits(params, part.x), part.y, reduction="none")


def losses(params: Params, part: Part) -> Float[Tensor, " task"]:
    return sample_losses(params, part).mean(0)


def networks(data: Data, seeds: Sequence[int]) -> Params:
    """First weights, `[seed, …]`, drawn on the CPU."""
    x, nets = data.train.x, []
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            nets.append(Net(x.shape[-1]))
    return {name: leaf.to(x.device) for name, leaf in mf.stack(nets).items()}


def batch_of(train: Part, seed: Tensor, number: int) -> Part:
    """The samples of a step: the same for every group."""
    drawn = mf.random.uniform(mf.random.fold_in(seed, 10 + number), (BATCH,))
    index = (drawn * train.x.shape[0]).long()
    return Part(*(leaf.index_select(0, index) for leaf in train))


def train(
    params: Params, seed: Tensor, group: Tensor, data: Data, steps: int, tick: Tick
) -> Float[Tensor, " task"]:
    """Test losses of one run on the mean loss of a group, each at its best validation loss.

    Args:
        params: at the start.
        seed: of the batches.
        group: 1 for the tasks that are learnt, else 0, `[task]`; may be batched, as all else.
        data: the tasks.
        steps: of Adam.
        tick: called after every step.
    """
    step = mf.descend(losses, mf.mean(preference=group), mf.losses_only(), mf.adam(RATE))
    state = step.init(params, batch_of(data.train, seed, 0))
    least, test = losses(params, data.validation), losses(params, data.test)
    for number in range(steps):
        state, _ = step.update(state, batch_of(data.train, seed, number))
        if number % EVERY == EVERY - 1 or number == steps - 1:
            now = losses(state.params, data.validation)
            test = torch.where(now < least, losses(state.params, data.test), test)
            least = torch.minimum(now, least)
        tick(1)
    return test


def masks() -> Bool[Tensor, "group task"]:
    """`GROUPS` as members."""
    return torch.tensor([[t in group for t in range(TASKS)] for group in GROUPS])


def every_group(
    seeds: Sequence[int], data: Data, steps: int, tick: Tick
) -> Float[Tensor, "seed group task"]:
    """Test losses of every task in every group, where it is a member; NaN elsewhere."""

    def one(params: Params, seed: Tensor, group: Tensor, data: Data) -> Tensor:
        return train(params, seed, group, data, steps, tick)

    members = masks()
    over_groups = vmap(one, (None, None, 0, None))
    found = vmap(over_groups, (0, 0, None, 0))(
        networks(data, seeds), torch.tensor(seeds), members.float(), data
    )
    return found.masked_fill(~members, float("nan"))


class Trained(NamedTuple):
    """The network of all tasks along its training."""

    params: list[Params]  # at every measurement, [seed, …]
    batches: list[Part]  # of the next step
    last: Params


def joint(seeds: Sequence[int], data: Data, steps: int) -> Trained:
    """All tasks together, as in `every_group`, with what forecasters look at."""
    keys = torch.tensor(seeds)
    step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.adam(RATE))
    at = vmap(batch_of, (0, 0, None))
    params = networks(data, seeds)
    state = vmap(step.init)(params, at(data.train, keys, 0))
    found, batches = [], []
    for number in range(steps):
        batch = at(data.train, keys, number)
        if number % EVERY == 0:
            found.append(state.params)
            batches.append(batch)
        state, _ = vmap(step.update)(state, batch)
    return Trained(found, batches, state.params)
