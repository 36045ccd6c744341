"""Random pairs of convex quadratics, and one plain and one PCGrad step on them.

The theorems (Yu et al. 2020, section 2.4) are about the sum L = L_1 + L_2 of two losses and one
step: θ^MT = θ - t·g along g = ∇L, θ^PC = θ - t·d along the sum d of the projected gradients. A draw
is a pair of convex quadratics L_t(x) = g_t·x + ½ xᵀA_t x at x = 0."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.types import Balance

from ..report.parts import kept
from . import theorems
from .common import normal, uniform

DIMENSIONS = (2, 5, 20)
# a conclusion is violated beyond this share of the terms that were subtracted: their rounding
SLACK = 1e-9
Batch = tuple[Tensor, Tensor]
"""Gradients at 0, `[task, dim]`, and Hessians, `[task, dim, dim]`."""


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    x, (gradients, hessians) = params["x"], batch
    bent = (hessians.flatten(0, 1) @ x).reshape(gradients.shape)  # one product, without copies
    return (gradients + 0.5 * bent) @ x


def edited() -> Balance:
    """The paper's direction, the **sum** of the projected gradients."""
    return mf.balance(losses, mf.pcgrad(), mf.jacobian(), reduction="sum")


def at_angle(key: Tensor, dim: int, angle: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
    """A gradient of length 1, and one of another length at an angle to it."""
    first, other = normal(key, 0, (dim,)), normal(key, 1, (dim,))
    first = first / torch.linalg.vector_norm(first)
    other = other - (other @ first) * first
    other = other / torch.linalg.vector_norm(other)
    return first, length * (angle.cos() * first + angle.sin() * other)


def draw(key: Tensor, dim: int, *, aligned: bool) -> Batch:
    """Two gradients at a random angle and ratio of lengths; Hessians with log-uniform conditioning
    from 1 to 1e4 and scales from 1e-2 to 1e2.

    `aligned` turns the gradients nearly opposite and puts the first Hessian's top eigenvector along
    their sum: there Theorem 2's hypotheses are met.
    """

    def hessian(tag: int) -> Tensor:
        basis = torch.linalg.qr(normal(key, tag, (dim, dim)))[0]
        spread, scale = uniform(key, tag + 1, 0, 4), uniform(key, tag + 2, -2, 2)
        decay = mf.random.uniform(mf.random.fold_in(key, tag + 3), (dim,), torch.float64)
        return (basis * 10 ** (scale - spread * decay)) @ basis.mT

    angle = torch.pi - 10 ** uniform(key, 2, -3, 0) if aligned else torch.pi * uniform(key, 2, 0, 1)
    gradients = torch.stack(at_angle(key, dim, angle, 10 ** uniform(key, 3, -2, 2)))
    one, two = hessian(10), hessian(20)
    if aligned:
        g = gradients.sum(0)
        top = 10 ** uniform(key, 4, -1, 2) * (one.trace() + two.trace())
        one = one + top * torch.outer(g, g) / (g @ g)
    return gradients, torch.stack([one, two])


class Steps(NamedTuple):
    """One plain and one PCGrad step of every draw; all have the axis `[draw]`."""

    relative: Tensor  # t·ℒ
    conflict: Tensor
    first: theorems.Descent
    second: theorems.Overshoot
    printed: theorems.Overshoot
    fall: Tensor  # L(0) - L(θ^PC)
    plain_fall: Tensor  # L(0) - L(θ^MT)
    rounding: Tensor  # what differences of losses are known to

    @property
    def worse(self) -> Tensor:
        """Whether PCGrad's step ends above the plain one."""
        return self.plain_fall - self.fall > self.rounding


def one_step(key: Tensor, dim: int, aligned: bool, decades: tuple[float, float]) -> Steps:
    """t·ℒ is log-uniform over `decades`."""
    batch = draw(key, dim, aligned=aligned)
    lipschitz = torch.linalg.eigvalsh(batch[1].sum(0))[-1]
    relative = 10 ** uniform(key, 5, *decades)
    t = relative / lipschitz
    params = {"x": torch.zeros(dim, dtype=torch.float64)}
    step = edited()
    direction, _, info = step.update(params, batch, step.init(params, batch))
    ends = [losses({"x": -t * d}, batch).sum() for d in (direction["x"], batch[0].sum(0))]
    curvature = theorems.secant_curvature(losses, params, batch, lr=t)
    second, printed = (
        theorems.pcgrad_theorem2(info.gramian, t, lipschitz, curvature, printed=printed)
        for printed in (False, True)
    )
    return Steps(
        relative,
        info.gramian[0, 1] < 0,
        theorems.pcgrad_theorem1(info.gramian, t, lipschitz),
        second,
        printed,
        -ends[0],
        -ends[1],
        SLACK * (t + t**2 * lipschitz) * info.gramian.trace(),
    )


@kept
def study(draws: int, decades: tuple[float, float]) -> Steps:
    """Draws of every dimension, and of each as many with gradients at any angle and `aligned`."""
    found = []
    for dim in DIMENSIONS:
        for aligned in (False, True):
            keys = torch.arange(draws) + 1_000_000 * dim + 100_000 * aligned
            every = vmap(one_step, (0, None, None, None))
            found.append(every(keys, dim, aligned, decades))
    return tree_map(lambda *leaves: torch.cat(leaves), *found)


class Pairs(NamedTuple):
    """Convex pairs and starts; all have the axis `[pair]`."""

    x: Tensor  # [pair, dim], the start
    batch: Batch
    lipschitz: Tensor  # ℒ
    least: Tensor  # the minimum of the sum


def convex_pair(key: Tensor, dim: int) -> Pairs:
    """One with Wishart Hessians and normal minimisers."""
    factors, centres = normal(key, 0, (2, dim, dim)), normal(key, 1, (2, dim))
    hessians = factors @ factors.mT / dim + 1e-2 * torch.eye(dim, dtype=torch.float64)
    batch = (-torch.einsum("tij,tj->ti", hessians, centres), hessians)
    best = torch.linalg.solve(hessians.sum(0), -batch[0].sum(0))
    lipschitz = torch.linalg.eigvalsh(hessians.sum(0))[-1]
    return Pairs(2 * normal(key, 2, (dim,)), batch, lipschitz, losses({"x": best}, batch).sum())
