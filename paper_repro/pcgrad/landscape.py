"""PCGrad's landscape (Yu et al. 2020, Figure 1 and Appendix D), and every arm's paths across it.

L_1 = 20 log max(|θ_1/2 + tanh θ_2|, 5e-6), L_2 = 25 log max(|θ_1/2 - tanh θ_2 + 2|, 5e-6) from
(.5, -3). The base of the logarithm is not stated; natural here. Each loss falls into a cusp, where
it is noise: end states are judged by the side they are on and by averages over time, never by
totals."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import constant
from common.regions import Program, compile_steps, plain_steps, replayed_steps

from ..report.findings import Settings
from ..report.parts import kept
from .common import ARMS, arm_step, normal

START = (0.5, -3.0)
FLOOR = 5e-6
ADAM_RATE, SGD_RATES = 1e-3, (3e-7, 1e-6, 3e-6, 1e-5, 3e-5)
UNROLLED = 10  # steps a compiled call
COMPILED, EAGER_STEPS = 4_000, 20_000  # from which compiling pays; where nothing can be compiled
LONG = 200_000  # steps on the landscape; PCGrad needs about 150,000 to get across
BUDGET = 300_000  # PCGrad is in the common valley, as the paper draws it; at 210,000 half-way
POINTS = 1000  # of every path


def losses(params: mf.types.Params, batch: object = None) -> Tensor:
    """Both losses **above their floor** of 20 log 5e-6 and 25 log 5e-6. The same gradients, and the
    losses >= 0 that GradNorm needs.
    """
    x, y = params["theta"][0], params["theta"][1]
    inner = torch.stack([x / 2 + torch.tanh(y), x / 2 - torch.tanh(y) + 2])
    return constant((20.0, 25.0), x) * torch.log(inner.abs().clamp_min(FLOOR) / FLOOR)


OFFSET = np.array([20.0, 25.0]) * np.log(FLOOR)
"""Added to `losses`, the paper's values."""


class Lanes(NamedTuple):
    arm: Tensor  # [lane], index of ARMS
    sgd: Tensor  # [lane]
    lr: Tensor  # [lane]
    start: Tensor  # [lane, 2]


class Paths(NamedTuple):
    lanes: Lanes
    steps: np.ndarray  # [time]
    theta: Tensor  # [time, lane, 2]
    following: Tensor  # [time, lane, 2], one step later

    def chosen(self, arm: str, lr: float | None = None) -> Tensor:
        """Lanes of one arm with Adam, or with SGD at a rate, one a start; the paper's is first."""
        own = ~self.lanes.sgd if lr is None else self.lanes.sgd & (self.lanes.lr == lr)
        return (own & (self.lanes.arm == ARMS.index(arm))).nonzero().flatten()


def lanes_of(seeds: int) -> Lanes:
    """Every arm with Adam and with SGD at each rate, from several starts. The paper's start and
    others within about .05 of it.
    """
    noise = 0.05 * normal(mf.random.key(0), 0, (seeds, 2)) * (torch.arange(seeds) > 0)[:, None]
    starts = torch.tensor(START, dtype=torch.float64) + noise
    rates = torch.tensor([ADAM_RATE, *SGD_RATES], dtype=torch.float64)
    counts = len(ARMS), len(rates), seeds
    arm, rate, start = torch.cartesian_prod(*(torch.arange(count) for count in counts)).unbind(1)
    return Lanes(arm, rate > 0, rates[rate], starts[start])


def step_of(arm: Tensor, sgd: Tensor, lr: Tensor) -> mf.Step:
    return arm_step(losses, arm, sgd, lr)


