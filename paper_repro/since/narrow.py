"""Are there Pareto points that no static weights reach, and does MGDA end at them?"""

from math import nan

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import EXCEPTION
from ..report.decisions import OPEN, Measured, Row, decided, ends, named_so, sided, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import Interval, mean_interval, named, share_interval
from .common import normal


@decided(
    f"at no width MGDA ends at such points in more than {EXCEPTION:.0%} of the draws and with a "
    "smaller worst loss than any static weights, and at one it does not (intervals)",
    trained=False,
)
def judge_balanced(measured: Measured) -> Verdict:
    """Both halves of the sentence at one width."""
    shown, lost = [], []
    for end in named_so(measured, "width *: share of draws in which MGDA ends at one, low"):
        width = end.split(":")[0]
        share = ends(measured, f"{width}: share of draws in which MGDA ends at one")
        name = f"{width}: MGDA's worst loss less that of the best static weights there"
        few = bool(measured[name + OPEN])  # too few ends for an interval
        less = (-1.0, 1.0) if few else ends(measured, name)
        shown.append(share[0] > EXCEPTION.now and less[1] < 0)
        lost.append(share[1] < EXCEPTION.now or less[0] > 0)
    return verdict_of(shown, lost)


CLAIMS = {
    "SI-03": Row(
        "Hu et al. 2023: in a linear network too narrow for its tasks there are Pareto optimal "
        "points that no static weights reach.",
        sided(
            ("width *: share of draws with a Pareto optimum out of reach", ">", EXCEPTION),
            trained=False,
        ),
    ),
    "SI-04": Row(
        "Hu et al. 2023: rules such as MGDA find balanced solutions there, which static weights "
        "cannot.",
        judge_balanced,
    ),
}

TASKS = SIZE = 3
STARTS, POINTS, TRIED, CLEAR = 8, 4000, 500, 1e-2
WIDTHS = {1: 1.0, 2: -1.0}
"""The sign s of a width q. With the best heads a linear network of width q explains of the unit
target y_t its projection on q directions: for q = 1 the loss is 1 - (u·y_t)², and for q = 2, where
u is the direction that is left out, (u·y_t)².
"""


def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    targets, sign = batch
    explained = (targets @ params["u"]).square() / params["u"].square().sum()
    return (1 + sign) / 2 - sign * explained


def targets_of(draws: int) -> Tensor:
    """Unit targets `[draw, task, 3]` of three tasks."""
    drawn = vmap(lambda k: normal(mf.random.key(k), 0, TASKS, SIZE))(torch.arange(draws))
    return drawn / drawn.norm(dim=-1, keepdim=True)


def descended(targets: Tensor, sign: float, steps: int) -> Tensor:
    """Where MGDA ends from eight starts, `[draw, start, 3]`, of length 1."""
    step = mf.descend(losses, mf.mgda(), mf.jacobian(), mf.sgd(0.5))
    starts = vmap(lambda k: normal(mf.random.key(k), 1, STARTS, SIZE))(torch.arange(len(targets)))
    batch = targets, torch.full((len(targets),), sign, dtype=targets.dtype)

    def lanes(function):
        return vmap(vmap(function, (0, None)), (0, 0))

    state = lanes(step.init)({"u": starts}, batch)
    move = replayed(lanes(lambda state, batch: step.update(state, batch)[:1]))
    for _ in tqdm(range(steps), desc="MGDA on a narrow network", leave=False):
        (state,) = move(state, batch)
    u = state.params["u"]
    return u / u.norm(dim=-1, keepdim=True)


def sphere() -> Tensor:
    """Points on half of the sphere, about .04 from each other: u and -u are one network."""
    i = torch.arange(POINTS, dtype=torch.float64)
    z = (i + 0.5) / POINTS
    around = i * torch.pi * (5**0.5 - 1)
    r = (1 - z.square()).sqrt()
    return torch.stack([r * around.cos(), r * around.sin(), z], -1)


def products(targets: Tensor) -> Tensor:
    """y_t y_tᵀ, `[draw, task, 3, 3]`."""
    return targets[..., None] * targets[..., None, :]


