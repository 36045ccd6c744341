"""PCGrad: project every task gradient off the ones it conflicts with, one after the other."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import random
from ..core.checks import check_tensor, normalized_preference, poison
from ..core.transforms import values_readable
from ..types import Geometry, Rule, State, constructor
from ._surgery import kernel_applies, surgery
from .common import gramian_of, preference_of, reading


@constructor
def pcgrad(
    orders: Int[Tensor, "task task"] | None = None,
    *,
    preference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """For each task: p = g_i; for the others j in order: if p·g_j < 0, p ← p - (p·g_j/‖g_j‖²) g_j.
    The answer is the mean of the p.

    Every p is a combination A_i of the gradients, and the test p·g_j = (A_i G)_j reads the Gramian
    alone; all tasks are worked on at once. On a CPU, where nothing differentiates, a compiled
    kernel does it, in one call for a whole `vmap`.

    Args:
        orders: `[task, task]` integers, row i a permutation of 0 … T-1 (i itself is skipped), used
            at every step; None draws independent random orders from the rule's key, new ones at
            each step (they play no part for T <= 2).
        preference: weights p `[task]` >= 0 of the mean, scaled to sum 1; None is the geometry's,
            1/T unless tasks were mixed.

    Returns:
        weights Σ_i p_i A_i: the **mean** of the projected gradients, where the paper steps along
        their sum, T times as long. Each weight is at least its preference; they sum to 1 when
        nothing conflicts. For T = 2 no task's rate is negative; for T >= 3 a later projection can
        restore an earlier conflict, and the answer depends on the order.

    Raises:
        ValueError: for orders of another shape, or without permutations, or a bad preference.

    Source:
        Yu et al. 2020, Algorithm 1. The official TensorFlow code discards the shuffle, so its order
        is always 0, 1, 2, ….

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(pcgrad(), torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
        [0.25, 0.75]
    """
    check_orders(orders)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        return start_draws(orders, len(losses), key)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        draws, state = draws_of(orders, state, gramian)
        if kernel_applies(gramian):
            coefficients, _ = surgery(gramian, draws, None)
        else:
            coefficients = poison(project(gramian, partners_of(draws, gramian)), gramian)
        return preference_of(geometry, preference, gramian) @ coefficients, state

    return Rule(init, update, reading("gramian", preference=preference))


def project(
    gramian: Float[Tensor, "task task"], partners: Int[Tensor, "task task"]
) -> Float[Tensor, "task task"]:
    """The coefficients A of the projected gradients, in plain torch."""
    count = len(gramian)
    tasks = torch.arange(count, device=gramian.device)
    squares = gramian.diagonal().where(gramian.diagonal() > 0, 1.0)
    # no task is projected off itself
    divisors = torch.where(partners == tasks[:, None], torch.inf, squares[partners])
    products, shares = gramian, []  # row i: p_i·g_j
    for j, divisor in zip(partners.unbind(-1), divisors.unbind(-1), strict=True):
        share = products.gather(-1, j[:, None]).clamp_max(0) / divisor[:, None]
        products = torch.addcmul(products, share, gramian.index_select(0, j), value=-1)
        shares.append(share)
    one = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
    return one - torch.zeros_like(gramian).scatter(-1, partners, torch.cat(shares, -1))


def start_draws(orders: Tensor | None, count: int, key: Tensor) -> State:
    """The stream that orders of `count` tasks are drawn from; () where none are drawn."""
    if orders is not None and len(orders) != count:
        raise ValueError(f"orders: made for {len(orders)} tasks, but there are {count} rows")
    return random.stream(key) if orders is None and count > 2 else ()


def draws_of(orders: Tensor | None, state: State, gramian: Tensor) -> tuple[Tensor, State]:
    """This step's orders `[task, task]`, or the key `[]` that makes them; and the next stream."""
    if orders is not None:
        return orders.to(gramian.device), state
    if len(gramian) > 2:
        return random.draw(state)
    return torch.zeros((), dtype=torch.int64, device=gramian.device), state  # any order will do


def partners_of(draws: Tensor, gramian: Tensor) -> Int[Tensor, "task task"]:
    """Row i: the tasks in the order in which task i meets them."""
    return draws if draws.ndim else random.permutation(draws, len(gramian), rows=len(gramian))


def check_orders(orders: Tensor | None) -> None:
    """Raise unless these are integers `[task, task]` whose rows are permutations."""
    if orders is None:
        return
    check_tensor(orders, "orders", "[task, task]")
    count = orders.shape[-1] if orders.ndim else 0
    good = orders.shape == (count, count) and not orders.is_floating_point()
    if good and values_readable(orders):
        good = bool((orders.sort(-1).values == torch.arange(count)).all())
    if not good:
        raise ValueError(
            "orders: expected integers [task, task], every row a permutation of 0 … T - 1, got "
            f"{orders.dtype} of shape {list(orders.shape)}: {orders}"
        )
