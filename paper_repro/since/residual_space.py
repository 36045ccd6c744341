"""Is a natural gradient step in the space of residuals the same, cheaper and better than others?"""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import MAGNITUDE
from ..report.decisions import Exact, Row, exact, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_best
from . import physics
from .common import flat, normal, unflat

CLAIMS = {
    "SI-16": Exact(
        "Guzmán-Cordero et al. 2025: Woodbury's identity gives the step of energy natural gradient "
        "descent with far less computation.",
        exact(
            ("largest difference of the two steps, over their length", "<", 1e-6),
            ("5 parameters a residual: work in *", ">", MAGNITUDE),
            only_when=("0.5 parameters a residual: work in *", "<", 1),
        ),
        when="there are several times more parameters than residuals (5: "
        "{5 parameters a residual: work in parameters' space over residuals'} times fewer "
        "multiplications; 2: {2 parameters a residual: work in parameters' space over residuals'})",
    ),
    "SI-17": Row(
        "Guzmán-Cordero et al. 2025: SPRING's momentum accelerates the convergence of energy "
        "natural gradient descent.",
        sided(("*: error with SPRING's momentum over that without", "<", 1)),
        instead="differential equations in several dimensions",
    ),
    "SI-18": Row(
        "Jnini & Vella 2025: natural gradients in the space of residuals end at an L2 error that "
        "is one to three orders of magnitude below that of Adam and of quasi-Newton methods.",
        sided(("*'s error over Gauss-Newton's", ">", MAGNITUDE)),
        instead="differential equations in several dimensions",
    ),
}

DAMPINGS = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
WORTH = 10
"""Gradients that a step of Gauss-Newton counts as. In multiplications it is less: of n residuals
and P parameters 9 n P for the rows, n² P for their products, n³/3 for the factors and 18 n P for
six lengths that are tried; a gradient takes 9 n P.
"""
MOMENTA = (0.5, 0.9)


