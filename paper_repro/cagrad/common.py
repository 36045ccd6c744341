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
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#444444")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 2)))


def rows_of(
    draws: int, tasks: int, size: int, tag: int, *, spread: float = 1.0, common: float = 0.0
) -> Tensor:
    """Normal matrices `[draw, task, param]`. Lengths spread from 1 to `spread`, plus a common
    vector.
    """
    root = mf.random.fold_in(mf.random.key(11), tag)
    keys = vmap(lambda i: mf.random.fold_in(root, i))(torch.arange(draws))
    rows = vmap(
        lambda key: mf.random.normal(mf.random.fold_in(key, 0), (tasks, size), torch.float64)
    )(keys)
    shared = vmap(
        lambda key: mf.random.normal(mf.random.fold_in(key, 1), (1, size), torch.float64)
    )(keys)
    lengths = torch.logspace(0, np.log10(spread), tasks, dtype=torch.float64)
    return (rows + common * shared) * lengths[:, None]


def stationary_rows(draws: int, tasks: int, size: int, tag: int) -> Tensor:
    """Rows with 0 in the interior of their hull: a random convex combination is subtracted."""
    rows = rows_of(draws, tasks, size, tag)
    shares = rows_of(draws, 1, tasks, tag + 1)[:, 0].abs()
    return rows - ((shares / shares.sum(-1, keepdim=True))[:, None] @ rows)


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT


def cagrad(g: Tensor, c: float | Tensor) -> mf.Solution:
    """Exact solutions for a batch of Gramians and one c, or one a Gramian."""
    solve = mf.solvers.auto()
    return vmap(lambda g, c: solve(mf.solvers.cagrad(g, c)))(
        g, torch.as_tensor(c, dtype=g.dtype).expand(len(g))
    )


def min_norm(g: Tensor) -> Tensor:
    solve = mf.solvers.auto()
    return vmap(lambda g: solve(mf.solvers.min_norm(g)).weights)(g)


def dual_cone(g: Tensor) -> Tensor:
    """Weights of the mean gradient projected on {d: J d >= 0} (DualProj)."""
    solve = mf.solvers.auto()
    return vmap(
        lambda g: solve(mf.solvers.dual_cone(g, g.new_full((len(g),), 1 / len(g)))).weights
    )(g)


def length(g: Tensor, weights: Tensor) -> Tensor:
    """‖Jᵀweights‖, batched."""
    return torch.einsum("dt,dts,ds->d", weights, g, weights).clamp_min(0).sqrt()


def angle(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Between Jᵀa and Jᵀb, radians. By the difference of unit vectors, so that small angles keep
    their digits.
    """
    a, b = a / length(g, a)[:, None], b / length(g, b)[:, None]
    return 2 * torch.asin((length(g, a - b) / 2).clamp_max(1))


def unit_of(g: Tensor) -> Tensor:
    """‖g₀‖ times the shortest gradient's length, batched."""
    return (g.sum((1, 2)).clamp_min(0).sqrt() / g.shape[-1]) * g.diagonal(dim1=-2, dim2=-1).amin(
        -1
    ).sqrt()


def mean_weights(g: Tensor) -> Tensor:
    return torch.full_like(g[..., 0], 1 / g.shape[-1])


def threshold(g: Tensor) -> tuple[Tensor, Tensor]:
    """c* = ‖v - g₀‖/‖g₀‖ with v the dual-cone projection of g₀, and v's weights."""
    v, p = dual_cone(g), mean_weights(g)
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
