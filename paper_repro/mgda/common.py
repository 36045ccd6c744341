"""What the questions of the essay (Su 2022) share: names, draws and exact answers."""

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

ROUNDING = 1e-9


def normal(tag: int, shape: tuple[int, ...]) -> Tensor:
    return mf.random.normal(mf.random.fold_in(mf.random.key(31), tag), shape, torch.float64)


def uniform(tag: int, shape: tuple[int, ...]) -> Tensor:
    return mf.random.uniform(mf.random.fold_in(mf.random.key(37), tag), shape, torch.float64)


def rows_of(
    draws: int, tasks: int, size: int, tag: int, *, spread: float = 1.0, common: float = 0.0
) -> Tensor:
    """Normal matrices `[draw, task, param]` plus a common vector. Lengths rise from 1 to `spread`
    over the tasks.
    """
    lengths = torch.logspace(0, 1, tasks, base=spread, dtype=torch.float64)
    return (
        normal(tag, (draws, tasks, size)) + common * normal(tag + 1, (draws, 1, size))
    ) * lengths[:, None]


def stationary_rows(draws: int, tasks: int, size: int, tag: int) -> Tensor:
    """Rows with 0 inside their hull. A random convex combination of them, positive in every weight,
    is subtracted.
    """
    rows = rows_of(draws, tasks, size, tag)
    shares = 0.3 + uniform(tag, (draws, 1, tasks))
    return rows - (shares / shares.sum(-1, keepdim=True)) @ rows


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT


TASKS, SIZE = 10, 20
# length of the min-norm point of the family with its optimum inside, in units of a gradient's
HEIGHT = 0.3


def families(draws: int) -> dict[str, Tensor]:
    """Gramians `[draw, task, task]` of ten tasks, the optimum inside the simplex and on a face.
    Tasks conflict in both. Inside: rows with 0 in the interior of their hull, all moved by one
    vector orthogonal to them, which then is the min-norm point.
    """
    return {
        "interior": gram(stationary_rows(draws, TASKS, SIZE, 100)) + HEIGHT**2 * SIZE,
        "face": gram(rows_of(draws, TASKS, SIZE, 110, spread=3.0, common=0.5)),
    }


def scaled(gramians: Tensor) -> Tensor:
    """Largest diagonal entry 1."""
    return gramians / gramians.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]


def solved(solver: mf.types.Solver, gramians: Tensor) -> mf.types.Solution:
    return vmap(lambda g: solver(mf.solvers.min_norm(g)))(gramians)


def shortest(gramians: Tensor) -> Tensor:
    """Weights `[draw, task]` of the min-norm points."""
    return solved(mf.solvers.auto(), gramians).weights


def mixed(weights: Tensor, rows: Tensor) -> Tensor:
    """Jᵀw `[draw, param]`."""
    return torch.einsum("dt,dtp->dp", weights, rows)


def square(gramians: Tensor, weights: Tensor) -> Tensor:
    """‖Jᵀw‖², batched over any leading axes."""
    return torch.einsum("...t,...ts,...s->...", weights, gramians, weights).clamp_min(0)


def relative_gap(gramians: Tensor, weights: Tensor) -> Tensor:
    """The duality gap wᵀGw - min(Gw) in units of max ‖g_t‖ · Σ w_t‖g_t‖."""
    return vmap(lambda g, w: mf.solvers.certify(mf.solvers.min_norm(g), w).relative_gap)(
        gramians, weights
    )


def normalised() -> mf.Rule:
    """Weights 1/‖g_t‖: the sum of unit gradients."""
    return mf.stateless(lambda gramian: gramian.diagonal().rsqrt())
