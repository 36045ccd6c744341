"""Behaviour cloning: one network imitates a scripted expert of every task.

From few demonstrations of every task, up to the step of their success; squared errors of the
actions are the losses. Success is measured in episodes with goals of their own.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf
from common.cells import Cell, Refusal
from common.progress import counted
from common.study import Numbers
from mtlfunc.types import Params

from . import networks
from .methods import probe_and_rule
from .sac import Environments, measure, successes

Expert = Callable[[np.ndarray], np.ndarray]
"""From observations `[task, input]` to actions `[task, action]`."""

NOISE = 0.1
"""Deviation of the noise on the expert's actions while it demonstrates: states around its path."""


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    benchmark: str
    reward: str  # the version of the rewards
    demonstrations: int  # of every task
    steps: int
    batch: int  # samples a task
    hidden: tuple[int, ...]
    episodes: int  # of every task, to measure success in
    device: str


class Shown(NamedTuple):
    """What was demonstrated, tasks of fewer samples filled up with zeros."""

    seen: Tensor  # [task, sample, input]
    actions: Tensor  # [task, sample, action]
    counts: Tensor  # [task]


def demonstrate(envs: Environments, expert: Expert, episodes: int, seed: int) -> Shown:
    """Episodes of every task, each up to its success or its end.

    The actions that are kept are the expert's; what is done has noise added.
    """
    tasks, generator = envs.num_envs, np.random.default_rng(seed)
    seen, _ = envs.reset(seed=seed)
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(tasks)]
    done, reached = np.zeros(tasks, int), np.zeros(tasks, bool)
    while (done < episodes).any():
        wanted = expert(seen)
        for task in np.flatnonzero((done < episodes) & ~reached):
            pairs[task].append((seen[task].copy(), wanted[task]))
        noisy = np.clip(wanted + NOISE * generator.standard_normal(wanted.shape), -1, 1)
        seen, _, over, late, info = envs.step(noisy.astype(np.float32))
        ended = np.asarray(over) | np.asarray(late)
        reached = (reached | successes(ended, info)) & ~ended
        done = done + ended
    counts = [len(each) for each in pairs]
    leaves: list[Tensor] = []
    for i in range(2):
        leaf = np.zeros((tasks, max(counts), pairs[0][0][i].shape[0]), np.float32)
        for task, each in enumerate(pairs):
            leaf[task, : len(each)] = [pair[i] for pair in each]
        leaves.append(torch.as_tensor(leaf))
    return Shown(leaves[0], leaves[1], torch.tensor(counts))


def losses(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """`[task]`: squared errors of the actions."""
    seen, actions = batch
    return (act(params, seen) - actions).square().mean((1, 2))


def act(params: Params, seen: Tensor) -> Tensor:
    """Actions `[task, sample, action]` in (-1, 1), from observations with codes."""
    return torch.tanh(networks.network(params, "policy", seen, F.relu))


def train(name: str, rate: float, settings: Settings, data: Shown, key: Tensor) -> Params:
    """A policy that imitates, from scaled observations."""
    tasks, _, width = data.seen.shape
    widths = (networks.inputs(name, width - tasks, tasks), *settings.hidden, data.actions.shape[-1])
    params = networks.start(mf.random.fold_in(key, 0), "policy", widths, tasks, name)
    probe, rule = probe_and_rule(name)
    step = mf.descend(losses, rule, probe, mf.adam(rate))
    rows = torch.arange(tasks, device=key.device)[:, None]

    def draw(i: int) -> tuple[Tensor, Tensor]:
        own = mf.random.fold_in(mf.random.fold_in(key, 1), i)
        share = mf.random.uniform(own, (tasks, settings.batch), torch.float64)
        index = (share * data.counts[:, None]).long()
        return data.seen[rows, index], data.actions[rows, index]

    state = step.init(params, draw(0), mf.random.fold_in(key, 2))
    for i in counted(range(settings.steps), name, "steps"):
        state, _ = step.update(state, draw(i))
    return state.params


@functools.lru_cache(maxsize=2)
def _demonstrated(
    make: Callable[[int], Environments], expert: Expert, episodes: int, seed: int
) -> tuple[Shown, Environments]:
    """Demonstrations of a seed, and environments to measure in: costly, the same for all methods.

    Found again by the values of `make` and `expert`, which pickling keeps.
    """
    return demonstrate(make(seed), expert, episodes, seed), make(seed + 7919)


def perform(
    make: Callable[[int], Environments], expert: Expert, settings: Settings, cell: Cell
) -> Numbers:
    """One run.

    Args:
        make: environments of a seed.
        expert: what is imitated.
        settings: what all cells share.
        cell: method, rate and seed.

    Returns:
        `score` and `final` (mean success over tasks), `worst` (least of them), `error` (mean
        squared error on what was demonstrated), `tasks` and `curve` (success by task), `samples`
        (mean over tasks), `step_ms` (processor time of one step). NaN where training diverged.
    """
    shown, envs = _demonstrated(make, expert, settings.demonstrations, cell.seed)
    data = Shown(*(leaf.to(settings.device) for leaf in shown))
    kept = torch.arange(data.seen.shape[1], device=data.seen.device) < data.counts[:, None]
    mean, deviation = networks.scales(data.seen[kept], len(data.seen))
    data = data._replace(seen=(data.seen - mean) / deviation)
    begun = time.process_time()
    key = mf.random.key(cell.seed, settings.device)
    params: Params = {}
    with Refusal() as refusal:
        params = train(cell.method, cell.rate, settings, data, key)
    if refusal.came:
        nothing = [math.nan] * len(data.seen)
        numbers = dict.fromkeys(("score", "final", "worst", "error", "step_ms"), math.nan)
        return numbers | {"tasks": nothing, "curve": nothing, "samples": math.nan}
    step_ms = 1e3 * (time.process_time() - begun) / settings.steps
    error = (act(params, data.seen) - data.actions).square().mean(-1)[kept].mean()
    success, _ = measure(
        lambda seen: act(params, (seen - mean) / deviation),
        envs,
        settings.episodes,
        settings.device,
        cell.seed + 7919,
    )
    finite = math.isfinite(float(error))
    return {
        "score": float(success.mean()) if finite else math.nan,
        "final": float(success.mean()) if finite else math.nan,
        "worst": float(success.min()) if finite else math.nan,
        "error": float(error),
        "tasks": success.tolist(),
        "curve": success.tolist(),
        "samples": float(data.counts.double().mean()),
        "step_ms": step_ms,
    }
