"""What the questions on differential equations share: two equations, a small network, training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

import mtlfunc as mf
from experiments.physics.references import cole_hopf

from ..report.device import replayed
from ..report.parts import kept
from .common import normal

INSIDE, EDGE, WIDTH = 40, 20, 12
VISCOSITY = 0.1 / math.pi
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
STEPS = 384


class Points(NamedTuple):
    inside: Tensor  # [n, 2]
    edge: Tensor  # [m, 2]


class Problem(NamedTuple):
    """D u = 0 in a box from (-1, low) to (1, 1), and u = g on some of its faces."""

    about: str
    low: float
    equation: Callable[[mf.types.Params, Tensor], Tensor]  # D u, [n]
    value: Callable[[Tensor], Tensor]  # g
    faces: tuple[tuple[int, float], ...]  # an axis and where along it
    exact: Callable[[Tensor], Tensor]  # u

    def draw(self, key: Tensor) -> Points:
        """Even inside, and on the faces by turns."""

        def even(tag: int, n: int) -> Tensor:
            u = mf.random.uniform(mf.random.fold_in(key, tag), (n, 2), torch.float64)
            return torch.stack([2 * u[:, 0] - 1, self.low + (1 - self.low) * u[:, 1]], 1)

        edge, face = even(2, EDGE), torch.arange(EDGE) % len(self.faces)
        for i, (axis, end) in enumerate(self.faces):
            on = (face == i)[:, None] & (torch.arange(2) == axis)
            edge = edge.where(~on, end)
        return Points(even(1, INSIDE), edge)

    def inner(self, params: mf.types.Params, points: Points) -> Tensor:
        """Signed residuals of the equation, each over the root of their number."""
        return self.equation(params, points.inside) / len(points.inside) ** 0.5

    def outer(self, params: mf.types.Params, points: Points) -> Tensor:
        """Those of the values on the edge."""
        off = network(params, points.edge)[:, 0] - self.value(points.edge)
        return off / len(points.edge) ** 0.5

    def stacked(self, params: mf.types.Params, points: Points) -> Tensor:
        """Both, `[n + m]`."""
        return torch.cat([self.inner(params, points), self.outer(params, points)])

    def terms(self, params: mf.types.Params, points: Points) -> tuple[Tensor, ...]:
        """The two mean squares."""
        return self.inner(params, points).square().sum(), self.outer(params, points).square().sum()

    def rows(self, params: mf.types.Params, points: Points) -> Tensor:
        """The gradients of the residuals, `[n + m, parameter]`."""

        def matrix(term: Callable[[mf.types.Params, Points], Tensor], x: Tensor) -> Tensor:
            def one(params: mf.types.Params, x: Tensor) -> Tensor:
                return term(params, Points(x[None], x[None]))[0] / n**0.5

            n = len(x)
            leaves = vmap(grad(one), (None, 0))(params, x)
            return torch.cat([leaf.flatten(1) for leaf in leaves.values()], 1)

        return torch.cat([matrix(self.inner, points.inside), matrix(self.outer, points.edge)])

    def error(self, params: mf.types.Params) -> Tensor:
        """‖u - u*‖ / ‖u*‖ on a grid of 21 by 21 points."""
        grid = torch.cartesian_prod(
            torch.linspace(-1, 1, 21, dtype=torch.float64),
            torch.linspace(self.low, 1, 21, dtype=torch.float64),
        )
        exact = self.exact(grid)
        return (network(params, grid)[:, 0] - exact).norm() / exact.norm()


def network(params: mf.types.Params, x: Tensor) -> Tensor:
    """Two layers of tanh, `[n, 1]`."""
    hidden = (x @ params["in"] + params["a"]).tanh()
    return (hidden @ params["middle"] + params["b"]).tanh() @ params["out"] + params["c"]


def start(key: Tensor) -> mf.types.Params:
    """Glorot's normal weights."""
    sizes = {"in": (2, WIDTH), "middle": (WIDTH, WIDTH), "out": (WIDTH, 1)}
    weights = {
        name: normal(key, 11 + i, *shape) * (2 / sum(shape)) ** 0.5
        for i, (name, shape) in enumerate(sizes.items())
    }
    zero = 0 * normal(key, 14, WIDTH)
    return weights | {"a": zero, "b": zero.clone(), "c": zero[:1].clone()}


