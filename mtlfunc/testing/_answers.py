"""What a solver answered: its weights, and what they prove of themselves."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..solvers import CAGrad, MinNorm, certify
from ..solvers.problems import Problem, check_problem, or_one, root
from ..types import Solution

HOW = "return problem.solution(weights, dual, steps), or the weights alone"


class Wrong(Exception):
    """What a solver returned cannot be an answer."""


def weights_of(problem: Problem, answer: Any) -> Float[Tensor, " task"]:
    """The weights of an answer: of a `Solution`, or the answer itself.

    Raises:
        Wrong: if it cannot be an answer; the text says what was expected.
    """
    like = problem.gramian
    if not isinstance(answer, Solution | Tensor):
        raise Wrong(
            f"expected a Solution or a tensor of weights [{len(like)}], got "
            f"{'None' if answer is None else type(answer).__name__}; {HOW}"
        )
    weights = answer.weights if isinstance(answer, Solution) else answer
    if not isinstance(weights, Tensor):
        raise Wrong(f"weights: expected a tensor, got {type(weights).__name__}; {HOW}")
    if weights.shape != like.shape[:1]:
        raise Wrong(
            f"weights: expected shape [{len(like)}], one entry per task, got {list(weights.shape)}"
        )
    if weights.dtype != like.dtype:
        raise Wrong(
            f"weights are {weights.dtype}, but the Gramian is {like.dtype}; compute in its dtype, "
            "or convert the answer".replace("torch.", "")
        )
    return weights


def certified_error(problem: Problem, weights: Float[Tensor, " task"]) -> Float[Tensor, ""]:
    """How far weights can be from optimal, from problem and weights alone, in float64.

    The larger of the worst violation of a constraint and of

    - min_norm: the largest (‖d‖² - ⟨g_t, d⟩) / ‖g_t‖, ε, or the largest possible distance
      min(√gap, ‖d‖) of d from the shortest vector d*, the smaller of both, in units of
      Σ|w_t|‖g_t‖. However the lengths are spread, ‖d - d*‖² <= ε · Σ|w_t|‖g_t‖ · Σ w*_t‖g_t‖;
    - cagrad: the largest (F* - ⟨g_t, d⟩) / ‖g_t‖ in units of Σ|w_t|‖g_t‖, F* the best dual value;
      how far d leaves the ball is in units of Σ p_t‖g_t‖;
    - dual_cone: the gap in units of m², m the larger of Σ|v_t|‖g_t‖ and Σ|w_t|‖g_t‖, or the
      `backward` error of `certify` in units of m, the smaller of both: where the cone is thin, a
      Gramian knows no more.

    Args:
        problem: of `mtlfunc.solvers`.
        weights: `[task]`, in the Gramian's dtype.

    Returns:
        a number >= 0, the same for all gradients times a constant; infinite for weights that are
        not finite. It can be vmapped.

    Raises:
        TypeError: for anything but a problem.
        ValueError: for weights of another shape or dtype.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> problem = min_norm(torch.diag(torch.tensor([1.0, 4.0])))
        >>> bool(certified_error(problem, torch.tensor([0.8, 0.2])) < 1e-6)
        True
        >>> round(float(certified_error(problem, torch.tensor([0.5, 0.5]))), 3)
        0.5
    """
    check_problem(problem)
    finite = weights.isfinite().all()
    proof = certify(problem, weights.where(finite, 0.0))
    gramian = problem.gramian.double()
    w, n = weights.double(), root(gramian.diagonal())
    infeasible = proof.infeasibility.double()
    gap = proof.gap.double()
    if isinstance(problem, MinNorm):
        norm = root(w @ gramian @ w)
        distance = torch.minimum(gap.sqrt(), norm) / or_one(n @ w.abs())
        error = torch.minimum(proof.violation.double(), distance)
    elif isinstance(problem, CAGrad):
        error, p = proof.violation.double(), problem.preference.double()
        infeasible = infeasible * or_one(root(p @ gramian @ p)) / or_one(n @ p)
    else:  # v may vanish where w does not: a task without a gradient
        size = n @ w.abs()
        unit = or_one(size.maximum(n @ problem.weights.double().abs()))
        error = torch.minimum(gap / unit**2, proof.backward.double() * size / unit)
        infeasible = (n * (problem.weights.double() - w)).amax().clamp_min(0) / unit
    return torch.maximum(error, infeasible).where(finite, torch.inf)
