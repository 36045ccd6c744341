"""The hard families of `mtlfunc.testing` as the tests draw them."""

import torch
from torch import Tensor

from mtlfunc import testing
from mtlfunc.testing.families import FAMILIES, REGULAR, jacobian

__all__ = ["FAMILIES", "REGULAR", "batch", "gramian", "jacobian", "jacobians"]


def gramian(
    family: str, count: int, seed: int = 0, *, scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # fmt: skip
    """The Gramian of one Jacobian, accumulated in float64."""
    rows = jacobian(family, count, seed, scale=scale)
    return (rows @ rows.mT).to(dtype)


def batch(family: str, count: int, size: int, seed: int = 0) -> Tensor:
    """Several Jacobians of one family [size, T, P]."""
    return torch.stack([jacobian(family, count, seed + i) for i in range(size)])


def jacobians(
    least: int = 1, most: int = 6, families: tuple[str, ...] = tuple(FAMILIES), scales: bool = True
):
    """Any family, T from `least` to `most`, overall scale from 1e-10 to 1e10, float64."""
    ends = (-10, 10) if scales else (0, 0)
    return testing.jacobians((least, most), None, families=families, exponents=ends)