def paths(settings: Settings) -> Paths:
    """Every arm, optimizer and start side by side."""
    lanes = lanes_of(max(2, settings.seeds // (1 if settings.full else 4)))
    return walked(lanes, settings.count(500_000 if settings.full else BUDGET) - UNROLLED)


def paths_from(start: Sequence[float], names: Sequence[str], steps: int, rate: float) -> Paths:
    """Adam with some of the arms from one start."""
    arm = torch.tensor([ARMS.index(name) for name in names])
    lr = torch.full((len(names),), rate, dtype=torch.float64)
    starts = torch.tensor([list(start)] * len(names), dtype=torch.float64)
    return walked(Lanes(arm, torch.zeros(len(names), dtype=torch.bool), lr, starts), steps)


def compiled(step: Callable[..., Any], lanes: tuple[Tensor, ...], state: Any) -> Program | None:
    """`UNROLLED` steps as one program; None, with a notice, without a compiler."""
    if lanes[0].device.type != "cpu":
        return replayed_steps(step, UNROLLED, "theta")
    try:
        return compile_steps(step, UNROLLED, lanes, state, "theta")
    except Exception as error:  # no C++ compiler, or a torch that cannot trace this
        why = f"torch.compile is of no use here ({type(error).__name__})"
        tqdm.write(f"{why}: eager steps and a shorter budget instead")
        return None


@kept
def walked(lanes: Lanes, last: int) -> Paths:
    """All lanes side by side, from step 0 to the last. `UNROLLED` steps in one compiled graph, or
    eager ones and a shorter budget without a compiler.
    """
    each = (lanes.arm, lanes.sgd, lanes.lr)

    def advance(arm: Tensor, sgd: Tensor, lr: Tensor, state: mf.TrainState) -> mf.TrainState:
        return step_of(arm, sgd, lr).update(state, None)[0]

    step: Callable[..., mf.TrainState] = vmap(advance)
    state = vmap(lambda arm, sgd, lr, start: step_of(arm, sgd, lr).init({"theta": start}, None))(
        *each, lanes.start
    )
    program = compiled(step, each, state) if last > COMPILED else None
    if program is None:
        program, last = plain_steps(step, UNROLLED, "theta"), min(last, EAGER_STEPS)
    blocks, rest = last // UNROLLED + 1, last % UNROLLED
    every = max(1, blocks // POINTS)
    theta, following, steps = [], [], []
    for block in tqdm(range(blocks), desc=f"landscape, {UNROLLED} steps at a time", leave=False):
        before = state.params["theta"]
        state, after = program(*each, state)
        points = torch.cat([before[:, None], after], 1)
        ends = {rest} if block + 1 == blocks else set()
        for at in sorted(ends | ({0} if block % every == 0 else set())):
            theta.append(points[:, at].clone())
            following.append(points[:, at + 1].clone())
            steps.append(block * UNROLLED + at)
    return Paths(lanes, np.array(steps), torch.stack(theta), torch.stack(following))


def values(theta: Tensor) -> Tensor:
    """The paper's losses at points `[..., 2]`: `[..., task]`."""
    flat = vmap(lambda at: losses({"theta": at}))(theta.reshape(-1, 2)) + torch.as_tensor(OFFSET)
    return flat.reshape(*theta.shape[:-1], 2)


def definition_3(
    theta: Tensor, following: Tensor, floor: float = FLOOR, pieces: int = 16
) -> Tensor:
    """Definition 3's curvature over a step, ∫₀¹ gᵀ∇²L(θ + s(θ' - θ)) g ds / ‖g‖², `[...]`.

    L_t is φ_t(u_t) with φ = a log max(|u|, floor), so that ∇²L is φ''∇u∇uᵀ + φ'∇²u. On each piece
    the mean of φ'' is the divided difference of φ', which is -a/(u₀u₁) next to the cusp and across
    it: positive where u changes sign, for any `floor`. ∇u and ∇²u are those of the piece's middle.
    """
    scale, sign, offset = theta.new_tensor([[20.0, 25.0], [1.0, -1.0], [0.0, 2.0]])

    def inner(at: Tensor) -> Tensor:
        return at[..., 0, None] / 2 + sign * torch.tanh(at[..., 1, None]) + offset

    def slope(u: Tensor) -> Tensor:
        return torch.where(u.abs() > floor, scale / u, 0.0)

    def along(at: Tensor) -> Tensor:  # ∇u's second part; the first is ½
        return sign * (1 - torch.tanh(at[..., 1, None]) ** 2)

    s = torch.linspace(0, 1, pieces + 1, dtype=theta.dtype)
    points = torch.lerp(theta[..., None, :], following[..., None, :], s[:, None])
    u, middle = inner(points), (points[..., 1:, :] + points[..., :-1, :]) / 2
    first, last = u[..., :-1, :], u[..., 1:, :]
    step, same = last - first, last == first
    off = (first.abs() > floor) & (last.abs() > floor)
    gap = step.where(~same, 1.0)
    bend = torch.where(off, -scale / (first * last), (slope(last) - slope(first)) / gap)
    height = scale * torch.log(u.abs().clamp_min(floor))
    mean_slope = torch.where(same, slope(first), (height[..., 1:, :] - height[..., :-1, :]) / gap)
    g_x = slope(inner(theta)).sum(-1) / 2
    g_y = (slope(inner(theta)) * along(theta)).sum(-1)
    rate = g_x[..., None, None] / 2 + g_y[..., None, None] * along(middle)
    turn = -2 * torch.tanh(middle[..., 1, None]) * along(middle)  # ∂²u/∂θ_2²
    parts = bend * rate.square() + mean_slope * turn * g_y[..., None, None].square()
    return parts.sum(-1).mean(-1) / (g_x.square() + g_y.square())


def arrival(found: Paths, arm: str, lr: float | None = None) -> np.ndarray:
    """Steps, `[start]`, to the common side, θ_1 < 0 and L_2 < 0. The first recorded point there
    from which on nine of ten are; the whole length for a path that has none.
    """
    theta = found.theta[:, found.chosen(arm, lr)]
    there = ((theta[..., 0] < 0) & (values(theta)[..., 1] < 0)).numpy()
    count = len(there)
    onwards = there[::-1].cumsum(0)[::-1] / np.arange(count, 0, -1)[:, None]
    settled = there & (onwards >= 0.9)
    return np.where(settled.any(0), found.steps[settled.argmax(0)], found.steps[-1] + 1)
