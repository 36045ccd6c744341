"""The papers' theorems as conditions that can be checked: hypotheses, and what they promise of one
step, from a Gramian and a step length.

The definitions behind PCGrad's theorems are in `mtlfunc.diagnostics`: conflict (1: `conflicts`,
`cosines`), magnitude similarity (2: `magnitude_similarity`), multi-task curvature (3: `curvature`),
curvature bounding measure (5: `curvature_bound`). Definition 4 is notation: L = L_1 + L_2, g = g_1
+ g_2, and θ^MT = θ - t·g, θ^PCGrad = θ - t·d are the points after one step along g and along d, the
**sum** of the projected gradients (`pcgrad` with `reduction="sum"`). Lipschitz constants are of ∇L
for that same sum; CAGrad's theorem is about the mean of the losses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad_and_value

from ..core.checks import check_gramian, check_scalar, check_vector, normalized_preference
from ..core.tree import map_params
from ..gradients.forward import split_output
from ..solvers import auto, dual_cone
from ..solvers.problems import or_one, root
from ..types import Batch, LossesFn, Params, Scalar, Solver
from .diagnostics import cosines, curvature_bound, magnitude_similarity


class Descent(NamedTuple):
    """A descent theorem at one point."""

    # whether the step length (and the radius) are such that the theorem speaks
    applies: Bool[Tensor, ""]
    # what the loss then falls by, at least; 0 only at the points where the theorem lets the method
    # rest
    decrease: Float[Tensor, ""]


class Overshoot(NamedTuple):
    """PCGrad's Theorem 2 at one point."""

    dominated: Bool[Tensor, ""]  # (a) cos φ <= -Φ
    curved: Bool[Tensor, ""]  # (b) ℓ > ξℒ
    long: Bool[Tensor, ""]  # (c) t >= shortest
    applies: Bool[Tensor, ""]  # all three
    shortest: Float[Tensor, ""]  # 2 / (ℓ - ξℒ)
    # a lower bound of L(θ^MT) - L(θ^PCGrad) for a conflicting pair, whatever (a) to (c)
    difference: Float[Tensor, ""]


def pcgrad_theorem1(gramian: Float[Tensor, "task task"], lr: Scalar, lipschitz: Scalar) -> Descent:
    """L(θ - t·d) <= L(θ) - (t/2)(1 - cos²φ)‖g‖² for a conflicting pair, - (t/2)‖g‖² for another, if
    t <= 1/ℒ (Yu 2020, Theorem 1).

    Hence PCGrad stops falling only where cos φ = -1 or g = 0: the theorem's two alternatives.
    "Converges" holds in that sense, along a subsequence and with L bounded below. Convexity of L_1
    and L_2 serves only to make a point with g = 0 a minimum. cos φ = -1 holds at **every**
    Pareto-stationary point with two non-zero gradients, so alternative (a) is the usual end and not
    a rare one.

    Args:
        gramian: G `[2, 2]` of the two gradients.
        lr: t > 0. lipschitz: ℒ > 0 of ∇(L_1 + L_2).

    Examples:
        >>> pcgrad_theorem1(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), 0.5, 2.0)
        Descent(applies=tensor(True), decrease=tensor(0.5625))
    """
    _check_pair(gramian)
    check_scalar(lr, "lr", positive=True)
    check_scalar(lipschitz, "lipschitz", positive=True)
    share = 1 - _conflicting(gramian) ** 2
    return Descent(_true(lr * lipschitz <= 1, gramian), lr / 2 * share * gramian.sum())


