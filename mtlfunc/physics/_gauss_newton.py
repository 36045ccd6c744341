"""Gauss-Newton in sample space: the losses are residuals, and the step makes them all zero."""

import torch
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..core.transforms import has_finite_sum, values_readable
from ..rules.common import gramian_of, no_state, preference_of, reading
from ..solvers.problems import or_one, root
from ..types import Geometry, Rule, Scalar, State, constructor


@constructor
def gauss_newton(
    damping: Scalar = 1e-6, *, preference: Tensor | None = None, momentum: bool = False
) -> Rule:
    """Fits signed residuals r, the losses: w = (G + λ s I)⁻¹ r, and d = Jᵀw solves min_d ½‖r - J
    d‖² + ½ λ s‖d‖², s the largest diagonal entry of G = J Jᵀ.

    The system has one equation a residual, however many parameters there are. A step of length 1
    along -d makes the residuals 0 to first order, up to what the damping leaves: `mtlfunc.sgd(1.0)`
    is the optimizer, or a length by `mtlfunc.physics.line_search`; with `reduction="sum"` it would
    be T times as long. The sum of squares falls along -d for every damping.
    `mtlfunc.physics.newton_error` says how exactly the system was solved.

    For one residual a sample the probe is `mtlfunc.jacobian(weightings=...)` with A = I: the rows
    of a minibatch of points then come from one backward pass.

    Args:
        damping: λ >= 0, in units of s. 0 is exact and needs linearly independent gradients: no more
            residuals than parameters. Rounding of G hides what is below about T·ε, 3e-5 for 256
            residuals in float32; parameters in float64 resolve more.
        preference: ω `[task]` >= 0, weights of the squares, ½ Σ ω_t r_t²; None is the geometry's,
            all equal unless tasks were mixed. They enter as √ω_t r_t and √ω_t g_t; their common
            scale changes nothing.
        momentum: also count what the optimizer carries along, c, as SPRING does: w = (G + λ s
            I)⁻¹ (r - J c) with G = J P Jᵀ, for the optimizer's whole step c + P Jᵀw. It takes
            `mtlfunc.descend(..., mtlfunc.sgd(1.0, momentum=0.9), metric=True)` or
            `mtlfunc.Balancer(module, rule, metric=optimizer)`. The learning rate is in P and
            cancels: the step is a whole one.

    Returns:
        weights of either sign, in units of r/‖g‖²; they are not scaled to a sum.

    Raises:
        ValueError: for damping < 0 or a bad preference; at a step, for a Gramian that is not
            positive definite at this damping (NaN weights where that cannot be seen).

    Source:
        Gauss-Newton and natural gradients by Woodbury's identity: ENGD-W (arXiv:2505.12149), D-NGD
        (arXiv:2505.21404), minSR; SPRING (Goldshlager et al. 2024, arXiv:2401.10190), algorithm 1,
        without its limit on the step's norm.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> J, r = torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([3.0, -2.0])
        >>> d = mf.aggregate(gauss_newton(0.0), J, losses=r)
        >>> (J @ d).tolist()
        [3.0, -2.0]
    """
    check_scalar(damping, "damping")

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian, present = gramian_of(geometry), geometry.present
        wide, given = gramian.double(), geometry.losses.double()
        if momentum:
            if "carried" not in geometry.extra:
                raise ValueError(
                    "gauss_newton: momentum=True, but geometry.extra has no 'carried'; say which "
                    "optimizer steps, mtlfunc.Balancer(module, rule, metric=optimizer) or "
                    "mtlfunc.descend(..., optimizer, metric=True)"
                )
            given = given - geometry.extra["carried"].double()
        p = preference_of(geometry, preference, wide)
        # scaled to a largest entry of 1, which leaves the solution as it is
        share = root(p / or_one(p.amax())).where(present, 0.0)
        weighted = share[:, None] * wide * share
        longest = or_one(weighted.diagonal().amax())
        # rows without a share stand alone, and get nothing
        diagonal = damping + (share == 0).to(wide)
        matrix = 0.5 * (weighted + weighted.mT) / longest + torch.diag(diagonal)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if isinstance(damping, Tensor) or damping == 0:
            # rounding makes the smallest eigenvalue of a singular Gramian noise of either sign
            noise = len(gramian) * torch.finfo(gramian.dtype).eps * (damping == 0)
            less = matrix - noise * matrix.diagonal().diag()
            failed = torch.maximum(failed, torch.linalg.cholesky_ex(less)[1])
        right = (share * given.where(share > 0, 0.0))[:, None]
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        answer = share * torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, 0] / longest
        if values_readable(failed, wide) and bool(failed) and has_finite_sum(wide):
            raise ValueError(_indefinite(gramian, damping))
        return poison(answer, wide, given, right=[failed == 0]).to(gramian.dtype), ()

    carried = ("carried",) if momentum else ()
    reads = reading("gramian", "losses", *carried, preference=preference)
    return Rule(no_state(preference), update, reads, heads="weighted")


def _indefinite(gramian: Tensor, damping: Scalar) -> str:
    noise = len(gramian) * torch.finfo(gramian.dtype).eps
    return (
        f"damping: {float(damping):g} leaves the Gramian of {len(gramian)} residuals singular: "
        "there are more residuals than parameters, parallel gradients, or differences that "
        f"{gramian.dtype} does not resolve; take a damping of {max(10 * noise, 1e-12):.0e} or more"
        + (", or float64 parameters" if gramian.dtype != torch.float64 else "")
    )
