"""Does Adam keep a common descent direction?

First-order rates along d and along the step taken. A rule gives d, an optimizer the step Δ = θ_k -
θ_{k+1}. To first order task t falls by ⟨g_t, d⟩ per unit of a plain step, and by ⟨g_t, Δ⟩ in the
step taken; it is raised where the cosine is below -1e-6."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.choice import one_of
from common.device import replayed

from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import Interval, clustered_share, named
from .common import gram, normalised, rows_of, solved, square

CLAIMS = {
    "SU-11": Exact(
        "Regularised problem: max over u of min_t ⟨g_t, u⟩ - ½‖u‖². Where it is "
        "largest min_t ⟨g_t, u⟩ >= ½‖u‖² >= 0, so a non-zero u gives common descent along -u.",
        exact(
            ("largest |min ⟨g_t, u*⟩/‖u*‖² - 1|", "<", 1e-9),
            ("largest relative difference of the value from ½‖u*‖²", "<", 1e-9),
            ("active set against projected gradient: largest relative *", "<", 1e-5),
        ),
    )
}
claim = Claims(CLAIMS)

RAISES = -1e-6
TASKS = 3
OPTIMIZERS = ("SGD", "SGD, momentum .9", "Adam")
LR, ADAM_LR = 0.2, {"convex quadratics": 0.05, "tanh network": 0.01}
RULES: dict[str, Callable[[], mf.Rule]] = {
    "mean": mf.mean,
    "unit gradients": normalised,
    "GradNorm, α = .12": lambda: mf.gradnorm(0.12),
    "PCGrad": mf.pcgrad,
    "CAGrad, c = .5": lambda: mf.cagrad(0.5),
    "CAGrad, c = 1": lambda: mf.cagrad(1.0),
    "MGDA": mf.mgda,
}
SAFE = ("CAGrad, c = 1", "MGDA")
"""Rules whose d has no negative rate for any number of tasks."""
Batch = dict[str, Tensor]


# ---- two small problems ----


def normal(key: Tensor, tag: int, shape: tuple[int, ...]) -> Tensor:
    return mf.random.normal(mf.random.fold_in(key, tag), shape, torch.float64)


def quadratic_losses(params: mf.types.Params, batch: Batch) -> Tensor:
    off = params["x"] - batch["centres"]
    return 0.5 * torch.einsum("ti,tij,tj->t", off, batch["hessians"], off)


def quadratics(key: Tensor, dim: int = 10) -> tuple[mf.types.Params, Batch]:
    factors = normal(key, 0, (TASKS, dim, dim))
    hessians = factors @ factors.mT / (4 * dim)  # largest eigenvalue about 1
    return {"x": 2 * normal(key, 2, (dim,))}, {
        "hessians": hessians,
        "centres": normal(key, 1, (TASKS, dim)),
    }


def network_losses(params: mf.types.Params, batch: Batch) -> Tensor:
    hidden = torch.tanh(batch["x"] @ params["first"].mT)
    return (
        (torch.tanh(hidden @ params["second"].mT) @ params["heads"].mT - batch["y"])
        .square()
        .mean(0)
    )


def network(
    key: Tensor, inputs: int = 8, width: int = 12, samples: int = 24
) -> tuple[mf.types.Params, Batch]:
    """Two tanh layers shared by three correlated regressions of different scale."""
    sizes = {"first": (width, inputs), "second": (width, width), "heads": (TASKS, width)}
    params = {
        name: normal(key, i, size) / size[1] ** 0.5 for i, (name, size) in enumerate(sizes.items())
    }
    x = normal(key, 10, (samples, inputs))
    y = torch.tanh(x @ normal(key, 11, (inputs, 1))) + torch.tanh(
        x @ normal(key, 12, (inputs, TASKS))
    )
    return params, {"x": x, "y": y * torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)}


PROBLEMS = {
    "convex quadratics": (quadratic_losses, quadratics),
    "tanh network": (network_losses, network),
}


# ---- rates before and after ----


class Rates(NamedTuple):
    before: Tensor  # [step, seed], the worst task's cosine with d
    after: Tensor  # [step, seed], with the step taken
    rise: Tensor  # [step, seed], whether a loss did rise

    @property
    def lost(self) -> Tensor:
        """Whether the step taken raises a task to first order although d does not."""
        return (self.after < RAISES) & (self.before >= RAISES)


def lane(which: Tensor, adam_lr: float) -> mf.Optimizer:
    """The optimizer `OPTIMIZERS[which]`, as a lane of one program. All are worked out and one is
    taken, so that they run side by side in one vmap.
    """
    kinds = mf.sgd(LR), mf.sgd(LR / 10, momentum=0.9), mf.adam(adam_lr)

    def update(
        grads: mf.types.Params, states: Any, params: mf.types.Params
    ) -> tuple[mf.types.Params, Any]:
        moved, states = zip(
            *(kind.update(grads, state, params) for kind, state in zip(kinds, states, strict=True)),
            strict=True,
        )
        return {
            name: torch.stack([m[name] for m in moved]).index_select(0, which.reshape(1))[0]
            for name in params
        }, states

    return mf.Optimizer(lambda params: tuple(kind.init(params) for kind in kinds), update)


def followed(problem: str, seeds: int, steps: int) -> dict[tuple[str, str, str], Rates]:
    """Paths of every rule and optimizer from the same starts, one lane a pair and seed."""
    losses, draw = PROBLEMS[problem]
    pairs = list(itertools.product(range(len(RULES)), range(len(OPTIMIZERS))))
    which = torch.tensor(pairs).repeat_interleave(seeds, 0)
    keys = torch.arange(seeds).repeat(len(pairs))
    params, batch = vmap(draw)(keys)

    def step_of(which: Tensor) -> mf.Step:
        rule = one_of([make() for make in RULES.values()], which[0])
        return mf.descend(losses, rule, mf.jacobian(), lane(which[1], ADAM_LR[problem]))

    def advance(
        which: Tensor, state: mf.TrainState, batch: Batch
    ) -> tuple[mf.TrainState, tuple[Tensor, Tensor, Tensor]]:
        moved, info = step_of(which).update(state, batch)
        step = {name: old - moved.params[name] for name, old in state.params.items()}
        rows = mf.task_gradients(losses, state.params, batch)[1]
        taken = sum(rows[name].flatten(1) @ part.flatten() for name, part in step.items())
        length = torch.stack([part.square().sum() for part in step.values()]).sum().sqrt()
        n = info.gramian.diagonal().sqrt()
        along = (info.weights @ info.rates).clamp_min(0).sqrt()
        tiny = torch.finfo(n.dtype).tiny
        return moved, (
            (info.rates / (n * along + tiny)).amin(),
            (taken / (n * length + tiny)).amin(),
            info.losses,
        )

    every = vmap(advance)
    forward = replayed(lambda state, which, batch: every(which, state, batch))
    state = vmap(lambda i, p, b, key: step_of(i).init(p, b, key))(which, params, batch, keys)
    kept = []
    for _ in tqdm(range(steps), desc=problem, leave=False):
        state, seen = forward(state, which, batch)
        kept.append(seen)
    before, after, values = (torch.stack(column) for column in zip(*kept, strict=True))
    last = vmap(losses)(state.params, batch)
    rise = (torch.cat([values, last[None]]).diff(dim=0) > 1e-12 * values.abs()).any(-1)
    names = [(problem, *name) for name in itertools.product(RULES, OPTIMIZERS)]
    parts = zip(*(x.split(seeds, 1) for x in (before, after, rise)), strict=True)
    return {name: Rates(*part) for name, part in zip(names, parts, strict=True)}


def share(flags: Tensor) -> Interval:
    """Of steps, over seeds `[step, seed]`."""
    return clustered_share(flags.double().mean(0))


def run(settings: Settings) -> Findings:
    seeds, steps = max(settings.seeds, 2), settings.count(1000 if settings.full else 150)
    found: dict[tuple[str, str, str], Rates] = {}
    for problem in PROBLEMS:
        found |= followed(problem, seeds, steps)
    yield guarantee(found, settings, seeds, steps)


# ---- the guarantee ----


class Exactness(NamedTuple):
    """The max–min problem's answer u* on random matrices, largest deviations."""

    below: float  # of min ⟨g_t, u*⟩/‖u*‖² from 1
    off: float  # of the value from ½‖u*‖², relative
    apart: float  # of u* by another solver, relative


