"""What does the condition number say, and where does Aligned-MTL end?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import FEW, ILL
from ..report.decisions import (
    Claims,
    Exact,
    Measured,
    Row,
    decided,
    ends,
    exact,
    named_so,
    verdict_of,
)
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import normal


@decided(
    f"for some weights and rank tolerance more than {FEW:.0%} of the runs rest at another Pareto "
    f"point, by the interval, and for none more than {1 - FEW:.0%} end at their optimum"
)
def judge_preferred(measured: Measured) -> Verdict:
    """At every rank tolerance and weights; runs that have not converged decide nothing."""
    shown, lost = [], []
    for name in named_so(measured, "Aligned-MTL, *, weights *: share that ends at their optimum"):
        other = name.replace("ends at their optimum", "rests at another Pareto point")
        shown.append(ends(measured, name)[0] > 1 - FEW.now)
        lost.append(ends(measured, other)[0] > FEW.now)
    return verdict_of(shown, lost)


CLAIMS = {
    "SI-09": Exact(
        "Senushkin et al. 2023: the condition number of the gradients reflects conflict and "
        "dominance.",
        exact(
            ("T = *: largest ratio of two lengths over the condition number", "<=", 1 + 1e-9),
            ("T = *: largest |cosine| less (κ² - 1)/(κ² + 1)", "<=", 1e-9),
            only_when=("(1, 0), (1, .01): condition number", ">", ILL),
        ),
        when="it is small, which excludes conflict and dominance; a large one says nothing",
    ),
    "SI-10": Row(
        "Senushkin et al. 2023: Aligned-MTL converges to an optimum of weights that are chosen "
        "beforehand.",
        judge_preferred,
        when="the rank tolerance is that of float32, or both weights are equal",
    ),
}
claim = Claims(CLAIMS)

SHARES = (0.2, 0.5, 0.8)
SIZE = 5
ENDS = "share that ends at their optimum"
NEAR, REST = 0.01, 1e-3  # there: of the fall; stationary: of the longer gradient


def aligned(w: Tensor, tolerance: Tensor) -> mf.Rule:
    """Aligned-MTL whose eigenvalues up to `tolerance` of the longest gradient's square are 0."""

    def weights(gramian: Tensor) -> Tensor:
        values, basis = torch.linalg.eigh(gramian)
        kept = values > tolerance * gramian.diagonal().amax()
        least = values.where(kept, torch.inf).amin()
        inverse = torch.where(kept, values, 1.0).rsqrt().where(kept, 0.0)
        return torch.where(kept.any(), least.sqrt() * (basis @ (inverse * (w @ basis))), w)

    return mf.stateless(weights)


TOLERANCES = {
    "0": 0.0,
    "4 ε of float64": 4 * torch.finfo(torch.float64).eps,  # the library's at T = 2
    "4 ε of float32": 4 * torch.finfo(torch.float32).eps,  # the official code's dtype
}
ALIGNED = "Aligned-MTL, rank tolerance {}"
RULES: dict[Callable[[Tensor, Tensor], mf.Rule], dict[str, float]] = {
    aligned: {ALIGNED.format(name): value for name, value in TOLERANCES.items()},
    lambda w, _: mf.cagrad(0.5, preference=w): {"CAGrad": 0.0},
    lambda w, _: mf.pcgrad(preference=w): {"PCGrad": 0.0},
    lambda w, _: mf.mgda(): {"MGDA": 0.0},
}
"""A rule of weights and a tolerance: each name that it is run as, and its tolerance then."""


def run(settings: Settings) -> Findings:
    yield condition_number(settings.count(2000))
    yield preferred(settings.count(200), settings.count(1000))


def condition_number(draws: int) -> Claim:
    numbers: dict[str, float] = {}
    for tasks in (2, 3, 5):
        rows = vmap(lambda k, tasks=tasks: normal(mf.random.key(k), tasks, tasks, 10))(
            torch.arange(draws)
        )
        lengths = vmap(lambda k, tasks=tasks: normal(mf.random.key(k), 9, tasks, 1))(
            torch.arange(draws)
        )
        rows = rows * lengths.exp()
        kappa = torch.linalg.cond(rows)
        size = rows.norm(dim=-1)
        unlike = size.amax(-1) / size.amin(-1)
        g = rows @ rows.mT
        cosine = (g / size[:, None] / size[..., None] - torch.eye(tasks)).abs().amax((-2, -1))
        bound = (kappa.square() - 1) / (kappa.square() + 1)
        numbers |= {
            f"T = {tasks}: largest ratio of two lengths over the condition number": largest(
                unlike / kappa
            ),
            f"T = {tasks}: largest |cosine| less (κ² - 1)/(κ² + 1)": largest(cosine - bound),
        }
    parallel = torch.tensor([[1.0, 0.0], [1.0, 0.01]], dtype=torch.float64)
    numbers["(1, 0), (1, .01): condition number"] = float(torch.linalg.cond(parallel))
    return claim(
        "SI-09",
        numbers,
        f"{draws} draws of T gradients in 10 dimensions with lengths spread over e: a condition "
        "number κ bounds both the ratio of two lengths, by κ, and every cosine, by (κ² - 1)/(κ² + "
        "1), so that a small one excludes dominance and conflict. Not the other way round: two "
        "gradients that agree nearly have a large one",
    )


