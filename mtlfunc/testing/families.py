"""Jacobians of the hard families: what breaks rules and solvers in practice, from a seed."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator, default_rng
from torch import Tensor

from ..core.checks import check_count, check_option

Array = np.ndarray
Family = Callable[[Generator, int, int], Array]
"""From a generator, the number of tasks T >= 1 and of parameters P >= 1 to a Jacobian [T, P]."""


def gaussian(rng: Generator, count: int, width: int) -> Array:
    return rng.standard_normal((count, width))


def duplicates(rng: Generator, count: int, width: int) -> Array:
    return gaussian(rng, count, width)[rng.integers(0, (count + 1) // 2, count)]


def zero_row(rng: Generator, count: int, width: int) -> Array:
    rows = gaussian(rng, count, width)
    rows[rng.integers(count)] = 0
    return rows


def antiparallel(rng: Generator, count: int, width: int) -> Array:
    """The second task pulls exactly against the first, twice as hard."""
    rows = gaussian(rng, count, width)
    if count > 1:
        rows[1] = -2 * rows[0]
    return rows


def pareto_stationary(rng: Generator, count: int, width: int) -> Array:
    """Jᵀw = 0 for a w inside the simplex, to rounding."""
    rows = gaussian(rng, count, width)
    w = rng.dirichlet(np.full(count, 5.0))
    rows[-1] = -(w[:-1] @ rows[:-1]) / w[-1]
    return rows


def hull(rng: Generator, count: int, width: int) -> Array:
    """Around one common direction, and on its side of 0."""
    common = gaussian(rng, 1, width)
    rows = common + 0.3 * gaussian(rng, count, width)
    return rows * np.sign(rows @ common.T)


def weakly_stationary(rng: Generator, count: int, width: int) -> Array:
    """Rows in float32 of which some add up to 0 with positive weights, to their own rounding, while
    one direction lowers the losses of all others and leaves these as they are.
    """
    if count < 3:
        return pareto_stationary(rng, count, width).astype(np.float32).astype(np.float64)
    order, sizes = rng.permutation(count), np.abs(gaussian(rng, count, 1))
    null = sizes * (order < rng.integers(2, count))[:, None]
    frame = np.concatenate([sizes - null, null, gaussian(rng, count, count - 2)], 1)
    rank = min(width, max(2, 5 * count // 8))
    basis = np.linalg.qr(frame)[0][:, np.arange(count) != 1][:, :rank]
    basis[:, 0] = np.abs(basis[:, 0])
    rows = basis * np.abs(gaussian(rng, 1, rank)) @ np.linalg.qr(gaussian(rng, width, rank))[0].T
    return rows.astype(np.float32).astype(np.float64)


FAMILIES: dict[str, Family] = {
    "gaussian": gaussian,
    # norms from 1 to 1e-4
    "spread": lambda r, n, p: gaussian(r, n, p) * np.logspace(0, -4, n)[r.permutation(n), None],
    "duplicates": duplicates,
    "near_duplicates": lambda r, n, p: duplicates(r, n, p) + 1e-9 * gaussian(r, n, p),
    "rank_deficient": lambda r, n, p: (
        gaussian(r, n, max(1, n // 2)) @ gaussian(r, max(1, n // 2), p)
    ),
    "zero_row": zero_row,
    "antiparallel": antiparallel,
    "pareto_stationary": pareto_stationary,
    # 0 lies some 1e-5 outside the hull, or inside that of more tasks than parameters
    "near_stationary": lambda r, n, p: pareto_stationary(r, n, p) + 1e-5 * gaussian(r, 1, p),
    "hull": hull,
    # right angles between all tasks, norms from 1/2 to 2
    "orthogonal": lambda r, n, p: (
        np.linalg.qr(gaussian(r, max(p, n), n))[0].T * r.uniform(0.5, 2.0, (n, 1))
    ),
    "identical": lambda r, n, p: np.repeat(gaussian(r, 1, p), n, 0),
    # small, in few dimensions: ties, duplicates, exact opposites, zero rows
    "integer_ties": lambda r, n, p: r.integers(-2, 3, (n, min(p, 4))).astype(np.float64),
    "weakly_stationary": weakly_stationary,
}

# each family's own stream of random numbers
_STREAMS = [*sorted(set(FAMILIES) - {"weakly_stationary"}), "weakly_stationary"]
REGULAR = ("gaussian", "hull", "orthogonal")
"""Families where G is well conditioned, weights are unique and nothing is close to a kink."""


def jacobian(
    family: str,
    count: int,
    seed: int = 0,
    *,
    width: int | None = None,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One Jacobian of a hard family.

    Args:
        family: "gaussian", "spread" (of lengths), "duplicates", "near_duplicates",
            "rank_deficient", "zero_row", "antiparallel", "pareto_stationary", "near_stationary",
            "weakly_stationary", "hull" (0 is outside), "orthogonal", "identical" or "integer_ties".
        count: T, the number of tasks, >= 1.
        seed: >= 0; the same seed gives the same Jacobian on every machine, up to rounding.
        width: P, the number of parameters, >= 1; None is T + 10. `integer_ties` has at most 4,
            `orthogonal` at least T.
        scale: of all gradients.
        dtype: of the result; rows are drawn in float64.

    Returns:
        J `[task, parameter]`, the tasks' gradients as rows.

    Raises:
        ValueError: for an unknown family, or numbers below their least.

    Examples:
        >>> jacobian("antiparallel", 2, width=3).shape
        torch.Size([2, 3])
    """
    width = count + 10 if width is None else width
    check_option(family, "family", tuple(FAMILIES))
    for name, value, least in (("count", count, 1), ("width", width, 1), ("seed", seed, 0)):
        check_count(value, name, least)
    rng = default_rng([seed, count, _STREAMS.index(family)])
    return torch.from_numpy(scale * FAMILIES[family](rng, count, width)).to(dtype)
