"""First-order affinity of tasks, and the groups it says to train together (Fifty et al. 2021)."""

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.types import Batch, LossesFn, Params, Scalar


def affinity(
    losses_fn: LossesFn, params: Params, batch: Batch, *, lr: Scalar, shared: str = "*"
) -> Float[Tensor, "task task"]:
    """Z_ij = 1 - L_j(θ - lr·g_i) / L_j(θ): the share of loss j that a plain step on task i alone
    removes, through the shared parameters. Losses are positive, as a vector.
    """
    moving = {name: leaf for name, leaf in params.items() if fnmatch(name, shared)}
    losses, rows = mf.task_gradients(lambda some, x: losses_fn(params | some, x), moving, batch)

    def after(row: Params) -> Tensor:
        return losses_fn(params | {n: moving[n] - lr * row[n] for n in moving}, batch)

    return 1 - vmap(after)(rows) / losses


class Grouping(NamedTuple):
    """Groups of tasks to train together, and what each is trained for."""

    groups: list[tuple[int, ...]]  # tasks trained together, one network a group
    serves: list[tuple[int, ...]]  # those that this group's network answers: every task once
    total: float  # Σ_t of the affinity onto task t in the group that serves it


def groups(
    affinity: Float[Tensor, "task task"], count: int, *, overlap: bool = True, alone: float = 0.0
) -> Grouping:
    """The best set of at most `count` groups of tasks, each task served by one of them.

        max over groups g_1 … g_k and s(t) ∋ t   Σ_t mean_{i ∈ s(t), i ≠ t} Z_it

    Exact. The paper searches sets of groups by branch and bound; here the tasks are partitioned by
    who serves them, over subsets, with the best group that contains them all: 3^T steps for each
    group.

    Args:
        affinity: Z `[task i, task j]`, of `affinity`, averaged over a run; the diagonal is not
            read.
        count: the budget of networks, >= 1.
        overlap: a task may also be trained in groups that do not serve it, to help the others, as
            in the paper; False partitions the tasks.
        alone: the affinity onto a task in a group of its own, which the mean leaves open: 0,
            neither help nor harm. The official code has -1e6, which leaves no task alone.

    Returns:
        groups in the order of the first task that they serve; of equal totals, one with fewer and
        smaller groups.

    Source:
        Fifty et al. 2021 (TAG), network selection, with the mean of the official code.
    """
    tasks = len(affinity)
    if tasks > 12 or not bool(affinity.isfinite().all()):
        raise ValueError("affinity: expected finite numbers between at most 12 tasks")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    Z = affinity.detach().double().cpu().numpy()

    value, best = _best_groups(Z, overlap, alone)
    # The best partition of the tasks of a mask into that many served sets; the one with its lowest
    # task is chosen first.
    rest = np.where(np.arange(1 << tasks) == 0, 0.0, -np.inf)
    parts: list[np.ndarray] = []
    for _ in range(min(count, tasks)):
        total, part = rest.copy(), np.zeros(1 << tasks, dtype=np.int64)
        for mask in range(1, 1 << tasks):
            lowest = mask & -mask
            first = lowest + _subset_sums(1 << t for t in _members(mask ^ lowest))
            scores = value[first] + rest[mask ^ first]
            top = int(scores.argmax())
            if scores[top] > total[mask] or (not parts and not part[mask]):
                total[mask], part[mask] = scores[top], first[top]
        rest = total
        parts.append(part)

    served_sets, mask = [], (1 << tasks) - 1
    for part in reversed(parts):
        if part[mask]:  # 0 where one group fewer is as good
            served_sets.append(int(part[mask]))
            mask ^= int(part[mask])
    return Grouping(
        [_members(int(best[s])) for s in served_sets],
        [_members(s) for s in served_sets],
        float(rest[-1]),
    )


def _best_groups(Z: np.ndarray, overlap: bool, alone: float) -> tuple[np.ndarray, np.ndarray]:
    """The best group for each set of tasks that are served together, and its value, by bit mask."""
    tasks = len(Z)
    value, best = np.full(1 << tasks, -np.inf), np.zeros(1 << tasks, dtype=np.int64)
    value[0] = 0.0
    for group in sorted(range(1, 1 << tasks), key=int.bit_count):
        members = _members(group)
        others = [[Z[i, t] for i in members if i != t] for t in members]
        onto = [float(np.mean(x)) if x else alone for x in others]
        served, score = _subset_sums(1 << t for t in members), _subset_sums(onto)
        if not overlap:
            served, score = served[-1:], score[-1:]
        better = (score > value[served]) | (best[served] == 0)
        value[served[better]], best[served[better]] = score[better], group
    best[0], value[0] = 0, 0.0
    return value, best


def _members(mask: int) -> tuple[int, ...]:
    return tuple(t for t in range(mask.bit_length()) if mask >> t & 1)


def _subset_sums(numbers: Iterable[float]) -> np.ndarray:
    """Of every subset, in the order of the binary numbers."""
    found = np.zeros(1, dtype=np.int64)
    for x in numbers:
        found = np.concatenate([found, found + x])
    return found
