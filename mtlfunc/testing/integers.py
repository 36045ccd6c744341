"""Small integer Jacobians, smallest first, and how a matrix is written as code.

Rules and solvers see Gramians alone, so of Jacobians with one Gramian the simplest is kept.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import random

COLUMNS = 3
LARGEST = 5  # of the integer entries


@cache
def integers(count: int, deep: bool = False) -> Float[Tensor, "case task 3"]:
    """Integer Jacobians of T <= 3 tasks with different Gramians, from the smallest; J = 0 left out.

    The order: those without a zero gradient first, then by the largest |entry|, the sum of all
    |entries|, the columns in use, the number of negative entries, and the entries themselves.
    `deep` holds about ten times as many, for a search that found only large counterexamples.
    """
    if count == 1:
        blocks = [_grid(1, 1, LARGEST), _grid(1, 2, 2)]
    elif count == 2:
        whole = _grid(2, 2, LARGEST)
        blocks = [whole] if deep else [_grid(2, 2, 2), _thin(whole, 2000)]
    elif deep:
        drawn = [_grid(3, columns, LARGEST, 20_000) for columns in (2, 3)]
        blocks = [_grid(3, 2, 2), _grid(3, 3, 1), _thin(_grid(3, 2, 3), 30_000), *drawn]
    else:
        drawn = _thin(_grid(3, 2, LARGEST, 40_000), 500)
        blocks = [_grid(3, 2, 1), _grid(3, 3, 1), _thin(_grid(3, 2, 2), 2000), drawn]
    found = torch.cat(blocks)
    found = found[(found != 0).flatten(1).any(-1)]
    found = found[_order(found)]
    _, group = (found @ found.mT).flatten(1).unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(found))
    first = first.scatter_reduce(0, group, torch.arange(len(found)), "amin")
    return found[first.sort().values]


def pick(cases: Tensor, most: int) -> Tensor:
    """The first of an ordered batch, and some of all the others."""
    if len(cases) <= most:
        return cases
    head, tail = cases[: -(-most // 2)], cases[-(-most // 2) :]
    return torch.cat([head, _thin(tail, most // 2)])


def _grid(count: int, columns: int, largest: int, most: int = 0) -> Tensor:
    """Integer matrices `[case, count, 3]`, ±largest in the first columns: all, or `most` drawn."""
    base, digits = 2 * largest + 1, count * columns
    if most:
        entries = (random.uniform(random.key(digits), (most, digits), torch.float64) * base).floor()
    else:
        codes = torch.arange(base**digits)
        entries = torch.stack([codes // base**i % base for i in range(digits)], -1).double()
    return widened((entries - largest).reshape(-1, count, columns), COLUMNS)


def _thin(cases: Tensor, most: int) -> Tensor:
    """About `most` of them, evenly spread."""
    return cases[:: max(1, -(-len(cases) // most))]


def _order(cases: Tensor) -> Tensor:
    """The permutation that sorts by the keys of `integers`."""
    flat = cases.flatten(1)
    columns = ((cases != 0).any(-2) * torch.arange(1, COLUMNS + 1)).amax(-1)
    sizes = flat.abs().sum(-1), flat.abs().amax(-1)
    keys = [*(-flat).unbind(-1)[::-1], (flat < 0).sum(-1), columns, *sizes]
    keys.append((cases == 0).all(-1).any(-1))
    order = torch.arange(len(cases))
    for key in keys:  # the last one decides first
        order = order[key[order].sort(stable=True).indices]
    return order


def widened(rows: Tensor, width: int) -> Tensor:
    """The rows with zero columns, which change no Gramian, up to `width`."""
    return torch.nn.functional.pad(rows, (0, width - rows.shape[-1]))


def trimmed(rows: Float[Tensor, "task param"]) -> Float[Tensor, "task used"]:
    """The rows without the columns that are zero for every task; one column stays."""
    used = (rows != 0).any(0)
    return rows[:, used] if bool(used.any()) else torch.zeros_like(rows[:, :1])


MANY = 36  # equal numbers that are not written out


def literal(x: Tensor) -> str:
    """A matrix as code that gives it back, in float64 where float32 does not hold every number."""
    if x.numel() > MANY and bool((x == x.flatten()[0]).all()):
        return f"torch.full({tuple(x.shape)}, {x.flatten()[0]})"
    exact = torch.equal(x.float().double(), x.double())

    def written(v: Any) -> str:
        if isinstance(v, list):
            return f"[{', '.join(map(written, v))}]"
        whole = abs(v) < 1e6 and v == round(v)
        return f"{v:.0f}." if whole else repr(v).replace("nan", "torch.nan")

    return f"torch.tensor({written((x + 0.0).tolist())}{'' if exact else ', dtype=torch.float64'})"
