"""Numbers that the literature reads off task gradients: conflict, curvature, affinity, Δm, …"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from ..core.checks import check_count, check_gramian, check_params, check_scalar, poison
from ..core.expect import expect_losses_fn
from ..core.tree import map_params, same_shapes
from ..gradients.levels import explained
from ..gradients.losses import parse_losses
from ..solvers import min_norm
from ..solvers.default import solver_or_auto
from ..solvers.problems import noise_level, root
from ..types import Batch, Change, LossesFn, Params, Scalar, Solver, Stationarity
from ._conflict import conflict, running_conflict
from ._noise import noise_scale, sample_noise

__all__ = [
    "conflict", "cosines", "curvature", "delta_m", "noise_scale", "predicted_change",
    "running_conflict", "sample_noise", "stationarity",
]  # fmt: skip
__dir__: Any = __all__.copy  # for completion: public names alone


def cosines(gramian: Float[Tensor, "task task"]) -> Float[Tensor, "task task"]:
    """Cosines of the angles between gradients, cos φ_ij = G_ij / (‖g_i‖‖g_j‖).

    Args:
        gramian: G `[task, task]`.

    Returns:
        cosines `[task, task]` in [-1, 1]; NaN where a gradient is zero, or its square underflows.

    Raises:
        ValueError: for anything but a Gramian.

    Examples:
        >>> cosines(torch.tensor([[1.0, -1.0], [-1.0, 4.0]])).tolist()
        [[1.0, -0.5], [-0.5, 1.0]]
    """
    check_gramian(gramian)
    length = gramian.diagonal().where(gramian.diagonal() > 0, torch.nan).sqrt()
    return (gramian / length[:, None] / length).clamp(-1, 1)


def curvature(
    losses_fn: LossesFn, params: Params, batch: Batch, *, lr: Scalar = 0.0, nodes: int = 16
) -> Float[Tensor, ""]:
    """Multi-task curvature over a step along -g, g = ∇L(θ), of the total loss L = Σ L_t.

    H = ∫₀¹ gᵀ ∇²L(θ - s·lr·g) g ds, by Gauss–Legendre quadrature of Hessian-vector products, each a
    jvp of a gradient. The weight over the segment is uniform, as published; Theorem 2 needs the
    weight 2(1 - s) instead (the two agree on quadratics).

    Args:
        losses_fn: from parameters and batch to losses `[task]`, as in `mtlfunc.task_gramian`.
        params: θ, `{name: tensor}`.
        batch: whatever `losses_fn` takes.
        lr: length of the step along -g, >= 0; 0 gives the pointwise gᵀ∇²L g, one product.
        nodes: quadrature points, >= 1.

    Returns:
        H, a 0-d tensor.

    Raises:
        ValueError: for lr < 0 or nodes < 1.

    Source:
        Yu et al. 2020, Definition 3.

    Examples:
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> curvature(lambda params, batch: params["w"] ** 2, params, ())
        tensor(40.)
    """
    expect_losses_fn(losses_fn)
    check_params(params)
    check_scalar(lr, "lr")
    check_count(nodes, "nodes")
    gradient = grad(lambda params: parse_losses(losses_fn(params, batch)).vector.sum())
    with explained(params):
        g = gradient(params)
    pointwise = not isinstance(lr, Tensor) and lr == 0
    points, weights = np.polynomial.legendre.leggauss(1 if pointwise else nodes)  # on [-1, 1]
    result = torch.zeros_like(next(iter(g.values())).sum().real)
    for point, weight in zip(((points + 1) / 2).tolist(), (weights / 2).tolist(), strict=True):
        at = map_params(lambda p, d, s=point: p - s * lr * d, params, g)
        with explained(params):
            product = jvp(gradient, (at,), (g,))[1]
        parts = [(product[name] * g[name].conj()).sum().real for name in g]
        result = result + weight * torch.stack(parts).sum()
    return result


def stationarity(gramian: Float[Tensor, "task task"], solver: Solver | None = None) -> Stationarity:
    """Whether the point is Pareto stationary, 0 ∈ conv{g_t}, with bounds that prove it.

    d = Jᵀw has min_t g_t·d = wᵀG w - gap, so every point of the hull is at least (wᵀG w - gap)/‖d‖
    away from 0. A Gramian computed at machine epsilon ε holds no information about lengths below
    √(8Tε)·Σ w_t‖g_t‖ (√ε in half precision, which stores sums made in float32): at or below that
    the verdict is "stationary", and ratios of rates are noise. Of more than 63 tasks in bfloat16,
    374 in float16 and 724 in float32 that is the length of orthogonal gradients' mean. Then a
    Gramian says nothing: `noise` is NaN, `lower` 0 and `stationary` False.

    Args:
        gramian: G `[task, task]`; near stationarity accumulate it in float64 (`gramian_dtype`).
        solver: of `mtlfunc.solvers`; None is `auto()`.

    Returns:
        the shortest combination's weights `[task]`, which sum to 1, its length and a lower bound,
        which enclose the distance of 0 from the hull to rounding, the noise level and the verdict.

    Raises:
        ValueError: for anything but a Gramian.

    Examples:
        >>> found = stationarity(torch.tensor([[1.0, -2.0], [-2.0, 4.0]]))
        >>> found.weights, bool(found.stationary)
        (tensor([0.6667, 0.3333]), True)
    """
    solution = solver_or_auto(solver)(min_norm(gramian))
    w = solution.weights
    square = (w @ solution.rates).clamp_min(0)
    length = root(square)
    noise = noise_level(len(w), gramian.dtype) ** 0.5 * (root(gramian.diagonal()) @ w)
    least = (square - solution.gap) / length.where(length > 0, 1.0)
    lower = poison(torch.where(length > noise, least.minimum(length), 0.0).clamp_min(0), gramian)
    return Stationarity(w, length, lower, noise, length <= noise)


def predicted_change(losses_fn: LossesFn, before: Params, after: Params, batch: Batch) -> Change:
    """Each loss' change from `before` to `after`: as predicted to first order, and as it is.

    One jvp and one forward, whatever the optimizer. After a plain step of length η along d = Jᵀw
    the prediction is -η(G w)_t, -η times `Info.rates`; with momentum, Adam or clipping it is not,
    so it is taken from the points. The difference of the two is the curvature's share.

    Args:
        losses_fn: from parameters and batch to losses `[task]`, as in `mtlfunc.task_gramian`.
        before: parameters before the step, such as `state.params`.
        after: parameters after it, of the same names and shapes.
        batch: the step's own, or another one.

    Returns:
        predicted and actual changes `[task]`.

    Raises:
        ValueError: where names or shapes differ.

    Examples:
        >>> before, after = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> predicted_change(lambda params, batch: params["w"] ** 2, before, after, ())
        Change(predicted=tensor([-1.,  0.]), actual=tensor([-0.7500,  0.0000]))
    """
    expect_losses_fn(losses_fn)
    check_params(before)
    check_params(after)
    if not same_shapes(after, before):
        raise ValueError(
            "after: names or shapes of the parameters differ from those in before; pass the same "
            "parameters at two times"
        )

    def losses(params: Params) -> Tensor:
        return parse_losses(losses_fn(params, batch)).vector

    moved = map_params(lambda start, end: end - start, before, after)
    with explained(before):
        start, predicted = jvp(losses, (before,), (moved,))[:2]
        return Change(predicted, losses(after) - start)


def delta_m(
    metrics: Mapping[str, float],
    baselines: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
) -> float:
    """Mean relative change against single-task models, in per cent: lower is better.

    Δm = (100/K) Σ_k ±(M_k - B_k)/|B_k|, + where a lower metric is better, - where a higher one is.
    |B_k|, published without the bars, keeps the sign right for negative baselines, such as
    log-likelihoods. Averages over metrics as in Liu et al. 2021, so that a task with five metrics
    counts five times; LibMTL averages per task and turns the sign.

    Args:
        metrics: the multi-task model's, by name.
        baselines: single-task models', by the same names, none of them 0.
        higher_is_better: for every name.

    Returns:
        Δm in per cent.

    Raises:
        ValueError: for other names or a baseline of 0.

    Examples:
        >>> metrics, baselines = {"accuracy": 0.75, "error": 1.0}, {"accuracy": 1.0, "error": 0.5}
        >>> delta_m(metrics, baselines, {"accuracy": True, "error": False})
        62.5
    """
    if not metrics or set(metrics) != set(baselines) or set(metrics) != set(higher_is_better):
        raise ValueError(
            "metrics, baselines and higher_is_better must have the same names, got "
            f"{list(metrics)}, {list(baselines)}, {list(higher_is_better)}"
        )
    if odd := [x for x in higher_is_better.values() if np.ndim(x) or x not in (0, 1)]:
        raise ValueError(f"higher_is_better: expected True or False, got {odd[0]!r}")
    if zero := [name for name in baselines if baselines[name] == 0]:
        raise ValueError(f"baselines: {zero[0]!r} is 0, so a relative change is undefined")
    change = {name: (x - baselines[name]) / abs(baselines[name]) for name, x in metrics.items()}
    worse = [-x if higher_is_better[name] else x for name, x in change.items()]
    return 100 * sum(worse) / len(worse)
