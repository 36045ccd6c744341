"""Proximal policy optimisation of a point mass with ten goals, in torch, runs side by side.

A task is a goal on a circle and an actuator that is turned by the task's own angle; an observation
is position and velocity, so that only the task's one-hot code says what to do. A goal is reached if
the point is near it at the end of an episode. Policy and value are a tanh network each, and each is
balanced alone: losses are minus the clipped surrogate, and the squared error of the value, of
every task over its own episodes.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from common.cells import Cell
from common.progress import counted
from common.study import Numbers
from mtlfunc.types import Params

from . import networks
from .methods import HEADS, INDEPENDENT, copies, measured, probe_and_rule

TASKS, EPISODES, HORIZON = 10, 8, 32
PUSH, DRAG, TIME = 1.0, 0.8, 0.15
NEAR = 0.15
HIDDEN = 32
DISCOUNT, TRACE, CLIP, PASSES = 0.95, 0.95, 0.2, 5
SEEN = 4  # iterations between two measurements of success


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    iterations: int  # a multiple of SEEN
    device: str


class World(NamedTuple):
    """What the tasks are."""

    goals: Tensor  # [task, 2], on the unit circle
    turns: Tensor  # [task, 2, 2]: what an action does to the velocity


class Points(NamedTuple):
    """The state of all episodes."""

    at: Tensor  # [task, episode, 2]
    speed: Tensor  # [task, episode, 2]


class Memory(NamedTuple):
    """What an iteration leaves for the steps on it, the time first: `[time, task, episode]`."""

    seen: Tensor  # [..., 4]
    actions: Tensor  # [..., 2]
    likelihood: Tensor  # log-density of the actions
    advantages: Tensor  # of mean 0 and deviation 1 in every task
    returns: Tensor  # what the value is to be


def world(key: Tensor) -> World:
    """Goals at equal distances around the start; every task's actuator turned by its own angle."""
    key = mf.random.fold_in(key, 0)
    order = mf.random.permutation(mf.random.fold_in(key, 0), TASKS)
    angles = 2 * math.pi * mf.random.uniform(mf.random.fold_in(key, 1), (TASKS,))
    where = 2 * math.pi * order / TASKS
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return World(torch.stack([where.cos(), where.sin()], -1), turns)


def begin(key: Tensor, episodes: int) -> Points:
    """Episodes that start still, near the middle."""
    at = 0.2 * mf.random.uniform(key, (TASKS, episodes, 2)) - 0.1
    return Points(at, torch.zeros_like(at))


def move(world: World, points: Points, actions: Tensor) -> tuple[Points, Tensor]:
    """One step of the environment. `world`: the tasks. `points`: the state. `actions`: `[task,
    episode, 2]`; what lies outside [-1, 1] is cut off. Returns the next state, and rewards `[task,
    episode]`: minus the distance from the goal.
    """
    push = actions.clamp(-1, 1) @ world.turns.mT
    speed = DRAG * points.speed + (1 - DRAG) * PUSH * push
    at = points.at + TIME * speed
    return Points(at, speed), -_distance(world, at)


def _distance(world: World, at: Tensor) -> Tensor:
    return (at - world.goals[:, None]).square().sum(-1).add(1e-12).sqrt()


def start(key: Tensor, name: str) -> Params:
    """First parameters of a method's policy and value."""
    key = mf.random.fold_in(key, 1)
    widths = (networks.inputs(name, 4, TASKS), HIDDEN, HIDDEN)
    params = {}
    for i, (net, outputs, last) in enumerate((("policy", 2, 0.06), ("value", 1, 1.0))):
        own = mf.random.fold_in(key, i)
        params |= networks.start(own, net, (*widths, outputs), TASKS, name, last)
    spread = (TASKS, 2) if name in (HEADS, INDEPENDENT) else (2,)
    return params | {"spread": torch.full(spread, -0.5, device=key.device)}  # log of the deviation


def network(params: Params, net: str, seen: Tensor) -> Tensor:
    """`[task, sample, output]` from `[task, sample, 4]`."""
    return networks.network(params, net, torch.cat([seen, networks.codes(seen)], -1))


def log_density(params: Params, mean: Tensor, actions: Tensor) -> Tensor:
    """Of independent normal actions; `[..., task, sample]`."""
    spread = params["spread"]
    spread = spread if spread.dim() == 1 else spread[:, None]
    return networks.log_normal((actions - mean) / spread.exp(), spread)


