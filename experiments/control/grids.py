"""Exact policy gradients on small slippery mazes: no sampling, so that what is seen is the method.

Four mazes of 5 x 5 fields differ in their goals and in what the four actions do: in each the
actions are permuted. One network sees the field and the task as one-hot codes, which meet in three
tanh units. A task's loss is how far the value of the start, uniform over fields, is from the best
policy's, times a scale; values are linear solves, so gradients are exact. The scales, 10 to 0.1,
are what a method has to cope with; results are counted without them.
"""

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

from .methods import SCALES_UNDONE, measured, probe_and_rule

SIDE, ACTIONS, TASKS, WIDTH = 5, 4, 4, 3
DISCOUNT, SLIP = 0.9, 0.2
SCALES = (10.0, 1.0, 1.0, 0.1)


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    steps: int
    device: str


class Mazes(NamedTuple):
    """Four tasks in tables; all double precision."""

    moves: Tensor  # probabilities [task, action, field, field]
    goals: Tensor  # one-hot rows [task, field]; a goal absorbs, and is worth 1
    best: Tensor  # value of the start under the best policy [task]


def moves(device: torch.device | str = "cpu") -> Tensor:
    """Probabilities `[action, field, field]`: right, left, down, up, with walls around the grid.
    With probability `SLIP` the move is that of a random action.
    """
    plain = torch.zeros(ACTIONS, SIDE**2, SIDE**2, dtype=torch.float64)
    for action, (down, right) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        for field in range(SIDE**2):
            row = min(max(field // SIDE + down, 0), SIDE - 1)
            column = min(max(field % SIDE + right, 0), SIDE - 1)
            plain[action, field, row * SIDE + column] = 1
    return ((1 - SLIP) * plain + SLIP * plain.mean(0)).to(device)


def values(policy: Tensor, moves: Tensor, goals: Tensor) -> Tensor:
    """Discounted values: v = goal + DISCOUNT · (1 - goal) · P v, solved. `policy`: probabilities
    `[task, field, action]`. `moves`: `[task, action, field, field]`. `goals`: `[task, field]`.
    Returns `[task, field]`.
    """
    walk = torch.einsum("tsa,tasn->tsn", policy, moves)
    walk = DISCOUNT * (1 - goals)[..., None] * walk
    return torch.linalg.solve(torch.eye(goals.shape[-1]).to(goals) - walk, goals)


def best_values(moves: Tensor, goals: Tensor) -> Tensor:
    """Of the best policies `[task, field]`, by policy iteration. A round improves or ends, and a
    maze of 25 fields needs at most 25: each fixes one more ring of fields around the goal.
    """
    policy = torch.full((*goals.shape, ACTIONS), 1 / ACTIONS).to(goals)
    for _ in range(SIDE**2):
        ahead = torch.einsum("tasn,tn->tsa", moves, values(policy, moves, goals))
        policy = torch.nn.functional.one_hot(ahead.argmax(-1), ACTIONS).to(goals)
    return values(policy, moves, goals)


def mazes(key: Tensor) -> Mazes:
    """Four mazes of a key: different goals, permuted actions."""
    key = mf.random.fold_in(key, 0)
    goals = torch.eye(SIDE**2, dtype=torch.float64, device=key.device)
    goals = goals[mf.random.permutation(mf.random.fold_in(key, 0), SIDE**2)[:TASKS]]
    orders = mf.random.permutation(mf.random.fold_in(key, 1), ACTIONS, TASKS)
    own = moves(key.device)[orders]
    return Mazes(own, goals, best_values(own, goals).mean(-1))


def start(key: Tensor) -> Params:
    """First parameters of a key."""
    key = mf.random.fold_in(key, 1)

    def drawn(i: int, *shape: int) -> Tensor:
        return mf.random.normal(mf.random.fold_in(key, i), shape, torch.float64)

    return {
        "trunk.field": drawn(0, SIDE**2, WIDTH),
        "trunk.task": drawn(1, TASKS, WIDTH),
        "policy.weight": drawn(2, ACTIONS, WIDTH) * 0.3,
        "policy.bias": torch.zeros(ACTIONS, dtype=torch.float64, device=key.device),
    }


def policy(params: Params) -> Tensor:
    """Probabilities `[task, field, action]`."""
    hidden = torch.tanh(params["trunk.field"] + params["trunk.task"][:, None])
    logits = hidden @ params["policy.weight"].mT + params["policy.bias"]
    return torch.softmax(logits, -1)


def gaps(params: Params, batch: Mazes) -> Tensor:
    """`[task]`: the share of the best value that the policy misses, from 0 to 1."""
    found = values(policy(params), batch.moves, batch.goals).mean(-1)
    return 1 - found / batch.best


def losses(params: Params, batch: Mazes) -> Tensor:
    """The gaps, each in its scale."""
    return gaps(params, batch) * torch.tensor(SCALES).to(batch.best)


def train(key: Tensor, rate: Tensor, *, name: str, steps: int) -> Tensor:
    """The gaps `[step + 1, task]` of a run, a pure function of key and rate that may be batched."""
    batch, params = mazes(key), start(key)
    probe, rule = probe_and_rule(name)
    learnt = gaps if name == SCALES_UNDONE else losses
    step = mf.descend(learnt, rule, probe, mf.adam(rate))
    state = step.init(params, batch, key=mf.random.fold_in(key, 2))
    seen = []
    for _ in counted(range(steps), name, "steps"):
        seen.append(gaps(state.params, batch))
        state, _ = step.update(state, batch)
    seen.append(gaps(state.params, batch))
    return torch.stack(seen)


def perform(settings: Settings, cells: Sequence[Cell]) -> list[Numbers]:
    """Cells of one method, seeds and rates side by side in one vmapped program. Returns for each
    what `measured` says of the gaps after every step; `step_ms` is the processor time of a step,
    one of these runs.
    """
    keys = torch.tensor([cell.seed for cell in cells], device=settings.device)
    rates = torch.tensor([cell.rate for cell in cells], dtype=torch.float64, device=settings.device)
    begun = time.process_time()
    runs = vmap(lambda key, rate: train(key, rate, name=cells[0].method, steps=settings.steps))(
        keys, rates
    )
    step_ms = 1e3 * (time.process_time() - begun) / settings.steps / len(cells)
    return [measured(run, step_ms, lower=True) for run in runs]