def exactness(draws: int) -> Exactness:
    below = off = apart = 0.0
    for tasks, size in ((2, 3), (5, 8), (20, 30)):
        rows = rows_of(draws, tasks, size, 500 + 2 * tasks, spread=5.0, common=0.3)
        g = gram(rows)
        exact = solved(mf.solvers.active_set(), g)
        least = square(g, exact.weights)
        below = largest(below, float((1 - exact.rates.amin(-1) / least).abs().max()))
        # The concave objective's value at u*, by its definition, against half the squared length.
        off = largest(
            off, float(((exact.rates.amin(-1) - 0.5 * least) / (0.5 * least) - 1).abs().max())
        )
        few = slice(0, max(4, draws // 20))
        other = solved(mf.solvers.projected_gradient(1000), g[few])
        apart = largest(
            apart,
            float((square(g[few], other.weights - exact.weights[few]) / least[few]).max() ** 0.5),
        )
    return Exactness(below, off, apart)


def shares_of(problem: str, found: dict[tuple[str, str, str], Rates]) -> dict[str, float]:
    """Of steps of one problem that raise a task."""
    plain = [
        float((found[problem, rule, name].before < RAISES).double().mean())
        for rule in SAFE
        for name in OPTIMIZERS
    ]
    numbers = {f"{problem}: share of d of MGDA or CAGrad (c = 1) that raise a task": largest(plain)}
    for rule in RULES:
        for name in OPTIMIZERS[1:]:
            label = f"{problem}, {rule}, {name}: share of steps that raise a task, d raising none"
            numbers |= named(label, share(found[problem, rule, name].lost))
    for name in OPTIMIZERS:
        numbers[f"{problem}, MGDA, {name}: share of steps after which a loss is higher"] = float(
            found[problem, "MGDA", name].rise.double().mean()
        )
    return numbers


def guarantee(
    found: dict[tuple[str, str, str], Rates], settings: Settings, seeds: int, steps: int
) -> Claim:
    draws = settings.count(2000)
    below, off, apart = exactness(draws)
    numbers: dict[str, float] = {
        "largest |min ⟨g_t, u*⟩/‖u*‖² - 1|": below,
        "largest relative difference of the value from ½‖u*‖²": off,
        "active set against projected gradient: largest relative difference of u*": apart,
    }
    for problem in PROBLEMS:
        numbers |= shares_of(problem, found)
    lost = [
        float(found[problem, rule, "Adam"].lost.double().mean())
        for problem in PROBLEMS
        for rule in SAFE
    ]
    return claim(
        "SU-11",
        numbers,
        f"{3 * draws} random matrices, T = 2, 5, 20: the minimum even equals ‖u*‖², and u* is "
        "unique. Of a plain step along u*: with Adam up to "
        f"{100 * max(lost):.0f} % of MGDA's and CAGrad's (c = 1) steps raise a task to first "
        f"order on two small problems, {seeds} seeds, {steps} steps, "
        "intervals of shares over seeds (Korn & Graubard)",
    )
