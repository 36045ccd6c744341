"""Steepest common descent where the length of a step is its largest singular value."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_count, check_finite, check_gramian, check_scalar, poison
from ..core.internals import tree_map
from ..core.transforms import inside_transform, is_differentiated
from ..solvers import auto
from ..solvers.problems import MinNorm, or_one
from ..types import Params, Rows, Scalar, Solution

ROUNDING = 1e-12
"""Of sums in float64, in units of the longest gradients."""


def nuclear(
    rows: Rows,
    gramian: Float[Tensor, "task task"] | None = None,
    *,
    carried: Float[Tensor, " task"] | None = None,
    steps: int = 100,
    tolerance: Scalar = 1e-7,
) -> tuple[Solution, Params]:
    """Of the steps D with largest singular value ‖D_l‖ <= 1 in every layer l, that which lowers the
    worst task's loss most: the steepest descent of Muon, for several tasks.

    With the nuclear norm ‖·‖_*, the sum of singular values, it is

        max over ‖D_l‖ <= 1 of min_t Σ_l ⟨g_tl, D_l⟩ = min over the simplex of F(w),
        F(w) = Σ_l ‖Σ_t w_t g_tl‖_*.

    This is MGDA in another norm. The method is Newton's on ½F²: its quadratic model at w is ½vᵀQ v
    with Q = F·∇²F + ∇F ∇Fᵀ, so that an iteration is the min-norm problem of the Gramian Q. It costs
    one singular value decomposition of Σ w g in each layer, whatever the number of tasks, and
    products of every g_t with its factors. F has a kink where Σ w g loses rank. So what is solved
    has [g, μ1] for g, which has full rank, and μ goes to 0. Random oblong matrices take four
    to fifteen iterations; square ones, gradients of low rank, and more tasks than a small layer has
    rows, up to a hundred, and then the gap may stay open.

    A layer's rows are to be multiplied by its rate; a convolution's are `row.flatten(2)`.

    Args:
        rows: the tasks' gradients by layer, `{name: [task, *stack, m, n]}`: of a matrix, or of a
            stack of them. The arithmetic is float64.
        gramian: J P Jᵀ `[task, task]` over the other parameters, which step by P Jᵀw with a
            diagonal metric P. F then has another ½wᵀGw, and the rates another G w.
        carried: how fast each loss falls `[task]` by what moves whatever D is, such as a momentum.
            F then has another carried·w, and the rates another `carried`.
        steps: the most iterations, >= 1; all of them under `vmap`, where none can see the gap.
        tolerance: iterations end when the gap is at most this share of the value, less the smallest
            entry of `carried`, or 1e-12 of the sum over layers of the longest gradient, which is
            rounding. At a kink float64 resolves about 1e-8.

    Returns:
        the solution, whose numbers are at least float32, and D `{name: [*stack, m, n]}`, rounded to
        the rows' dtype. `weights` and `dual` are w. `rates` are Σ_l ⟨g_tl, D_l⟩ + (G w)_t: how fast
        each loss falls along -D. `value` is F(w). `gap`, which is F(w) + ½wᵀGw - min rates, bounds
        the distance of `value` from the optimum, and of the smallest rate from its own, which is
        `value` + ½wᵀGw there, since w and D are both feasible. Where Σ w g is singular, D is not
        its polar factor, the step of Muon: D also uses the null space. Without `gramian`, a value
        of 0 up to rounding, or below, says that no step lowers every loss.

    Raises:
        TypeError: for rows that are not floating matrices, or what else is not a floating tensor.
        ValueError: for different numbers of tasks, a Gramian that is not symmetric, or values that
            are not finite.
        NotImplementedError: where something may differentiate, and inside `torch.compile`.

    Source:
        Bernstein & Newhouse 2024: Muon's step for one loss. No paper is known for several.

    Examples:
        >>> rows = {"weight": torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])}
        >>> solution, direction = nuclear(rows)
        >>> solution.weights, solution.rates
        (tensor([0.2500, 0.7500]), tensor([1., 1.]))
        >>> direction["weight"].abs().round(decimals=6)
        tensor([[0., 0.],
                [0., 1.]])
    """
    check_scalar(tolerance, "tolerance")
    check_count(steps, "steps")
    count, others = check_rows(rows, gramian, carried), (gramian, carried)
    given = [*rows.values(), *(x for x in others if x is not None)]
    wide = [x.where(x.isfinite(), 0.0).double() for x in given]
    stacks = [_wide(x) for x in wide[: len(rows)]]
    longest = [x.square().sum((-2, -1)).sqrt().amax(0) for x in stacks]
    smooth = stacks[0].new_zeros(count, count)
    if gramian is not None:
        smooth = 0.5 * (wide[len(rows)] + wide[len(rows)].mT)
    anyway = smooth.new_zeros(count) if carried is None else wide[-1]
    # with Σ w = 1 a linear term is a quadratic one, and from 0 upwards keeps the value positive
    least, linear = anyway.amin(), anyway - anyway.amin()
    smooth = smooth + linear + linear[:, None]
    scale = or_one(torch.stack([*(x.sum() for x in longest), smooth.diagonal().amax()]).amax())
    units = [or_one(x / scale) / y.shape[-2] for x, y in zip(longest, stacks, strict=True)]
    best, iterations = _minimize(
        [x / scale for x in stacks], smooth / scale, units, steps, tolerance
    )
    dtype = torch.promote_types(given[0].dtype, torch.float32)
    rates = best.rates * scale - linear @ best.weights + least
    weights, rates, value, gap = (
        poison(x, *given).to(dtype)
        for x in (best.weights, rates, best.value * scale + least, best.gap * scale)
    )
    direction = {
        name: poison(x.mT if _is_tall(leaf) else x, *given).reshape(leaf.shape[1:]).to(leaf)
        for (name, leaf), x in zip(rows.items(), best.direction, strict=True)
    }
    return Solution(weights, weights, rates, value, gap, iterations), direction


class _Point(NamedTuple):
    """A pair of feasible answers, w and D, and what they prove."""

    weights: Tensor
    rates: Tensor
    value: Tensor
    gap: Tensor
    direction: list[Tensor]  # [stack, m, n]


class _Layer(NamedTuple):
    """A layer's Σ w g = U diag(s) V, and every g_t in these bases."""

    left: Tensor  # U [stack, m, m]
    values: Tensor  # s [stack, m]
    right: Tensor  # V [stack, m, n]
    inner: Tensor  # Uᵀ g Vᵀ [task, stack, m, m]
    outer: Tensor  # Uᵀ g (1 - VᵀV) [task, stack, m, n]
    unit: Tensor  # [stack], of μ

    def roots(self, smoothing: Tensor) -> tuple[Tensor, Tensor]:
        """μ and the singular values of [Σ w g, μ1], of one smoothing or of several."""
        mu = smoothing[..., None, None] * self.unit[:, None]
        return mu, torch.hypot(self.values, mu)

    def cosine(self, smoothing: Tensor) -> Tensor:
        """The singular values of the smoothed problem's D, all below 1."""
        return self.values / self.roots(smoothing)[1]

    def rates(self, smoothing: Tensor) -> Tensor:
        """⟨g_t, D⟩ `[..., task]`."""
        cosine = self.cosine(smoothing)[..., None, :, :]
        return (self.inner.diagonal(0, -2, -1) * cosine).sum((-2, -1))