def pcgrad_theorem2(
    gramian: Float[Tensor, "task task"],
    lr: Scalar,
    lipschitz: Scalar,
    curvature: Scalar,
    *,
    printed: bool = False,
) -> Overshoot:
    """L(θ^PCGrad) <= L(θ^MT) if (a) cos φ <= -Φ, (b) ℓ > ξℒ, (c) t >= 2/(ℓ - ξℒ), where the
    curvature is >= ℓ‖g‖² (Yu 2020, Theorem 2).

    Three corrections. The curvature must weigh the segment by 2(1 - s), as `secant_curvature` does:
    with the published uniform weight (`diagnostics.curvature`) the theorem is false already for
    convex functions of one variable; on quadratics the two agree. (b) reads ℓ >= ξ in circulated
    notes, where a curvature is compared with a number: most pairs that meet that violate the
    conclusion; and at ℓ = ξℒ (c) has no meaning. (a) follows from (b). What it says is little: t >=
    2/ℓ makes the plain step not lower L at all, and t <= 1/ℒ of Theorem 1 is out of reach.

    Args:
        gramian: G `[2, 2]` of the two gradients.
        lr: t > 0. lipschitz: ℒ > 0 of ∇(L_1 + L_2).
        curvature: of the step from θ to θ^MT, from `secant_curvature(..., lr=t)`; ℓ is this over
            ‖g‖².
        printed: (b) as in the notes, ℓ >= ξ.

    Returns:
        the three conditions; `difference` >= 0 is the sharp form of (c), t >= shortest·(1 - (1 -
        cos²φ)(‖g_1‖² + ‖g_2‖²)/‖g‖²). All False for a pair with a zero gradient, `difference` NaN
        for one without conflict.
    """
    _check_pair(gramian)
    check_scalar(lr, "lr", positive=True)
    check_scalar(lipschitz, "lipschitz", positive=True)
    total = gramian.sum()
    cos, bound = cosines(gramian)[0, 1], curvature_bound(gramian)[0, 1]
    least = curvature / total  # ℓ
    margin = least - bound * lipschitz
    shortest = 2 / margin
    dominated = cos <= -magnitude_similarity(gramian)[0, 1]
    curved = (least >= bound) if printed else (margin > 0)
    long = lr >= shortest
    difference = lr**2 / 2 * margin * total - lr * (total - (1 - cos**2) * gramian.trace())
    return Overshoot(
        dominated,
        curved,
        long,
        dominated & curved & long,
        shortest,
        difference.where(gramian[0, 1] < 0, float("nan")),
    )


def secant_curvature(
    losses_fn: LossesFn, params: Params, batch: Batch, *, lr: Scalar
) -> Float[Tensor, ""]:
    """2∫₀¹ (1 - s) gᵀ∇²L(θ - s·lr·g) g ds of the total loss L = Σ L_t, g = ∇L(θ): the curvature
    that Theorem 2 needs.

    By Taylor's formula that is 2(L(θ - lr·g) - L(θ) + lr‖g‖²)/lr²: two losses and a gradient, exact
    across kinks too. Take float64: a short step loses ε|L|/lr² to cancellation.

    Args:
        lr: length of the step along -g, > 0; for the limit 0 use `diagnostics.curvature`.

    Examples:
        >>> secant_curvature(lambda p, batch: p["x"] ** 2, {"x": torch.tensor([3.0], dtype=torch.float64)}, None, lr=0.25).item()
        72.0
    """
    check_scalar(lr, "lr", positive=True)

    def total(params: Params) -> Tensor:
        return split_output(losses_fn(params, batch))[0].sum()

    g, before = grad_and_value(total)(params)
    square = torch.stack([leaf.square().sum() for leaf in g.values()]).sum()
    after = total(map_params(lambda p, d: p - lr * d, params, g))
    return 2 * (after - before + lr * square) / lr**2


def cagrad_theorem(
    gramian: Float[Tensor, "task task"],
    lr: Scalar,
    lipschitz: Scalar,
    c: Scalar,
    preference: Float[Tensor, " task"] | None = None,
) -> Descent:
    """The mean loss falls by at least (η/2)(1 - c²)‖g₀‖² along any d with ‖d - g₀‖ <= c‖g₀‖, if 0
    <= c < 1 and η <= 1/H (Liu 2021, Theorem 3.2).

    Summed over steps: Σ‖g₀‖² <= 2(L₀ - inf L₀)/(η(1 - c²)). Nothing but the ball is used, so the
    bound covers inexact solvers and CAGrad-Fast. For c < 1 the fixed points are those of the mean
    loss, g₀ = 0; from c = 1 on they are only Pareto stationary and `applies` is False.

    Args:
        gramian: G `[task, task]`.
        lr: η > 0. lipschitz: H > 0 of ∇L₀. c: radius >= 0.
        preference: p `[task]` of g₀ = Jᵀp and L₀ = Σ p_t L_t; None is 1/T.
    """
    check_gramian(gramian)
    check_scalar(lr, "lr", positive=True)
    check_scalar(lipschitz, "lipschitz", positive=True)
    check_scalar(c, "c")
    p = _preference(gramian, preference)
    return Descent(
        _true(lr * lipschitz <= 1, gramian) & _true(c < 1, gramian),
        lr / 2 * (1 - c**2) * (p @ gramian @ p),
    )


