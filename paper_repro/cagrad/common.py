"""What CAGrad's questions share: draws, exact directions, random quadratics.

Rows g_t of J are task gradients, G = J Jᵀ, g₀ their mean, d the direction, ⟨g_t, d⟩ the rate of
task t. Draws are normal matrices unless said otherwise; "relative" numbers are in units of ‖g₀‖
times the shortest gradient."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Condition

BALL = (
    Condition("largest duality gap over longest gradient times ‖d‖", "<", 1e-10),
    Condition("largest |‖d - g₀‖/(c‖g₀‖) - 1|", "<", 1e-9),
)
"""Of a direction that is the best one of the ball, whatever computes it."""


def rows_of(
    draws: int, tasks: int, size: int, tag: int, *, spread: float = 1.0, common: float = 0.0
) -> Tensor:
    """Normal matrices `[draw, task, param]` plus a common vector, times 1 to `spread`."""
    root = mf.random.fold_in(mf.random.key(11), tag)

    def normal(draw: Tensor, part: int, rows: int) -> Tensor:
        key = mf.random.fold_in(mf.random.fold_in(root, draw), part)
        return mf.random.normal(key, (rows, size), torch.float64)

    rows = vmap(lambda i: normal(i, 0, tasks) + common * normal(i, 1, 1))(torch.arange(draws))
    return rows * torch.logspace(0, np.log10(spread), tasks, dtype=torch.float64)[:, None]


def stationary_rows(draws: int, tasks: int, size: int, tag: int) -> Tensor:
    """Rows with 0 in the interior of their hull: a random convex combination is subtracted."""
    rows = rows_of(draws, tasks, size, tag)
    shares = rows_of(draws, 1, tasks, tag + 1).abs()
    return rows - (shares / shares.sum(-1, keepdim=True)) @ rows


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT


def cagrad(g: Tensor, c: float | Tensor) -> mf.types.Solution:
    """Exact solutions for a batch of Gramians and one c, or one a Gramian."""
    solve, radius = mf.solvers.auto(), torch.as_tensor(c, dtype=g.dtype).expand(len(g))
    return vmap(lambda g, c: solve(mf.solvers.cagrad(g, c)))(g, radius)


def min_norm(g: Tensor) -> Tensor:
    solve = mf.solvers.auto()
    return vmap(lambda g: solve(mf.solvers.min_norm(g)).weights)(g)


def length(g: Tensor, weights: Tensor) -> Tensor:
    """‖Jᵀweights‖, batched."""
    return torch.einsum("dt,dts,ds->d", weights, g, weights).clamp_min(0).sqrt()


def angle(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Between Jᵀa and Jᵀb, radians; by unit vectors, so that small angles keep their digits."""
    a, b = a / length(g, a)[:, None], b / length(g, b)[:, None]
    return 2 * torch.asin((length(g, a - b) / 2).clamp_max(1))


def unit_of(g: Tensor) -> Tensor:
    """‖g₀‖ times the shortest gradient's length, batched."""
    mean = g.sum((1, 2)).clamp_min(0).sqrt() / g.shape[-1]
    return mean * g.diagonal(dim1=-2, dim2=-1).amin(-1).sqrt()


def mean_weights(g: Tensor) -> Tensor:
    return torch.full_like(g[..., 0], 1 / g.shape[-1])


def threshold(g: Tensor) -> tuple[Tensor, Tensor]:
    """c* = ‖v - g₀‖/‖g₀‖, and the weights of v, which is g₀ projected on {d: J d >= 0}."""
    p, solve = mean_weights(g), mf.solvers.auto()
    v = vmap(lambda g, p: solve(mf.solvers.dual_cone(g, p)).weights)(g, p)
    return length(g, v - p) / length(g, p), v


class Quadratics(NamedTuple):
    matrix: Tensor  # [draw, task, param, param]
    middle: Tensor  # [draw, task, param]
    start: Tensor  # [draw, param]
    smoothness: Tensor  # [draw], H: the largest eigenvalue of a task's Hessian


def quadratics(draws: int, tasks: int, size: int, tag: int) -> Quadratics:
    """Strongly convex quadratics; the tasks' curvatures differ by log-normal factors."""
    root = rows_of(draws * tasks, size, size, tag).reshape(draws, tasks, size, size)
    matrix = root.mT @ root / size + 0.2 * torch.eye(size, dtype=torch.float64)
    matrix = matrix * rows_of(draws, tasks, 1, tag + 1).exp()[..., None]
    return Quadratics(
        matrix,
        rows_of(draws, tasks, size, tag + 2),
        3 * rows_of(draws, 1, size, tag + 3)[:, 0],
        torch.linalg.eigvalsh(matrix).amax((-1, -2)),
    )


def quadratic_losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    matrix, middle = batch
    off = params["x"] - middle
    return 0.5 * torch.einsum("ti,tij,tj->t", off, matrix, off)
