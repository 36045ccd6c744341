"""From a counterexample to a smaller one: fewer tasks, fewer parameters, rounder numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .cases import LARGEST, Case


def shrink(case: Case, fails: Callable[[Case], bool], most: int = 200) -> Case:
    """Takes the first simplification after which the property still fails, as long as there is one;
    looks at no more than `most` cases.
    """
    looked = 0
    smaller = True
    while smaller and looked < most:
        smaller = False
        for candidate in simpler(case):
            looked += 1
            if fails(candidate):
                case, smaller = candidate, True
                break
            if looked >= most:
                break
    return case


def simpler(case: Case) -> Iterator[Case]:
    """A task less; small integers; a parameter less; an entry less; fewer digits. Each is simpler
    than `case`, so that this ends.
    """
    rows, losses = case
    count, columns = rows.shape
    for i in range(count if count > 1 else 0):
        rest = [j for j in range(count) if j != i]
        yield Case(rows[rest], losses[:, rest])
    largest = rows.abs().amax()
    whole = bool((rows == rows.round()).all())
    for limit in range(1, LARGEST + 1):
        rounded = (rows * limit / largest).round()
        if bool((rounded != 0).any()) and (not whole or limit < largest):
            yield Case(rounded, losses)
    for i in range(columns if columns > 1 else 0):
        if bool((rows[:, i] != 0).any()):
            yield Case(rows.index_fill(1, torch.tensor(i), 0.0), losses)
    for i in rows.flatten().nonzero().flatten().tolist():
        yield Case(rows.flatten().index_fill(0, torch.tensor(i), 0.0).reshape(rows.shape), losses)
    for digits in (1, 2, 3):
        rounded = torch.tensor(
            [float(f"{x:.{digits}g}") for x in rows.flatten().tolist()], dtype=rows.dtype
        ).reshape(rows.shape)
        if letters(rounded) < letters(rows):
            yield Case(rounded, losses)


def letters(rows: Tensor) -> int:
    """That it takes to write the matrix."""
    return sum(len(repr(x)) for x in rows.flatten().tolist())
