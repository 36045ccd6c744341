"""The probability simplex: Euclidean projection onto it (also weighted) and all of its faces."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.transforms import all_present


def project(
    point: Float[Tensor, " task"], normal: Float[Tensor, " task"] | None = None
) -> Float[Tensor, " task"]:
    """The nearest point of {y >= 0, normal·y = 1}; None is normal = 1, the simplex.

    The answer is max(point - t·normal, 0) for the t that meets the equation. With the entries in
    the order of their breakpoints point/normal, it is the largest of the t that meet it for the
    first k of them alone: they grow while the next breakpoint is above them.

    Examples:
        >>> project(torch.tensor([1.0, 0.5, -1.0])).tolist()
        [0.75, 0.25, 0.0]
    """
    if normal is None:
        sizes = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
        levels = (point.sort(descending=True)[0].cumsum(0) - 1) / sizes
        return (point - levels.max(0)[0]).clamp_min(0)
    order = (point / normal).argsort(descending=True)
    a, v = normal.gather(0, order), point.gather(0, order)
    levels = ((a * v).cumsum(0) - 1) / (a * a).cumsum(0)
    return (point - levels.max(0)[0] * normal).clamp_min(0)


def project_present(point: Float[Tensor, " task"], present: Bool[Tensor, " task"]) -> Tensor:
    """The nearest point of the simplex over the present tasks; zeros where there are none.

    Relative to the largest entry, which changes no projection: the 1 of the simplex stays in sight
    of large entries, and what is 1 below is cut off.
    """
    if all_present(present):
        return project(point - point.amax())
    top = point.where(present, -torch.inf).amax().where(present.any(), 0.0)
    return project((point - top).where(present, -2.0)).where(present, 0.0)


def faces(
    count: int, device: torch.device | None = None, first: int = 1
) -> Bool[Tensor, "face task"]:
    """All subsets of the tasks from number `first`, as masks; number 0 is empty."""
    codes = torch.arange(first, 2**count, device=device)
    return (codes[:, None] >> torch.arange(count, device=device)) % 2 == 1
