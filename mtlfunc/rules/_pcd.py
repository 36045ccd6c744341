"""PCD: follow the primary task as closely as its obligations to the others allow."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_count, check_scalar, poison
from ..core.expect import expect_solver
from ..core.transforms import values_readable
from ..solvers.problems import or_one, root, rounding
from ..types import Geometry, Rule, Scalar, Solver, State, constructor
from ._least_distance import least_distance
from .common import gramian_of


class PCDState(NamedTuple):
    squares: Float[Tensor, " task"]  # moving average of ‖g_t‖², from 0
    seen: Int[Tensor, " task"]  # batches that had the task


@constructor
def pcd(
    tau: Scalar | Float[Tensor, " task"] = 0.02,
    beta: Scalar = 0.999,
    primary: int = 0,
    solver: Solver | None = None,
) -> Rule:
    """The primary task p's direction, as near as the others allow: min ½‖d - g̃_p‖² with g̃_t·d >=
    τ‖g̃_t‖² for the other tasks t; then d is brought to the length ‖g_p‖.

    g̃_t = g_t/√v_t, where v_t is the moving average of ‖g_t‖², corrected for its start. The problem
    is a projection on a dual cone of one more row.

    Args:
        tau: share >= 0 of its own progress that every other task is owed; a number, or one for each
            task (the primary's is not used).
        beta: decay in [0, 1) of the moving averages.
        primary: index of the primary task.
        solver: of `mtlfunc.solvers`, for `dual_cone`; None is `auto()`, exact.

    Returns:
        weights >= 0 of a direction as long as the primary task's gradient: the primary's alone
        where the others have their due, and where the demands contradict each other; all 0 where
        the primary gradient is 0, or absent from the batch.

    Raises:
        ValueError: for tau < 0 or of another length, beta outside [0, 1), a primary not a task.

    Source:
        PCD (TMLR 2026, arXiv 2606.29521), with τ = .02 and β = .999. The paper, and TorchJD, add
        1e-8 to v_t; nothing absolute is added here. The paper's code tries all sets of constraints.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(pcd(tau=0.0), torch.tensor([[1.0, 1.0], [-1.0, 0.0]])).tolist()
        [0.0, 1.4142135381698608]
    """
    if isinstance(tau, Tensor) and tau.ndim:
        if values_readable(tau) and not bool(((tau >= 0) & tau.isfinite()).all()):
            raise ValueError(f"tau: expected finite shares >= 0, got {tau.tolist()}")
    else:
        check_scalar(tau, "tau")
    check_scalar(beta, "beta", below=1.0)
    check_count(primary, "primary", 0)
    expect_solver(solver)

    def init(losses: Tensor, key: Tensor) -> State:
        if primary >= len(losses):
            raise ValueError(
                f"primary: expected one of the {len(losses)} tasks, 0 to {len(losses) - 1}, got "
                f"{primary}"
            )
        if isinstance(tau, Tensor) and tau.ndim and tau.shape != losses.shape:
            raise ValueError(
                f"tau: expected a number or shape {list(losses.shape)}, one share a task, got "
                f"{list(tau.shape)}"
            )
        return PCDState(torch.zeros_like(losses), torch.zeros_like(losses, dtype=torch.int64))

    def drop(x: Tensor) -> Tensor:
        return torch.cat([x[:primary], x[primary + 1 :]])

    def update(geometry: Geometry, state: PCDState) -> tuple[Tensor, State]:
        gramian, present = gramian_of(geometry), geometry.present
        square = gramian.diagonal()
        squares = beta * state.squares + (1 - beta) * square.to(state.squares)
        squares = squares.where(present, state.squares)
        seen = state.seen + present
        mean = squares / or_one(1 - beta ** seen.double()).to(squares)
        # of the two scales: with d in units of g_p, g_t·d >= τ·ratio·‖g_t‖² is due
        ratio = root(mean[primary] / or_one(mean)).to(gramian)
        due = tau * ratio * square - gramian[primary]
        multipliers, _ = least_distance(drop(drop(gramian).mT), drop(due), solver)
        w = torch.cat([multipliers[:primary], torch.ones_like(square[:1]), multipliers[primary:]])
        length, magnitude = w @ gramian @ w, (w @ root(square)) ** 2
        gone = length <= 8 * rounding(len(w), w.dtype) * magnitude
        scale = root(square[primary] / length.where(~gone, 1.0)).where(~gone, 0.0)
        return poison(w * scale, gramian), PCDState(squares, seen)

    return Rule(init, update, frozenset({"gramian", "present"}))
