"""Jacobians by single backward passes, how far a Gramian may be from theirs, CAGrad's radius."""

from typing import Any

import torch
from torch import Tensor

import mtlfunc as mf


def near(got: Any, expected: Any, rtol: Any = None, atol: Any = 0.0, **options: Any) -> None:
    """`assert_close`, whose absolute tolerance is 0 where a relative one is given alone."""
    atol = None if rtol is None else atol
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, **options)


def agree(got, expected, relative):
    """Entry by entry, in units of the two gradients' lengths."""
    length = expected.diagonal().clamp_min(0).sqrt()
    scale = (length[:, None] * length).clamp_min(1e-3 * float(length.amax()) ** 2)
    assert float(((got - expected).abs() / scale).amax()) <= relative


def rows_of(losses: Any, leaves: Any) -> Tensor:
    """[task, parameter], one backward pass a loss; zeros where it does not read a leaf."""
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    rows = [
        torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        for loss in losses
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def literal(losses_fn: Any, params: dict[str, Tensor], batch: Any) -> Tensor:
    """Rows [entry, parameter], one backward pass each."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    return rows_of(losses_fn(leaves, batch).flatten(), leaves.values())


def agree_across(got: Tensor, left: Tensor, right: Tensor, relative: float = 1e-12) -> None:
    """Entry by entry, in units of the two gradients' lengths."""
    a, b = left.norm(dim=1), right.norm(dim=1)
    scale = a.clamp_min(0.03 * a.amax())[:, None] * b.clamp_min(0.03 * b.amax())
    assert got.shape == scale.shape
    assert float(((got - left @ right.mT).abs() / scale).amax()) <= relative


def cagrad_threshold(gramian: Tensor) -> Tensor:
    """The least radius c* in [0, 1] at which CAGrad raises no task to first order: ‖v - g₀‖/‖g₀‖,
    where v is the projection of the mean gradient g₀ on {d: g_t·d >= 0}.
    """
    p = torch.full_like(gramian[0], 1 / len(gramian))
    moved = mf.solvers.auto()(mf.solvers.dual_cone(gramian, p)).weights - p
    square = p @ gramian @ p
    return ((moved @ gramian @ moved).clamp_min(0) / square.where(square != 0, 1.0)).sqrt()
