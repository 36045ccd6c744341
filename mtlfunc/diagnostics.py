"""Numbers that the literature reads off task gradients: conflict, magnitude, curvature, stationarity, Δm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad, jvp

from .checks import check_gramian, check_scalar, poison
from .gradients import split_output
from .solvers import auto, min_norm
from .solvers.problems import root
from .tree import map_params
from .types import Batch, LossesFn, Params, Scalar, Solver


def cosines(gramian: Float[Tensor, "task task"]) -> Float[Tensor, "task task"]:
    """cos φ_ij = G_ij / (‖g_i‖‖g_j‖), in [-1, 1]; NaN where a gradient is zero.

    >>> cosines(torch.tensor([[1.0, -1.0], [-1.0, 4.0]])).tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    check_gramian(gramian)
    length = root(gramian.diagonal())
    return (gramian / length[:, None] / length).clamp(-1, 1)


def conflicts(gramian: Float[Tensor, "task task"]) -> Bool[Tensor, "task task"]:
    """Pairs with g_i·g_j < 0 (Yu 2020, Definition 1); a right angle is no conflict.

    >>> conflicts(torch.tensor([[1.0, -1.0], [-1.0, 4.0]])).tolist()
    [[False, True], [True, False]]
    """
    check_gramian(gramian)
    return gramian < 0


def magnitude_similarity(gramian: Float[Tensor, "task task"]) -> Float[Tensor, "task task"]:
    """Φ_ij = 2‖g_i‖‖g_j‖ / (‖g_i‖² + ‖g_j‖²), in [0, 1], 1 for equal lengths (Yu 2020, Definition 2); NaN for two zero gradients."""
    check_gramian(gramian)
    length = root(gramian.diagonal())
    # By the ratio of the two lengths, so that no square over- or underflows.
    large, small = torch.maximum(length[:, None], length), torch.minimum(length[:, None], length)
    ratio = small / large
    return 2 * ratio / (1 + ratio**2)


class SampleNoise(NamedTuple):
    """Mean and spread of per-sample gradients, by task."""

    signal: Float[Tensor, " task"]  # ‖E g_t‖², unbiased; may be negative where noise hides it
    noise: Float[Tensor, " task"]  # tr Cov(g_t), of one sample's gradient
    ratio: Float[Tensor, " task"]  # signal / noise; 1/ratio is the simple noise scale, the batch at which both weigh the same
    conflicts: Float[Tensor, "task task"]  # share of pairs of different samples with g_bt·g_cs < 0; diagonal: within a task


def sample_noise(gramian: Float[Tensor, "n n"], tasks: int = 1) -> SampleNoise:
    """Gradient noise of every task, and conflict within against between tasks, from a per-sample Gramian.

    With s̄ the mean of ‖g_b‖² over the B samples and m = ‖mean_b g_b‖²: noise = B(s̄ - m)/(B - 1), signal = m - noise/B.

    Args:
        gramian: of `mtlfunc.sample_gramian`, over the flattened losses [sample, task].
        tasks: T; the Gramian has n = samples·T rows.

    Raises: ValueError unless T divides n with at least two samples.

    Source: McCandlish et al. 2018, appendix A.1, for the estimators.

    >>> g = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    >>> sample_noise(g @ g.mT).noise.tolist(), sample_noise(g @ g.mT).signal.tolist()
    ([2.0], [0.0])
    """
    check_gramian(gramian)
    if tasks < 1 or len(gramian) % tasks or len(gramian) < 2 * tasks:
        raise ValueError(f"tasks={tasks}: expected a divisor of the Gramian's {len(gramian)} rows that leaves at least two samples")
    count = len(gramian) // tasks
    blocks = gramian.reshape(count, tasks, count, tasks).permute(1, 3, 0, 2)  # [task, task, sample, sample]
    own = blocks.diagonal(dim1=0, dim2=1)  # [sample, sample, task]
    spread, mean = own.diagonal(dim1=0, dim2=1).mean(-1), own.mean((0, 1))
    noise = (spread - mean) * (count / (count - 1))
    signal = mean - noise / count
    apart = ~torch.eye(count, dtype=torch.bool, device=gramian.device)
    share = ((blocks < 0) & apart).sum((-2, -1)).to(gramian.dtype) / (count * (count - 1))
    return SampleNoise(signal, noise, signal / noise, poison(share, gramian))


def curvature_bound(gramian: Float[Tensor, "task task"]) -> Float[Tensor, "task task"]:
    """ξ_ij = (1 - cos²φ_ij) ‖g_i - g_j‖² / ‖g_i + g_j‖² (Yu 2020, Definition 5); for a conflicting pair ‖PCGrad's sum‖² = ξ‖g_i + g_j‖².

    At most (1 + |cos φ|)² < 4; NaN where g_i + g_j = 0 or a gradient is zero, though the paper calls it infinite there.
    """
    square = gramian.diagonal()
    total = square[:, None] + square
    return (1 - cosines(gramian) ** 2) * (total - 2 * gramian) / (total + 2 * gramian)


