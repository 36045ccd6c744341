"""What does the condition number say, and where does Aligned-MTL end?"""

import itertools

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..cagrad.common import quadratic_losses
from ..report.bounds import FEW, ILL
from ..report.decisions import Exact, Measured, Row, decided, ends, exact, named_so, verdict_of
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

SHARES, SIZE = (0.2, 0.5, 0.8), 5
NEAR, REST = 0.01, 1e-3  # there: of the fall; stationary: of the longer gradient
TOLERANCES = {
    "0": 0.0,
    "4 ε of float64": 4 * torch.finfo(torch.float64).eps,  # the library's at T = 2
    "4 ε of float32": 4 * torch.finfo(torch.float32).eps,  # the official code's dtype
}


def aligned(w: Tensor, tolerance: Tensor) -> mf.Rule:
    """Aligned-MTL whose eigenvalues up to `tolerance` of the longest gradient's square are 0."""

    def weights(gramian: Tensor) -> Tensor:
        values, basis = torch.linalg.eigh(gramian)
        kept = values > tolerance * gramian.diagonal().amax()
        least = values.where(kept, torch.inf).amin()
        inverse = torch.where(kept, values, 1.0).rsqrt().where(kept, 0.0)
        return torch.where(kept.any(), least.sqrt() * (basis @ (inverse * (w @ basis))), w)

    return mf.stateless(weights)


def run(settings: Settings) -> Findings:
    yield condition_number(settings.count(2000))
    yield preferred(settings.count(200), settings.count(1000))


def condition_number(draws: int) -> Claim:
    numbers: dict[str, float] = {}
    for tasks in (2, 3, 5):

        def one(seed: Tensor, tasks: int = tasks) -> Tensor:
            key = mf.random.key(seed)
            return normal(key, tasks, tasks, 10) * normal(key, 9, tasks, 1).exp()

        rows = vmap(one)(torch.arange(draws))
        kappa, size = torch.linalg.cond(rows), rows.norm(dim=-1)
        units = rows / size[..., None]
        cosine = (units @ units.mT - torch.eye(tasks)).abs().amax((-2, -1))
        off = (cosine - (kappa.square() - 1) / (kappa.square() + 1)).max()
        ratio = (size.amax(-1) / size.amin(-1) / kappa).max()
        numbers |= {
            f"T = {tasks}: largest ratio of two lengths over the condition number": float(ratio),
            f"T = {tasks}: largest |cosine| less (κ² - 1)/(κ² + 1)": float(off),
        }
    parallel = torch.tensor([[1.0, 0.0], [1.0, 0.01]], dtype=torch.float64)
    numbers["(1, 0), (1, .01): condition number"] = float(torch.linalg.cond(parallel))
    return Claim(
        "SI-09",
        numbers,
        f"{draws} draws of T gradients in 10 dimensions with lengths spread over e; κ is their "
        "condition number",
    )


def problem(seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two convex quadratics: their Hessians and minima, and where to start."""
    key = mf.random.key(seed)
    root = normal(key, 0, 2, SIZE, SIZE)
    hessians = root @ root.mT / SIZE + 0.1 * torch.eye(SIZE, dtype=torch.float64)
    return hessians, normal(key, 1, 2, SIZE), 3 * normal(key, 2, SIZE)


def ended(w: Tensor, lr: Tensor, pairs: tuple[Tensor, Tensor, Tensor], steps: int) -> Tensor:
    """Where Aligned-MTL ends, `[tolerance, share, draw, 5]`; w `[share, task]`, lr `[share, draw]`.
    All are lanes of one axis: nested ones would cost more than the arithmetic.
    """
    shape = len(TOLERANCES), *lr.shape
    i, j, k = (x.flatten() for x in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    tolerance = torch.tensor([*TOLERANCES.values()], dtype=w.dtype)
    own, (*batch, start) = (w[j], tolerance[i], lr[j, k]), [part[k] for part in pairs]

    def step_of(w: Tensor, tolerance: Tensor, lr: Tensor) -> mf.Step:
        return mf.descend(quadratic_losses, aligned(w, tolerance), mf.jacobian(), mf.sgd(lr))

    state = vmap(lambda own, x, b: step_of(*own).init({"x": x}, b))(own, start, batch)
    every = vmap(lambda own, s, b: step_of(*own).update(s, b)[:1])
    move = replayed(lambda state, b: every(own, state, b))
    for _ in tqdm(range(steps), desc="to preferred weights", leave=False):
        (state,) = move(state, batch)
    return state.params["x"].unflatten(0, shape)


def preferred(draws: int, steps: int) -> Claim:
    """Two convex quadratics in five dimensions, weights chosen beforehand."""
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
    for name, x in zip(TOLERANCES, ended(w, lr, pairs, steps), strict=True):
        there = (at(x) - at(lowest)) / fall < NEAR
        rows = (hessians @ (x[:, :, None] - middle)[..., None])[..., 0]
        g = rows @ rows.mT
        far = vmap(vmap(lambda g: mf.diagnostics.stationarity(g).length))(g)
        rests = (far < REST * g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()) & ~there
        both = {"ends at their optimum": there, "rests at another Pareto point": rests}
        for (i, one), (what, hits) in itertools.product(enumerate(SHARES), both.items()):
            label = f"Aligned-MTL, rank tolerance {name}, weights {one:g} and {1 - one:g}"
            numbers |= named(
                f"{label}: share that {what}", share_interval(int(hits[i].sum()), draws)
            )
    return Claim(
        "SI-10",
        numbers,
        f"{draws} pairs of convex quadratics in {SIZE} dimensions, {steps} plain steps by 1/L of "
        f"the weighted loss; there: within {NEAR:g} of its fall; at rest: a convex combination of "
        f"the gradients is below {REST:g} of the longer one. Near the Pareto set Aligned-MTL's "
        "step shrinks with the distance from it, and so does what moves along the set; which "
        "eigenvalue counts as 0 decides where it rests. Wilson's intervals",
    )
