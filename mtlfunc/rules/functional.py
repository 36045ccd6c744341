"""A rule applied once: to a Gramian, or to a plain Jacobian."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import random
from ..core.checks import (
    check_batch,
    check_gramian,
    check_tensor,
    check_vector,
    check_weights,
    expect_answer,
)
from ..core.expect import expect_of_gramian, expect_rule, reads_of, rule_name
from ..core.transforms import all_rows_mask, has_finite_sum, values_readable
from ..types import Geometry, Rule
from .common import may_read


def weights(
    rule: Rule,
    gramian: Float[Tensor, "task task"],
    losses: Float[Tensor, " task"] | None = None,
    key: int | Tensor = 0,
) -> Float[Tensor, " task"]:
    """The weights that a fresh rule gives to one Gramian.

    Args:
        rule: any rule; its state starts again.
        gramian: G = J Jᵀ `[task, task]`; batch with `torch.func.vmap`.
        losses: `[task]`; None for rules that do not read them.
        key: seed of random rules, an integer or a 0-d integer tensor.

    Returns:
        weights `[task]` of d = Jᵀweights.

    Raises:
        ValueError: for a Gramian that is not square or not finite, or, where seen, not symmetric or
            with larger products than the lengths on its diagonal allow; for losses of another
            shape, dtype or device; for missing losses if the rule reads them, or does not say what
            it reads; for a rule that reads what a probe alone measures, or gives other shapes.

    Examples:
        >>> import mtlfunc as mf
        >>> weights(mf.mgda(), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    expect_rule(rule)
    squares = not may_read(rule, "cross_gramian")
    check_gramian(gramian, symmetric=squares)
    if squares and values_readable(gramian):
        _check_products(gramian.detach())
    return _weights(rule, gramian, losses, key)


def _weights(rule: Rule, gramian: Tensor, losses: Tensor | None, key: int | Tensor) -> Tensor:
    if losses is not None:
        check_vector(losses, gramian, "losses")
    if losses is None and may_read(rule, "losses"):
        verb, other = "reads", ""
        if reads_of(rule) is None:
            verb, other = "may read", ", or say what it reads: Rule(init, update, reads=...)"
        raise ValueError(
            f"losses: {rule_name(rule)} {verb} the losses; pass losses=, one per task{other}"
        )
    expect_of_gramian(rule)
    row = gramian[0]
    # copies, which a rule or its solver may write into
    losses, gramian = torch.ones_like(row) if losses is None else losses.clone(), gramian.clone()
    preference, present = torch.full_like(row, 1 / len(gramian)), all_rows_mask(gramian)
    first = random.fold_in(random.key(key, gramian.device), 1)
    geometry = Geometry(losses, gramian, preference, present, {})
    answer, _ = expect_answer(rule.update(geometry, rule.init(losses, first)))
    check_weights(answer, losses.shape)
    return answer


def _check_products(gramian: Tensor) -> None:
    """Raise if two tasks' product is more than their lengths allow: |g_i·g_j| <= ‖g_i‖‖g_j‖."""
    # wide: sums over many parameters round, in float32 perhaps, whatever the matrix is now
    slack = 1 + max(torch.finfo(gramian.dtype).eps, 2.0**-23) ** 0.5
    if len(gramian) <= 4:  # Python compares so few faster than torch, which has the last word
        rows = gramian.tolist()
        most, tasks = [max(row[i], 0.0) for i, row in enumerate(rows)], range(len(rows))
        if all(rows[i][j] * rows[i][j] <= slack * most[i] * most[j] for i in tasks for j in tasks):
            return
    squares = gramian.diagonal()
    over = gramian.square() > slack * squares[:, None] * squares.clamp_min(0)
    if bool(over.any()):
        i, j = divmod(int(over.flatten().nonzero()[0]), len(gramian))
        raise ValueError(
            f"gramian: indefinite: entry [{i}, {j}] is {gramian[i, j]:.6g}, but the tasks' squared "
            f"lengths, its diagonal, are {squares[i]:.6g} and {squares[j]:.6g}; a Gramian is "
            "J @ J.T"
        )


def aggregate(
    rule: Rule,
    jacobian: Float[Tensor, "task param"],
    losses: Float[Tensor, " task"] | None = None,
    key: int | Tensor = 0,
) -> Float[Tensor, " param"]:
    """The direction d = Jᵀweights that a fresh rule makes of a matrix of gradients.

    The step is θ ← θ - ηd.

    The Gramian is formed in float64, and d in float64 from its weights. It resolves the cone {d: J
    d >= 0} by the square of its opening: projections of g₀ on cones that open by 1e-2 are off by
    1e-12 of ‖g₀‖ at most, by 1e-4: 1e-7, by 1e-5: 1e-3, and cones of less than 1e-6, some ten times
    the rounding of gradients in float32, count as closed; no rate is below -1e-6‖g_t‖‖g₀‖ at any
    opening (see `mtlfunc.solvers.problems`). A QR of J in float64 would keep openings down to
    1e-16, but a rule is a function of the Gramian, and no Gramian in float64 can hold them.

    Args:
        rule: what `mtlfunc` calls a rule, freshly initialised here.
        jacobian: J `[task, param]`, one gradient a row.
        losses: `[task]`, in the dtype of J; None where the rule needs none.
        key: seed or key for rules that draw at random.

    Returns:
        d `[param]`, in the dtype of J.

    Examples:
        >>> import mtlfunc as mf
        >>> aggregate(mf.mean(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 0.5000])
    """
    check_tensor(jacobian, "jacobian", "[task, param]")
    dense = jacobian.layout == torch.strided and jacobian.is_floating_point()
    if jacobian.ndim != 2 or jacobian.shape[0] == 0 or not dense:
        raise ValueError(
            f"jacobian: expected a dense floating matrix [task, param], got {jacobian.dtype} "
            f"({jacobian.layout}) of shape {list(jacobian.shape)}"
        )
    expect_rule(rule)
    if losses is not None:
        check_vector(losses, jacobian.mT, "losses", "jacobian")
    wide = jacobian.double()
    gramian = wide @ wide.mT
    if not values_readable(gramian):
        check_batch(gramian, "jacobian")
    elif not has_finite_sum(gramian):  # as of finite gradients that are not too long
        if bad := (~jacobian.isfinite()).any(-1).nonzero().flatten().tolist():
            raise ValueError(f"jacobian: NaN or infinite gradients of tasks {bad}")
        check_gramian(gramian)
    found = _weights(rule, gramian, None if losses is None else losses.double(), key)
    return (found.to(wide) @ wide).to(jacobian.dtype)
