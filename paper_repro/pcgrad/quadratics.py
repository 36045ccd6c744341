"""Random pairs of convex quadratics, and one plain and one PCGrad step on them.

The theorems (Yu et al. 2020, section 2.4) are about the sum L = L_1 + L_2 of two losses and one
step: θ^MT = θ - t·g along g = ∇L, θ^PC = θ - t·d along the sum d of the projected gradients. A draw
is a pair of convex quadratics L_t(x) = g_t·x + ½ xᵀA_t x at x = 0."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.types import Balance

from ..report.findings import Settings
from ..report.parts import kept
from . import theorems
from .common import normal, uniform

DIMENSIONS = (2, 5, 20)
# a conclusion is violated beyond this share of the terms that were subtracted: their rounding
SLACK = 1e-9
Parts = TypeVar("Parts")
Batch = tuple[Tensor, Tensor]
"""Gradients at 0, `[task, dim]`, and Hessians, `[task, dim, dim]`."""


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    x, (gradients, hessians) = params["x"], batch
    bent = (hessians.flatten(0, 1) @ x).reshape(gradients.shape)  # one product, without copies
    return (gradients + 0.5 * bent) @ x


def edited() -> Balance:
    """The paper's direction, the **sum** of the projected gradients."""
    return mf.balance(losses, mf.pcgrad(), mf.jacobian(), reduction="sum")


def draw(key: Tensor, dim: int, *, aligned: bool) -> Batch:
    """Two gradients at a random angle and ratio of lengths.

    Hessians with log-uniform conditioning from 1 to 1e4 and scales from 1e-2 to 1e2.

    `aligned` turns the gradients nearly opposite and puts the first Hessian's top eigenvector along
    their sum: there Theorem 2's hypotheses are met.
    """

    def hessian(tag: int) -> Tensor:
        basis = torch.linalg.qr(normal(key, tag, (dim, dim)))[0]
        spread, scale = uniform(key, tag + 1, 0, 4), uniform(key, tag + 2, -2, 2)
        decay = mf.random.uniform(mf.random.fold_in(key, tag + 3), (dim,), torch.float64)
        return (basis * 10 ** (scale - spread * decay)) @ basis.mT

    first, other = normal(key, 0, (dim,)), normal(key, 1, (dim,))
    first = first / torch.linalg.vector_norm(first)
    other = other - (other @ first) * first
    other = other / torch.linalg.vector_norm(other)
    angle = torch.pi - 10 ** uniform(key, 2, -3, 0) if aligned else torch.pi * uniform(key, 2, 0, 1)
    second = 10 ** uniform(key, 3, -2, 2) * (angle.cos() * first + angle.sin() * other)
    hessians = torch.stack([hessian(10), hessian(20)])
    if aligned:
        g = first + second
        top = 10 ** uniform(key, 4, -1, 2) * hessians.diagonal(dim1=-2, dim2=-1).sum()
        hessians = hessians + torch.stack(
            [top * torch.outer(g, g) / (g @ g), torch.zeros_like(hessians[0])]
        )
    return torch.stack([first, second]), hessians


class Steps(NamedTuple):
    """One plain and one PCGrad step of every draw."""

    lipschitz: Tensor  # [draw], ℒ
    relative: Tensor  # [draw], t·ℒ
    conflict: Tensor  # [draw]
    first: theorems.Descent
    second: theorems.Overshoot
    printed: theorems.Overshoot
    fall: Tensor  # [draw], L(0) - L(θ^PC)
    plain_fall: Tensor  # [draw], L(0) - L(θ^MT)
    rounding: Tensor  # [draw], what differences of losses are known to


def one_step(key: Tensor, dim: int, *, aligned: bool, decades: tuple[float, float]) -> Steps:
    """t·ℒ is log-uniform over `decades`."""
    batch = draw(key, dim, aligned=aligned)
    lipschitz = torch.linalg.eigvalsh(batch[1].sum(0))[-1]
    relative = 10 ** uniform(key, 5, *decades)
    t = relative / lipschitz
    params = {"x": torch.zeros(dim, dtype=torch.float64)}
    step = edited()
    direction, _, info = step.update(params, batch, step.init(params, batch))
    plain = {"x": batch[0].sum(0)}
    ends = [losses({"x": -t * d["x"]}, batch).sum() for d in (direction, plain)]
    curvature = theorems.secant_curvature(losses, params, batch, lr=t)
    return Steps(
        lipschitz,
        relative,
        info.gramian[0, 1] < 0,
        theorems.pcgrad_theorem1(info.gramian, t, lipschitz),
        theorems.pcgrad_theorem2(info.gramian, t, lipschitz, curvature),
        theorems.pcgrad_theorem2(info.gramian, t, lipschitz, curvature, printed=True),
        -ends[0],
        -ends[1],
        SLACK * (t + t**2 * lipschitz) * info.gramian.diagonal().sum(),
    )


@kept
def study(draws: int, decades: tuple[float, float]) -> dict[str, Steps]:
    """All draws of every dimension and family, each in one vmap."""
    found = {}
    for dim in DIMENSIONS:
        for aligned in (False, True):
            keys = torch.arange(draws) + 1_000_000 * dim + 100_000 * aligned
            name = f"{'nearly opposite' if aligned else 'any angle'}, dim {dim}"
            found[name] = vmap(
                lambda key, dim=dim, aligned=aligned: one_step(
                    key, dim, aligned=aligned, decades=decades
                )
            )(keys)
    return found


def together(found: Mapping[Any, Parts]) -> Parts:
    """Draws of several kinds as one batch, in their order."""
    return tree_map(lambda *leaves: torch.cat(leaves), *found.values())


def convex_pair(key: Tensor, dim: int) -> tuple[mf.types.Params, Batch, Tensor, Tensor]:
    """Start, a pair with Wishart Hessians and normal minimisers, ℒ, and the minimum of the sum."""
    factors, centres = normal(key, 0, (2, dim, dim)), normal(key, 1, (2, dim))
    hessians = factors @ factors.mT / dim + 1e-2 * torch.eye(dim, dtype=torch.float64)
    batch = (-torch.einsum("tij,tj->ti", hessians, centres), hessians)
    best = torch.linalg.solve(hessians.sum(0), -batch[0].sum(0))
    params = {"x": 2 * normal(key, 2, (dim,))}
    return (
        params,
        batch,
        torch.linalg.eigvalsh(hessians.sum(0))[-1],
        losses({"x": best}, batch).sum(),
    )


def long_steps(settings: Settings) -> dict[str, Steps]:
    """The draws with t·ℒ from .1 to 1e3 of Theorem 2's questions."""
    return study(settings.count(20000 if settings.full else 4000), (-1, 3))
