"""Where does PCGrad rest with three tasks, and does the order matter?"""

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed
from mtlfunc.types import Balance

from ..report.bounds import AT_REST, NEAR_MINIMUM, SETTLED
from ..report.decisions import Measured, Row, decided, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from .rational import FAN, under_all_orders


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


@decided(
    "under random orders no mean end point lies within .05 of the minimum of the sum (open where "
    "that of one order lies there, too)"
)
def unbiased(measured: Measured) -> Verdict:
    random, one = (
        [measured[x] for x in named_so(measured, f"*, {order} order: distance of the mean *")]
        for order in ("random", "one")
    )
    near = [x < NEAR_MINIMUM.now for x in random]
    shown = [x and y >= NEAR_MINIMUM.now for x, y in zip(near, one, strict=True)]
    return verdict_of(shown, [not any(near)])


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
        when="the curvatures are equal: the mean of the ends lies {equal curvatures, one order: "
        "distance of the mean end point} from the minimum in one order, in random ones {equal "
        "curvatures, random order: distance of the mean end point}; with others both lie away",
    ),
}

CURVATURES = {"equal curvatures": (1.0, 1.0, 1.0), "curvatures 1, 4, 1/4": (1.0, 4.0, 0.25)}
CONSTANT = 0.1
STARTS = 6


def centres() -> Tensor:
    angle = torch.pi / 2 + 2 * torch.pi / 3 * torch.arange(3, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], -1)


def losses(params: mf.types.Params, curvatures: Tensor) -> Tensor:
    """½ a_t ‖θ - c_t‖², the centres c_t on the unit circle at 120°."""
    return 0.5 * curvatures * (params["x"] - centres()).square().sum(-1)


def runs(seeds: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the second half and the end of every run, all side by side; `[curvatures, step
    rule, start, seed, coordinate]`. The step rules: `CONSTANT`, 1/k; after the seeds, one order.
    """
    shape = (len(CURVATURES), 2, STARTS, seeds + 1)
    lanes = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    curvatures = torch.tensor(list(CURVATURES.values()), dtype=torch.float64)[lanes[:, 0]]
    rule, start, seed = lanes[:, 1:].unbind(1)
    angle = 2 * torch.pi * (start + 0.25) / STARTS
    x = 2 * torch.stack([angle.cos(), angle.sin()], -1)

    def move(orders: Tensor) -> Balance:
        return mf.balance(losses, mf.pcgrad(orders), mf.jacobian(), reduction="sum")

    one = torch.arange(3).expand(3, 3)
    first = move(one).init({"x": x[0]}, curvatures[0])  # given orders leave nothing to keep

    def advance(x: Tensor, curvatures: Tensor, orders: Tensor, length: Tensor) -> Tensor:
        return x - length * move(orders).update({"x": x}, curvatures, first)[0]["x"]

    def drawn(key: Tensor, time: Tensor) -> Tensor:
        return mf.random.permutation(mf.random.fold_in(key, time), 3, rows=3)

    def moved(x: Tensor, keys: Tensor, time: Tensor) -> tuple[Tensor]:
        orders = vmap(drawn, (0, None))(keys, time)[seed]
        orders = orders.where((seed < seeds)[:, None, None], one)
        lengths = torch.where(rule > 0, 1 / (time.to(x) + 5), CONSTANT)
        return (vmap(advance)(x, curvatures, orders, lengths),)

    forward = replayed(moved)
    keys, zero = torch.arange(seeds + 1), torch.zeros((), dtype=torch.int64)
    middle, late = torch.zeros_like(x), steps // 2
    for time in tqdm(range(steps), desc="three quadratics", leave=False):
        (x,) = forward(x, keys, zero + time)
        if time >= steps - late:
            middle = middle + x
    centre, end = (at.reshape(*shape, 2).numpy() for at in (middle / late, x))
    return centre, end


def run(settings: Settings) -> Findings:
    seeds, steps = max(2, settings.seeds // 4), settings.count(30000 if settings.full else 3000)
    centre, end = runs(seeds, steps)
    _, squares, _ = under_all_orders(FAN)
    rests: dict[str, float] = {"120°: orders of 8 with d = 0": sum(x == 0 for x in squares)}
    bias: dict[str, float] = {}
    for row, (name, curvatures) in enumerate(CURVATURES.items()):
        ends = end[row, 1, :, :-1].reshape(-1, 2)
        spread = np.linalg.norm(ends - ends.mean(0), axis=1).max()
        rests[f"{name}, random order, 1/k: spread of the end points"] = float(spread)
        around = np.linalg.norm((end - centre)[row, 0, :, :-1], axis=-1).mean()
        label = f"{name}, random order, step {CONSTANT:g}"
        rests[f"{label}: distance of the last iterate from the run's mean"] = float(around)
        minimum = np.array(curvatures) @ centres().numpy() / sum(curvatures)  # of the sum
        for order, points in (("random", ends), ("one", end[row, 1, :, -1])):
            distance = np.linalg.norm(points.mean(0) - minimum)
            bias[f"{name}, {order} order: distance of the mean end point"] = float(distance)
    where = f"{STARTS} starts, {seeds} seeds, {steps:,} steps"
    yield Claim(
        "PC-31",
        rests,
        f"all 8 orders in exact fractions; three quadratics, {where}. A constant step leaves a "
        "ball, steps of 1/k settle (end points within .1) at one point",
    )
    about = "steps 1/k; one order: each task's gradient by the others in theirs"
    yield Claim("PC-32", bias, f"three quadratics, {about}, {where}; distance from the minimum")
