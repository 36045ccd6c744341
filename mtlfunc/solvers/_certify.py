"""How good given weights are, wherever they come from: gap, margin and residuals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import check_vector
from ._active_set import run
from .problems import CAGrad, DualCone, MinNorm, Problem, check_problem, or_one, resolution, root


class Certificate(NamedTuple):
    """What is proved of an answer; all numbers but `gap` are free of scale, `str()` is one line."""

    # bounds what the objective (CAGrad: the worst task's rate) can still gain
    gap: Float[Tensor, ""]
    relative_gap: Float[Tensor, ""]  # the gap in units of max ‖g_t‖ · Σ|w_t|‖g_t‖
    kappa: Float[Tensor, ""]  # 1 is exact, < 0 means the step raises a loss; see `certify`
    infeasibility: Float[Tensor, ""]  # the constraint missed by most
    # KKT: the worst task's rate below what optimality asks, as a cosine
    violation: Float[Tensor, ""]
    complementarity: Float[Tensor, ""]  # KKT: Σ weight · |its multiplier|
    worst: Tensor  # the task with the lowest rate, as a cosine
    stationary: Bool[Tensor, ""]  # numerically Pareto stationary: kappa is noise
    # the weights, up to this fraction of Σ|w_s|‖g_s‖, meet the optimality conditions of a G' with
    # |G' - G| <= 3 backward ‖g_s‖‖g_t‖ (min_norm and dual_cone; NaN for cagrad)
    backward: Float[Tensor, ""]

    def __str__(self) -> str:
        numbers = (
            f"kappa {float(self.kappa):.6g}, relative gap {float(self.relative_gap):.1e}, "
            f"infeasibility {float(self.infeasibility):.1e}"
        )
        # half precision rounds the weights themselves, and what is said of them
        eps = torch.finfo(self.gap.dtype).eps
        rounding = (16 if eps > 1e-4 else 64) * eps + 1e4 * torch.finfo(torch.float64).eps
        if not all(bool(x.isfinite()) for x in (self.gap, self.infeasibility, self.violation)):
            return "no answer: NaN or infinite weights or Gramian"
        if self.infeasibility > rounding:
            return (
                f"infeasible: a constraint is missed by {float(self.infeasibility):.1e} ({numbers})"
            )
        if self.stationary:
            return (
                "numerically Pareto stationary: no step improves all tasks by more than rounding "
                f"({numbers})"
            )
        if max(self.relative_gap, self.violation, self.complementarity) <= rounding:
            return f"optimal to rounding ({numbers})"
        if self.backward <= rounding:
            within = float(self.backward) / eps
            return (
                f"optimal as far as the Gramian can say: for one within {within:.0f} machine "
                f"epsilons of it ({numbers})"
            )
        if self.kappa < 0:
            return (
                f"not optimal, and the step raises the loss of task {int(self.worst)} ({numbers})"
            )
        return f"not optimal: task {int(self.worst)} is served worst ({numbers})"


def certify(problem: Problem, weights: Float[Tensor, " task"]) -> Certificate:
    """Audit weights from anywhere: TorchJD's, your own solver's, last step's.

    Args:
        problem: of `min_norm`, `cagrad` or `dual_cone`.
        weights: `[task]`, the coefficients of the direction d = Jᵀweights, in the Gramian's dtype.

    Returns:
        a certificate computed from problem and weights in float64, vmappable. kappa is, with rates
        = G·weights, min(rates)/‖d‖² for min_norm (and ‖d - d*‖² <= gap); min(rates)/F* for cagrad,
        F* the least dual value that `active_set` finds (any dual point bounds the optimum, so
        nothing hangs on its being exact); for dual_cone 1 less the worst negative rate in units of
        ‖g_t‖·Σ max(|v_s|, |w_s|)‖g_s‖.

    Raises:
        TypeError: for anything but a problem.
        ValueError: for weights of another shape, dtype or device, or not finite, and for an
            indefinite matrix, of which nothing is proved; its gap is NaN where that is not seen.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> problem = min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        >>> print(certify(problem, torch.tensor([0.8, 0.2])))
        optimal to rounding (kappa 1, relative gap ..., infeasibility ...)
        >>> problem = min_norm(torch.tensor([[1.0, -1.5], [-1.5, 4.0]]))
        >>> print(certify(problem, torch.tensor([0.5, 0.5])))
        not optimal, and the step raises the loss of task 0 (kappa -0.5, relative gap 2.5e-01, ...)
    """
    check_problem(problem)
    check_vector(weights, problem.gramian, "weights")
    dtype = weights.dtype
    resolved = resolution(len(weights), torch.finfo(dtype).eps)
    eps = torch.finfo(dtype).eps
    problem = type(problem)(*(x.detach().double() for x in problem))
    weights = weights.detach().double()
    gramian = problem.gramian
    # by the rounding of the dtype that the Gramian came in; also refuses what is not a Gramian
    report, _, info = run(problem, eps)
    n = root(gramian.diagonal())
    length = n.where(n > 0, 1.0)
    magnitude = n @ weights.abs()
    sided = torch.ones_like(magnitude, dtype=torch.bool)
    if isinstance(problem, DualCone):
        # the answer w + u may cancel, to no more than the rounding of w
        sided = (weights >= 0).all() | (weights <= 0).all()
        sided = sided & (magnitude > eps**0.5 * (n @ problem.weights.abs()))
        magnitude = n @ torch.maximum(weights.abs(), problem.weights.abs())
    rates = gramian @ weights
    square = (weights @ rates).clamp_min(0)
    worst = (rates / length).argmin()
    if isinstance(problem, MinNorm):
        gap = (square - rates.amin()).clamp_min(0)
        kappa = rates.amin() / or_one(square)
        infeasibility = torch.maximum((-weights).amax().clamp_min(0), (weights.sum() - 1).abs())
        violation = ((square - rates) / length).amax().clamp_min(0) / or_one(magnitude)
        complementarity = (weights.abs() * (rates - square).abs()).sum() / or_one(magnitude**2)
        stationary = square <= 8 * len(n) * eps * magnitude**2
        kappa = torch.where(square > 0, kappa, 1.0)
        backward = _backward(rates - square, weights, length, magnitude)
    elif isinstance(problem, CAGrad):
        backward = gramian.new_full((), torch.nan)
        best = report[len(n) : 2 * len(n)]
        bound = problem.objective(best)
        gap = (bound - rates.amin()).clamp_min(0)
        kappa = torch.where(
            bound.abs() > 8 * len(n) * eps**0.5 * n.amax() * magnitude,
            rates.amin() / or_one(bound),
            1 - gap / or_one(n.amax() * magnitude),
        )
        off = weights - problem.preference
        centre = root(problem.preference @ problem.linear)
        reach = root(off @ gramian @ off)
        infeasibility = ((reach - problem.radius) / or_one(centre)).clamp_min(0)
        violation = ((bound - rates) / length).amax().clamp_min(0) / or_one(magnitude)
        complementarity = best @ (rates - bound).abs() / or_one(n.amax() * magnitude)
        # where g_w = 0 the bound is off by what ‖g_w‖ rounds to; worse weights are not optimal
        noise = resolved**0.5 * (n @ best)
        stationary = (root(best @ gramian @ best) <= noise) & (
            gap <= (centre + problem.radius) * noise + resolved * n.amax() * magnitude
        )
    else:
        dual = weights - problem.weights
        solution = problem.solution(weights, dual, torch.zeros((), dtype=torch.int64))
        gap = solution.gap
        violation = (-rates / length).amax().clamp_min(0) / or_one(magnitude)
        kappa = 1 - violation
        infeasibility = (-dual * length).amax().clamp_min(0) / or_one(magnitude)
        complementarity = (dual.abs() * rates.abs()).sum() / or_one(magnitude**2)
        backward = _backward(rates, dual, length, magnitude)
        # a sum of negative weights, or no weight at all, says nothing of the gradients
        stationary = sided & (square <= 8 * len(n) * eps * magnitude**2)
    gap = gap.where(info[1] >= 0, torch.nan)
    relative = gap / or_one(n.amax() * magnitude)
    found = Certificate(
        gap, relative, kappa, infeasibility, violation, complementarity, worst, stationary, backward
    )
    return Certificate._make(x.to(dtype) if x.is_floating_point() else x for x in found)


def _backward(multiplier: Tensor, dual: Tensor, length: Tensor, magnitude: Tensor) -> Tensor:
    """The largest residual of the optimality conditions in units of Σ|w_s|‖g_s‖: of a negative
    multiplier, or of a positive one times whose weight should be 0 and is not, the smaller of both.
    """
    price, weight = multiplier / length, dual.clamp_min(0) * length
    return torch.maximum(-price, torch.minimum(price.abs(), weight)).amax() / or_one(magnitude)
