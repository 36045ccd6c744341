"""GradVac: pull every task gradient towards the cosines with the others that it usually has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_scalar, normalized_preference, poison
from ..solvers.problems import or_one, root
from ..types import Geometry, Rule, Scalar, State, constructor
from ._pcgrad import check_orders, draws_of, partners_of, start_draws
from ._surgery import kernel_applies, surgery
from .common import gramian_of, preference_of, reading


class GradVacState(NamedTuple):
    # φ̂; row i: of task i's gradient, as it is when task j's turn comes
    targets: Float[Tensor, "task task"]
    stream: State


@constructor
def gradvac(
    beta: Scalar = 0.01,
    orders: Int[Tensor, "task task"] | None = None,
    *,
    preference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """For each task: c = g_i; for the others j in order, with φ = cos(c, g_j): if φ < φ̂_ij, c ← c
    + a g_j such that cos(c, g_j) = φ̂_ij; then φ̂_ij moves.

    The coefficient is a = ‖c‖(φ̂√(1-φ²) - φ√(1-φ̂²)) / (‖g_j‖√(1-φ̂²)), which leaves c's part at
    right angles to g_j as it is, so that ‖c‖ is multiplied by √(1-φ²)/√(1-φ̂²). Everything is read
    off the Gramian, and all tasks are worked on at once.

    Args:
        beta: in [0, 1), the share of the new φ in φ̂_ij ← (1-β)φ̂_ij + βφ, where φ is that of
            before the correction. 0 is PCGrad.
        orders: `[task, task]` integers as in `pcgrad`; None draws independent random orders from
            the rule's key, new ones at each step.
        preference: weights p `[task]` >= 0 of the mean, scaled to sum 1; None is the geometry's,
            1/T unless tasks were mixed.

    Returns:
        weights Σ_i p_i A_i: the **mean** of the corrected gradients c_i = Σ_j A_ij g_j, where the
        paper steps along their sum, T times as long. They sum to 1 when every cosine is at its
        target. A zero gradient is neither corrected nor corrects, and its targets stay.

    Raises:
        ValueError: for beta outside [0, 1), and as `pcgrad` for orders and preference.

    Source:
        Wang et al. 2021, the GradVac update rule; φ̂ starts at 0. LibMTL and TorchJD take β = .5,
        sum, and add 1e-8 to both divisors.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(gradvac(), torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
        [0.25, 0.75]
    """
    check_scalar(beta, "beta", below=1.0)
    check_orders(orders)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        count = len(losses)
        return GradVacState(losses.new_zeros(count, count), start_draws(orders, count, key))

    def update(geometry: Geometry, state: GradVacState) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        targets = state.targets.to(gramian)
        draws, stream = draws_of(orders, state.stream, gramian)
        if kernel_applies(gramian, targets):
            coefficients, cosines = surgery(gramian, draws, targets)
        else:
            found = vaccinate(gramian, partners_of(draws, gramian), targets)
            coefficients, cosines = (poison(x, gramian, targets) for x in found)
        moved = targets + beta * (cosines - targets)
        following = GradVacState(moved.to(state.targets), stream)
        return preference_of(geometry, preference, gramian) @ coefficients, following

    return Rule(init, update, reading("gramian", preference=preference))


def vaccinate(
    gramian: Float[Tensor, "task task"],
    partners: Int[Tensor, "task task"],
    targets: Float[Tensor, "task task"],
) -> tuple[Tensor, Tensor]:
    """The coefficients A and cosines φ of unit gradients, in plain torch; lengths are in ‖g_i‖."""
    count = len(gramian)
    tasks = torch.arange(count, device=gramian.device)
    length = root(gramian.diagonal())
    unit = gramian / or_one(length)[:, None] / or_one(length)
    noise = 8 * count * torch.finfo(gramian.dtype).eps
    goals = targets.gather(-1, partners)
    apart = (partners != tasks[:, None]) & (length[partners] > 0)
    sines = root((1 - goals) * (1 + goals))
    product, size = unit, (length > 0).to(gramian)  # row i: c_i·g_j; ‖c_i‖
    shares, cosines = [], []
    columns = [x.unbind(-1) for x in (partners, goals, sines, apart)]
    for j, goal, sine, other in zip(*columns, strict=True):
        cosine = product.gather(-1, j[:, None])[:, 0] / or_one(size)
        seen = other & (size > 0)
        low = seen & (cosine < goal - noise * goal.abs()) & (sine > 0)
        ratio = root((1 - cosine) * (1 + cosine)) / or_one(sine)
        share = torch.where(low, size * (goal * ratio - cosine), 0.0)
        product = product + share[:, None] * unit.index_select(0, j)
        size = torch.where(low, size * ratio, size)
        shares.append(share)
        cosines.append(torch.where(seen, cosine.clamp(-1, 1), goal))

    def by_task(columns: list[Tensor]) -> Tensor:
        return torch.zeros_like(gramian).scatter(-1, partners, torch.stack(columns, -1))

    one = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
    return one + by_task(shares) * length[:, None] / or_one(length), by_task(cosines)
