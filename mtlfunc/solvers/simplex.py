"""The probability simplex: Euclidean projection onto it (weighted, too) and all of its faces."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def project(
    point: Float[Tensor, " task"], normal: Float[Tensor, " task"] | None = None
) -> Float[Tensor, " task"]:
    """The nearest point of {y >= 0, normal·y = 1}; with normal = 1, None's meaning, that is the
    simplex.

    The answer is max(point - t·normal, 0) for the t that meets the equation: sort the breakpoints
    point/normal, find the last one above t.

    Examples:
        >>> project(torch.tensor([1.0, 0.5, -1.0])).tolist()
        [0.75, 0.25, 0.0]
    """
    normal = torch.ones_like(point) if normal is None else normal
    ratio, order = (point / normal).sort(descending=True)
    a, v = normal.gather(0, order), point.gather(0, order)
    level = ((a * v).cumsum(0) - 1) / (a * a).cumsum(0)
    last = (ratio > level).sum().clamp_min(1) - 1
    threshold = level.gather(0, last[None])
    return (point - threshold * normal).clamp_min(0)


def faces(count: int, device: torch.device | None = None) -> Bool[Tensor, "face task"]:
    """All 2^T - 1 non-empty subsets of the tasks, as masks."""
    codes = torch.arange(1, 2**count, device=device)
    return (codes[:, None] >> torch.arange(count, device=device)) % 2 == 1