def curvature(losses_fn: LossesFn, params: Params, batch: Batch, *, lr: Scalar = 0.0, nodes: int = 16) -> Float[Tensor, ""]:
    """Multi-task curvature H = ∫₀¹ gᵀ ∇²L(θ - s·lr·g) g ds of the total loss L = Σ L_t, g = ∇L(θ) (Yu 2020, Definition 3).

    By Gauss–Legendre quadrature of Hessian-vector products, each a jvp of a gradient. The weight over the segment is uniform, as published;
    Theorem 2 needs the weight 2(1 - s) instead (the two agree on quadratics).

    Args:
        lr: length of the step along -g; 0 gives the pointwise gᵀ∇²L g, one product.
        nodes: quadrature points, >= 1.
    """
    check_scalar(lr, "lr")
    if nodes < 1:
        raise ValueError(f"nodes: expected an integer >= 1, got {nodes}")

    def total(params: Params) -> Tensor:
        return split_output(losses_fn(params, batch))[0].sum()

    gradient = grad(total)
    g = gradient(params)
    points, weights = ([0.0], [1.0]) if not isinstance(lr, Tensor) and lr == 0 else _legendre(nodes)
    result = torch.zeros_like(next(iter(g.values())).sum())
    for point, weight in zip(points, weights, strict=True):
        at = map_params(lambda p, d, s=point: p - s * lr * d, params, g)
        product = jvp(gradient, (at,), (g,))[1]
        result = result + weight * torch.stack([(product[name] * g[name]).sum() for name in g]).sum()
    return result


def _legendre(nodes: int) -> tuple[list[float], list[float]]:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


class Stationarity(NamedTuple):
    """A certificate about 0 and the convex hull of the gradients."""

    weights: Float[Tensor, " task"]  # of the shortest combination found
    length: Float[Tensor, ""]  # its length: an upper bound on the distance of 0 from the hull
    lower: Float[Tensor, ""]  # a lower bound on that distance; > 0 proves that the point is not Pareto stationary
    noise: Float[Tensor, ""]  # lengths below this are rounding of the Gramian
    stationary: Bool[Tensor, ""]  # length <= noise: numerically Pareto stationary


def stationarity(gramian: Float[Tensor, "task task"], solver: Solver | None = None) -> Stationarity:
    """Is the point Pareto stationary, 0 in conv{g_t}? With proof: length and lower bound enclose the distance of 0 from the hull.

    d = Jᵀw has min_t g_t·d = wᵀG w - gap, so every point of the hull is at least (wᵀG w - gap)/‖d‖ away from 0. A Gramian computed at machine
    epsilon ε holds no information about lengths below √ε·Σ w_t‖g_t‖: at or below that the verdict is "stationary", and ratios of rates are noise.

    Args:
        gramian: G `[task, task]`; accumulate it in float64 (`gramian_dtype`) if the verdict matters near stationarity.
        solver: of `mtlfunc.solvers`; None is `auto()`.
    """
    solution = (solver or auto())(min_norm(gramian))
    w = solution.weights
    square = (w @ solution.rates).clamp_min(0)
    length = root(square)
    noise = (8 * len(w) * torch.finfo(gramian.dtype).eps) ** 0.5 * (root(gramian.diagonal()) @ w)
    lower = torch.where(length > noise, (square - solution.gap) / length.where(length > 0, 1.0), 0.0).clamp_min(0)
    lower = poison(lower, gramian)
    return Stationarity(w, length, lower, noise, length <= noise)


def delta_m(metrics: Mapping[str, float], baselines: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """Δm = (100/K) Σ_k ±(M_k - B_k)/|B_k| in per cent, lower is better: + where a lower metric is better, - where a higher one is.

    Args:
        metrics: the multi-task model's, by name.
        baselines: single-task models', by the same names, none of them 0.
        higher_is_better: for every name.

    |B_k|, published without the bars, keeps the sign right for negative baselines, such as log-likelihoods. Averages over metrics as in Liu et al.
    2021, so that a task with five metrics counts five times; LibMTL averages per task and turns the sign.

    Raises: ValueError for other names or a baseline of 0.

    >>> delta_m({"accuracy": 0.75, "error": 1.0}, {"accuracy": 1.0, "error": 0.5}, {"accuracy": True, "error": False})
    62.5
    """
    if not metrics or set(metrics) != set(baselines) or set(metrics) != set(higher_is_better):
        raise ValueError(
            f"metrics, baselines and higher_is_better must have the same names, got {sorted(metrics)}, {sorted(baselines)}, {sorted(higher_is_better)}"
        )
    zero = [name for name in baselines if baselines[name] == 0]
    if zero:
        raise ValueError(f"baselines: {', '.join(zero)} is 0, so a relative change is undefined")
    terms = [(metrics[name] - baselines[name]) / abs(baselines[name]) * (-1 if higher_is_better[name] else 1) for name in metrics]
    return 100 * sum(terms) / len(terms)
