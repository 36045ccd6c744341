"""Fourteen families of Jacobians on which solvers go wrong, ten of `mf.testing.jacobian`."""

import torch
from torch import Tensor

import mtlfunc as mf


def conflicting(count: int, seed: int, width: int) -> Tensor:
    """Half of the tasks pull along one direction, half against it."""
    *rows, axis = mf.testing.jacobian("gaussian", count + 1, seed, width=width)
    along = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]
    return torch.stack(rows) + along * axis * (width**0.5 / axis.norm())


def plane(count: int, seed: int, width: int) -> Tensor:
    """Two parameters, a hull that mostly holds 0."""
    return mf.testing.jacobian("gaussian", count, seed, width=2) + torch.tensor([0.3, 0.0])


def duplicates(count: int, seed: int, width: int) -> Tensor:
    """At a distance of 1e-6."""
    apart = mf.testing.jacobian("gaussian", count, seed, width=width)
    return mf.testing.jacobian("duplicates", count, seed, width=width) + 1e-6 * apart


def agreeing(count: int, seed: int, width: int) -> Tensor:
    """No conflict at all."""
    return mf.testing.jacobian("gaussian", count, seed, width=width).abs()


FAMILIES = {
    "gaussian": "gaussian", "norm spread 1e-4": "spread", "conflicting": conflicting,
    "rank deficient": "rank_deficient", "plane": plane, "duplicates": "duplicates",
    "duplicates 1e-6 apart": duplicates, "duplicates 1e-9 apart": "near_duplicates",
    "antiparallel": "antiparallel", "zero gradient": "zero_row", "stationary": "pareto_stationary",
    "stationary to 1e-5": "near_stationary", "agreeing": agreeing,
    "weakly stationary, float32": "weakly_stationary",
}  # fmt: skip


def gramians(name: str, count: int, batch: int, seed: int, *, scale: float = 0.0) -> Tensor:
    """`[batch, task, task]` float64; `scale` is the largest power of ten, up or down, by which
    whole problems are multiplied.
    """
    family, width = FAMILIES[name], max(100, 2 * count)

    def rows(at: int) -> Tensor:
        if isinstance(family, str):
            return mf.testing.jacobian(family, count, at, width=width)
        return family(count, at, width)

    j = torch.stack([rows(10_000 * seed + at) for at in range(batch)])
    draw = torch.Generator().manual_seed(seed)
    power = 2 * torch.rand(batch, 1, 1, generator=draw, dtype=torch.float64) - 1
    g = j @ j.mT
    return 0.5 * (g + g.mT) * 10 ** (scale * power)
