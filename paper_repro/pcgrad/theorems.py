"""PCGrad's theorems as conditions to check, and what they promise of one step.

L = L_1 + L_2, g = g_1 + g_2, and θ^MT = θ - t·g, θ^PCGrad = θ - t·d are the points after one step
along g and along d, the **sum** of the projected gradients. Lipschitz constants are of ∇L.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad_and_value

import mtlfunc as mf
from mtlfunc.types import Batch, LossesFn, Params, Scalar

from .measures import curvature_bound, magnitude_similarity


class Descent(NamedTuple):
    """A descent theorem at one point."""

    applies: Bool[Tensor, ""]  # the step is short enough for the theorem to speak
    decrease: Float[Tensor, ""]  # what the loss then falls by, at least


class Overshoot(NamedTuple):
    """PCGrad's Theorem 2 at one point."""

    dominated: Bool[Tensor, ""]  # (a) cos φ <= -Φ
    curved: Bool[Tensor, ""]  # (b) ℓ > ξℒ
    applies: Bool[Tensor, ""]  # both, and (c) t >= shortest
    shortest: Float[Tensor, ""]  # 2 / (ℓ - ξℒ)


def pcgrad_theorem1(gramian: Float[Tensor, "task task"], lr: Scalar, lipschitz: Scalar) -> Descent:
    """What one step of PCGrad lowers the sum of two losses by, at least, if t <= 1/ℒ.

    L(θ - t·d) <= L(θ) - (t/2)(1 - cos²φ)‖g‖² for a conflicting pair, - (t/2)‖g‖² for another. Hence
    PCGrad stops falling only where cos φ = -1 or g = 0: the theorem's two alternatives. "Converges"
    holds in that sense, along a subsequence and with L bounded below. Convexity of L_1 and L_2
    serves only to make a point with g = 0 a minimum. cos φ = -1 holds at **every**
    Pareto-stationary point with two non-zero gradients, so alternative (a) is the usual end.
    """
    # a pair without conflict, as one with a zero gradient, counts as one at a right angle
    cos = mf.diagnostics.cosines(gramian)[0, 1].where(gramian[0, 1] < 0, 0.0)
    applies = torch.as_tensor(lr * lipschitz <= 1, device=gramian.device)
    return Descent(applies, lr / 2 * (1 - cos**2) * gramian.sum())


def pcgrad_theorem2(
    gramian: Float[Tensor, "task task"],
    lr: Scalar,
    lipschitz: Scalar,
    curvature: Scalar,
    *,
    printed: bool = False,
) -> Overshoot:
    """When one long step of PCGrad ends lower than the same step along the sum of the gradients.

    L(θ^PCGrad) <= L(θ^MT) if (a) cos φ <= -Φ, (b) ℓ > ξℒ, (c) t >= 2/(ℓ - ξℒ), where the curvature
    is >= ℓ‖g‖².

    Three corrections. The curvature must weigh the segment by 2(1 - s), as `secant_curvature` does:
    with the published uniform weight (`diagnostics.curvature`) the theorem is false already for
    convex functions of one variable; on quadratics the two agree. (b) reads ℓ >= ξ in circulated
    notes, a curvature against a number: most pairs that meet that violate the conclusion. (a)
    follows from (b). With t >= 2/ℓ the plain step does not lower L at all.

    `curvature` is that of `secant_curvature(..., lr=t)`, ℓ this over ‖g‖²; `printed` reads (b) as
    in the notes. All are False for a pair with a zero gradient.
    """
    bound = curvature_bound(gramian)[0, 1]
    least = curvature / gramian.sum()  # ℓ
    margin = least - bound * lipschitz
    shortest = 2 / margin
    dominated = mf.diagnostics.cosines(gramian)[0, 1] <= -magnitude_similarity(gramian)[0, 1]
    curved = (least >= bound) if printed else (margin > 0)
    return Overshoot(dominated, curved, dominated & curved & (lr >= shortest), shortest)


def secant_curvature(
    losses_fn: LossesFn, params: Params, batch: Batch, *, lr: Scalar
) -> Float[Tensor, ""]:
    """The curvature over a whole step along the total gradient, which PCGrad's Theorem 2 needs.

    2∫₀¹ (1 - s) gᵀ∇²L(θ - s·lr·g) g ds of the total loss L = Σ L_t, g = ∇L(θ); by Taylor's formula
    2(L(θ - lr·g) - L(θ) + lr‖g‖²)/lr²: two losses and a gradient, exact across kinks too. Take
    float64: a short step loses ε|L|/lr² to cancellation.
    """

    def total(params: Params) -> Tensor:
        return losses_fn(params, batch).sum()

    g, before = grad_and_value(total)(params)
    square = torch.stack([leaf.square().sum() for leaf in g.values()]).sum()
    after = total({name: leaf - lr * g[name] for name, leaf in params.items()})
    return 2 * (after - before + lr * square) / lr**2
