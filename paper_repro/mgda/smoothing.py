"""What does the smoothed minimum give, and its fixed point?

max over u of min_t ⟨g_t, u⟩ - ½‖u‖² has the dual min over the simplex of ½ wᵀG w and the answer
u = Jᵀw. With -(1/λ) log Σ exp(-λ x_t) instead of the minimum, u = Σ softmax(-λ⟨g, u⟩)_t g_t."""

from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..report.decisions import Exact, exact
from ..report.extremes import largest, smallest
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.options import Draws, Option, drawn
from .common import COLOURS, DASHES, TASKS, families, normal, shortest, square, uniform

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


class Smoothed(NamedTuple):
    """The smoothed problem's answer, and how well it is known."""

    weights: Tensor  # [draw, task]
    residual: Tensor  # [draw], of w = softmax(-λGw)
    gap: Tensor  # [draw], dual less primal value of the smoothed problem


def smoothed(gramians: Tensor, sharpness: Tensor, steps: int = 60) -> Smoothed:
    """The smoothed problem max smin_λ(J d) - ½‖d‖², d = Jᵀα; λ `[draw]`. By Newton's method with
    the best of a ladder of step lengths.
    """
    unit = gramians * sharpness[:, None, None]  # only λG enters
    eye = torch.eye(gramians.shape[-1], dtype=gramians.dtype)
    lengths = F.pad(2.0 ** -torch.arange(12, dtype=gramians.dtype), (0, 1))

    def value(alpha: Tensor) -> Tensor:
        rates = torch.einsum("dts,...ds->...dt", unit, alpha)
        return torch.logsumexp(-rates, -1) + 0.5 * (alpha * rates).sum(-1)

    alpha = shortest(gramians)
    for _ in range(steps):
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
    dual = 0.5 * square(unit, weights) - entropy
    return Smoothed(
        weights,
        (weights - torch.softmax(-torch.einsum("dts,ds->dt", unit, weights), -1)).abs().amax(-1),
        dual + value(alpha),
    )


class Course(NamedTuple):
    """One family over λ."""

    residual: float  # largest, of the fixed point
    gap: float  # largest, of dual and primal value in units of 1/λ
    short: Tensor  # [λ, draw], ½‖d*‖² - smoothed optimum: between 0 and log T/λ
    distance: Tensor  # [λ, draw], ‖d_λ - d*‖/‖d*‖
    raises: Tensor  # [λ], share of d_λ that raise a task


def course(name: str, gramians: Tensor, sharpness: Tensor) -> Course:
    """λ in units of 1/mean ‖g‖²."""
    g = gramians / gramians.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    found = [
        smoothed(g, level.expand(len(g)))
        for level in tqdm(sharpness, desc=f"temperatures, {name}", leave=False)
    ]
    exact = shortest(g)
    least = square(g, exact)
    weights = torch.stack([s.weights for s in found])
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    return Course(
        largest(s.residual.max() for s in found),
        largest(s.gap.abs().max() for s in found),
        0.5 * least - (0.5 * square(g, weights) - entropy / sharpness[:, None]),
        square(g, weights - exact).sqrt() / least.sqrt(),
        (torch.einsum("dts,lds->ldt", g, weights) < 0).any(-1).double().mean(-1),
    )


def run(settings: Settings) -> Findings:
    yield smooth_minimum(settings)
    draws = settings.count(200)
    sharpness = torch.logspace(-2, 4, settings.count(19), dtype=torch.float64)
    found = {name: course(name, g, sharpness) for name, g in families(draws).items()}
    yield over_sharpness(found, sharpness, draws)
    yield fixed_point(list(found.values()), sharpness, draws)


@drawn
def temperatures(
    draws: Draws = 200,
    sharpness: Annotated[
        tuple[float, ...], Option("values of λ · mean ‖g_t‖²", 1e-6, 1e8, 2)
    ] = tuple(float(f"{10 ** (-2 + i / 3):.3g}") for i in range(19)),
) -> Figure:
    """Entropy-regularised MGDA over its sharpness: value, direction, tasks that it raises."""
    values = torch.tensor(sorted(set(sharpness)), dtype=torch.float64)
    found = {name: course(name, g, values) for name, g in families(draws).items()}
    return over_sharpness(found, values, draws)


def over_sharpness(found: dict[str, Course], sharpness: Tensor, draws: int) -> Figure:
    canvas, panels = axes(1, 3, (15, 4.6))
    for (name, one), colour, style in zip(found.items(), COLOURS, DASHES, strict=False):
        drawn = (one.short.median(-1).values, one.distance.median(-1).values, one.raises)
        for panel, values in zip(panels, drawn, strict=True):
            panel.plot(sharpness, values, color=colour, linestyle=style, label=name)
    bound = np.log(TASKS) / sharpness
    panels[0].plot(sharpness, bound, ":", color="#999999", linewidth=2, label="log T/λ")
    labels = "½‖d*‖² - smoothed optimum (median)", "‖d_λ - d*‖ / ‖d*‖ (median)"
    for panel, label in zip(panels, (*labels, "share of d_λ that raise a task"), strict=True):
        panel.set(xlabel="sharpness λ · mean ‖g_t‖²", ylabel=label, xscale="log")
        panel.legend()
    for panel in panels[:2]:
        panel.set_yscale("log")
    return Figure(
        "temperatures",
        f"Entropy-regularised MGDA over the sharpness λ, {draws} Gramians of {TASKS} tasks a "
        "family: optimum inside the simplex, or on a face of it. "
        "Left: the value approaches ½‖d*‖² within log T/λ. Middle: so does the direction. Right: "
        "d_λ is the mean at λ = 0 and a common descent "
        "direction only from some λ on.",
        canvas,
        [
            {
                "family": name,
                "sharpness": float(value),
                "short": float(one.short[i].median()),
                "distance": float(one.distance[i].median()),
                "raise": float(one.raises[i]),
            }
            for name, one in found.items()
            for i, value in enumerate(sharpness)
        ],
    )


def fixed_point(found: list[Course], sharpness: Tensor, draws: int) -> Claim:
    outside = largest((one.short * sharpness[:, None]).max() / np.log(TASKS) for one in found)
    return Claim(
        "SU-13",
        {
            "largest |w - softmax(-λGw)|": largest(one.residual for one in found),
            "largest difference of dual and primal value, in units of 1/λ": largest(
                one.gap for one in found
            ),
            "largest (½‖d*‖² - smoothed optimum)·λ/log T": outside,
        },
        f"{2 * draws} Gramians of {TASKS} tasks, {len(sharpness)} values of λ·mean ‖g‖² from 1e-2 "
        "to 1e4, Newton's method on max smin_λ(J d) - ½‖d‖²; the dual is ½wᵀGw - entropy(w)/λ",
    )