def run(settings: Settings) -> Findings:
    yield same_step(settings.count(200))
    seeds, steps = max(2, settings.seeds * 3 // 8), settings.count(physics.STEPS // WORTH)
    accelerated: dict[str, float] = {}
    lower: dict[str, float] = {}
    for name, problem in physics.PROBLEMS.items():
        plain, spring = (
            at_best(newton(problem, seeds, steps, mu, fresh=True), np.repeat(DAMPINGS, len(mu)))
            for mu in ((0.0,), MOMENTA)
        )
        label = f"{name}: error with SPRING's momentum over that without"
        accelerated |= physics.compared(label, spring, plain)
        own = at_best(newton(problem, seeds, steps), DAMPINGS)
        params = physics.with_adam(name, seeds, WORTH * steps)
        adam = at_best(physics.errors(problem, params), physics.RATES)
        lbfgs = at_best(quasi_newton(problem, seeds, WORTH * steps)[None], (1.0,))
        for rival, found in (("Adam", adam), ("L-BFGS", lbfgs)):
            lower |= physics.compared(f"{name}: {rival}'s error over Gauss-Newton's", found, own)
    where = (
        f"{physics.ABOUT}; {seeds} seeds; relative L2 errors after {steps} steps, geometric means "
        "of paired ratios, 95 % t intervals; every setting chosen on the other half of the seeds"
    )
    yield Claim(
        "SI-17",
        accelerated,
        f"{where}. New points at every step, as published; dampings {DAMPINGS[0]:g} to "
        f"{DAMPINGS[-1]:g}, momenta {MOMENTA[0]:g} and {MOMENTA[1]:g}",
    )
    yield Claim(
        "SI-18",
        lower,
        f"{where}. Points that stay. A step of Gauss-Newton counts as {WORTH} gradients: Adam "
        "takes as many steps, L-BFGS as many evaluations, with the strong Wolfe conditions",
    )


def same_step(draws: int) -> Claim:
    """Of random rows and residuals: the step in either space, solved each in its own way."""
    rows, count, damping = 20, 60, 1e-6

    def one(seed: Tensor) -> Tensor:
        key = mf.random.key(seed)
        j, r = normal(key, 0, rows, count), normal(key, 1, rows)
        scale = damping * j.square().sum(1).amax()
        inner = mf.aggregate(mf.physics.gauss_newton(damping), j, losses=r)
        outer = torch.linalg.solve(j.mT @ j + scale * torch.eye(count, dtype=j.dtype), j.mT @ r)
        return (inner - outer).norm() / outer.norm()

    def work(unknowns: float, summed: float) -> float:
        """Multiplications for a matrix of products and its Cholesky factors."""
        return unknowns**2 * summed + unknowns**3 / 3

    off = float(vmap(one)(torch.arange(draws)).max())
    numbers = {"largest difference of the two steps, over their length": off}
    for share in (0.5, 2.0, 5.0):
        name = f"{share:g} parameters a residual: work in parameters' space over residuals'"
        numbers[name] = work(share, 1) / work(1, share)
    return Claim(
        "SI-16",
        numbers,
        f"{draws} draws of {rows} residuals of {count} parameters, damping {damping:g} of the "
        "largest diagonal entry; work: multiplications for a product of the rows with themselves "
        "and a Cholesky factorisation, whatever else a step takes",
    )


def newton(
    problem: physics.Problem,
    seeds: int,
    steps: int,
    momenta: tuple[float, ...] = (0.0,),
    *,
    fresh: bool = False,
) -> np.ndarray:
    """Relative errors at the end, `[setting, seed]`: of every damping, with every momentum, by
    which SPRING carries a part of its last direction along. Each step takes the best of six
    lengths. `fresh`: on new points at every step.
    """
    lengths = 0.5 ** torch.arange(6, dtype=torch.float64)
    grid = torch.tensor([*itertools.product(DAMPINGS, momenta)], dtype=torch.float64)
    dampings, mu = grid.repeat_interleave(seeds, 0).T

    def objective(params: mf.types.Params, points: physics.Points) -> Tensor:
        return problem.stacked(params, points).square().sum()

    def one(
        damping: Tensor, mu: Tensor, params: mf.types.Params, before: Tensor, points: physics.Points
    ) -> tuple[mf.types.Params, Tensor]:
        rows, carried = problem.rows(params, points), mu * before
        left = problem.stacked(params, points) - rows @ carried
        d = carried + mf.aggregate(mf.physics.gauss_newton(damping), rows, losses=left)
        found = mf.physics.line_search(objective, params, unflat(d, params), points, lengths)
        return found.params, d

    def lanes(part: Any) -> Any:
        return tree_map(lambda x: physics.repeated(x, len(grid)), part)

    params, points = lanes(physics.begun(problem, seeds))
    before, every = torch.zeros_like(vmap(flat)(params)), vmap(one)
    for moment in tqdm(range(steps), desc="Gauss-Newton", leave=False):
        if fresh:
            points = lanes(physics.others(problem, seeds, moment))
        params, before = every(dampings, mu, params, before, points)
    ends = {name: x.unflatten(0, (len(grid), seeds)) for name, x in params.items()}
    return physics.errors(problem, ends)


def quasi_newton(problem: physics.Problem, seeds: int, evaluations: int) -> np.ndarray:
    """L-BFGS with the strong Wolfe conditions, `[seed]`."""

    def ended(params: mf.types.Params, points: physics.Points) -> float:
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        optimizer = torch.optim.LBFGS(
            list(leaves.values()), 1.0, evaluations, evaluations, 0.0, 0.0, 50, "strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = problem.stacked(leaves, points).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return float(problem.error({name: leaf.detach() for name, leaf in leaves.items()}))

    every = physics.begun(problem, seeds)
    lanes = (tree_map(lambda x, seed=seed: x[seed], every) for seed in range(seeds))
    return np.array([ended(*lane) for lane in tqdm(lanes, "L-BFGS", seeds, leave=False)])
