"""The inner loop of PCGrad and GradVac as one compiled call, for plain numbers on a CPU; elsewhere
the rules' own loops in torch run.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.operators import define, flatten_batch, leading_shape
from ..core.transforms import is_differentiated


def kernel_applies(gramian: Tensor, *others: Tensor) -> bool:
    """Whether `surgery` may stand in: on a CPU, not compiling, where nothing differentiates."""
    return gramian.device.type == "cpu" and not is_differentiated((gramian, *others))


def surgery(gramian: Tensor, draws: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every task's gradient corrected along the others, one after the other.

    Args:
        gramian: G `[task, task]`.
        draws: orders `[task, task]`, row i a permutation of 0 … T-1, of which i itself is skipped;
            or the key `[]` of `random.permutation(key, T, rows=T)`.
        targets: cosines `[task, task]` up to which a pair is corrected (GradVac); None: 0 (PCGrad).

    Returns:
        coefficients `[task, task]` of the corrected gradients (row i: those of task i), and the
        cosines `[task, task]` met on the way, before each correction (the target where none could
        be measured); all NaN where an input is. One call for a whole `vmap`, nested ones included.
    """
    key, orders = (None, draws) if draws.ndim else (draws, None)
    return _surgery(gramian, key, orders, targets, torch.finfo(gramian.dtype).eps)


_RANKS = (2, 0, 2, 2)  # of gramian, key, orders, targets
_NOT_GIVEN = (None, np.zeros(1, np.int64), np.zeros((1, 0, 0), np.int64), np.zeros((1, 0, 0)))


def _kernel(
    gramian: Tensor, key: Tensor | None, orders: Tensor | None, targets: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from ._kernels.surgery import solve  # numba takes half a second to import

    inputs = (gramian, key, orders, targets)
    lead = leading_shape(zip(inputs, _RANKS, strict=True))

    def array(x: Tensor, rank: int) -> np.ndarray:
        x = x.double() if x.is_floating_point() else x
        return flatten_batch(x, lead, rank).contiguous().numpy()

    given = zip(inputs, _RANKS, _NOT_GIVEN, strict=True)
    arrays: list[Any] = [none if x is None else array(x, rank) for x, rank, none in given]
    batch, threads = lead.numel(), torch.get_num_threads()
    coefficients, cosines = (
        torch.from_numpy(x).to(gramian.dtype).reshape(*lead, *gramian.shape[-2:])
        for x in solve(*arrays, eps=eps, batch=batch, threads=threads)
    )
    return coefficients, cosines


_surgery = define(
    "surgery(Tensor gramian, Tensor? key, Tensor? orders, Tensor? targets, float eps) -> "
    "(Tensor, Tensor)",
    _kernel,
    _RANKS,
    devices=("CPU",),
)
