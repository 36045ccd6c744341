"""Batches of real networks: how often what a batch says of a conflict is wrong."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from experiments.metric.networks import NETWORKS

from .coverage import share


class Wrong(NamedTuple):
    """At one point of training, over batches drawn from all data with replacement."""

    network: str
    steps: int  # of Adam on the mean loss, before
    pair: str
    cosine: float  # of all data's gradients
    naive: float  # share of batches whose mean gradients have a product of the other sign
    said: float  # share of batches with a verdict
    false: float  # share of batches with a verdict of the other sign
    covered: float  # share of intervals that hold the product of all data
    needed: float  # samples, of the first batch


BATCH = 32


def measure(name: str, steps: tuple[int, ...], batches: int, seed: int = 0) -> list[Wrong]:
    """What batches of 32 say after some steps of Adam on the mean loss."""
    problem = NETWORKS[name](seed)
    losses, params = problem.by_sample, mf.parameters(problem.module)
    data = tuple(x[:512] for x in problem.data)
    count, found, key = len(data[0]), [], mf.random.key(seed)
    step = mf.descend(lambda p, b: losses(p, b).mean(0), mf.mean(), mf.losses_only(), mf.adam(3e-3))
    state = step.init(params, data)
    for done in range(max(steps) + 1):
        if done in steps:
            values, gramian = mf.sample_gramian(losses, state.params, data, shared=problem.shared)
            found += _wrong(name, done, gramian, values.shape[1], count, batches, key)
        order = mf.random.permutation(mf.random.fold_in(key, done), count)[:BATCH]
        state, _ = step.update(state, tuple(x[order] for x in data))
    return found


def _wrong(
    name: str, steps: int, gramian: Tensor, tasks: int, count: int, batches: int, key: Tensor
) -> list[Wrong]:
    blocks = gramian.double().reshape(count, tasks, count, tasks)
    truth = blocks.mean((0, 2))
    drawn = mf.random.uniform(mf.random.fold_in(key, 10**6 + steps), (batches, BATCH))
    index = (drawn * count).long()
    some = torch.stack([blocks[i][:, :, i] for i in index])
    said = vmap(lambda g: mf.diagnostics.conflict(g.reshape(BATCH * tasks, -1), tasks))(some)
    naive = some.mean((1, 3))
    rows = []
    for s in range(tasks):
        for t in range(s + 1, tasks):
            sign, verdict = truth[s, t].sign(), said.verdict[:, s, t]
            rows.append(
                Wrong(
                    name,
                    steps,
                    f"{s}-{t}",
                    (truth[s, t] / (truth[s, s] * truth[t, t]).sqrt()).item(),
                    share(naive[:, s, t].sign() != sign),
                    share(verdict != 0),
                    share(verdict == -sign),
                    share((said.low[:, s, t] <= truth[s, t]) & (truth[s, t] <= said.high[:, s, t])),
                    said.needed[0, s, t].item(),
                )
            )
    return rows
