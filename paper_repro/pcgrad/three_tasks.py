"""Where does PCGrad rest with three tasks, and does the order matter?"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed
from mtlfunc.types import Balance

from ..report.bounds import AT_REST, NEAR_MINIMUM, SETTLED
from ..report.decisions import Claims, Measured, Row, decided, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named
from .rational import FAN, Outcome, Vector, under_all_orders


@decided(
    "PCGrad moves on from the stationary point, and steps of 1/k do not settle for some curvatures"
)
def rests(measured: Measured) -> Verdict:
    around = named_so(measured, "*: distance of the last iterate from the run's mean")
    still = all(measured[name] < AT_REST.now for name in around)
    if still and measured["120°: orders of 8 with d = 0"] > 0:
        return "holds"
    spread = named_so(measured, "*, random order, 1/k: spread of the end points")
    settled = all(measured[name] < SETTLED.now for name in spread)
    return "holds only when" if settled else "does not hold"


@decided("under random orders no mean end point lies within .05 of the minimum of the sum")
def unbiased(measured: Measured) -> Verdict:
    names = named_so(measured, "*, random order: distance of the mean end point")
    near = [measured[name] < NEAR_MINIMUM.now for name in names]
    return verdict_of(near, [not one for one in near])


CLAIMS = {
    "PC-31": Row(
        "Open: PCGrad rests at a stationary point with three gradients at 120°, and "
        "converges for three tasks.",
        rests,
        when="the steps fall as 1/k: they settle, at the minimum of the sum only with equal "
        "curvatures; under random orders PCGrad moves on from the stationary point",
    ),
    "PC-32": Row(
        "With many tasks the random order of the projections takes care of the bias that "
        "one order would have.",
        unbiased,
        when="the curvatures are equal",
    ),
}
claim = Claims(CLAIMS)

CURVATURES = {"equal curvatures": (1.0, 1.0, 1.0), "curvatures 1, 4, 1/4": (1.0, 4.0, 0.25)}
CONSTANT = (0.1, 0.03, 0.01)
STARTS = 6


def centres() -> Tensor:
    angle = torch.pi / 2 + 2 * torch.pi / 3 * torch.arange(3, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], -1)


def losses(params: mf.types.Params, curvatures: Tensor) -> Tensor:
    """½ a_t ‖θ - c_t‖², the centres c_t on the unit circle at 120°."""
    return 0.5 * curvatures * (params["x"] - centres()).square().sum(-1)


def minimum(curvatures: tuple[float, ...]) -> np.ndarray:
    """Of the sum."""
    a = np.array(curvatures)
    return a @ centres().numpy() / a.sum()


class Runs(NamedTuple):
    """Ends and paths of all settings, side by side. Axes: curvatures, fixed or random order, step
    rule (constant ones, then 1/k), start, seed, and time where there is one.
    """

    steps: int
    ball: np.ndarray  # [...], mean distance from the minimum of the sum over the second half
    centre: np.ndarray  # [..., 2], mean over the second half
    end: np.ndarray  # [..., 2]


def runs(settings: Settings) -> Runs:
    """Every combination as a lane; the fixed order is 1, 2, 3, as in the official code."""
    seeds, steps = max(2, settings.seeds // 4), settings.count(30000 if settings.full else 3000)
    shape = (len(CURVATURES), 2, len(CONSTANT) + 1, STARTS, seeds)
    lanes = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    curvatures = torch.tensor(list(CURVATURES.values()), dtype=torch.float64)[lanes[:, 0]]
    random, rule, start, seed = lanes[:, 1].bool(), lanes[:, 2], lanes[:, 3], lanes[:, 4]
    angle = 2 * torch.pi * (start + 0.25) / STARTS
    x = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    constant = torch.tensor([*CONSTANT, 0.0], dtype=torch.float64)[rule]
    least = torch.tensor(np.stack([minimum(a) for a in CURVATURES.values()]))[lanes[:, 0]]

    fixed = torch.arange(3).expand(3, 3)

    def move(orders: Tensor) -> Balance:
        return mf.balance(losses, mf.pcgrad(orders), mf.jacobian(), reduction="sum")

    first = move(fixed).init({"x": x[0]}, curvatures[0])  # given orders leave nothing to keep

    def advance(
        x: Tensor, curvatures: Tensor, orders: Tensor, constant: Tensor, time: Tensor
    ) -> Tensor:
        direction, _, _ = move(orders).update({"x": x}, curvatures, first)
        return x - torch.where(constant > 0, constant, 1 / (time + 5)) * direction["x"]

    def drawn(key: Tensor, time: Tensor) -> Tensor:
        return mf.random.permutation(mf.random.fold_in(key, time), 3, rows=3)

    every = vmap(advance, (0, 0, 0, 0, None))
    draw = vmap(drawn, (0, None))

    def moved(x: Tensor, keys: Tensor, time: Tensor) -> tuple[Tensor]:
        orders = torch.where(random[:, None, None], draw(keys, time)[seed], fixed)
        return (every(x, curvatures, orders, constant, time),)

    forward = replayed(moved)
    keys, zero = torch.arange(seeds), torch.zeros((), dtype=torch.int64)
    distance, middle = torch.zeros(len(lanes), dtype=torch.float64), torch.zeros_like(x)
    half = steps - steps // 2
    for time in tqdm(range(steps), desc="three quadratics", leave=False):
        (x,) = forward(x, keys, zero + time)
        if time >= half:
            distance, middle = distance + (x - least).norm(dim=-1), middle + x
    late = steps - half
    final = x.reshape(*shape, 2).numpy()
    return Runs(
        steps,
        (distance / late).reshape(shape).numpy(),
        (middle / late).reshape(*shape, 2).numpy(),
        final,
    )


def spread(points: np.ndarray) -> float:
    """Largest distance of `[..., 2]` from their mean."""
    flat = points.reshape(-1, 2)
    return float(np.linalg.norm(flat - flat.mean(0), axis=1).max())


def rest(fan: Outcome, found: Runs) -> Claim:
    numbers: dict[str, float] = {
        "120°: orders of 8 with d = 0": sum(square == 0 for square in fan.squares),
        "120°: ‖d‖² under the other orders, smallest": float(
            min(square for square in fan.squares if square)
        ),
        "120°: ‖d‖² under the other orders, largest": float(max(fan.squares)),
        "120°: largest coefficient of the mean direction, less their mean": float(
            max(_centred(fan))
        ),
        "library against fractions, largest difference": fan.difference,
    }
    for row, (name, curvatures) in enumerate(CURVATURES.items()):
        ends = found.end[row, 1, -1]
        numbers |= {f"{name}, random order, 1/k: spread of the end points": spread(ends)}
        numbers |= {
            f"{name}, random order, 1/k: mean end, θ_{i + 1}": float(ends.reshape(-1, 2).mean(0)[i])
            for i in (0, 1)
        }
        numbers |= {
            f"{name}: minimum of the sum, θ_{i + 1}": float(minimum(curvatures)[i]) for i in (0, 1)
        }
        for i, step in enumerate(CONSTANT):
            around = float(
                np.linalg.norm(found.end[row, 1, i] - found.centre[row, 1, i], axis=-1).mean()
            )
            numbers |= {
                f"{name}, random order, step {step:g}: distance of the last iterate from the "
                "run's mean": around
            }
    return claim(
        "PC-31",
        numbers,
        f"all 8 orders in exact fractions; three quadratics, {STARTS} starts, "
        f"{found.end.shape[4]} seeds, {found.steps:,} steps. Under random orders it "
        "moves on by a random walk with mean 0; constant steps leave a ball that shrinks with "
        "the step, steps of 1/k settle (end points within .1) at one "
        "point, which is the minimum of the sum only in the symmetric case",
    )


def _centred(fan: Outcome) -> Vector:
    """The direction's mean over orders, less a constant that g_1 + g_2 + g_3 = 0 makes void."""
    mean = [
        sum((c[i] for c in fan.coefficients), Fraction(0)) / len(fan.coefficients) for i in range(3)
    ]
    return [abs(x - sum(mean, Fraction(0)) / 3) for x in mean]


def order_matters(found: Runs) -> Claim:
    numbers: dict[str, float] = {}
    for row, (name, curvatures) in enumerate(CURVATURES.items()):
        for column, kind in enumerate(("fixed", "random")):
            ends = found.end[row, column, -1]  # [start, seed, 2]
            off = np.linalg.norm(ends.mean(0) - minimum(curvatures), axis=-1)
            distance = float(np.linalg.norm(ends.reshape(-1, 2).mean(0) - minimum(curvatures)))
            label = f"{name}, {kind} order"
            numbers[f"{label}: distance of the mean end point"] = distance
            numbers[f"{label}: spread over starts"] = spread(ends.mean(1))
            if column:
                numbers |= named(
                    f"{label}: distance of a seed's mean end point", mean_interval(off)
                )
    return claim(
        "PC-32",
        numbers,
        f"three quadratics, steps 1/k, {STARTS} starts, {found.end.shape[4]} seeds. 95 % t "
        "intervals over seeds",
    )


def run(settings: Settings) -> Findings:
    found = runs(settings)
    yield rest(under_all_orders(FAN), found)
    yield order_matters(found)
