"""The instances: small integer Jacobians, smallest first, and generic ones of any size.

A rule sees Gramians alone, so of all integer Jacobians with one Gramian only the simplest is kept.
Zero columns change no Gramian, so with them all instances with T tasks have one shape, and are one
batch.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import random

COLUMNS = 3
LARGEST = 5
"""Of the integer entries."""


class Case(NamedTuple):
    """One instance, or a batch of them along a new first axis: gradients, and losses by update."""

    jacobian: Float[Tensor, "*batch task param"]
    losses: Float[Tensor, "*batch update task"]


@cache
def integers(count: int, deep: bool = False) -> Float[Tensor, "case task 3"]:
    """Integer Jacobians of T <= 3 tasks with different Gramians, from the smallest; J = 0 left out.

    The order: those without a zero gradient first, then by the largest |entry|, the sum of all
    |entries|, the columns in use, the number of negative entries, and the entries themselves.
    `deep` holds about ten times as many: where the search goes on that found only large
    counterexamples.
    """
    blocks = {
        1: [_grid(1, 1, LARGEST), _grid(1, 2, 2)],
        2: [_grid(2, 2, 2), _thin(_grid(2, 2, LARGEST), 2000)]
        if not deep
        else [_grid(2, 2, LARGEST)],
        3: [
            _grid(3, 2, 1),
            _grid(3, 3, 1),
            _thin(_grid(3, 2, 2), 2000),
            _thin(_grid(3, 2, LARGEST, 40_000), 500),
        ]
        if not deep
        else [
            _grid(3, 2, 2),
            _grid(3, 3, 1),
            _thin(_grid(3, 2, 3), 30_000),
            _grid(3, 2, LARGEST, 20_000),
            _grid(3, 3, LARGEST, 20_000),
        ],
    }[count]
    found = torch.cat(blocks)
    found = found[(found != 0).flatten(1).any(-1)]
    found = found[_order(found)]
    _, group = (found @ found.mT).flatten(1).unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(found)).scatter_reduce_(
        0, group, torch.arange(len(found)), "amin"
    )
    return found[first.sort().values]


def pick(cases: Tensor, most: int) -> Tensor:
    """The first of an ordered batch, and some of all the others."""
    if len(cases) <= most:
        return cases
    head, tail = cases[: -(-most // 2)], cases[-(-most // 2) :]
    return torch.cat([head, _thin(tail, most // 2)])


def _grid(count: int, columns: int, largest: int, most: int = 0) -> Tensor:
    """All integer matrices `[case, count, 3]` with entries in ±largest in the first columns.

    Of too many, `most` drawn ones.
    """
    base, digits = 2 * largest + 1, count * columns
    if most:
        entries = (
            random.uniform(random.key(digits), (most, digits), torch.float64) * base
        ).floor() - largest
    else:
        codes = torch.arange(base**digits)
        entries = (
            torch.stack([codes // base**i % base for i in range(digits)], -1).double() - largest
        )
    rows = entries.reshape(-1, count, columns)
    return widened(rows, COLUMNS)


def _thin(cases: Tensor, most: int) -> Tensor:
    """About `most` of them, evenly spread."""
    return cases[:: max(1, -(-len(cases) // most))]


def _order(cases: Tensor) -> Tensor:
    """The permutation that sorts by the keys of `integers`."""
    flat = cases.flatten(1)
    columns = ((cases != 0).any(-2) * torch.arange(1, COLUMNS + 1)).amax(-1)
    keys = [
        *(-flat).unbind(-1)[::-1],
        (flat < 0).sum(-1),
        columns,
        flat.abs().sum(-1),
        flat.abs().amax(-1),
    ]
    keys.append((cases == 0).all(-1).any(-1))
    order = torch.arange(len(cases))
    for key in keys:  # the last one decides first
        order = order[key[order].sort(stable=True).indices]
    return order


FAMILIES = ("gaussian", "agreeing", "spread", "stationary", "weak", "identical")

SMALL = 12
"""The most tasks of instances that come in batches and are printed as numbers."""


def generic(family: str, count: int, size: int) -> Float[Tensor, "case task param"]:
    """Jacobians with nothing special about them but their family.

    gaussian; agreeing: positive entries, so that nothing conflicts; spread: lengths from 1 to 1e-4;
    stationary: Jᵀw = 0 for weights w between ½ and 3/2, to rounding; weak: fewer dimensions than
    tasks, and two gradients opposite up to float32's rounding; identical: one gradient for all.

    Many tasks have so many columns that the gradients are clearly independent.
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
                return f'mtlfunc.audit.instances.generic("{family}", {count}, {size})[{i}]'
    if count > 3 and torch.equal(jacobian, torch.eye(count, dtype=jacobian.dtype)):
        return f"torch.eye({count}, dtype=torch.float64)"
    return ""