def cagrad_threshold(
    gramian: Float[Tensor, "task task"],
    preference: Float[Tensor, " task"] | None = None,
    solver: Solver | None = None,
) -> Float[Tensor, ""]:
    """c* in [0, 1]: CAGrad raises no task to first order iff c >= c*; at c* its direction is the
    projection of g₀ on {d: g_t·d >= 0} (DualProj).

    c* = ‖v - g₀‖/‖g₀‖ for that projection v. 0 where the mean gradient conflicts with no task, g₀ =
    0 included; 1 where v = 0.

    Args:
        `gramian` and `preference` as in `cagrad_theorem`; solver: of `mtlfunc.solvers`; None is
        `auto()`.

    Examples:
        >>> round(float(cagrad_threshold(torch.tensor([[1.0, -2.0], [-2.0, 16.0]], dtype=torch.float64))), 4)
        0.2774
    """
    p = _preference(gramian, preference)
    moved = (solver or auto())(dual_cone(gramian, p)).weights - p
    return root(moved @ gramian @ moved) / or_one(root(p @ gramian @ p))


class BoundConditions(NamedTuple):
    """When MGDA-UB, which measures at the representation Z, is as good as MGDA."""

    # of M = AAᵀ: then the bound's optimum is 0 iff the point is Pareto stationary
    full_rank: Bool[Tensor, ""]
    cosines: Float[Tensor, " task"]  # of v_t and Σ w_t v_t
    needed: Float[Tensor, ""]  # (κ - 1)/(κ + 1), κ the condition number of M; 1 without full rank
    descends: Bool[Tensor, ""]  # every cosine is that large: then the direction raises no task


def mgda_ub_conditions(
    features: Float[Tensor, "task feature"],
    kernel: Float[Tensor, "feature feature"],
    weights: Float[Tensor, " task"],
) -> BoundConditions:
    """Sufficient conditions on v_t = ∂L_t/∂Z and the encoder's A = ∂Z/∂θ for the direction Σ w_t
    Aᵀv_t (Sener & Koltun 2018, Theorem 1, corrected).

    The published proof takes "M positive definite" to keep the sign of inner products, which is
    false: full rank keeps stationarity, not descent. M turns no vector by more than arcsin((κ -
    1)/(κ + 1)) (Wielandt), which gives the second condition; it always holds for M a multiple of I.

    Args:
        features: rows v_t. kernel: M = A Aᵀ. weights: w, usually the min-norm weights of the rows.
    """
    check_gramian(kernel, "kernel")
    size = torch.linalg.eigvalsh(0.5 * (kernel + kernel.mT))
    full_rank = size[0] > len(size) * torch.finfo(size.dtype).eps * size[-1]
    joint = weights @ features
    length = torch.linalg.vector_norm(features, dim=-1) * torch.linalg.vector_norm(joint)
    cosine = features @ joint / or_one(length)
    needed = ((size[-1] - size[0]) / or_one(size[-1] + size[0])).where(full_rank, 1.0)
    return BoundConditions(full_rank, cosine, needed, full_rank & (cosine >= needed).all())


def _check_pair(gramian: Tensor) -> None:
    check_gramian(gramian)
    if gramian.shape[0] != 2:
        raise ValueError(
            f"gramian: PCGrad's theorems are about two tasks, got {gramian.shape[0]}; there is "
            "none for more"
        )


def _conflicting(gramian: Tensor) -> Tensor:
    """cos φ of a conflicting pair, 0 for another: zero gradients are none."""
    identity = torch.eye(2, dtype=gramian.dtype, device=gramian.device)
    return cosines(torch.where(gramian[0, 1] < 0, gramian, identity))[0, 1]


def _true(condition: bool | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(condition, device=like.device)


def _preference(gramian: Tensor, preference: Tensor | None) -> Tensor:
    uniform = gramian.new_full(gramian.shape[-1:], 1 / gramian.shape[-1])
    if preference is not None:
        check_vector(preference, gramian, "preference")
    return normalized_preference(preference, uniform)
