"""What a solver may claim next to right answers: that it vmaps, that it differentiates."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..solvers import active_set
from ._answers import Wrong, certified_error, weights_of
from ._judge import AnySolver, describe_error
from .families import FAMILIES, REGULAR, jacobian
from .strategies import VARIANTS, pose

STEP = 1e-5
"""Of the central differences: their error is its square, and rounding over it, 1e-10 each."""

SLACK = 1e-3
"""Between a derivative and a difference quotient, relative."""


def check_vmap(solver: AnySolver, kind: str, tolerance: float, tasks: tuple[int, int]) -> str:
    """A vmap over four problems of a family gives four certified answers; empty if so."""
    count = min(max(3, tasks[0]), tasks[1])

    def solve(rows: Tensor) -> Tensor:
        problem = pose(kind, rows, 0)
        return weights_of(problem, solver(problem))

    for family in FAMILIES:
        batch = torch.stack([jacobian(family, count, seed) for seed in range(4)])
        try:
            with warnings.catch_warnings(action="ignore"):
                found = vmap(solve)(batch)
        except Exception as error:  # whatever a solver may raise
            return f"{kind}: under torch.func.vmap it {_said(error)}"
        for i, (rows, weights) in enumerate(zip(batch, found, strict=True)):
            error = float(certified_error(pose(kind, rows, 0), weights))
            if error > tolerance:
                return (
                    f"{kind}: in a vmap over four problems of {count} tasks the answer to "
                    f'testing.jacobian("{family}", {count}, {i}) has a certified error of '
                    f"{error:.1e}"
                )
    return ""


def check_grad(solver: AnySolver, kind: str, tasks: tuple[int, int]) -> str:
    """First derivatives of the weights are central differences of the exact solver's; empty if so.

    On families whose weights are unique, where quotients of two steps agree: a kink has no
    derivative.
    """
    exact = active_set()
    for family in REGULAR:
        for count in sorted({min(max(t, tasks[0]), tasks[1]) for t in (2, 3)}):
            for seed in range(4):
                rows = jacobian(family, count, seed)
                line = jacobian("gaussian", count, seed + 100)
                mark = torch.arange(1.0, count + 1).to(rows)
                variant = seed % VARIANTS[kind]

                def along(t: Tensor, solve: AnySolver, x=rows, y=line, m=mark, v=variant) -> Tensor:
                    problem = pose(kind, x + t * y, v)
                    return m @ weights_of(problem, solve(problem))

                steps = [torch.tensor(h, dtype=rows.dtype) for h in (STEP, 2 * STEP)]
                near, far = (float((along(h, exact) - along(-h, exact)) / (2 * h)) for h in steps)
                if abs(near - far) > 1e-2 * SLACK * (1 + abs(near)):
                    continue
                try:
                    with warnings.catch_warnings(action="ignore"):
                        slope = float(grad(lambda t, f=along: f(t, solver))(0 * steps[0]))
                except Exception as error:  # whatever a solver may raise
                    return f"{kind}: under torch.func.grad it {_said(error)}"
                if not abs(slope - near) <= SLACK * (1 + abs(near)):
                    return (
                        f'{kind}: at testing.jacobian("{family}", {count}, {seed}) torch.func.grad '
                        f"gives a slope of {slope:.6g} along one line, difference quotients of the "
                        f"exact answer {near:.6g}"
                    )
    return ""


def _said(error: Exception) -> str:
    return (
        f"returns what cannot be an answer: {error}"
        if isinstance(error, Wrong)
        else (describe_error(error))
    )
