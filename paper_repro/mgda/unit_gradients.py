"""Is a sum of unit gradients free of scales, and does it descend on every task?"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import MOST_RUNS, SEEN
from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, share_interval
from .common import ROUNDING, gram, mixed, normal, normalised, rows_of, shortest, square, uniform
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


def run(settings: Settings) -> Findings:
    draws, tasks = settings.count(500), 4
    yield from designed(*quadratics(draws, tasks, 12, 200))
    yield common_descent(settings)


def direction(rule: mf.Rule, params: mf.types.Params, batch: Batch, a: Tensor, b: Tensor) -> Tensor:
    """Of the losses a·L_t + b."""
    step = mf.balance(lambda p, data: a * losses(p, data) + b, rule, mf.jacobian())
    return step.update(params, batch, step.init(params, batch))[0]["x"]


def designed(params: mf.types.Params, batch: Batch) -> Findings:
    draws, tasks, _ = batch[0].shape
    scale = 10 ** (20 * uniform(210, (draws, tasks)) - 10)
    shift = normal(211, (draws, tasks))
    plain, change = {}, {}
    for name, rule in {"1/‖g‖": normalised(), "equal": mf.mean()}.items():
        plain[name], moved = (
            vmap(lambda p, data, a, b, rule=rule: direction(rule, p, data, a, b))(
                params, batch, a, b
            )
            for a, b in ((torch.ones_like(scale), torch.zeros_like(shift)), (scale, shift))
        )
        units = [u / u.norm(dim=-1, keepdim=True) for u in (plain[name], moved)]
        change[name] = (units[0] - units[1]).norm(dim=-1).max()
    yield Claim(
        "SU-01",
        {
            "largest change of the unit direction, weights 1/‖g‖": change["1/‖g‖"],
            "the same, equal weights": change["equal"],
        },
        f"{draws} draws of {tasks} quadratics, L_t replaced by a·L_t + b with a from 1e-10 to "
        "1e10; while no gradient is zero: there 1/‖g‖ is infinite",
    )

    rows = vmap(lambda p, b: mf.task_gradients(losses, p, b)[1]["x"])(params, batch)
    lengths = rows.norm(dim=-1)
    units = (rows / lengths[..., None]).sum(1)
    held = vmap(jacrev(lambda x, b, n: (losses({"x": x}, b) / n).sum()))(
        params["x"], batch, lengths
    )
    weighted, divided = (
        ((u - units).norm(dim=-1) / units.norm(dim=-1)).max() for u in (plain["1/‖g‖"], held)
    )
    yield Claim(
        "SU-02",
        {
            "weights 1/‖g‖ against the sum of unit gradients, largest relative "
            "difference": weighted,
            "gradient of Σ L_t/‖g_t‖, lengths constant, against it": divided,
        },
        f"{draws} draws of {tasks} quadratics; up to a common factor",
    )


BROKEN = [
    [Fraction(1), Fraction(0)],
    [Fraction(-4, 5), Fraction(3, 5)],
    [Fraction(-4, 5), Fraction(3, 5)],
]
"""Three unit gradients whose sum raises the first task."""


def unit_sum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """u = Σ g_t/‖g_t‖ `[draw, param]` and the rates ⟨g_t, u⟩ `[draw, task]`."""
    weights = vmap(lambda g: mf.weights(normalised(), g))(gram(rows))
    u = mixed(weights, rows)
    return u, torch.einsum("dtp,dp->dt", rows, u)


def unit_descent(draws: int, steps: int) -> tuple[Tensor, Tensor]:
    """Steps θ ← θ - Σ g_t/‖g_t‖ · 1/(T(k + 1)^.75) for two tasks. Share of draws with a raised
    task, over all steps; distance of 0 from the hull, end over start `[draw]`.
    """
    params, (centres, hessians) = quadratics(draws, 2, 6, 270)
    x, raised = params["x"], []

    def rows_at(x: Tensor) -> Tensor:
        return (hessians @ (x[:, None] - centres)[..., None])[..., 0]

    def distance(x: Tensor) -> Tensor:
        g = gram(rows_at(x))
        return square(g, shortest(g)).sqrt()

    start = distance(x)
    for k in tqdm(range(steps), desc="normalised gradients", leave=False):
        rows = rows_at(x)
        u, rates = unit_sum(rows)
        raised.append((rates / rows.norm(dim=-1) < -ROUNDING).any(-1).double().mean())
        x = x - u / (2 * (k + 1) ** 0.75)
    return torch.stack(raised).mean(), distance(x) / start


def common_descent(settings: Settings) -> Claim:
    draws, steps = settings.count(2000), settings.count(1000)
    negative = max(
        float((unit_sum(rows_of(draws, 2, size, 290))[1] < -ROUNDING).any(-1).double().mean())
        for size in (5, 20, 100)
    )
    raised, left = unit_descent(settings.count(480), steps)
    pairs = rows_of(settings.count(10000), 2, 5, 280, spread=100.0)
    length = pairs.norm(dim=-1)
    rates = torch.einsum("dtp,dp->dt", pairs, (pairs / length[..., None]).sum(1))
    cosine = vmap(mf.diagnostics.cosines)(gram(pairs))[:, 0, 1]
    formula = ((rates - length * (1 + cosine[:, None])).abs() / length).max()
    lost = sum(a * sum(u) for a, u in zip(BROKEN[0], zip(*BROKEN, strict=True), strict=True))
    return Claim(
        "SU-09",
        {
            "T = 2: largest |⟨g_t, u⟩ - ‖g_t‖(1 + cos)|/‖g_t‖": formula,
            "T = 2: share of draws with a negative rate": negative,
            "T = 2: share of steps that raise a task": raised,
            **named(
                "T = 2: share of runs that end within 5 % of the start's distance of 0 from the "
                "hull",
                share_interval(int((left < 0.05).sum()), len(left)),
            ),
            "(1, 0), (-.8, .6), (-.8, .6): ⟨g_1, u⟩": float(lost),
        },
        f"normal matrices, {steps} steps on random convex quadratics, and in fractions. For "
        "T >= 3 common descent is lost; where the sum rests, 0 is in the hull for any T",
    )