def _minimize(
    rows: Sequence[Tensor], gramian: Tensor, units: Sequence[Tensor], steps: int, tolerance: Scalar
) -> tuple[_Point, Tensor]:
    """The point with the smallest gap, and the iterations; all lengths are of order 1.

    A step that raises the objective is halved, unless μ was made smaller with it: along a kink
    such steps are on the way.
    """
    count, solve = len(gramian), auto()
    trial = base = gramian.new_full((count,), 1 / count)
    smoothing, bound = gramian.new_full((), 0.3), gramian.new_full((), torch.inf)
    held, iterations = bound < 0, (bound < 0).long()
    fall, best = torch.zeros_like(bound), None
    for number in range(1, steps + 1):
        layers = [_layer(g, trial, unit) for g, unit in zip(rows, units, strict=True)]
        point = _point(layers, trial, gramian, smoothing)
        best = point if best is None else _better(point, best)
        iterations = iterations + 1
        least = torch.clamp_min(tolerance * best.value, ROUNDING)
        if number == steps or (not inside_transform() and bool(best.gap <= least)):
            break
        here = _objective(layers, trial, gramian, smoothing)
        failed = held & (here > bound - 0.3 * fall + ROUNDING)
        slope, model = _model(layers, trial, gramian, smoothing)
        lack = slope @ trial - slope.amin()  # what the weights miss; the rest of the gap is μ's
        share = 0.05 * (1 + lack / or_one(here - point.value))
        less = smoothing * share.clamp(0.02, 1.0).where(lack > 0, 0.02)
        new = solve(MinNorm(model)).weights
        fall = torch.where(failed, 0.5 * fall, slope @ (trial - new))
        held = torch.where(failed, held, less > 0.99 * smoothing)
        bound = torch.where(failed, bound, _objective(layers, trial, gramian, less))
        smoothing = torch.where(failed, smoothing, less.clamp_min(ROUNDING))
        trial, base = (
            torch.where(failed, 0.5 * (trial + base), new),
            torch.where(failed, base, trial),
        )
    assert best is not None
    return best, iterations


def _layer(rows: Tensor, weights: Tensor, unit: Tensor) -> _Layer:
    left, values, right = torch.linalg.svd(
        torch.einsum("t,tsmn->smn", weights, rows), full_matrices=False
    )
    turned = left.mT @ rows
    inner = turned @ right.mT
    return _Layer(left, values, right, inner, turned - inner @ right, unit)


def _objective(
    layers: Sequence[_Layer], weights: Tensor, gramian: Tensor, smoothing: Tensor
) -> Tensor:
    """F, of [g, μ1], + ½wᵀGw."""
    norms = [layer.roots(smoothing)[1].sum() for layer in layers]
    return torch.stack(norms).sum() + 0.5 * weights @ gramian @ weights