def widened(rows: Tensor, width: int) -> Tensor:
    """The rows with zero columns, which change no Gramian, up to `width`."""
    return torch.nn.functional.pad(rows, (0, width - rows.shape[-1]))


def trimmed(rows: Float[Tensor, "task param"]) -> Float[Tensor, "task used"]:
    """The rows without the columns that are zero for every task; one column stays."""
    used = (rows != 0).any(0)
    return rows[:, used] if bool(used.any()) else torch.zeros_like(rows[:, :1])


def patterns(count: int, updates: int, read: bool) -> Float[Tensor, "pattern update task"]:
    """The losses that go with every Jacobian: 2 for all; and 2, 3, … T + 1, falling over the first
    three updates, if the rule reads losses.

    A loss of 1 would be a special case: its logarithm is 0, and learned weights rest there.
    """
    level = torch.full((updates, count), 2.0, dtype=torch.float64)
    task, update = torch.arange(count), torch.arange(updates)[:, None].clamp_max(2)
    falling = (2 + task) * 2.0 ** -(update * (task % 3)).double()  # exact, and positive
    return torch.stack([level, falling])[: 2 if read else 1]


def with_losses(
    rows: Float[Tensor, "case task param"], losses: Float[Tensor, "pattern update task"]
) -> Case:
    """Every Jacobian with every pattern of losses, the patterns of one Jacobian side by side."""
    return Case(rows.repeat_interleave(len(losses), 0), losses.repeat(len(rows), 1, 1))


def wave(x: Tensor, variant: int) -> Tensor:
    """A fixed matrix in (-1, 1) of the shape of x: a Weyl sequence, which has no pattern."""
    positions = torch.arange(1, x.numel() + 1, dtype=torch.float64)
    positions = positions * (2 + variant) ** 0.5  # irrational for 0, 1 and 3
    return (2 * (positions - positions.floor()) - 1).reshape(x.shape).to(x)


def nudged(cases: Case, share: float) -> Case:
    """Every gradient and loss moved by a fixed `share` of its own size, far above rounding."""
    rows, losses = cases
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return Case(
        rows + share * size * wave(rows[0], 0), losses + share * losses * wave(losses[0], 1)
    )


def independent(rows: Float[Tensor, "*batch task param"]) -> Bool[Tensor, "*batch"]:
    """Whether the gradients are linearly independent, clearly so."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit = rows / norm.where(norm > 0, 1.0)
    return torch.linalg.det(unit @ unit.mT) > 1e-6


def stationary(rows: Float[Tensor, "*batch task param"]) -> Bool[Tensor, "*batch"]:
    """Whether Jᵀw = 0 for integer weights w from 1 to 5, all of them positive.

    Up to five tasks all weights are tried; of more tasks none is called stationary.
    """
    count = rows.shape[-2]
    if count > 5:
        return torch.zeros(rows.shape[:-2], dtype=torch.bool)
    codes = torch.arange(5**count)
    w = torch.stack([codes // 5**i % 5 + 1 for i in range(count)], -1).to(rows)
    return (w @ rows == 0).all(-1).any(-1)
