"""The hard families of `mtlfunc.testing` as the tests draw them."""

import torch
from torch import Tensor

from mtlfunc import testing
from mtlfunc.testing import FAMILIES, REGULAR, gramian, jacobian

__all__ = ["FAMILIES", "REGULAR", "batch", "gramian", "jacobian", "jacobians"]


def batch(family: str, count: int, size: int, seed: int = 0) -> Tensor:
    """Several Jacobians of one family [size, T, P]."""
    return torch.stack([jacobian(family, count, seed + i) for i in range(size)])


def jacobians(
    least: int = 1,
    most: int = 6,
    families: tuple[str, ...] = tuple(FAMILIES),
    scales: bool = True,
):
    """Any family, T from `least` to `most`, overall scale from 1e-10 to 1e10, float64."""
    ends = (-10, 10) if scales else (0, 0)
    return testing.jacobians((least, most), None, families=families, exponents=ends)
