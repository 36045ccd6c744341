"""Exact and branch-free for a few tasks: solve every face at once and keep the best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import vmap

from ..types import Solver, constructor
from . import simplex
from .face_solve import cagrad_face, dual_cone_face, lengths, min_norm_face
from .problems import Answer, CAGrad, DualCone, MinNorm, Problem, resolution, root, solver

MOST_TASKS = 6


@constructor
def faces() -> Solver:
    """All 2^T - 1 faces of the simplex in one batch of T x T systems; takes all three problems, T
    <= 6.

    Returns:
        the exact answer to rounding; `steps` counts the faces. Pure torch, no host synchronisation,
        any device; vmaps, compiles and differentiates: the support is found without derivatives,
        the closed form on it carries them.

    Raises:
        ValueError: for T > 6.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> faces()(min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))).weights
        tensor([0.8000, 0.2000])
    """

    def solve(problem: Problem, eps: float) -> Answer:
        count = problem.gramian.shape[-1]
        if count > MOST_TASKS:
            raise ValueError(
                f"faces: {count} tasks have {2**count - 1} faces; at most {MOST_TASKS} are "
                "enumerated. Use auto()"
            )
        return *answer_by(problem, eps, _min_norm, _dual_cone, _cagrad), 2**count - 1

    return solver(solve)


def _min_norm(problem: MinNorm) -> Float[Tensor, " task"]:
    fixed = MinNorm(problem.gramian.detach())

    def candidate(face: Tensor) -> tuple[Tensor, Tensor]:
        w = scale_to_simplex(min_norm_face(fixed, face))
        return w, _violation(fixed, w)

    w = scale_to_simplex(min_norm_face(problem, _support(candidate, fixed.gramian)))
    # a zero gradient: the hull holds 0, and every such task is as good
    converged = (problem.gramian.diagonal() <= 0).to(w)
    return torch.where(converged.any(), converged / converged.sum().clamp_min(1), w)


def _cagrad(problem: CAGrad) -> Float[Tensor, " task"]:
    fixed = CAGrad(*(x.detach() for x in problem))

    def candidate(face: Tensor) -> tuple[Tensor, Tensor]:
        w, bounded = cagrad_face(fixed, face)
        w = scale_to_simplex(w)
        return w, _violation(fixed, w).where(bounded, torch.inf)

    w = scale_to_simplex(cagrad_face(problem, _support(candidate, fixed.gramian))[0])
    flat = problem.radius == 0  # c = 0 or g₀ = 0: F is linear and d = g₀
    lowest = (torch.arange(len(w), device=w.device) == problem.linear.argmin()).to(w)
    return torch.where(flat, lowest, w)


def answer_by(
    problem: Problem,
    eps: float,
    min_norm: Callable[[MinNorm], Tensor],
    dual_cone: Callable[[DualCone, float], Tensor],
    cagrad: Callable[[CAGrad], Tensor],
) -> tuple[Tensor, Tensor]:
    """(weights, dual), by a formula for the dual weights of each problem.

    CAGrad's are those of `cagrad` in general; at a Pareto-stationary point within reach of the dual
    cone, its projection. There g_w = 0 at the optimum, so w says nothing of d; the point of {J d >=
    0} nearest to g₀ is optimal as soon as the ball holds it.
    """
    if isinstance(problem, MinNorm):
        w = min_norm(problem)
        return w, w
    if isinstance(problem, DualCone):
        u = dual_cone(problem, eps)
        return problem.weights + u, u
    gramian, w = problem.gramian, cagrad(problem)
    shortest = min_norm(MinNorm(gramian))
    push = dual_cone(DualCone(gramian, problem.preference), eps)
    resolved = resolution(len(shortest), eps)
    noise = resolved * (root(gramian.diagonal()) @ shortest) ** 2
    reach = root(push @ gramian @ push)
    within = reach <= (1 + resolved) * problem.radius  # equal at c = 1 where v = 0
    stationary = (shortest @ gramian @ shortest <= noise) & within & (problem.radius > 0)
    # keeps the branch not taken finite, derivatives too
    safe = torch.where(stationary, problem.preference, w)
    weights = torch.where(stationary, problem.preference + push, problem.recover(safe))
    return weights, torch.where(stationary, shortest, w)


def _dual_cone(problem: DualCone, eps: float) -> Float[Tensor, " task"]:
    fixed = DualCone(problem.gramian.detach(), problem.weights.detach())
    n = lengths(fixed.gramian)

    def candidate(face: Tensor) -> tuple[Tensor, Tensor]:
        u = dual_cone_face(fixed, face, eps).clamp_min(0)
        slack = (fixed.linear + fixed.gramian @ u) / n
        return u, torch.where(u > 0, slack.abs(), -slack).amax().clamp_min(0)

    support = _support(candidate, fixed.gramian, first=0)
    return dual_cone_face(problem, support, eps).clamp_min(0)


def scale_to_simplex(w: Tensor) -> Tensor:
    w = w.clamp_min(0)
    return w / w.sum()


def _violation(problem: MinNorm | CAGrad, w: Tensor) -> Tensor:
    """How far the worst task lies below the mean rate, as a cosine: blind to gradients' scales."""
    rates = problem.gradient(w)
    n = lengths(problem.gramian)
    return ((w @ rates - rates) / n).amax()


def _support(
    candidate: Callable[[Tensor], tuple[Tensor, Tensor]], gramian: Tensor, first: int = 1
) -> Bool[Tensor, " task"]:
    """Where the weights of the face that violates least are positive; the empty face is number 0.
    `candidate`: from a face `[task]` to its weights `[task]` and their violation.
    """
    candidates, violation = vmap(candidate)(simplex.faces(len(gramian), gramian.device, first))
    best = violation.where(violation.isfinite(), torch.inf).argmin()
    chosen = torch.arange(len(violation), device=violation.device) == best
    return ((candidates > 0) & chosen[:, None]).any(0)