def _hump(x: Tensor) -> Tensor:
    return (0.5 * math.pi * x).cos().prod(1)


def _poisson(params: mf.types.Params, x: Tensor) -> Tensor:
    found = mf.jets.laplacian(network, params, x)
    return found.laplacian[:, 0] + 0.5 * math.pi**2 * _hump(x)


def _burgers(params: mf.types.Params, x: Tensor) -> Tensor:
    space = torch.tensor([1.0, 0.0], dtype=x.dtype, device=x.device)
    u, first, second = mf.jets.directional(network, params, x, space, 2)
    _, slope = mf.jets.directional(network, params, x, space.flip(0), 1)
    return (slope + u * first - VISCOSITY * second)[:, 0]


def _shock(x: Tensor) -> Tensor:
    space, time = x.cpu().numpy().T
    return torch.as_tensor(cole_hopf(space, time, VISCOSITY)).to(x)


PROBLEMS = {
    "Poisson": Problem(
        "Δu = f on [-1, 1]², u = cos πx/2 cos πy/2",
        -1.0,
        _poisson,
        lambda x: 0 * x[:, 0],
        ((0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)),
        _hump,
    ),
    "Burgers": Problem(
        "u_t + u u_x = 0.1/π u_xx on [-1, 1], t ≤ 1, u = -sin πx at the start, 0 at both ends",
        0.0,
        _burgers,
        lambda x: -(math.pi * x[:, 0]).sin(),  # 0 at the ends
        ((0, -1.0), (0, 1.0), (1, 0.0), (1, 0.0)),
        _shock,
    ),
}
ABOUT = "; ".join(f"{name}: {problem.about}" for name, problem in PROBLEMS.items())


def begun(problem: Problem, seeds: int) -> tuple[mf.types.Params, Points]:
    """First weights and points of every seed, `[seed, ...]`."""
    keys = torch.arange(seeds)
    return (
        vmap(lambda k: start(mf.random.key(k)))(keys),
        vmap(lambda k: problem.draw(mf.random.key(k)))(keys),
    )


def others(problem: Problem, seeds: int, moment: int) -> Points:
    """New points of every seed for a step."""
    return vmap(lambda k: problem.draw(mf.random.fold_in(mf.random.key(k), 1000 + moment)))(
        torch.arange(seeds)
    )


def trained(
    problem: Problem,
    method: Callable[[mf.Optimizer], mf.Step],
    seeds: int,
    steps: int,
) -> mf.types.Params:
    """Where a method with Adam ends at all rates, `[rate, seed, ...]`, on points that stay."""
    rates = torch.tensor(RATES, dtype=torch.float64)
    params, points = begun(problem, seeds)

    def lanes(function: Callable) -> Callable:
        return vmap(vmap(function, (None, 0, 0)), (0, 0, None))

    every = params_at_all(params, len(rates))
    state = lanes(lambda lr, p, b: method(mf.adam(lr)).init(p, b))(rates, every, points)
    moved = lanes(lambda lr, state, b: method(mf.adam(lr)).update(state, b)[:1])
    move = replayed(lambda state, points: moved(rates, state, points))
    for _ in tqdm(range(steps), desc="differential equations", leave=False):
        (state,) = move(state, points)
    return state.params


@kept
def with_adam(name: str, seeds: int, steps: int) -> mf.types.Params:
    """Where Adam ends on the sum of a problem's terms."""
    problem = PROBLEMS[name]

    def method(optimizer: mf.Optimizer) -> mf.Step:
        return mf.descend(problem.terms, mf.mean(), mf.losses_only(), optimizer)

    return trained(problem, method, seeds, steps)


def params_at_all(params: mf.types.Params, settings: int) -> mf.types.Params:
    """The same weights for every setting, `[setting, ...]`."""
    return {name: leaf.expand(settings, *leaf.shape).clone() for name, leaf in params.items()}


def errors(problem: Problem, params: mf.types.Params) -> np.ndarray:
    """Of `[setting, seed, ...]`."""
    return vmap(vmap(problem.error))(params).cpu().numpy()
