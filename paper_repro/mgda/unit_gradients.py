"""Is a sum of unit gradients free of scales, and does it descend on every task?"""

import itertools
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import MOST_RUNS, SEEN
from ..report.decisions import Claims, Exact, exact
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import Interval, named, share_interval
from .common import ROUNDING, gram, normal, normalised, rows_of, shortest, square, uniform
from .quadratics import Batch, losses, quadratics

CLAIMS = {
    "SU-01": Exact(
        "Weighting each task by 1/‖g_t‖ makes the update independent of rescaling and of "
        "shifting any single loss.",
        exact(
            ("largest change of the unit direction, weights 1/‖g‖", "<", 1e-9),
            ("the same, equal weights", ">", SEEN),
        ),
    ),
    "SU-02": Exact(
        "Weights 1/‖g_t‖ are the same as adding unit task gradients, so designing losses is "
        "at bottom designing gradients.",
        exact(
            (
                "weights 1/‖g‖ against the sum of unit gradients, largest relative difference",
                "<",
                1e-9,
            ),
            ("gradient of Σ L_t/‖g_t‖, lengths constant, against it", "<", 1e-9),
        ),
    ),
    "SU-09": Exact(
        "For two tasks u = g_1/‖g_1‖ + g_2/‖g_2‖ always has ⟨g_t, u⟩ >= 0, so gradient "
        "normalisation reaches Pareto stationarity; with more the normalised sum no "
        "longer suffices.",
        exact(
            ("T = 2: largest |⟨g_t, u⟩ - ‖g_t‖(1 + cos)|/‖g_t‖", "<", 1e-9),
            ("T = 2: share of draws with a negative rate", "==", 0),
            ("T = 2: share of steps that raise a task", "==", 0),
            ("(1, 0), (-.8, .6), (-.8, .6): ⟨g_1, u⟩", "<", 0),
        ).open_unless(("T = 2: share of runs that end within 5 % of *, low", ">", MOST_RUNS)),
    ),
}
claim = Claims(CLAIMS)


class Drawn(NamedTuple):
    """Random quadratics, and what their losses are multiplied by and shifted by."""

    params: mf.types.Params
    batch: Batch
    scale: Tensor  # [draw, task]
    shift: Tensor  # [draw, task]


def run(settings: Settings) -> Findings:
    draws, tasks = settings.count(500), 4
    scale = 10 ** (20 * uniform(210, (draws, tasks)) - 10)
    drawn = Drawn(*quadratics(draws, tasks, 12, 200), scale, normal(211, (draws, tasks)))
    yield free_of_scales(drawn)
    yield sum_of_units(drawn)
    yield from descends(settings)


def direction(
    rule: mf.Rule, params: mf.types.Params, batch: Batch, scale: Tensor, shift: Tensor
) -> Tensor:
    step = mf.balance(lambda p, b: scale * losses(p, b) + shift, rule, mf.jacobian())
    return step.update(params, batch, step.init(params, batch))[0]["x"]