def _point(layers: Sequence[_Layer], weights: Tensor, gramian: Tensor, smoothing: Tensor) -> _Point:
    """D is that of μ, of hardly any μ (the polar factor), or 0: what has the best worst rate."""
    curve = gramian @ weights
    choices = torch.stack([smoothing, 0 * smoothing + ROUNDING, 0 * smoothing + torch.inf])
    rates = torch.stack([layer.rates(choices) for layer in layers]).sum(0) + curve
    worst, best = rates.amin(-1).max(0, keepdim=True)
    mu = choices.gather(0, best)[0]
    value = _objective(layers, weights, gramian, 0 * smoothing)
    gap = value + 0.5 * weights @ curve - worst[0]
    return _Point(
        *(weights, rates.index_select(0, best)[0], value, gap.clamp_min(0)),
        [(layer.left * layer.cosine(mu)[..., None, :]) @ layer.right for layer in layers],
    )


def _better(new: _Point, old: _Point) -> _Point:
    return tree_map(partial(torch.where, new.gap < old.gap), new, old)


def _model(
    layers: Sequence[_Layer], weights: Tensor, gramian: Tensor, smoothing: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient q of the objective and the matrix M whose ½vᵀM v is its quadratic model on the
    simplex, up to a constant and (q - (q·w)1)·v squared, which is 0 at the optimum.

    With B = Uᵀ[g, μ1]Vᵀ in the bases of the smoothed matrix and s its singular values, ∇²F is the
    Gramian of (B - Bᵀ)_ij/√(2(s_i + s_j)) and of what [g, μ1] has outside of V, over √s_i.
    """
    slope, features = [], []
    for layer in layers:
        mu, roots = layer.roots(smoothing)
        sine, cosine = (mu / roots)[:, None], layer.cosine(smoothing)[:, None]
        own = layer.inner * cosine + torch.diag_embed(mu * sine[:, 0])
        aside = layer.inner * sine - torch.diag_embed(mu * cosine[:, 0])
        slope.append(own.diagonal(0, -2, -1).sum((-2, -1)))
        twist = (own - own.mT) / (2 * (roots[:, :, None] + roots[:, None])).sqrt()
        thin = roots.rsqrt()[..., None]
        features += [x.flatten(1) for x in (twist, aside * thin, layer.outer * thin)]
    gradient = torch.stack(slope).sum(0) + gramian @ weights
    bend = gramian + torch.stack([x @ x.mT for x in features]).sum(0)
    centred = torch.eye(len(weights)).to(bend) - weights[:, None]
    model = centred.mT @ bend @ centred
    return gradient, model + gradient[:, None] * gradient / (gradient @ weights)


def _is_tall(leaf: Tensor) -> bool:
    return leaf.shape[-2] > leaf.shape[-1]


def _wide(leaf: Tensor) -> Tensor:
    """`[task, stack, m, n]` with m <= n."""
    wide = leaf.mT if _is_tall(leaf) else leaf
    return wide.reshape(len(leaf), -1, *wide.shape[-2:])


def check_rows(rows: Rows, gramian: Tensor | None, carried: Tensor | None) -> int:
    """The number of tasks, or an error."""
    if not isinstance(rows, dict) or not rows:
        raise TypeError(
            "rows: expected a non-empty dict {name: [task, m, n]}, got "
            f"{type(rows).__name__}; mtlfunc.task_gradients returns one"
        )
    count = None
    for name, leaf in rows.items():
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            raise TypeError(f"rows[{name!r}]: expected a floating tensor, got {leaf!r:.40}")
        if leaf.ndim < 3 or not leaf.numel():
            raise TypeError(
                f"rows[{name!r}]: expected a gradient a task, [task, m, n] or "
                f"[task, *stack, m, n], got {list(leaf.shape)}; parameters that are not matrices "
                "go into gramian="
            )
        count = len(leaf) if count is None else count
        if len(leaf) != count:
            raise ValueError(
                f"rows[{name!r}]: expected {count} tasks as in the first layer, got {len(leaf)}"
            )
        check_finite(leaf, f"rows[{name!r}]")
    assert count is not None
    if gramian is not None:
        check_gramian(gramian, symmetric=True)
        if len(gramian) != count:
            raise ValueError(f"gramian: expected {count} tasks as in rows, got {len(gramian)}")
    if carried is not None:
        if not isinstance(carried, Tensor) or not carried.is_floating_point():
            raise TypeError(f"carried: expected a floating tensor [{count}], got {carried!r:.40}")
        if carried.shape != (count,):
            raise ValueError(f"carried: expected [{count}], one a task, got {list(carried.shape)}")
        check_finite(carried, "carried")
    if is_differentiated((*rows.values(), gramian, carried)):
        raise NotImplementedError(
            "nuclear has no derivatives of its answer, and does not compile; detach the rows, and "
            "call it outside of grad, jvp and torch.compile"
        )
    return count
