"""EPO search: descend to the Pareto point on a given ray of losses, climbing a loss if need be."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..core.expect import expect_solver
from ..solvers.problems import or_one
from ..types import Geometry, Rule, Scalar, Solver, State, constructor
from ._least_distance import least_distance
from .common import gramian_of, no_state, preference_of, reading
from .losswise import require_nonnegative

SHARPNESS = 1e3
"""The linear programme's objective, largest entry 1, against ½‖α - centre‖²: its loss is at most
1/(2·SHARPNESS), and 0 but near ties.
"""


@constructor
def epo(
    inverse_ray: Float[Tensor, " task"] | None = None,
    tolerance: Scalar = 1e-4,
    *,
    relaxed: bool = False,
    solver: Solver | None = None,
) -> Rule:
    """A linear programme for α in the simplex, with r the inverse ray, C = JJᵀ and the anchor a_t
    = r_t (log(T s_t) - μ), s = r∘L / r·L, μ = Σ s_t log(T s_t).

    Balance, where the non-uniformity μ > tolerance: max αᵀCa; the tasks with the largest r_t L_t
    may not rise, and none may rise faster than along Jᵀa; no task may rise at all where none falls
    along Jᵀa. Descent, elsewhere: max Σ_t (Cα)_t with Cα >= 0 and αᵀCa >= 0 (as far as possible).

    Args:
        inverse_ray: r `[task]` >= 0, scaled to sum 1; the aim is the Pareto point on the ray L ∝
            1/r, where all r_t L_t are equal: a larger entry aims at a **smaller** loss. None is the
            geometry's preference, 1/T unless tasks were mixed.
        tolerance: non-uniformity >= 0 from which to balance. For two tasks r₁L₁/r₂L₂ then ends
            within 1 ± √(8·tolerance).
        relaxed: leave out αᵀCa >= 0 in descent.
        solver: of `mtlfunc.solvers`, for `dual_cone`; None is `auto()`, exact.

    Returns:
        weights α >= 0 that sum to 1; r where the programme has no solution. Needs a step that is
        small near the ray, where α does not shrink: the official toy multiplies by max(μ, .1).

    Raises:
        ValueError: for a bad inverse_ray or a negative tolerance; and for losses below 0, where
            they can be seen; elsewhere weights are NaN.

    Source:
        Mahapatra & Rajan 2020; the programmes are those of the official code, `EPO_LP`, whose
        training script steps T times as far. Two deviations: the programme is solved with -½‖α -
        centre‖² / 1e3 added to the objective (as a least-distance problem, exact but near ties,
        where the mean of the vertices replaces one of them), and rates may miss their bounds by
        rounding, without which nothing is feasible on the front.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> rule = epo(torch.tensor([1.0, 3.0]))
        >>> mf.weights(rule, torch.eye(2), losses=torch.ones(2)).tolist()
        [0.0, 1.0]
    """
    check_scalar(tolerance, "tolerance")
    expect_solver(solver)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        bounded = require_nonnegative(geometry.losses, "epo: the ray r∘L = constant needs")
        present, losses = geometry.present, geometry.losses.double()
        noise = 8 * len(losses) * torch.finfo(gramian.dtype).eps
        r = preference_of(geometry, inverse_ray, losses)
        scale = gramian.diagonal().amax()
        c = (gramian / scale.where(scale > 0, 1.0)).double()

        even = present / present.sum().clamp_min(1).to(r)
        share = torch.where((r * losses).sum() > 0, r * losses / or_one((r * losses).sum()), even)
        log = torch.where(share > 0, share / or_one(even), torch.finfo(r.dtype).tiny).log()
        mu = (share * log).sum()
        # what rounding leaves of equal r_t L_t points nowhere
        excess = torch.where((log - mu).abs() > 8 * len(r) * torch.finfo(r.dtype).eps, log - mu, 0)
        anchor = r * excess
        rates = c @ anchor  # how fast each loss falls along Jᵀa
        balance = (mu > tolerance) & (excess != 0).any()
        falls, worst = rates > 0, share >= share.amax()

        bound = torch.where(balance & falls.any(), torch.where(worst, 0.0, rates), 0.0)
        free = (balance & falls.any() & falls & ~worst) | ~present
        limited = torch.where(free[:, None], 0.0, c)
        last = torch.where(balance | relaxed, 0.0, rates)[None]
        rows = torch.cat([torch.diag(present.to(r)), limited, last])
        size = (c.abs() @ anchor.abs()).amax()[None]
        slack = noise * torch.cat([torch.zeros_like(r), c.abs().amax(-1), size])
        most = rates.where(present, rates.amin()).amax().clamp_max(0)[None]
        bounds = torch.cat([torch.zeros_like(r), bound, most]) - slack
        objective = torch.where(balance, rates, c.sum(-1))
        alpha, feasible = _maximise(objective, rows, bounds, present, even, noise, solver)
        return poison(torch.where(feasible, alpha, r).to(gramian), gramian, bounded), ()

    reads = reading("gramian", "losses", preference=inverse_ray)
    return Rule(no_state(inverse_ray, "inverse_ray"), update, reads, heads="weighted")


def _maximise(
    objective: Tensor, rows: Tensor, bounds: Tensor, present: Tensor, even: Tensor, noise: float,
    solver: Solver | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """max objective·α over rows @ α >= bounds and Σα = 1, sharply: the point of that set nearest to
    even + SHARPNESS·objective.
    """

    def project_flat(x: Tensor) -> Tensor:  # its part along the simplex
        return (x - (x @ even)[..., None]) * present

    slope = project_flat(objective)
    size = slope.abs().amax()
    least = noise * objective.abs().amax()
    slope = slope / torch.where(size > least, size, or_one(objective.abs().amax()))
    along = project_flat(rows)
    start = SHARPNESS * slope
    missing = bounds - rows @ even - along @ start
    multipliers, feasible = least_distance(along @ along.mT, missing, solver)
    alpha = (even + start + multipliers @ along).clamp_min(0)
    # a bound that pushes is met exactly
    alpha = torch.where(present & (multipliers[: len(even)] == 0), alpha, 0.0)
    return alpha / or_one(alpha.sum()), feasible
