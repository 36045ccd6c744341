"""PCGrad on Gramians of integers, in exact fractions, under every order."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

import mtlfunc as mf

Vector = list[Fraction]
Matrix = list[Vector]
FAN: Matrix = [[Fraction(1) if i == j else Fraction(-1, 2) for j in range(3)] for i in range(3)]
"""The Gramian of three unit gradients at 120°; all that PCGrad reads of them."""

RAISED = [[-2, -2], [-2, 0], [2, 1]]
"""Gradients of the smallest instance found whose direction raises a task whatever the order."""

Orders = tuple[tuple[int, ...], ...]


def orders_of(tasks: int) -> list[Orders]:
    """All choices of each task's order of the others: ((T - 1)!)^T."""
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    return list(itertools.product(*(itertools.permutations(other) for other in others)))


def times(matrix: Matrix, x: Vector) -> Vector:
    return [sum((a * b for a, b in zip(row, x, strict=True)), Fraction(0)) for row in matrix]


def exact_coefficients(gramian: Matrix, orders: Orders) -> Vector:
    """Algorithm 1 on the Gramian: coefficients of the **sum** of the projected gradients."""
    count = len(gramian)
    total = [Fraction(0)] * count
    for task, order in enumerate(orders):
        own = [Fraction(int(i == task)) for i in range(count)]
        for j in order:
            inner = times(gramian, own)[j]
            if inner < 0:
                own[j] -= inner / gramian[j][j]
        total = [a + b for a, b in zip(total, own, strict=True)]
    return total


def gramian_of(gradients: Sequence[Sequence[Fraction | int]]) -> Matrix:
    return [
        [Fraction(sum(a * b for a, b in zip(g, h, strict=True))) for h in gradients]
        for g in gradients
    ]


def library_coefficients(gramian: Matrix, orders: Orders) -> Tensor:
    rows = torch.tensor([[task, *order] for task, order in enumerate(orders)])
    return len(gramian) * mf.weights(mf.pcgrad(rows), tensor_of(gramian))


def under_all_orders(gramian: Matrix) -> tuple[list[Vector], list[Fraction], float]:
    """Under every order the rates g_t·d and ‖d‖²; the largest difference from the library."""
    every = orders_of(len(gramian))
    coefficients = [exact_coefficients(gramian, orders) for orders in every]
    rates = [times(gramian, c) for c in coefficients]
    squares = [
        sum((a * b for a, b in zip(c, r, strict=True)), Fraction(0))
        for c, r in zip(coefficients, rates, strict=True)
    ]
    library = torch.stack([library_coefficients(gramian, orders) for orders in every])
    return rates, squares, float((library - tensor_of(coefficients)).abs().max())


def tensor_of(matrix: Matrix) -> Tensor:
    """Fractions in float64."""
    return torch.tensor([[float(x) for x in row] for row in matrix], dtype=torch.float64)
