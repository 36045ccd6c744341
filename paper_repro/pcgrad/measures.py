"""Definitions 1, 2 and 5 of the paper, of a Gramian `[task, task]`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import mtlfunc as mf


def conflicting(gramian: Float[Tensor, "task task"]) -> Bool[Tensor, "task task"]:
    """Definition 1: pairs of gradients with g_i·g_j < 0; a right angle is not one."""
    return gramian < 0


def magnitude_similarity(gramian: Float[Tensor, "task task"]) -> Float[Tensor, "task task"]:
    """Definition 2: Φ_ij = 2‖g_i‖‖g_j‖ / (‖g_i‖² + ‖g_j‖²); NaN for two zero gradients."""
    length = gramian.diagonal().clamp_min(0).sqrt()
    # by the ratio of the two lengths, so that no square over- or underflows
    large, small = torch.maximum(length[:, None], length), torch.minimum(length[:, None], length)
    ratio = small / large
    return 2 * ratio / (1 + ratio**2)


def curvature_bound(gramian: Float[Tensor, "task task"]) -> Float[Tensor, "task task"]:
    """Definition 5: ξ_ij = (1 - cos²φ_ij) ‖g_i - g_j‖² / ‖g_i + g_j‖². For a conflicting pair
    ‖PCGrad's sum‖² = ξ‖g_i + g_j‖².
    """
    square = gramian.diagonal()
    total = square[:, None] + square
    squared = mf.diagnostics.cosines(gramian) ** 2
    return (1 - squared) * (total - 2 * gramian) / (total + 2 * gramian)
