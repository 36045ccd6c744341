"""Any rule, with the least change of the optimizer's step after which no loss rises."""

import torch
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..core.expect import expect_rule, heads_of
from ..core.linear import solve_factored
from ..core.transforms import values_readable
from ..solvers.default import dual_cone_weights
from ..solvers.problems import resolution, root
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import fill_absent, gramian_of, preference_of, reading_also


@constructor
def safe(rule: Rule, margin: Scalar = 0.0) -> Rule:
    """The rule's weights w + λ, λ = argmin over λ >= 0 of ½ λᵀGλ + rᵀλ, where r = J c + G w are the
    rates of the step -(c + P Jᵀw) that the optimizer would make, and G = J P Jᵀ.

    What the optimizer carries along, c (momentum above all), is most of a step of Adam, and no rule
    can promise anything of it: with momentum, steps along a direction that helps every task raise
    losses all the same. After this change the rates are r + Gλ >= 0: to first order, with the P
    before it, the step raises no loss of its batch. The change P Jᵀλ is the least that does so,
    in the optimizer's own norm, √(λᵀGλ). Where no rate is negative, nothing changes.

    Use it with `mtlfunc.Balancer(module, rule, metric=optimizer)` or `mtlfunc.descend(...,
    optimizer, metric=True)`, once per step of the optimizer.

    Args:
        rule: any `Rule` on the Gramian.
        margin: m >= 0. Every rate shall be at least m·p_t·G_tt: m times the fall of loss t by its
            own gradient at its preference p_t.

    Returns:
        weights, at least the rule's. They are not convex, and large where gradients nearly cancel.

    Raises:
        TypeError: for a rule that is none.
        ValueError: for a margin below 0; at a step, where no step has the margin, since some convex
            combination of the gradients is 0 (NaN weights where that cannot be seen).

    Source:
        the projection of Lopez-Paz & Ranzato 2017, eqs. 8-11, of the optimizer's step instead of
        the gradient, and in its metric. It is solved as `mtlfunc.solvers.dual_cone` with c as one
        more row, of weight 1: made so long at a right angle to the others that its own rate is
        never the one that is negative.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack([params["x"], 2 * params["y"]])
        >>> step = mf.descend(
        ...     losses, safe(mf.mean()), mf.jacobian(), mf.sgd(1.0, momentum=0.5), metric=True)
        >>> params = {"x": torch.tensor(0.0), "y": torch.tensor(0.0)}
        >>> state = step.init(params, ())
        >>> state = state._replace(optimizer={"x": torch.tensor(-3.0), "y": torch.tensor(0.0)})
        >>> step.update(state, ())[1].weights.tolist()  # momentum alone would raise the first loss
        [1.5, 0.5]
    """
    expect_rule(rule)
    check_scalar(margin, "margin")

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian, extra = gramian_of(geometry), geometry.extra
        if "carried" not in extra:
            raise ValueError(
                "safe: geometry.extra has no 'carried', what the optimizer carries along; say "
                "which one steps, mtlfunc.Balancer(module, rule, metric=optimizer) or "
                "mtlfunc.descend(..., optimizer, metric=True)"
            )
        weights, state = rule.update(geometry, state)
        wanted = margin * preference_of(geometry, None, gramian) * gramian.diagonal()
        w, short = weights.to(gramian), extra["carried"].to(gramian) - wanted
        more = _correction(gramian, w, short, geometry.present)
        rates = gramian @ (w + more) + short
        if isinstance(margin, Tensor) or margin:
            more = _with_margin(more, rates, wanted)
        return weights + more.to(weights), state

    reads = reading_also(rule, "gramian", "carried", "preference", "present")
    return Rule(rule.init, update, reads, heads_of(rule))


def _correction(gramian: Tensor, w: Tensor, linear: Tensor, present: Tensor) -> Tensor:
    """argmin over λ >= 0 of ½ λᵀGλ + (linear + G w)ᵀλ."""
    corner = _square(gramian.detach(), w.detach(), linear.detach())
    column = linear[:, None]
    last = torch.cat([column.mT, corner.to(gramian)[None, None]], 1)
    bordered = torch.cat([torch.cat([gramian, column], 1), last])
    bordered, restore = fill_absent(bordered, torch.cat([present, present.new_ones(1)]))
    given = torch.cat([w.where(present, 0.0), w.new_ones(1)])
    return restore(dual_cone_weights(bordered, given) - given)[:-1]


def _square(gramian: Tensor, w: Tensor, linear: Tensor) -> Tensor:
    """The squared length of a row z with J z = linear that has z·d >= 0 for every d = z + Jᵀ(w + λ)
    on the cone that is no longer than for λ = 0.

    h = ‖z‖ + ‖Jᵀw‖ with the shortest such z; what is added at a right angle is at least ‖z‖h, by
    which z·d can be below 0.
    """
    slack = resolution(len(w), torch.finfo(gramian.dtype).eps)
    gramian, w, linear = gramian.double(), w.double(), linear.double()
    n = root(gramian.diagonal())
    n = n.where(n > 0, 1.0)
    cosine, right = gramian / n[:, None] / n, (linear / n)[:, None]
    ridge = torch.diag(torch.full_like(n, slack))
    factor = torch.linalg.cholesky_ex(0.5 * (cosine + cosine.mT) + ridge)[0]
    shortest = (right * solve_factored(right, factor)).sum()
    return 4 * (root(shortest) + root(w @ gramian @ w)).square()


def _with_margin(more: Tensor, rates: Tensor, wanted: Tensor) -> Tensor:
    """λ, or an error (NaN where it cannot be raised) if a rate lacks a thousandth of its margin."""
    missed = (rates < -1e-3 * wanted).any()
    if values_readable(missed) and bool(missed):
        tasks = (rates < -1e-3 * wanted).nonzero().flatten().tolist()
        raise ValueError(
            f"margin: no step gives every task its margin, tasks {tasks} miss it: a convex "
            "combination of the gradients is 0 here as far as the Gramian can say; take a smaller "
            "margin, or 0"
        )
    return poison(more, right=[~missed])