def title(name: str, one: float) -> str:
    return f"{name}, weights {one:g} and {1 - one:g}"


class Pairs(NamedTuple):
    """Pairs of convex quadratics."""

    hessians: Tensor  # [draw, task, 5, 5]
    middle: Tensor  # [draw, task, 5], their minima
    start: Tensor  # [draw, 5]


def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    off = params["x"] - batch[1]
    return 0.5 * torch.einsum("ti,tij,tj->t", off, batch[0], off)


def ended(
    rule_of: Callable[[Tensor, Tensor], mf.Rule],
    tolerances: Sequence[float],
    w: Tensor,
    lr: Tensor,
    pairs: Pairs,
    steps: int,
) -> Tensor:
    """Where a rule ends, `[tolerance, share, draw, 5]`; w `[share, task]`, lr `[share, draw]`. All
    are lanes of one axis: nested ones would cost more than the arithmetic.
    """
    shape = len(tolerances), *lr.shape
    at = [x.flatten() for x in torch.meshgrid(*map(torch.arange, shape), indexing="ij")]
    own = w[at[1]], torch.tensor(tolerances, dtype=w.dtype)[at[0]], lr[at[1], at[2]]
    batch = pairs.hessians[at[2]], pairs.middle[at[2]]

    def step_of(w: Tensor, tolerance: Tensor, lr: Tensor) -> mf.Step:
        return mf.descend(losses, rule_of(w, tolerance), mf.jacobian(), mf.sgd(lr))

    first = vmap(lambda w, tolerance, lr, x, b: step_of(w, tolerance, lr).init({"x": x}, b))
    every = vmap(lambda w, tolerance, lr, s, b: step_of(w, tolerance, lr).update(s, b)[:1])
    state = first(*own, pairs.start[at[2]], batch)
    move = replayed(lambda state, b: every(*own, state, b))
    for _ in tqdm(range(steps), desc="to preferred weights", leave=False):
        (state,) = move(state, batch)
    return state.params["x"].unflatten(0, shape)


def preferred(draws: int, steps: int) -> Claim:
    """Two convex quadratics in five dimensions, weights chosen beforehand."""

    def problem(seed: Tensor) -> Pairs:
        key = mf.random.key(seed)
        root = normal(key, 0, 2, SIZE, SIZE)
        hessians = root @ root.mT / SIZE + 0.1 * torch.eye(SIZE, dtype=torch.float64)
        return Pairs(hessians, normal(key, 1, 2, SIZE), 3 * normal(key, 2, SIZE))

    hessians, middle, start = pairs = vmap(problem)(torch.arange(draws))

    share = torch.tensor(SHARES, dtype=torch.float64)
    w = torch.stack([share, 1 - share], -1)
    total = torch.einsum("wt,dtij->wdij", w, hessians)
    lr = 1 / torch.linalg.eigvalsh(total).amax(-1)
    lowest = torch.linalg.solve(total, torch.einsum("wt,dtij,dtj->wdi", w, hessians, middle))

    def at(x: Tensor) -> Tensor:
        """The weighted losses of points `[share, draw, 5]`."""
        off = x[:, :, None] - middle
        return 0.5 * torch.einsum("wt,wdti,dtij,wdtj->wd", w, off, hessians, off)

    fall = at(start.expand_as(lowest)) - at(lowest)
    numbers: dict[str, float] = {}
    found = {
        name: x
        for rule_of, names in RULES.items()
        for name, x in zip(
            names, ended(rule_of, [*names.values()], w, lr, pairs, steps), strict=True
        )
    }
    for name, x in found.items():
        excess = (at(x) - at(lowest)) / fall
        rows = (hessians @ (x[:, :, None] - middle)[..., None])[..., 0]
        g = rows @ rows.mT
        far = vmap(vmap(lambda g: mf.diagnostics.stationarity(g).length))(g)
        rests = (far < REST * g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()) & (excess >= NEAR)
        for i, one in enumerate(SHARES):
            label = title(name, one)
            there, other = (
                share_interval(int(hits[i].sum()), draws) for hits in (excess < NEAR, rests)
            )
            numbers |= named(f"{label}: {ENDS}", there)
            numbers |= named(f"{label}: share that rests at another Pareto point", other)
    return claim(
        "SI-10",
        numbers,
        f"{draws} pairs of convex quadratics in {SIZE} dimensions, {steps} plain steps by 1/L of "
        f"the weighted loss; there: within {NEAR:g} of its fall; at rest: a convex combination of "
        f"the gradients is below {REST:g} of the longer one. Near the Pareto set Aligned-MTL's "
        "step shrinks with the distance from it, and so does what moves along the set; which "
        "eigenvalue counts as 0 decides where it rests. Static "
        "weights end there by definition. Wilson's intervals",
    )
