"""The inner loop of PCGrad and GradVac as one compiled call, for plain numbers on a CPU; elsewhere
the rules' own loops in torch run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.checks import inside_transform, is_differentiated


def kernel_applies(gramian: Tensor, *others: Tensor) -> bool:
    """Whether `surgery` may stand in: on a CPU, outside `torch.compile`, and where nothing
    differentiates.
    """
    return gramian.device.type == "cpu" and not is_differentiated((gramian, *others))


def surgery(gramian: Tensor, draws: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every task's gradient corrected along the others, one after the other.

    Args:
        gramian: G `[task, task]`.
        draws: orders `[task, task]`, row i a permutation of 0 … T-1, of which i itself is skipped;
            or the key `[]` of `random.permutation(key, T, rows=T)`.
        targets: cosines `[task, task]` below which a pair is corrected, up to them (GradVac); None
            is 0 everywhere (PCGrad).

    Returns:
        coefficients `[task, task]` of the corrected gradients (row i: those of task i), and the
        cosines `[task, task]` met on the way, before each correction (the target where none could
        be measured); all NaN where an input is. One call for a whole `vmap`, nested ones included.
    """
    key, orders = (None, draws) if draws.ndim else (draws, None)
    return (torch.ops.mtlfunc.surgery if inside_transform() else _kernel)(
        gramian, key, orders, targets, torch.finfo(gramian.dtype).eps
    )


_RANKS = (2, 0, 2, 2)  # of gramian, key, orders, targets


def _kernel(
    gramian: Tensor, key: Tensor | None, orders: Tensor | None, targets: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from ._kernels.surgery import solve  # numba takes half a second to import

    inputs = list(zip((gramian, key, orders, targets), _RANKS, strict=True))
    shapes = {x.shape[: x.ndim - rank] for x, rank in inputs if x is not None}
    lead = shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)

    def array(x: Tensor | None, rank: int) -> np.ndarray | None:
        if x is None:
            return None
        core = x.shape[x.ndim - rank :]
        x = x.detach().double() if x.is_floating_point() else x
        return (
            (
                x.reshape(1, *core)
                if x.numel() == core.numel()
                else x.expand(*lead, *core).reshape(lead.numel(), *core)
            )
            .contiguous()
            .numpy()
        )

    arrays = [array(x, rank) for x, rank in inputs]
    settings = (eps, lead.numel(), torch.get_num_threads())
    answers = solve(*arrays, *settings)  # pyright: ignore[reportArgumentType, reportCallIssue]
    coefficients, cosines = (
        torch.from_numpy(x).to(gramian.dtype).reshape(*lead, *gramian.shape[-2:]) for x in answers
    )
    return coefficients, cosines


# An operator below autograd, as the solvers' kernel is: no transform can take a wrong derivative
# from it.
_LIBRARY = torch.library.Library("mtlfunc", "FRAGMENT")
_LIBRARY.define(
    "surgery(Tensor gramian, Tensor? key, Tensor? orders, Tensor? targets, float eps) -> "
    "(Tensor, Tensor)"
)
_LIBRARY.impl("surgery", _kernel, "CPU")


def _batched(
    info,
    in_dims,
    gramian: Tensor,
    key: Tensor | None,
    orders: Tensor | None,
    targets: Tensor | None,
    eps: float,
):
    inputs = list(zip((gramian, key, orders, targets), in_dims, _RANKS, strict=False))
    depth = max(x.ndim - rank - (dim is not None) for x, dim, rank in inputs if x is not None)

    def front(x: Tensor, dim: int | None, rank: int) -> Tensor:
        moved = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
        return moved.reshape(len(moved), *(1,) * (depth + 1 + rank - moved.ndim), *moved.shape[1:])

    return torch.ops.mtlfunc.surgery(
        *(None if x is None else front(x, dim, rank) for x, dim, rank in inputs), eps
    ), (0, 0)


torch.library.register_vmap("mtlfunc::surgery", _batched, lib=_LIBRARY)
