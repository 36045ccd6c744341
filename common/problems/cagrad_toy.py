"""The toy of CAGrad (Liu et al. 2021, section 5.1): its losses, rules and programs.

L_i = c₁f_i + c₂q_i on the plane: above x₂ = 0 the logarithms f_i with a narrow valley each, below
it the paraboloids q_i, whose conflict makes a Pareto set near x₂ = -8.36 between the two minima
x₁ = ±7. Everything is deterministic: Adam at 1e-3, 100,000 steps, float64.

Choices. The paper prints -tanh(-x₂) in f₂, its figures come from code with +; both are run, + is
meant where no sign is named. max(tanh(·), 0) has a kink on x₂ = 0, where the start (0, 0) lies:
`clamp_min` passes the gradient there (subderivative 1), with which both tasks pull downwards; with
subderivative 0 both gradients vanish and no rule moves. GradNorm needs positive losses: 21 is
added, which no gradient sees."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

import mtlfunc as mf
from common import regions
from common.choice import one_of

PRINTED = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
SCRIPT = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))
STARTS = (*PRINTED, SCRIPT[1])
CODE, PAPER_SIGN = 1.0, -1.0  # of tanh in f₂
LR = 1e-3
SHIFT = 21.0  # makes GradNorm's losses positive: none is below -20
CS = (0.2, 0.5, 0.8, 0.9, 1.0, 1.5, 3.0, 10.0, 100.0)
EPSILON = 1e-4  # the official script's, inside its three roots and near one of them


def ramp(x: Tensor) -> Tensor:
    """max(x, 0) with derivative 1 at 0."""
    return x.clamp_min(0)


def losses(params: mf.types.Params, sign: Tensor) -> Tensor:
    """Both losses `[2]` at params["x"] `[2]`.

    Sign `[]` is that of tanh in f₂: +1 as in the code, -1 as printed.
    """
    x, y = params["x"].unbind(-1)
    valley_1 = (0.5 * (-x - 7) - torch.tanh(-y)).abs()
    valley_2 = (0.5 * (-x + 3) + sign * torch.tanh(-y) + 2).abs()
    f = torch.stack([valley_1, valley_2]).clamp_min(5e-6).log() + 6
    q = (
        torch.stack([(-x + 7) ** 2 + 0.1 * (-y - 8) ** 2, (-x - 7) ** 2 + 0.1 * (-y - 8) ** 2]) / 10
        - 20
    )
    return ramp(torch.tanh(0.5 * y)) * f + ramp(torch.tanh(-0.5 * y)) * q


def at(points: Tensor, sign: float = CODE) -> Tensor:
    """Losses `[..., 2]` at points `[..., 2]`."""
    return vmap(lambda x: losses({"x": x}, x.new_full((), sign)))(points.reshape(-1, 2)).reshape(
        points.shape
    )


def weighted_minima(share: Tensor) -> Tensor:
    """Minimisers `[n, 2]` of s L_1 + (1 - s) L_2 below x₂ = 0 for shares s `[n]`.

    By Newton's method; f₂, and so the sign, plays no part there.
    """

    def goal(x: Tensor, s: Tensor) -> Tensor:
        return losses({"x": x}, x.new_full((), CODE)) @ torch.stack([s, 1 - s])

    x = torch.stack([14 * share - 7, torch.full_like(share, -8.4)], -1)
    for _ in range(12):
        x = x - torch.linalg.solve(vmap(hessian(goal))(x, share), vmap(grad(goal))(x, share))
    return x


@functools.cache
def minimum_of_mean() -> tuple[np.ndarray, float]:
    """Where the mean loss is least, and its value there."""
    x = weighted_minima(torch.tensor([0.5], dtype=torch.float64))
    return x[0].numpy(), float(at(x).mean())


@functools.cache
def pareto_set(count: int = 41) -> np.ndarray:
    """`[count, 2]`, from the minimum of L_2 to that of L_1."""
    return weighted_minima(torch.linspace(0, 1, count, dtype=torch.float64)).numpy()


def gramians(points: Tensor, sign: float = CODE) -> Tensor:
    """`[n, 2, 2]` at points `[n, 2]`."""
    return vmap(lambda x: mf.task_gramian(losses, {"x": x}, x.new_full((), sign))[1])(points)


def distance_to_stationarity(points: Tensor, sign: float = CODE) -> np.ndarray:
    """Shortest convex combination of gradients over the longest, `[...]` at points `[..., 2]`."""
    g = gramians(points.reshape(-1, 2), sign)
    length = vmap(lambda g: mf.diagnostics.stationarity(g).length)(g)
    return (
        (length / g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt())
        .reshape(points.shape[:-1])
        .cpu()
        .numpy()
    )


def from_gramian(weights: Callable[[Tensor], Tensor]) -> mf.Rule:
    """A rule of the Gramian alone, made without `mf.stateless`.

    That inspects its argument's signature, which cannot be done while a program is compiled.
    """
    return mf.Rule(
        lambda losses, key: (),
        lambda geometry, state: (weights(geometry.gramian), ()),
        frozenset({"gramian"}),
    )


def with_epsilons(c: Tensor) -> mf.Rule:
    """The official script's CAGrad for two tasks, divided by 1 + c.

    It adds 1e-4 under each root and to ‖g_w‖.
    """

    def weights(gramian: Tensor) -> Tensor:
        first, inner, second = gramian[0, 0], gramian[0, 1], gramian[1, 1]
        radius = c * 0.5 * (first + second + 2 * inner + EPSILON).sqrt()
        slope = 0.5 * (first - second)  # of g_w·g₀ in the weight x of task 1
        square = first + second - 2 * inner
        room = radius**2 * square - slope**2
        apart, some = square.where(square > 0, 1.0), room.where(room > 0, 1.0)
        middle = torch.where(square > 0, (second - inner) / apart, 0.5)  # where ‖g_w‖ is least
        height = (second + EPSILON - (second - inner) ** 2 / apart).clamp_min(0)
        x = torch.where(
            room > 0,
            (middle - slope * (height / (apart * some)).sqrt()).clamp(0, 1),
            0.5 - 0.5 * torch.sign(slope),
        )
        w = torch.stack([x, 1 - x])
        length = (x**2 * first + (1 - x) ** 2 * second + 2 * x * (1 - x) * inner + EPSILON).sqrt()
        return (0.5 + radius / (length + EPSILON) * w) / (1 + c)

    return from_gramian(weights)


def mgda_with_epsilon(epsilon: Tensor) -> mf.Rule:
    """MGDA's formula for two tasks with an epsilon in its denominator, 1e-8 in the script."""

    def weights(gramian: Tensor) -> Tensor:
        first, inner, second = gramian[0, 0], gramian[0, 1], gramian[1, 1]
        x = ((second - inner) / (first + second - 2 * inner + epsilon)).clamp(0, 1)
        return torch.stack([x, 1 - x])

    return from_gramian(weights)


