"""How good given weights are, wherever they come from: gap, margin and residuals."""

from math import isnan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_vector
from ..types import Certificate
from .exact import run
from .problems import (
    RESOLUTION,
    CAGrad,
    DualCone,
    MinNorm,
    Problem,
    check_problem,
    noise_level,
    or_one,
    own_or_shortest,
    precision,
    root,
    rounding,
)


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
        ‖g_t‖·Σ max(|v_s|, |w_s|)‖g_s‖. A gradient of length 0 counts as long as the shortest other.

        CAGrad's ball is known to `resolution`: G tells ‖d - g₀‖² to 8Tε(Σ|w_t - p_t|‖g_t‖)². Where
        gradients nearly cancel, d takes weights so large that this is much of its radius.

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
    count, dtype = len(weights), weights.dtype
    eps = precision(count, dtype)
    problem = type(problem)(*(x.detach().double() for x in problem))
    gramian = problem.gramian  # its symmetric part, whose sum would overflow
    problem = problem._replace(gramian=gramian + 0.5 * (gramian.mT - gramian))
    weights = weights.detach().double()
    # by the rounding of the dtype that the Gramian came in; also refuses what is not a Gramian
    report, _, info = run(problem, eps)
    n = root(problem.gramian.diagonal())
    noise, length = rounding(count, dtype), own_or_shortest(n)
    at = _At(problem.gramian @ weights, n, length, n @ weights.abs(), noise)
    if isinstance(problem, MinNorm):
        found = _of_min_norm(problem, weights, at)
    elif isinstance(problem, CAGrad):
        # no weights, or those of a zero gradient alone, have no length
        at = at._replace(magnitude=torch.maximum(at.magnitude, n @ problem.preference))
        found = _of_cagrad(problem, weights, report[count : 2 * count], at)
    else:
        # the answer w + u may cancel, to no more than the rounding of w
        told = at.magnitude > eps**0.5 * (n @ problem.weights.abs())
        most = torch.maximum(weights.abs(), problem.weights.abs())
        found = _of_dual_cone(problem, weights, told, at._replace(magnitude=n @ most))
    if isnan(noise_level(count, dtype)):
        kappa = found.kappa.where(~found.stationary, torch.nan)
        found = found._replace(kappa=kappa, stationary=torch.zeros_like(found.stationary))
    gaps = (x.where(info[1] >= 0, torch.nan) for x in found[:2])
    found = (*gaps, *found[2:])
    return Certificate._make(x.to(dtype) if x.is_floating_point() else x for x in found)


class _At(NamedTuple):
    """What is measured, and in which units."""

    rates: Tensor
    n: Tensor  # ‖g_t‖
    length: Tensor  # the same, and of a gradient that is 0 the shortest other's
    magnitude: Tensor  # Σ|w_t|‖g_t‖
    noise: float  # `rounding`

    def certificate(self, gap: Tensor, **found: Tensor) -> Certificate:
        relative = gap / or_one(self.n.amax() * self.magnitude)
        worst = (self.rates / self.length).argmin()
        found = {"worst": worst, "resolution": torch.zeros_like(gap), **found}
        return Certificate(gap, relative, **found)

    def below(self, level: Tensor | float) -> Tensor:
        """The KKT violation: by how much the worst rate lies below what optimality asks."""
        short = ((level - self.rates) / self.length).amax()
        return short.clamp_min(0) / or_one(self.magnitude)

    def backward(self, multiplier: Tensor, dual: Tensor) -> Tensor:
        """The largest residual of the optimality conditions in units of Σ|w_s|‖g_s‖: of a negative
        multiplier, or of a positive one and its weight, which should be 0, the smaller.
        """
        price, weight = multiplier / self.length, dual.clamp_min(0) * self.length
        worst = torch.maximum(-price, torch.minimum(price.abs(), weight)).amax()
        return worst / or_one(self.magnitude)


def _of_min_norm(problem: MinNorm, weights: Tensor, at: _At) -> Certificate:
    square = (weights @ at.rates).clamp_min(0)
    least, slack = at.rates.amin(), at.rates - square
    return at.certificate(
        (square - least).clamp_min(0),
        kappa=torch.where(square > 0, least / or_one(square), 1.0),
        infeasibility=torch.maximum((-weights).amax().clamp_min(0), (weights.sum() - 1).abs()),
        violation=at.below(square),
        complementarity=(weights.abs() * slack.abs()).sum() / or_one(at.magnitude**2),
        stationary=square <= at.noise * at.magnitude**2,
        backward=at.backward(slack, weights),
    )


def _of_cagrad(problem: CAGrad, weights: Tensor, best: Tensor, at: _At) -> Certificate:
    gramian, longest = problem.gramian, at.n.amax()
    bound = problem.objective(best)
    gap = (bound - at.rates.amin()).clamp_min(0)
    off, scale = weights - problem.preference, or_one(longest * at.magnitude)
    centre, reach = (root(x @ gramian @ x) for x in (problem.preference, off))
    blurs = [at.noise**0.5 * (at.n @ x.abs()) for x in (problem.preference, off)]
    unit = or_one(centre.where(centre > blurs[0], at.magnitude))
    unknown = problem.c * (torch.hypot(centre, blurs[0]) - centre)
    unknown = unknown + torch.hypot(reach, blurs[1]) - reach
    # where g_w = 0 the bound is off by what ‖g_w‖ rounds to; worse weights are not optimal
    opening = at.noise + RESOLUTION
    least = opening**0.5 * (at.n @ best)
    small = (centre + problem.radius) * least + opening * longest * at.magnitude
    told = bound.abs() > (8 * len(at.n) * at.noise) ** 0.5 * longest * at.magnitude
    return at.certificate(
        gap,
        kappa=torch.where(told, at.rates.amin() / or_one(bound), 1 - gap / scale),
        infeasibility=((reach - problem.radius) / unit).clamp_min(0),
        violation=at.below(bound),
        complementarity=best @ (at.rates - bound).abs() / scale,
        stationary=(root(best @ gramian @ best) <= least) & (gap <= small),
        backward=torch.full_like(gap, torch.nan),
        resolution=unknown / unit,
    )


def _of_dual_cone(problem: DualCone, weights: Tensor, told: Tensor, at: _At) -> Certificate:
    dual, square = weights - problem.weights, (weights @ at.rates).clamp_min(0)
    # a sum of negative weights, or no weight at all, says nothing of the gradients
    one_sign = (weights >= 0).all() | (weights <= 0).all()
    violation = at.below(0.0)
    return at.certificate(
        problem.solution(weights, dual, torch.zeros((), dtype=torch.int64)).gap,
        kappa=1 - violation,
        infeasibility=(-dual * at.n).amax().clamp_min(0) / or_one(at.magnitude),
        violation=violation,
        complementarity=(dual.abs() * at.rates.abs()).sum() / or_one(at.magnitude**2),
        stationary=one_sign & told & (square <= at.noise * at.magnitude**2),
        backward=at.backward(at.rates, dual),
    )
