"""What the questions on differential equations share: two boundary problems, their training."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.grids import Best
from ..report.intervals import named, ratio_interval
from ..report.parts import kept
from .common import flat, normal

INSIDE, WIDTH = 30, 10
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
STEPS, KEPT = 240, 60  # steps of Adam; of them with the same weights


class Points(NamedTuple):
    inside: Tensor  # [n, 1]
    edge: Tensor  # [m, 1]


class Problem(NamedTuple):
    """u'' + rest(u) = f on [-1, 1], with the values of u at both ends."""

    about: str
    rest: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]  # u
    second: Callable[[Tensor], Tensor]  # u''

    def draw(self, key: Tensor) -> Points:
        """One point in each of as many parts of the interval, and both ends."""
        within = mf.random.uniform(mf.random.fold_in(key, 1), (INSIDE,), torch.float64)
        inside = 2 * (torch.arange(INSIDE) + within) / INSIDE - 1
        ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        return Points(inside[:, None], ends + 0 * within[0])

    def inner(self, params: mf.types.Params, points: Points) -> Tensor:
        """Signed residuals of the equation, each over the root of their number."""
        x = points.inside
        u, second = network(params, x)
        f = self.second(x) + self.rest(self.exact(x))
        return (second + self.rest(u) - f)[:, 0] / len(x) ** 0.5

    def outer(self, params: mf.types.Params, points: Points) -> Tensor:
        """Those of the values at the ends."""
        x = points.edge
        return (network(params, x)[0] - self.exact(x))[:, 0] / len(x) ** 0.5

    def stacked(self, params: mf.types.Params, points: Points) -> Tensor:
        """Both, `[n + m]`."""
        return torch.cat([self.inner(params, points), self.outer(params, points)])

    def terms(self, params: mf.types.Params, points: Points) -> tuple[Tensor, ...]:
        """The two mean squares."""
        return self.inner(params, points).square().sum(), self.outer(params, points).square().sum()

    def rows(self, params: mf.types.Params, points: Points) -> Tensor:
        """The gradients of the residuals, `[n + m, parameter]`."""

        def each(term: Callable[[mf.types.Params, Points], Tensor], x: Tensor) -> Tensor:
            def one(params: mf.types.Params, point: Tensor) -> Tensor:
                return term(params, Points(point[None], point[None]))[0] / len(x) ** 0.5

            return vmap(flat)(vmap(grad(one), (None, 0))(params, x))

        return torch.cat([each(self.inner, points.inside), each(self.outer, points.edge)])

    def error(self, params: mf.types.Params) -> Tensor:
        """‖u - u*‖ / ‖u*‖ on an even grid of 201 points."""
        grid = torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None]
        exact = self.exact(grid)
        return (network(params, grid)[0] - exact).norm() / exact.norm()


def network(params: mf.types.Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """u of two layers of tanh, and u'', both `[n, 1]`, by the chain rule."""
    h = (x @ params["in"] + params["a"]).tanh()
    first = (1 - h * h) * params["in"]
    second = -2 * h * first * params["in"]
    g = (h @ params["middle"] + params["b"]).tanh()
    along = first @ params["middle"]
    bent = (1 - g * g) * (second @ params["middle"] - 2 * g * along * along)
    return g @ params["out"] + params["c"], bent @ params["out"]


def start(key: Tensor) -> mf.types.Params:
    """Normal weights and biases, as for inputs of standard deviation 1: these have about 1/2."""
    sizes = {"in": (1, WIDTH), "middle": (WIDTH, WIDTH), "out": (WIDTH, 1)}
    weights = {
        name: normal(key, 11 + i, *shape) * (2 if name == "in" else WIDTH**-0.5)
        for i, (name, shape) in enumerate(sizes.items())
    }
    biases = {"a": WIDTH, "b": WIDTH, "c": 1}
    return weights | {name: normal(key, 21 + i, n) for i, (name, n) in enumerate(biases.items())}


PROBLEMS = {
    "linear": Problem(
        "u'' = f, u = sin 2πx",
        lambda u: 0 * u,
        lambda x: (2 * math.pi * x).sin(),
        lambda x: -((2 * math.pi) ** 2) * (2 * math.pi * x).sin(),
    ),
    "cubic": Problem(
        "u'' - u³ = f, u = x cos 3x",
        lambda u: -(u**3),
        lambda x: x * (3 * x).cos(),
        lambda x: -6 * (3 * x).sin() - 9 * x * (3 * x).cos(),
    ),
}
ABOUT = (
    f"{'; '.join(f'{name}: {problem.about}' for name, problem in PROBLEMS.items())}; {INSIDE} "
    f"points on [-1, 1] and both ends, two layers of {WIDTH} tanh"
)


def begun(problem: Problem, seeds: int) -> tuple[mf.types.Params, Points]:
    """First weights and points of every seed, `[seed, ...]`."""

    def one(seed: Tensor) -> tuple[mf.types.Params, Points]:
        return start(mf.random.key(seed)), problem.draw(mf.random.key(seed))

    return vmap(one)(torch.arange(seeds))


def others(problem: Problem, seeds: int, moment: int) -> Points:
    """New points of every seed for a step."""
    return vmap(lambda k: problem.draw(mf.random.fold_in(mf.random.key(k), 1000 + moment)))(
        torch.arange(seeds)
    )


Weigh = Callable[[mf.types.Params, Points], Tensor]
"""The weights of the two terms, `[2]`."""


def equal(params: mf.types.Params, points: Points) -> Tensor:
    return torch.ones(2, dtype=torch.float64)


def trained(
    problem: Problem, seeds: int, steps: int, weigh: Weigh = equal, *, config: bool = False
) -> mf.types.Params:
    """Where Adam ends at all rates, `[rate, seed, ...]`, on points that stay: on the sum of the
    terms by weights that are found again now and then, or by ConFIG.
    """

    def step_of(w: Tensor, lr: Tensor) -> mf.Step:
        rule, probe = mf.mean(preference=w), mf.losses_only()
        if config:
            rule, probe = mf.config(), mf.jacobian()
        return mf.descend(problem.terms, rule, probe, mf.adam(lr))

    rates = torch.tensor(RATES, dtype=torch.float64)
    lr = rates.repeat_interleave(seeds)
    params, points = tree_map(lambda x: repeated(x, len(rates)), begun(problem, seeds))
    every = vmap(weigh)
    w = every(params, points)
    state = vmap(lambda w, lr, p, b: step_of(w, lr).init(p, b))(w, lr, params, points)
    moved = vmap(lambda w, lr, state, b: step_of(w, lr).update(state, b)[:1])
    move = replayed(lambda state, w: moved(w, lr, state, points))
    for moment in tqdm(range(steps), desc="differential equations", leave=False):
        if moment and moment % KEPT == 0:
            w = every(state.params, points)
        (state,) = move(state, w)
    return {name: x.unflatten(0, (len(rates), seeds)) for name, x in state.params.items()}


@kept
def with_adam(name: str, seeds: int, steps: int) -> mf.types.Params:
    """Where Adam ends on the sum of a problem's terms."""
    return trained(PROBLEMS[name], seeds, steps)


def repeated(x: Tensor, settings: int) -> Tensor:
    """The lanes of all seeds `[seed, ...]` for every setting, `[setting · seed, ...]`."""
    return x.repeat(settings, *[1] * (x.ndim - 1))


def errors(problem: Problem, params: mf.types.Params) -> np.ndarray:
    """Of `[setting, seed, ...]`."""
    return vmap(vmap(problem.error))(params).cpu().numpy()


def compared(name: str, own: Best, rival: Best) -> dict[str, float]:
    """A ratio of errors, each at its best settings."""
    return named(name, ratio_interval(own.scores, rival.scores), unsettled=own.edge or rival.edge)
