"""Fourteen families of Jacobians on which solvers of the small problems go wrong:
`FAMILIES[name](count, generator) -> J [task, param]`, float64.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Family = Callable[[int, Generator], Tensor]


def _normal(rows: int, columns: int, generator: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _params(count: int) -> int:
    return max(100, 2 * count)


def gaussian(count: int, generator: Generator) -> Tensor:
    return _normal(count, _params(count), generator)


def norm_spread(count: int, generator: Generator) -> Tensor:
    """Lengths from 1 to 1e-4."""
    return (
        gaussian(count, generator)
        * torch.logspace(0, -4, count, dtype=torch.float64)[
            torch.randperm(count, generator=generator), None
        ]
    )


def conflicting(count: int, generator: Generator) -> Tensor:
    """Half of the tasks pull along one direction, half against it."""
    axis = _unit(_normal(1, _params(count), generator)) * _params(count) ** 0.5
    return (
        gaussian(count, generator)
        + torch.linspace(-1, 1, count, dtype=torch.float64)[:, None] * axis
    )


def rank_deficient(count: int, generator: Generator) -> Tensor:
    return _normal(count, max(1, min(count // 2, 5)), generator)


def plane(count: int, generator: Generator) -> Tensor:
    """Two parameters, a hull that mostly holds 0."""
    return _normal(count, 2, generator) + torch.tensor([0.3, 0.0], dtype=torch.float64)


def _doubled(count: int, generator: Generator, apart: float) -> Tensor:
    rows = _unit(gaussian(count, generator))
    rows[count // 2 :] = rows[: count - count // 2].clone()
    return rows + apart * _unit(gaussian(count, generator))


def duplicates(count: int, generator: Generator) -> Tensor:
    return _doubled(count, generator, 0.0)


def near_duplicates(count: int, generator: Generator) -> Tensor:
    return _doubled(count, generator, 1e-6)


def nearer_duplicates(count: int, generator: Generator) -> Tensor:
    return _doubled(count, generator, 1e-9)


def antiparallel(count: int, generator: Generator) -> Tensor:
    rows = _unit(gaussian(count, generator))
    rows[-1] = -rows[0] * 2.5
    return rows


def zero_gradient(count: int, generator: Generator) -> Tensor:
    rows = gaussian(count, generator)
    rows[int(torch.randint(count, (), generator=generator))] = 0
    return rows


def stationary(count: int, generator: Generator) -> Tensor:
    """A random convex combination is 0."""
    rows, w = (
        gaussian(count, generator),
        torch.rand(count, generator=generator, dtype=torch.float64),
    )
    return rows - (w / w.sum()) @ rows


def nearly_stationary(count: int, generator: Generator) -> Tensor:
    """The same, moved by 1e-5 of the rows' length."""
    rows = stationary(count, generator)
    return rows + 1e-5 * rows.norm(dim=-1).mean() * _unit(_normal(1, rows.shape[1], generator))


def weakly_stationary(count: int, generator: Generator) -> Tensor:
    """Rows in float32 of which the first half add up to 0 with positive weights, to their rounding;
    one direction lowers the losses of the others and leaves these as they are.
    """
    if count < 3:
        return antiparallel(count, generator).float().double()
    rank = max(2, 5 * count // 8)
    sizes = torch.rand(count, 1, generator=generator, dtype=torch.float64) + 0.1
    null = sizes * (torch.arange(count) < max(2, count // 2))[:, None]
    frame = torch.cat([null, sizes - null, _normal(count, rank, generator)], 1)
    basis = torch.linalg.qr(frame)[0][:, 1 : rank + 1]
    basis[:, 0] = basis[:, 0].abs()
    return (basis @ _normal(rank, _params(count), generator)).float().double()


def agreeing(count: int, generator: Generator) -> Tensor:
    """No conflict at all."""
    return gaussian(count, generator).abs()


FAMILIES: dict[str, Family] = {
    "gaussian": gaussian,
    "norm spread 1e-4": norm_spread,
    "conflicting": conflicting,
    "rank deficient": rank_deficient,
    "plane": plane,
    "duplicates": duplicates,
    "duplicates 1e-6 apart": near_duplicates,
    "duplicates 1e-9 apart": nearer_duplicates,
    "antiparallel": antiparallel,
    "zero gradient": zero_gradient,
    "stationary": stationary,
    "stationary to 1e-5": nearly_stationary,
    "agreeing": agreeing,
    "weakly stationary, float32": weakly_stationary,
}


def gramians(name: str, count: int, batch: int, seed: int, *, scale: float = 0.0) -> Tensor:
    """`[batch, task, task]` float64; `scale` is the largest power of ten, up or down, by which
    whole problems are multiplied.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([FAMILIES[name](count, generator) for _ in range(batch)])
    power = (2 * torch.rand(batch, 1, 1, generator=generator, dtype=torch.float64) - 1) * scale
    g = rows @ rows.mT
    return 0.5 * (g + g.mT) * 10**power
