"""The instances: small integer Jacobians, smallest first, and generic ones of any size.

The integer ones are `mtlfunc.testing.integers`. Zero columns change no Gramian, so with them all
instances with T tasks have one shape, and are one batch.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import random
from ..testing.integers import trimmed, widened


class Case(NamedTuple):
    """One instance, or a batch of them along a new first axis: gradients, and losses by update."""

    jacobian: Float[Tensor, "*batch task param"]
    losses: Float[Tensor, "*batch update task"]

    def at(self, places: Any) -> Case:
        """Of a batch one instance, or several."""
        return Case(*(x[places] for x in self))


FAMILIES = ("gaussian", "agreeing", "spread", "stationary", "weak", "identical")
SMALL = 12  # the most tasks of instances that come in batches and are printed as numbers


def generic(family: str, count: int, size: int) -> Float[Tensor, "case task param"]:
    """Jacobians with nothing special about them but their family.

    gaussian; agreeing: positive entries, so that nothing conflicts; spread: lengths from 1 to 1e-4;
    stationary: Jᵀw = 0 for weights w between ½ and 3/2, to rounding; weak: fewer dimensions than
    tasks, and two gradients opposite up to float32's rounding; identical: one gradient for all.

    Many tasks have enough columns that the gradients are clearly independent.
    """
    key = random.fold_in(random.fold_in(random.key(FAMILIES.index(family)), count), size)
    columns = max(count + 2, count**2 // 16)
    rows = random.normal(key, (size, count, columns), torch.float64)
    if family == "identical":
        return rows[:, :1].expand_as(rows).clone()
    if family == "weak":
        rows = rows[..., : max(1, count // 2 + 1)].float()
        share = 0.5 + random.uniform(random.fold_in(key, 1), (size, 1, 1), torch.float32)
        flat = torch.cat([rows[:, :-1], -share * rows[:, :1]], 1).double()
        return widened(flat, columns)
    if family == "agreeing":
        return rows.abs()
    if family == "spread":
        return rows * torch.logspace(0, -4, count, dtype=torch.float64)[:, None]
    if family == "stationary":
        w = 0.5 + random.uniform(random.fold_in(key, 1), (size, count, 1), torch.float64)
        return torch.cat([rows[:, :-1], -(w * rows)[:, :-1].sum(1, keepdim=True) / w[:, -1:]], 1)
    return rows


def source(jacobian: Float[Tensor, "task param"]) -> str:
    """The code that makes a generic Jacobian or an identity of more than three tasks, or ""."""
    count = len(jacobian)
    for family, size in itertools.product(FAMILIES, (1, 8) if count > 3 else ()):
        for i, made in enumerate(generic(family, count, size)):
            if trimmed(made).shape == jacobian.shape and torch.equal(trimmed(made), jacobian):
                return f'generic("{family}", {count}, {size})[{i}]'
    if count > 3 and torch.equal(jacobian, torch.eye(count, dtype=jacobian.dtype)):
        return f"torch.eye({count}, dtype=torch.float64)"
    return ""


def patterns(count: int, updates: int, read: bool) -> Float[Tensor, "pattern update task"]:
    """The losses that go with every Jacobian: 2 for all; and 2, 3, … T + 1, falling over the first
    three updates, if the rule reads losses.

    A loss of 1 would be a special case: its logarithm is 0, and learned weights rest there.
    """
    level = torch.full((updates, count), 2.0, dtype=torch.float64)
    task, update = torch.arange(count), torch.arange(updates)[:, None].clamp_max(2)
    falling = (2 + task) * 2.0 ** -(update * (task % 3)).double()  # exact, and positive
    return torch.stack([level, falling])[: 2 if read else 1]


def wave(x: Tensor, variant: int) -> Tensor:
    """A fixed matrix in (-1, 1) of the shape of x: a Weyl sequence, which has no pattern."""
    positions = torch.arange(1, x.numel() + 1, dtype=torch.float64)
    positions = positions * (2 + variant) ** 0.5  # irrational for 0, 1 and 3
    return (2 * (positions - positions.floor()) - 1).reshape(x.shape).to(x)


def nudged(cases: Case, share: float) -> Case:
    """Every gradient and loss moved by a fixed `share` of its own size, far above rounding."""
    rows, losses = cases
    moved = share * torch.linalg.vector_norm(rows, dim=-1, keepdim=True) * wave(rows[0], 0)
    return Case(rows + moved, losses + share * losses * wave(losses[0], 1))


def independent(rows: Float[Tensor, "*batch task param"]) -> Bool[Tensor, "*batch"]:
    """Whether the gradients are linearly independent, clearly so."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit = rows / norm.where(norm > 0, 1.0)
    return torch.linalg.det(unit @ unit.mT) > 1e-6


def stationary(rows: Float[Tensor, "*batch task param"]) -> Bool[Tensor, "*batch"]:
    """Whether Jᵀw = 0 for integer weights w from 1 to 5, all of them positive. Up to five tasks all
    weights are tried; of more tasks none is called stationary.
    """
    count = rows.shape[-2]
    if count > 5:
        return torch.zeros(rows.shape[:-2], dtype=torch.bool)
    codes = torch.arange(5**count)
    w = torch.stack([codes // 5**i % 5 + 1 for i in range(count)], -1).to(rows)
    return (w @ rows == 0).all(-1).any(-1)