RULES: dict[str, tuple[Callable[[Tensor], mf.Rule], tuple[float, ...]]] = {
    "GD": (lambda _: mf.mean(), (0.0,)),
    "MGDA": (lambda _: mf.mgda(), (0.0,)),
    "MGDA, epsilon": (mgda_with_epsilon, (1e-8,)),
    "PCGrad": (lambda _: mf.pcgrad(), (0.0,)),
    "GradNorm": (lambda alpha: mf.gradnorm(alpha), (0.12,)),
    "CAGrad": (lambda c: mf.cagrad(c), CS),
    "CAGrad, epsilons": (with_epsilons, (0.5, 1.0, 1.5, 3.0, 10.0)),
}
"""Name -> (rule of a hyper-parameter, its values)."""

USUAL = {"GD": 0.0, "MGDA": 0.0, "PCGrad": 0.0, "GradNorm": 0.12, "CAGrad": 0.5}
"""The arms of the paper, and GradNorm, with the hyper-parameter that figures and claims show of
them.
"""


class Lanes(NamedTuple):
    """What is run side by side."""

    start: Tensor  # [lane, 2]
    sign: Tensor  # [lane]
    hyper: Tensor  # [lane]
    which: Tensor  # [lane], index of the rule among those that are run side by side

    def find(self, start: Sequence[float], hyper: float, sign: float = CODE) -> int:
        same = (
            (self.start == self.start.new_tensor(start)).all(-1)
            & (self.hyper == hyper)
            & (self.sign == sign)
        )
        return int(same.nonzero()[0])


NUDGE = 1e-9


def lanes_of(name: str, random_starts: Tensor) -> tuple[Lanes, list[int], list[int]]:
    """Named starts by sign by hyper-parameter, then others at the usual hyper-parameter.

    Random ones, and the named ones moved by `NUDGE` along both axes; their indices are returned.
    """
    signs = (CODE,) if "epsilon" in name else (CODE, PAPER_SIGN)
    rows = [(*start, sign, hyper) for hyper in RULES[name][1] for sign in signs for start in STARTS]
    named = len(rows)
    if name in USUAL:
        near = [[x + NUDGE, y + NUDGE] for x, y in STARTS]
        rows += [(*start, CODE, USUAL[name]) for start in random_starts.tolist() + near]
    table = torch.tensor(rows, dtype=torch.float64, device=random_starts.device)
    which = torch.zeros(len(rows), dtype=torch.int64, device=table.device)
    lanes = Lanes(table[:, :2].clone(), table[:, 2].clone(), table[:, 3].clone(), which)
    others = list(range(named, len(rows)))
    count = len(random_starts)
    return lanes, others[:count], others[count:]


def step_of(names: Sequence[str], which: Tensor, hyper: Tensor, rate: float = LR) -> mf.Step:
    shift = SHIFT if "GradNorm" in names else 0.0
    rules = [RULES[name][0](hyper) for name in names]
    return mf.descend(
        lambda params, sign: losses(params, sign) + shift,
        rules[0] if len(names) == 1 else one_of(rules, which),
        mf.jacobian(),
        mf.adam(rate),
    )


def start_of(names: Sequence[str], lanes: Lanes) -> mf.TrainState:
    """The state of all lanes before the first step."""
    return vmap(lambda which, hyper, sign, x: step_of(names, which, hyper).init({"x": x}, sign))(
        lanes.which, lanes.hyper, lanes.sign, lanes.start
    )


def one_step(names: Sequence[str], rate: float = LR) -> Callable[..., mf.TrainState]:
    """A step of all lanes."""
    return vmap(
        lambda which, hyper, sign, state: step_of(names, which, hyper, rate).update(state, sign)[0]
    )


def advance(names: Sequence[str], unroll: int, rate: float = LR) -> regions.Program:
    """`unroll` steps: `(which, hyper, sign, state) -> (state, points [lane, unroll, 2])`."""
    return regions.plain_steps(one_step(names, rate), unroll, "x")


def replay(names: Sequence[str], unroll: int, rate: float = LR) -> regions.Program:
    """`advance` as one graph of a device."""
    return regions.replayed_steps(one_step(names, rate), unroll, "x")


def compile_steps(
    names: Sequence[str],
    unroll: int,
    lanes: Lanes,
    state: mf.TrainState,
    backend: Any = "inductor",
    rate: float = LR,
) -> regions.Program:
    """`advance` compiled for such lanes and such a state."""
    each = (lanes.which, lanes.hyper, lanes.sign)
    return regions.compile_steps(one_step(names, rate), unroll, each, state, "x", backend)
