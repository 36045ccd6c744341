"""What does the smoothed minimum give, and its fixed point?

max over u of min_t ⟨g_t, u⟩ - ½‖u‖² has the dual min over the simplex of ½ wᵀG w and the answer
u = Jᵀw. With -(1/λ) log Σ exp(-λ x_t) instead of the minimum, u = Σ softmax(-λ⟨g, u⟩)_t g_t."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..report.decisions import Exact, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from .common import TASKS, families, normal, shortest, square, uniform

CLAIMS = {
    "SU-12": Exact(
        "First method: replace the minimum by -(1/λ) log Σ exp(-λ x_t), which lies "
        "between min x - log T/λ and min x.",
        exact(("lowest (smooth minimum - minimum)·λ/log T", ">=", -1), ("highest", "<=", 0)),
    ),
    "SU-13": Exact(
        "Stationarity of the smoothed problem: u = Σ softmax(-λ⟨g, u⟩)_t g_t.",
        exact(
            ("largest |w - softmax(-λGw)|", "<", 1e-8),
            ("largest difference of dual and primal value, in units of 1/λ", "<", 1e-6),
            ("largest (½‖d*‖² - smoothed optimum)·λ/log T", "<=", 1 + 1e-9),
        ),
    ),
}


def smooth_minimum(settings: Settings) -> Claim:
    draws = settings.count(20000)
    low, high = np.inf, -np.inf
    for tasks in (2, 5, 20):
        x = normal(120 + tasks, (draws, tasks)) * 10 ** (4 * uniform(130 + tasks, (draws, 1)) - 2)
        x[0] = 1.0  # all equal: there the lower bound is attained
        sharpness = 10 ** (6 * uniform(140 + tasks, (draws,)) - 3)
        smooth = -torch.logsumexp(-sharpness[:, None] * x, -1) / sharpness
        # in units of log T/λ: 0 is the minimum itself, -1 the lower bound
        error = (smooth - x.amin(-1)) * sharpness / np.log(tasks)
        slack = 1e-13 * (1 + (sharpness[:, None] * x).abs().amax(-1)) / np.log(tasks)
        low, high = smallest(low, error + slack), largest(high, error - slack)
    return Claim(
        "SU-12",
        {"lowest (smooth minimum - minimum)·λ/log T": low, "highest": high},
        f"{3 * draws} normal x of sizes 1e-2 to 1e2, T = 2, 5, 20, λ from 1e-3 to 1e3, rounding of "
        "λx allowed for",
    )


def smoothed(gramians: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The smoothed problem max smin_λ(J d) - ½‖d‖², d = Jᵀα, by Newton's method with the best of a
    ladder of step lengths: its weights, λ times its value in the dual and in the primal form, and
    the largest |w - softmax(-λGw)|. First axis `[draw]`.
    """
    unit = gramians * sharpness  # only λG enters
    eye = torch.eye(gramians.shape[-1], dtype=gramians.dtype)
    lengths = F.pad(2.0 ** -torch.arange(12, dtype=gramians.dtype), (0, 1))

    def value(alpha: Tensor) -> Tensor:
        rates = torch.einsum("dts,...ds->...dt", unit, alpha)
        return torch.logsumexp(-rates, -1) + 0.5 * (alpha * rates).sum(-1)

    alpha = shortest(gramians)
    for _ in range(60):
        weights = torch.softmax(-torch.einsum("dts,ds->dt", unit, alpha), -1)
        spread = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None]
        newton = torch.linalg.solve(eye + spread @ unit, weights - alpha)
        candidates = alpha + lengths[:, None, None] * newton
        best = value(candidates).argmin(0)
        # Near the end values differ by rounding alone: full steps there.
        close = newton.abs().amax(-1) < 1e-4
        alpha = torch.where(
            close[:, None], candidates[0], candidates[best, torch.arange(len(alpha))]
        )
        if newton.abs().max() < 1e-10:  # all stationary
            break
    rates = torch.einsum("dts,ds->dt", unit, alpha)
    weights = torch.softmax(-rates, -1)
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    again = torch.softmax(-torch.einsum("dts,ds->dt", unit, weights), -1)
    dual = 0.5 * square(unit, weights) - entropy
    return weights, dual, -value(alpha), (weights - again).abs().amax(-1)


def run(settings: Settings) -> Findings:
    yield smooth_minimum(settings)
    yield fixed_point(settings)


def fixed_point(settings: Settings) -> Claim:
    """λ in units of 1/mean ‖g‖²."""
    draws = settings.count(200)
    sharpness = torch.logspace(-2, 4, settings.count(19), dtype=torch.float64)
    residual = gap = outside = 0.0
    for name, gramians in families(draws).items():
        g = gramians / gramians.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        least = square(g, shortest(g))
        for level in tqdm(sharpness, desc=f"temperatures, {name}", leave=False):
            _, dual, value, missing = smoothed(g, level)
            residual, gap = largest(residual, missing), largest(gap, (dual - value).abs())
            outside = largest(outside, (0.5 * level * least - dual) / np.log(TASKS))
    return Claim(
        "SU-13",
        {
            "largest |w - softmax(-λGw)|": residual,
            "largest difference of dual and primal value, in units of 1/λ": gap,
            "largest (½‖d*‖² - smoothed optimum)·λ/log T": outside,
        },
        f"{2 * draws} Gramians of {TASKS} tasks, {len(sharpness)} values of λ·mean ‖g‖² from 1e-2 "
        "to 1e4, Newton's method on max smin_λ(J d) - ½‖d‖²; the dual is ½wᵀGw - entropy(w)/λ",
    )