def estimates(rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantages, and the returns that the value is drawn to. The end of an episode is
    one of time, not of the task: the value goes on from there. `rewards`: `[time, ...]`. `values`:
    `[time + 1, ...]`. Returns advantages and returns, `[time, ...]`.
    """
    surprise = rewards + DISCOUNT * values[1:] - values[:-1]
    ahead, found = torch.zeros_like(surprise[0]), []
    for error in reversed(surprise.unbind(0)):
        ahead = error + DISCOUNT * TRACE * ahead
        found.append(ahead)
    advantages = torch.stack(found[::-1])
    return advantages, advantages + values[:-1]


def explore(params: Params, world: World, key: Tensor) -> Memory:
    """Episodes of all tasks with random actions, and what is learnt from."""
    points = begin(mf.random.fold_in(key, 0), EPISODES)
    noise = mf.random.normal(mf.random.fold_in(key, 1), (HORIZON, TASKS, EPISODES, 2))
    spread = params["spread"]
    spread = (spread if spread.dim() == 1 else spread[:, None]).exp()
    seen, actions, means, rewards = [], [], [], []
    for step in noise.unbind(0):
        seen.append(torch.cat([points.at, points.speed], -1))
        means.append(network(params, "policy", seen[-1]))
        actions.append(means[-1] + spread * step)
        points, reward = move(world, points, actions[-1])
        rewards.append(reward)
    every = torch.stack([*seen, torch.cat([points.at, points.speed], -1)])
    values = network(params, "value", every.transpose(0, 1).flatten(1, 2))
    values = values.reshape(TASKS, HORIZON + 1, EPISODES).transpose(0, 1)
    advantages, returns = estimates(torch.stack(rewards), values)
    mean = advantages.mean((0, 2), keepdim=True)
    deviation = (advantages - mean).square().mean((0, 2), keepdim=True).sqrt()
    taken = torch.stack(actions)
    likelihood = log_density(params, torch.stack(means), taken)
    scaled = (advantages - mean) / (deviation + 1e-6)
    return Memory(every[:-1], taken, likelihood, scaled, returns)


def surrogate(ratio: Tensor, advantages: Tensor) -> Tensor:
    """The clipped objective, elementwise: what is to be made large."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def policy_losses(params: Params, memory: Memory) -> Tensor:
    """`[task]`: minus the surrogate."""
    mean = network(params, "policy", _rows(memory.seen))
    ratio = (log_density(params, mean, _rows(memory.actions)) - _rows(memory.likelihood)).exp()
    return -surrogate(ratio, _rows(memory.advantages)).mean(-1)


def value_losses(params: Params, memory: Memory) -> Tensor:
    """`[task]`: squared errors."""
    value = network(params, "value", _rows(memory.seen))[..., 0]
    return (value - _rows(memory.returns)).square().mean(-1)


def _rows(leaf: Tensor) -> Tensor:
    """`[task, time · episode, ...]`."""
    return leaf.transpose(0, 1).flatten(1, 2)


def success(params: Params, world: World, key: Tensor) -> Tensor:
    """`[task]`: share of episodes without noise that end near the goal."""
    points = begin(key, EPISODES)
    for _ in range(HORIZON):
        seen = torch.cat([points.at, points.speed], -1)
        points, _ = move(world, points, network(params, "policy", seen))
    return (_distance(world, points.at) < NEAR).to(points.at.dtype).mean(-1)


def train(key: Tensor, rate: Tensor, *, name: str, iterations: int) -> Tensor:
    """Success `[measurement, task]` of one run, a pure function of key and rate."""
    tasks, params = world(key), start(key, name)
    probe, rule = probe_and_rule(name, copies(TASKS))
    parts = {
        "policy": {k: leaf for k, leaf in params.items() if not k.startswith("value")},
        "value": {k: leaf for k, leaf in params.items() if k.startswith("value")},
    }
    learnt = {"policy": policy_losses, "value": value_losses}
    steps = {k: mf.descend(of, rule, probe, mf.adam(rate)) for k, of in learnt.items()}
    trying = mf.random.fold_in(key, 2)
    memory = explore(params, tasks, trying)
    states = {k: steps[k].init(parts[k], memory, mf.random.fold_in(key, 3)) for k in steps}
    curve = []
    for i in counted(range(iterations), name, "iterations"):
        memory = explore(params, tasks, mf.random.fold_in(trying, i))
        for _ in range(PASSES):
            for k, step in steps.items():
                states[k], _ = step.update(states[k], memory)
        params = {**states["policy"].params, **states["value"].params}
        if (i + 1) % SEEN == 0:
            curve.append(success(params, tasks, mf.random.fold_in(key, 4)))
    return torch.stack(curve)


def perform(settings: Settings, cells: Sequence[Cell]) -> list[Numbers]:
    """Cells of one method, seeds and rates side by side in one vmapped program. Returns for each
    what `measured` says of successes; `step_ms` is the processor time of a step of the optimizer
    with its share of the episodes, one of these runs.
    """
    keys = torch.tensor([cell.seed for cell in cells], device=settings.device)
    rates = torch.tensor([cell.rate for cell in cells], device=settings.device)
    begun = time.process_time()
    curves = vmap(
        lambda key, rate: train(key, rate, name=cells[0].method, iterations=settings.iterations)
    )(keys, rates)
    spent = time.process_time() - begun
    step_ms = 1e3 * spent / len(cells) / settings.iterations / PASSES
    return [measured(curve, step_ms) for curve in curves]
