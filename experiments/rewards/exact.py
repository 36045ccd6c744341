"""Softmax policies over few answers: expectations and the front of the rewards in closed form.

Four questions have eight answers each, every one with a score of its own; rewards are normal, with
one correlation between any two. All answers are enumerated and weighed by their probabilities, so
that nothing is sampled; the advantages are made as those of samples are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from common.cells import Cell

from .methods import METHODS, advantages

QUESTIONS, ANSWERS = 4, 8
SHOWN = 10  # steps between two points of a path


class Kind(NamedTuple):
    rewards: int
    correlation: float


PROBLEMS = {
    "two opposed": Kind(2, -0.8), "three opposed": Kind(3, -0.45), "three unrelated": Kind(3, 0.0),
}  # fmt: skip


def drawn(kind: Kind, seed: int) -> Tensor:
    """Rewards [reward, question, answer] of a seed."""
    wanted = torch.full((kind.rewards,) * 2, kind.correlation, dtype=torch.float64)
    mixed = torch.linalg.cholesky(wanted.fill_diagonal_(1))
    noise = mf.random.normal(mf.random.key(seed), (kind.rewards, QUESTIONS * ANSWERS))
    return (mixed @ noise.double()).unflatten(1, (QUESTIONS, ANSWERS))


def expected(scores: Tensor, rewards: Tensor) -> Tensor:
    """Expected rewards [reward] of the policy softmax(scores), [question, answer]."""
    return (scores.softmax(-1) * rewards).sum(-1).mean(-1)


def losses_fn(params: dict[str, Tensor], batch: tuple[str, Tensor]) -> Tensor:
    """−Σ π A log π of every reward, with π and A held: the losses of all samples there are."""
    kind, rewards = batch
    scores = params["scores"]
    shares = scores.softmax(-1).detach()
    return -(shares * advantages(kind, rewards, shares) * scores.log_softmax(-1)).sum(-1).mean(-1)


def room(rewards: Tensor, reached: Tensor) -> float:
    """By how much some policy beats all rewards at once, at most: 0 on the front. max t over
    policies, so that every expected reward is at least `reached` + t: a linear program.
    """
    count = QUESTIONS * ANSWERS
    cost = np.append(np.zeros(count), -1.0)
    above = np.hstack([-rewards.flatten(1).numpy() / QUESTIONS, np.ones((len(rewards), 1))])
    sums = np.hstack([np.kron(np.eye(QUESTIONS), np.ones(ANSWERS)), np.zeros((QUESTIONS, 1))])
    bounds = [(0, None)] * count + [(None, None)]
    found = linprog(cost, above, -reached.numpy(), sums, np.ones(QUESTIONS), bounds)
    return -float(found.fun)


def front(rewards: Tensor, points: int = 181) -> Tensor:
    """Corners of the front of two rewards [point, 2]: the best policy of every weight."""
    angle = torch.linspace(0, torch.pi / 2, points, dtype=torch.float64)
    weights = torch.stack([angle.cos(), angle.sin()], 1)
    best = torch.einsum("wr,rqa->wqa", weights, rewards).argmax(-1)  # [point, question]
    picked = torch.gather(rewards, 2, best.T.expand(2, -1, -1))  # [reward, question, point]
    return picked.mean(1).T.unique_consecutive(dim=0)


def together(steps: int, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Runs of one method on one problem, in one vmapped program."""
    kind, method = PROBLEMS[cells[0].problem], METHODS[cells[0].method]
    rate, seeds = cells[0].rate, [cell.seed for cell in cells]
    rewards = torch.stack([drawn(kind, seed) for seed in seeds])
    balance = mf.balance(losses_fn, method.rule(), mf.jacobian())
    params = {"scores": torch.zeros(len(cells), QUESTIONS, ANSWERS, dtype=torch.float64)}
    state = vmap(lambda p, r, s: balance.init(p, (method.kind, r), s))(
        params, rewards, torch.tensor(seeds)
    )
    every = vmap(lambda p, r, s: balance.update(p, (method.kind, r), s), randomness="error")
    update: Any = mf.capture(balance._replace(update=every)).update
    first = last = vmap(expected)(params["scores"], rewards)
    path, fell, apart = [first], torch.zeros(len(cells)), torch.zeros(len(cells))
    for step in range(1, steps + 1):
        grads, state, info = update(params, rewards, state)
        weight = info.weights.sum(1)[:, None, None]
        params = {"scores": params["scores"] - rate * grads["scores"] / weight}
        before, last = last, vmap(expected)(params["scores"], rewards)
        fell += (last < before - 1e-9).any(1)
        apart += (info.gramian < 0).flatten(1).any(1)
        if step % SHOWN == 0:
            path.append(last)
    return [
        {
            "first": first[i],
            "last": last[i],
            "room": room(rewards[i], last[i]),
            "fell": fell[i].item() / steps,
            "apart": apart[i].item() / steps,
            "path": torch.stack(path)[:, i],
            "score": last[i].sum().item(),
        }
        for i in range(len(cells))
    ]
