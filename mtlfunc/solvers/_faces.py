"""Exact and branch-free for a few tasks: solve every face at once and keep the best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import vmap

from ..core.linear import solve_factored
from ..types import Solver, constructor
from . import simplex
from .face_solve import cagrad_face, carry_derivatives, dual_cone_face, lengths, min_norm_face
from .problems import Answer, CAGrad, DualCone, MinNorm, Problem, resolution, root, solver

MOST_TASKS = 6


@constructor
def faces() -> Solver:
    """All 2^T - 1 faces of the simplex, T <= 6, in one batch of T x T systems; all three problems.

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

    w = scale_to_simplex(min_norm_face(problem, _support(candidate, fixed.gramian)[0]))
    # a zero gradient: the hull holds 0, and every such task is as good
    converged = (problem.gramian.diagonal() <= 0).to(w)
    return torch.where(converged.any(), converged / converged.sum().clamp_min(1), w)


def _cagrad(problem: CAGrad) -> tuple[Float[Tensor, " task"], Float[Tensor, ""]]:
    fixed = CAGrad(*(x.detach() for x in problem))

    def candidate(face: Tensor) -> tuple[Tensor, Tensor]:
        w, bounded, _ = cagrad_face(fixed, face)
        w = scale_to_simplex(w)
        return w, _violation(fixed, w).where(bounded, torch.inf)

    w, _, pull = cagrad_face(problem, _support(candidate, fixed.gramian)[0])
    flat = problem.radius == 0  # c = 0 or g₀ = 0: F is linear and d = g₀
    lowest = (torch.arange(len(w), device=w.device) == problem.linear.argmin()).to(w)
    return torch.where(flat, lowest, scale_to_simplex(w)), torch.where(flat, 0.0, pull)


def answer_by(
    problem: Problem,
    eps: float,
    min_norm: Callable[[MinNorm], Tensor],
    dual_cone: Callable[[DualCone, float], Tensor],
    cagrad: Callable[[CAGrad], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """(weights, dual), by a formula for the dual weights of each problem, CAGrad's with r/‖g_w‖.

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
    gramian, (w, pull) = problem.gramian, cagrad(problem)
    shortest = min_norm(MinNorm(gramian))
    push = dual_cone(DualCone(gramian, problem.preference), eps)
    resolved = resolution(len(shortest), eps)
    noise = resolved * (root(gramian.diagonal()) @ shortest) ** 2
    reach = root(push @ gramian @ push)
    within = reach <= (1 + resolved) * problem.radius  # equal at c = 1 where v = 0
    stationary = (shortest @ gramian @ shortest <= noise) & within & (problem.radius > 0)
    # keeps the branch not taken finite, derivatives too
    safe = torch.where(stationary, problem.preference, w)
    recovered = problem.recover(safe, torch.where(stationary, 0.0, pull))
    weights = torch.where(stationary, problem.preference + push, recovered)
    return weights, torch.where(stationary, shortest, w)


def _dual_cone(problem: DualCone, eps: float) -> Float[Tensor, " task"]:
    """Two steps of the proximal-point method, each the face whose conditions hold best."""
    gramian, n = problem.gramian.detach(), lengths(problem.gramian.detach())
    cosine, linear = gramian / (n[:, None] * n), problem.linear.detach() / n
    ridge, y = resolution(len(n), eps), torch.zeros_like(n)
    support = y > 0
    for _ in range(2):
        centre = y

        def candidate(face: Tensor, centre: Tensor = centre) -> tuple[Tensor, Tensor]:
            right = ridge * centre - linear
            matrix = torch.where(face[:, None] & face, cosine, 0.0)
            matrix = matrix + torch.diag(torch.where(face, ridge, 1.0))
            factor = torch.linalg.cholesky_ex(matrix)[0]
            # as a correction of the centre, on the face
            held = torch.where(face, centre, 0.0)
            short = torch.where(face, right - cosine @ held - ridge * held, 0.0)
            y = (held + solve_factored(short[:, None], factor)[:, 0]).clamp_min(0)
            slack = cosine @ y + ridge * y - right
            off = torch.where(y > 0, slack.abs(), -slack).amax() / (linear.abs().amax() + y.sum())
            return y, off.where(off > ridge, 0.0)  # the first that is as good to G

        support, y = _support(candidate, gramian, first=0)
    return carry_derivatives(y / n, dual_cone_face(problem, support, eps).clamp_min(0))


def scale_to_simplex(w: Tensor) -> Tensor:
    w = w.clamp_min(0)
    return w / w.sum()


def _violation(problem: MinNorm | CAGrad, w: Tensor) -> Tensor:
    """How far the worst task lies below the mean rate, as a cosine: blind to gradients' scales."""
    rates, n = problem.gradient(w), lengths(problem.gramian)
    length = w @ n if isinstance(problem, MinNorm) else 1.0  # of d: CAGrad's hardly differs
    return ((w @ rates - rates) / n).amax() / length


def _support(
    candidate: Callable[[Tensor], tuple[Tensor, Tensor]], gramian: Tensor, first: int = 1
) -> tuple[Bool[Tensor, " task"], Float[Tensor, " task"]]:
    """Where the weights of the face that violates least are positive, and these weights; the empty
    face is number 0.
    `candidate`: from a face `[task]` to its weights `[task]` and their violation.
    """
    candidates, violation = vmap(candidate)(simplex.faces(len(gramian), gramian.device, first))
    best = violation.where(violation.isfinite(), torch.inf).argmin()
    chosen = torch.arange(len(violation), device=violation.device) == best
    found = torch.where(chosen[:, None], candidates, 0.0).sum(0)
    return found > 0, found