def beyond(targets: Tensor, sign: float, u: Tensor) -> Tensor:
    """How far static weights are from reaching points u `[draw, point, 3]`, from 0 to 1. u is
    stationary for one weighting at most, Σ w_t (u·y_t) y_t ∝ u. There its weighted loss is compared
    with the best network's and the worst one's. NaN where a weight is negative: no convex
    combination of the gradients is 0.
    """
    along = torch.einsum("dti,dpi->dpt", targets, u)
    others = torch.stack([along.roll(-t, -1)[..., 1:].prod(-1) for t in range(TASKS)], -1)
    w = torch.linalg.solve(targets.mT, u.mT).mT * others  # over (u·y_t), times all of them
    w = w / w.abs().sum(-1, keepdim=True) * w.sum(-1, keepdim=True).sign()
    outer = sign * products(targets)
    levels = torch.linalg.eigvalsh(torch.einsum("dpt,dtij->dpij", w, outer))
    own = sign * (w * along.square()).sum(-1)
    missed = (levels[..., -1] - own) / (levels[..., -1] - levels[..., 0])
    return missed.where((w >= 0).all(-1), torch.nan)


def out_of_reach(targets: Tensor, sign: float, u: Tensor) -> Tensor:
    """Where static weights do not reach u and no network is better in all tasks."""
    every = torch.einsum("dti,gi->dgt", targets, sphere()).square() * sign
    own = torch.einsum("dti,dpi->dpt", targets, u).square() * sign
    better = [(every > own[:, i, None]).all(-1).any(-1) for i in range(own.shape[1])]
    return (beyond(targets, sign, u) > CLEAR) & ~torch.stack(better, 1)


def balanced(targets: Tensor, sign: float) -> Tensor:
    """The smallest largest loss of the networks that are best for some static weights, `[draw]`."""
    share = torch.linspace(0, 1, 31, dtype=targets.dtype)
    two = torch.cartesian_prod(share, share)
    two = two[two.sum(-1) <= 1 + 1e-9]
    w = torch.cat([two, 1 - two.sum(-1, keepdim=True)], -1)
    sums = torch.einsum("wt,dtij->dwij", w, sign * products(targets))
    u = torch.linalg.eigh(sums)[1][..., -1]
    return worst(targets, sign, u).amin(-1)


def worst(targets: Tensor, sign: float, u: Tensor) -> Tensor:
    """The largest loss of points of length 1, `[draw, point]`."""
    explained = torch.einsum("dti,dpi->dpt", targets, u).square()
    return ((1 + sign) / 2 - sign * explained).amax(-1)


def run(settings: Settings) -> Findings:
    targets, steps = targets_of(settings.count(100)), settings.count(300)
    points: dict[str, float] = {}
    ended: dict[str, float] = {}
    for width, sign in WIDTHS.items():
        few = sphere()[:: POINTS // TRIED].expand(len(targets), -1, -1)
        some = out_of_reach(targets, sign, few).any(-1)
        share = share_interval(int(some.sum()), len(targets))
        name = f"width {width}: share of draws with a Pareto optimum out of reach"
        points |= named(name, share)
        u = descended(targets, sign, steps)
        there = out_of_reach(targets, sign, u)
        hits = there.any(-1)
        name = f"width {width}: share of draws in which MGDA ends at one"
        ended |= named(name, share_interval(int(hits.sum()), len(hits)))
        own = worst(targets, sign, u).where(there, torch.inf).amin(-1)
        less = own - balanced(targets, sign)
        single = int(hits.sum()) < 2
        less = Interval(nan, nan, nan) if single else mean_interval(less[hits])
        name = f"width {width}: MGDA's worst loss less that of the best static weights there"
        ended |= named(name, less, unsettled=single)
    where = (
        f"{len(targets)} draws of three unit targets, a linear network with its best heads; Pareto "
        f"optimal: none of {POINTS} networks is better in all tasks; out of reach: for the one "
        "static weighting at which it is stationary another network is better, by more than "
        f"{CLEAR:g} of what lies between the best one and the worst"
    )
    yield Claim("SI-03", points, f"{where}; sought among {TRIED} networks. Wilson's intervals")
    yield Claim(
        "SI-04",
        ended,
        f"{where}; MGDA from {STARTS} starts, {steps} steps of .5. Wilson's intervals of shares, t "
        "of differences",
    )
