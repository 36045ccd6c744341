"""Contenders for the small problems, each in the best form that a user can write.

Ours at their defaults, through the public call. cvxpy with a program that is parametrised by a
factor of the Gramian (DPP), built at the first call for each number of tasks and kept warm,
Clarabel at its own tolerances (1e-8) and at 1e-12. quadprog on the scaled Gramian. TorchJD's
weightings at their defaults, which stop MGDA after 100 steps or at 1e-3, regularise DualProj and
UPGrad by 1e-4 and normalise CAGrad's Gramian with an epsilon of 1e-4.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from mtlfunc import solvers

C = 0.5
KINDS = ("min_norm", "cagrad", "dual_cone", "upgrad")
MOST = 128  # tasks
Weigh = Callable[[Tensor], Tensor]


def problem(kind: str, g: Tensor, w: Tensor | None = None) -> Any:
    """The problem of one Gramian, to project equal weights, or `w`, where it is the dual cone."""
    if kind == "min_norm":
        return solvers.min_norm(g)
    if kind == "cagrad":
        # a number would be copied to the GPU, which no CUDA graph can do
        return solvers.cagrad(g, g.new_full((), C) if g.is_cuda else C)
    return solvers.dual_cone(g, torch.full_like(g[0], 1 / len(g)) if w is None else w)


def ours(make: Callable[[], Any], kind: str) -> Weigh:
    """Through the public call, for one Gramian."""
    solve = make()
    if kind == "upgrad":
        return lambda g: vmap(lambda w: solve(problem(kind, g, w)).weights)(
            torch.eye(len(g), dtype=g.dtype, device=g.device) / len(g)
        ).sum(0)
    return lambda g: solve(problem(kind, g)).weights


def torchjd(kind: str) -> Weigh:
    """TorchJD's weighting of the same method."""
    from torchjd import aggregation  # a test dependency

    return {
        "min_norm": aggregation.MGDAWeighting,
        "cagrad": partial(aggregation.CAGradWeighting, c=C),
        "dual_cone": aggregation.DualProjWeighting,
        "upgrad": aggregation.UPGradWeighting,
    }[kind]()


def cvxpy(kind: str, tolerance: float) -> Weigh:
    """A parametrised program (DPP), built once for each number of tasks and kept warm."""
    built: dict[int, tuple[cp.Problem, cp.Variable, cp.Parameter, cp.Parameter]] = {}
    limits = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)

    def weigh(g: Tensor) -> Tensor:
        count = len(g)
        if count not in built:
            built[count] = _program(kind, count)
        program, variable, root, linear = built[count]
        factor = _root(g.numpy())
        mean = np.full(count, 1 / count)
        center = factor @ mean
        radius = C * float(np.linalg.norm(center)) if kind == "cagrad" else 1.0
        root.value, linear.value = radius * factor, center @ factor
        program.solve(solver=cp.CLARABEL, warm_start=True, enforce_dpp=True, **limits)
        answer = np.asarray(variable.value, dtype=np.float64).clip(0)
        if kind == "dual_cone":
            return torch.from_numpy(mean + answer)
        answer /= answer.sum()
        if kind == "min_norm":
            return torch.from_numpy(answer)
        # g_w = 0: d cannot be read off the dual, and what is not finite counts as failed
        with np.errstate(divide="ignore", invalid="ignore"):
            return torch.from_numpy(mean + radius / np.linalg.norm(factor @ answer) * answer)

    return weigh


def _program(kind: str, count: int) -> tuple[cp.Problem, cp.Variable, cp.Parameter, cp.Parameter]:
    w, root = cp.Variable(count, nonneg=True), cp.Parameter((count, count))
    linear = cp.Parameter(count)
    objective = {
        "min_norm": lambda: cp.sum_squares(root @ w),
        "cagrad": lambda: linear @ w + cp.norm(root @ w),
        "dual_cone": lambda: 0.5 * cp.sum_squares(root @ w) + linear @ w,
    }[kind]()
    constraints: list[Any] = [] if kind == "dual_cone" else [cp.sum(w) == 1]
    return cp.Problem(cp.Minimize(objective), constraints), w, root, linear


def _root(gramian: np.ndarray) -> np.ndarray:
    """R with RᵀR = G / max G, accurate row by row however the lengths are spread."""
    lengths = np.sqrt(gramian.diagonal())
    unit = np.where(lengths > 0, lengths, 1.0)
    values, vectors = np.linalg.eigh(gramian / np.outer(unit, unit))
    return np.sqrt(values.clip(0))[:, None] * vectors.T * (lengths / lengths.max())


def quadprog(kind: str) -> Weigh:
    """Goldfarb and Idnani's dual method; raises for a singular Gramian."""
    from quadprog import solve_qp  # a test dependency

    def weigh(g: Tensor) -> Tensor:
        count = len(g)
        matrix, zero = g.numpy() / float(g.diagonal().max()), np.zeros(count)
        if kind == "dual_cone":
            answer = solve_qp(matrix, zero, np.eye(count), np.full(count, 1 / count))[0]
        else:
            rows = np.vstack([np.ones(count), np.eye(count)]).T
            answer = solve_qp(matrix, zero, rows, np.eye(count + 1)[0], 1)[0]
        return torch.from_numpy(answer)

    return weigh


class Contender(NamedTuple):
    """A solver, and what it can do."""

    kinds: tuple[str, ...]
    make: Callable[[str], Weigh]
    batched: bool = False  # vmaps
    most: int = MOST  # tasks


SOLVERS = {
    "active_set": Contender(KINDS, partial(ours, solvers.active_set), True),
    "auto": Contender(KINDS, partial(ours, solvers.auto), True),
    "faces": Contender(KINDS[:3], partial(ours, solvers.faces), True, most=3),
    "frank_wolfe(1000)": Contender(KINDS[:2], partial(ours, solvers.frank_wolfe), True),
    "projected_gradient(1000)": Contender(
        KINDS[:3], partial(ours, solvers.projected_gradient), True
    ),
    "cvx (DPP, 1e-12)": Contender(KINDS[:3], partial(ours, solvers.cvx)),
    "cvxpy (DPP, 1e-8)": Contender(KINDS[:3], partial(cvxpy, tolerance=1e-8)),
    "cvxpy (DPP, 1e-12)": Contender(KINDS[:3], partial(cvxpy, tolerance=1e-12)),
    "quadprog": Contender(("min_norm", "dual_cone"), quadprog),
    "TorchJD (defaults)": Contender(KINDS, torchjd),
}
ERRORS = (ValueError, RuntimeError, cp.SolverError)  # of a solver that gives up
