"""A regression and a maze with two goals, exact policy gradients (Yu et al. 2020, section 4).

A regression on a tanh unit and on a smaller product of two, which is flat at first; and a maze with
a near goal and a far one in another direction, whose policy gets its task as a one-hot code."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mtlfunc as mf

from .common import normal

INPUTS, HIDDEN, SAMPLES = 6, 16, 32
SIDE, DISCOUNT, SLIP = 6, 0.85, 0.1
# rows and columns of the maze: 2 moves to task 1's goal, 5 to task 2's
BEGIN, GOALS = (2, 2), ((2, 4), (5, 0))
Batch = Any


def trunk(params: mf.types.Params, x: Tensor) -> Tensor:
    for layer in ("trunk.0", "trunk.1"):
        x = torch.tanh(x @ params[f"{layer}.weight"].mT + params[f"{layer}.bias"])
    return x


def regression(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared errors `[2]` of a tanh network with two shared layers."""
    x, y = batch
    out = trunk(params, x) @ params["heads.weight"].mT + params["heads.bias"]
    return (out - y).square().mean(0)


def network(key: Tensor, widths: tuple[int, ...], names: tuple[str, ...]) -> mf.types.Params:
    params: mf.types.Params = {}
    for i, name in enumerate(names):
        params[f"{name}.weight"] = normal(key, 2 * i, (widths[i + 1], widths[i])) / widths[i] ** 0.5
        params[f"{name}.bias"] = 0 * normal(key, 2 * i + 1, (widths[i + 1],))
    return params


def regression_start(key: Tensor) -> mf.types.Params:
    return network(key, (INPUTS, HIDDEN, HIDDEN, 2), ("trunk.0", "trunk.1", "heads"))


def regression_batch(key: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Fresh samples of y = (3 tanh(a·x), tanh(2b·x) tanh(2c·x)), a, b, c of unit length."""
    directions = normal(key, 50, (3, INPUTS))
    a, b, c = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    x = normal(mf.random.fold_in(key, 52), step, (SAMPLES, INPUTS))
    product = torch.tanh(2 * (x @ b)) * torch.tanh(2 * (x @ c))
    return x, torch.stack([3 * torch.tanh(x @ a), product], -1)


@functools.cache
def moves() -> Tensor:
    """Transition probabilities `[action, state, state]` of a grid with walls around it. A move
    slips to a random one now and then.
    """
    plain = torch.zeros(4, SIDE * SIDE, SIDE * SIDE, dtype=torch.float64)
    for action, (down, right) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        for state in range(SIDE * SIDE):
            row = min(max(state // SIDE + down, 0), SIDE - 1)
            column = min(max(state % SIDE + right, 0), SIDE - 1)
            plain[action, state, row * SIDE + column] = 1
    return (1 - SLIP) * plain + SLIP * plain.mean(0)


def maze(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Minus the value `[task]` of the start under the policy: 1 at the goal, discounted.

    Solved exactly, so gradients are exact policy gradients. A batch is transition probabilities
    `[action, state, state]`, and the goals' states `[task, state]` as one-hot rows.
    """
    transition, goals = batch
    count, states = goals.shape
    # The code of the task is an input: x = (one-hot state, one-hot task).
    codes = torch.eye(count, dtype=goals.dtype).repeat_interleave(states, 0)
    x = torch.cat([torch.eye(states, dtype=goals.dtype).repeat(count, 1), codes], -1)
    hidden = torch.tanh(x @ params["trunk.weight"].mT + params["trunk.bias"])
    scores = hidden @ params["policy.weight"].mT + params["policy.bias"]
    policy = torch.softmax(scores, -1).reshape(count, states, 4)
    walk = torch.einsum("tsa,asn->tsn", policy, transition)
    # A goal absorbs: its value is 1, and nothing flows out of it.
    walk = DISCOUNT * walk * (1 - goals)[:, :, None]
    values = torch.linalg.solve(torch.eye(states, dtype=goals.dtype) - walk, goals)
    return -values[:, BEGIN[0] * SIDE + BEGIN[1]]


def maze_start(key: Tensor) -> mf.types.Params:
    params = network(key, (SIDE * SIDE + len(GOALS), HIDDEN, 4), ("trunk", "policy"))
    return params | {
        "trunk.weight": params["trunk.weight"] * (SIDE * SIDE + len(GOALS)) ** 0.5,
        "policy.weight": params["policy.weight"] * 0.3,
    }


def maze_batch(key: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    goals = torch.zeros(len(GOALS), SIDE * SIDE, dtype=torch.float64)
    for task, (row, column) in enumerate(GOALS):
        goals[task, row * SIDE + column] = 1
    return moves(), goals


class Problem(NamedTuple):
    losses: Callable[..., Tensor]
    start: Callable[[Tensor], mf.types.Params]
    batch: Callable[[Tensor, Tensor], Batch]
    lr: float  # of Adam
    steps: int
    unit: str  # of the loss


PROBLEMS = {
    "regression": Problem(
        regression, regression_start, regression_batch, 5e-3, 700, "mean squared error"
    ),
    "maze": Problem(maze, maze_start, maze_batch, 3e-3, 400, "-value of the start"),
}
