"""What rounding may do to the answers of solvers."""

import torch

from mtlfunc.types import Solution
from tests.support.oracles import EPS, F64
from tests.support.registry import SOLVERS, SOLVES

EXACT = [(solver, problem) for solver, problem in SOLVES if SOLVERS[solver].objective is not None]


def lengths(G):
    return G.diagonal(dim1=-2, dim2=-1).sqrt()


def uniform(count):
    return torch.full((count,), 1 / count, dtype=F64)


def dot(a, b):
    return (a * b).sum(-1)


def clear_length(g, dual):
    """Whether ‖g_w‖ is known beyond √ε of the rows' length, by which value and direction hang."""
    spread = dot(lengths(g), dual)
    return _root(torch.einsum("bi,bij,bj->b", dual, g, dual)) > 1e-3 * spread


def optimal(problem, g, answer, given, c=0.4):
    """Whether each of a batch of answers is feasible and optimal, up to rounding."""
    count, n, w = g.shape[-1], lengths(g), answer.weights
    magnitude, largest = dot(n, w.abs()), n.amax(-1)
    if problem == "min_norm":
        convex = (w >= 0).all(-1) & ((w.sum(-1) - 1).abs() <= 1e-14 * count)
        return convex & (answer.gap <= 1e-13 * largest * magnitude)
    if problem == "dual_cone":
        along = (answer.rates >= -1e-12 * n * magnitude[:, None]).all(-1)
        slack = dot(answer.dual, answer.rates.abs())
        return (w >= given).all(-1) & along & (slack <= 1e-12 * magnitude**2)
    centre, off = _root(g.mean((-2, -1))), w - given
    reach = _root(torch.einsum("bi,bij,bj->b", off, g, off))
    # Rounding in both quadratic forms, ‖d - g₀‖² and ‖g₀‖².
    squares = dot(n, off.abs()) ** 2 + (c * n.mean(-1)) ** 2
    noise = 1e-15 * count * squares / centre.where(centre > 0, 1.0) / c
    slack = torch.where(clear_length(g, answer.dual), 1e-9, 2e-6) * largest * centre * (1 + c)
    return (reach <= c * centre * (1 + 1e-12) + noise) & (answer.gap <= slack)


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
