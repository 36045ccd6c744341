"""What rounding may do to the answers of solvers."""

import torch

from mtlfunc.types import Solution
from tests.support.registry import SOLVERS, SOLVES

F64 = torch.float64
EPS = torch.finfo(F64).eps

EXACT = [(solver, problem) for solver, problem in SOLVES if SOLVERS[solver].objective is not None]


def lengths(G):
    return G.diagonal(dim1=-2, dim2=-1).sqrt()


def uniform(count):
    return torch.full((count,), 1 / count, dtype=F64)


def rounding(problem, G, solution: Solution, c=0.4):
    """Rounding of value and gap: T terms of size n_max·(n·|w|), and √ε where a length is a root."""
    n, count = lengths(G), len(G)
    noise = 8 * count * EPS * n.max() * (n @ solution.weights.abs())
    if problem == "dual_cone":
        return 8 * count**2 * EPS * (n @ solution.weights.abs()) ** 2
    if problem == "cagrad":
        radius = c * (uniform(count) @ G @ uniform(count)).clamp_min(0).sqrt()
        sizes, height = n @ solution.dual, _root(solution.dual @ G @ solution.dual)
        noise = noise + radius * sizes * min(
            (8 * count * EPS) ** 0.5, 8 * count * EPS * _ratio(sizes, height)
        )
    return noise


def _root(x):
    return x.clamp_min(0).sqrt()


def _ratio(a, b):
    return float(a / b) if b > 0 else float("inf")