def change_of_scale(rule: mf.Rule, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The direction, and how far its unit vector moves under scales and shifts, `[draw]`."""
    one, none = torch.ones_like(drawn.scale), torch.zeros_like(drawn.shift)
    plain, moved = (
        vmap(lambda p, b, s, c: direction(rule, p, b, s, c))(drawn.params, drawn.batch, *change)
        for change in ((one, none), (drawn.scale, drawn.shift))
    )
    units = (u / u.norm(dim=-1, keepdim=True) for u in (plain, moved))
    return plain, (next(units) - next(units)).norm(dim=-1)


def free_of_scales(drawn: Drawn) -> Claim:
    draws, tasks = drawn.scale.shape
    return claim(
        "SU-01",
        {
            "largest change of the unit direction, weights 1/‖g‖": change_of_scale(
                normalised(), drawn
            )[1].max(),
            "the same, equal weights": change_of_scale(mf.mean(), drawn)[1].max(),
            "smallest scale": drawn.scale.min(),
            "largest scale": drawn.scale.max(),
        },
        f"{draws} draws of {tasks} quadratics, L_t replaced by a·L_t + b with a from 1e-10 to "
        "1e10, through mtlfunc.balance; while no gradient is zero: "
        "there 1/‖g‖ is infinite",
    )


def designed(x: Tensor, batch: Batch, *, constant: bool) -> Tensor:
    """The gradient of Σ L_t/‖g_t‖, the lengths held constant or not."""

    def total(y: Tensor) -> Tensor:
        at = x if constant else y
        lengths = mf.task_gradients(losses, {"x": at}, batch)[1]["x"].norm(dim=-1)
        return (losses({"x": y}, batch) / lengths).sum()

    return jacrev(total)(x)


def sum_of_units(drawn: Drawn) -> Claim:
    params, batch = drawn.params, drawn.batch
    draws, tasks = drawn.scale.shape
    rows = vmap(lambda p, b: mf.task_gradients(losses, p, b)[1]["x"])(params, batch)
    units = (rows / rows.norm(dim=-1, keepdim=True)).sum(1)
    difference = (change_of_scale(normalised(), drawn)[0] - units).norm(dim=-1) / units.norm(dim=-1)
    held = vmap(lambda x, b: designed(x, b, constant=True))(params["x"], batch)
    free = vmap(lambda x, b: designed(x, b, constant=False))(params["x"], batch)
    # A field is a gradient only if its Jacobian is symmetric.
    field = vmap(jacrev(lambda x, b: designed(x, b, constant=True)))(params["x"], batch)
    curl = (field - field.mT).flatten(1).norm(dim=-1) / field.flatten(1).norm(dim=-1)
    return claim(
        "SU-02",
        {
            "weights 1/‖g‖ against the sum of unit gradients, largest relative "
            "difference": difference.max(),
            "gradient of Σ L_t/‖g_t‖, lengths constant, against it": (
                (held - units).norm(dim=-1) / units.norm(dim=-1)
            ).max(),
            "the same, lengths differentiated too, median": (
                (free - units).norm(dim=-1) / units.norm(dim=-1)
            ).median(),
            "antisymmetric part of the field's Jacobian, median relative size": curl.median(),
        },
        f"{draws} draws of {tasks} quadratics; up to a common factor, with the lengths held "
        "constant. The Jacobian of the field is not symmetric: the sum of "
        "unit gradients is the gradient of no loss, so that gradients are designed and not losses",
    )


BROKEN = [
    [Fraction(1), Fraction(0)],
    [Fraction(-4, 5), Fraction(3, 5)],
    [Fraction(-4, 5), Fraction(3, 5)],
]
"""Three unit gradients whose sum raises the first task."""


def broken_rates() -> list[Fraction]:
    u = [sum(column, Fraction(0)) for column in zip(*BROKEN, strict=True)]
    return [sum((a * b for a, b in zip(row, u, strict=True)), Fraction(0)) for row in BROKEN]


def unit_descent(draws: int, tasks: int, dim: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps θ ← θ - Σ g_t/‖g_t‖ · 1/(T(k + 1)). Shares of draws with a raised task `[step]`,
    distance at the end, distance at the start.
    """
    params, batch = quadratics(draws, tasks, dim, 270)
    x = params["x"]
    raised = []
    weigh = vmap(lambda g: mf.weights(normalised(), g))

    def measure(x: Tensor) -> Tensor:
        centres, hessians = batch
        return (hessians @ (x[:, None] - centres)[..., None])[..., 0]

    def distance(x: Tensor) -> Tensor:
        g = gram(measure(x))
        return square(g, shortest(g)).sqrt()

    start = distance(x)
    for k in tqdm(range(steps), desc=f"normalised gradients, T = {tasks}", leave=False):
        rows = measure(x)
        u = torch.einsum("dt,dtp->dp", weigh(gram(rows)), rows)
        rates = torch.einsum("dtp,dp->dt", rows, u) / rows.norm(dim=-1)
        raised.append((rates < -ROUNDING).any(-1).double().mean())
        x = x - u / (tasks * (k + 1) ** 0.75)
    return torch.stack(raised), distance(x), start


Shares = dict[tuple[int, int], Interval]
"""Of draws in which the sum raises a task, by (parameters, tasks)."""
Descents = dict[int, tuple[Tensor, Tensor, Tensor]]
"""What `unit_descent` found, by tasks."""
COUNTS, SIZES = (2, 3, 5, 10, 20), (5, 20, 100)


def descends(settings: Settings) -> Findings:
    draws, steps = settings.count(2000), settings.count(1000)
    shares: Shares = {}
    for size, count in itertools.product(SIZES, COUNTS):
        g = gram(rows_of(draws, count, size, 290))
        weights = vmap(lambda g: mf.weights(normalised(), g))(g)
        rates = torch.einsum("dts,ds->dt", g, weights)
        shares[size, count] = share_interval(int((rates < -ROUNDING).any(-1).sum()), len(g))
    runs = {count: unit_descent(settings.count(48), count, 6, steps) for count in (2, 3, 6)}
    yield common_descent(shares, runs, formula_error(settings.count(10000)), steps)


def formula_error(draws: int) -> float:
    """Of ⟨g_t, u⟩ = ‖g_t‖(1 + cos) for two tasks, relative."""
    rows = rows_of(draws, 2, 5, 280, spread=100.0)
    length = rows.norm(dim=-1)
    u = (rows / rows.norm(dim=-1, keepdim=True)).sum(1)
    rates = torch.einsum("dtp,dp->dt", rows, u)
    cosine = vmap(mf.diagnostics.cosines)(gram(rows))[:, 0, 1]
    return float(((rates - length * (1 + cosine[:, None])).abs() / length).max())


def common_descent(shares: Shares, runs: Descents, formula: float, steps: int) -> Claim:
    exact = broken_rates()
    ends = {count: float((end / start).median()) for count, (_, end, start) in runs.items()}
    close = runs[2][1] < 0.05 * runs[2][2]
    arrived = share_interval(int(close.sum()), len(close))
    two = max(shares[size, 2].mean for size in SIZES)
    more = max(shares[size, 3].mean for size in SIZES)
    return claim(
        "SU-09",
        {
            "T = 2: largest |⟨g_t, u⟩ - ‖g_t‖(1 + cos)|/‖g_t‖": formula,
            "T = 2: share of draws with a negative rate": two,
            "T = 2: share of steps that raise a task": runs[2][0].mean(),
            **named(
                "T = 2: share of runs that end within 5 % of the start's distance of 0 from the "
                "hull",
                arrived,
            ),
            "T = 3: largest share of draws with a negative rate": more,
            "T = 3: share of steps that raise a task": runs[3][0].mean(),
            "(1, 0), (-.8, .6), (-.8, .6): ⟨g_1, u⟩": float(exact[0]),
        }
        | {
            f"T = {count}: median distance of 0 from the hull at the end, relative to the "
            "start": end
            for count, end in ends.items()
        },
        f"normal matrices, {steps} steps on random convex quadratics, and in fractions; small "
        "steps, non-zero gradients. For T >= 3 it is common descent that "
        "is lost: where the sum rests, Σ g_t/‖g_t‖ = 0 puts 0 in the hull for any T",
    )
