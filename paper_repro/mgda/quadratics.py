"""Random convex quadratics, the losses of several questions."""

import torch
from torch import Tensor

import mtlfunc as mf

from .common import normal

Batch = tuple[Tensor, Tensor]
"""Minimisers `[task, dim]` and Hessians `[task, dim, dim]`."""


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    """L_t(x) = ½ (x - c_t)ᵀA_t(x - c_t)."""
    off = params["x"] - batch[0]
    return 0.5 * torch.einsum("ti,tij,tj->t", off, batch[1], off)


def quadratics(draws: int, tasks: int, dim: int, tag: int) -> tuple[mf.types.Params, Batch]:
    """Random convex quadratics with Wishart Hessians of largest eigenvalue 1.05, and random starts.
    First axis `[draw]`.
    """
    factors, centres = normal(tag, (draws, tasks, dim, dim)), normal(tag + 1, (draws, tasks, dim))
    hessians = factors @ factors.mT
    hessians = hessians / torch.linalg.eigvalsh(hessians)[..., -1:, None] + 0.05 * torch.eye(
        dim, dtype=torch.float64
    )
    return {"x": 2 * normal(tag + 2, (draws, dim))}, (centres, hessians)
