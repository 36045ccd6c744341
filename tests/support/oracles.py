"""Jacobians by single backward passes, how far a Gramian may be from theirs, CAGrad's radius."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf

F64 = torch.float64
EPS = torch.finfo(F64).eps


def near(got: Any, expected: Any, rtol: Any = None, atol: Any = 0.0, **options: Any) -> None:
    """`assert_close`, whose absolute tolerance is 0 where a relative one is given alone."""
    atol = None if rtol is None else atol
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, **options)


def same(one: Any, other: Any, *tolerances: float) -> None:
    """Two trees of tensors, leaf by leaf: the same bits, or `near` one another."""
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if tolerances:
            near(a, b, *tolerances)
        else:
            assert torch.equal(a, b)


def _closure(f: Any, at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def _dual(f: Any, at: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(at, torch.ones_like(at)))).tangent


def _average(f: Any, at: Tensor) -> Tensor:
    return vmap(lambda s: f(s * at))(torch.ones(2, dtype=at.dtype)).mean()


SLOPES = {
    "grad": lambda f, at: grad(f)(at),
    "jvp": lambda f, at: jvp(f, (at,), (torch.ones_like(at),))[1],
    "vmap": lambda f, at: vmap(grad(f))(torch.stack([at, at / 2]))[0],
    "closure": _closure,
    "dual": _dual,
    "grad(vmap)": lambda f, at: grad(lambda at: _average(f, at))(at),
    "closure of a vmap": lambda f, at: _closure(lambda at: _average(f, at), at),
}


def check_slope(
    f: Any, at: float, *ways: str, rtol: Any = 1e-6, least: Any = 0.0, h: Any = 1e-5, of: Any = None
) -> None:
    """Each way's derivative against a difference above `least`, `of` a more exact function."""
    x, exact = torch.tensor(at, dtype=torch.float64), of or f
    difference = (exact(x + h) - exact(x - h)) / (2 * h)
    assert abs(difference) > least, "there is nothing to find"
    for way in ways:
        near(SLOPES[way](f, x), difference, rtol)


def agree(got, expected, relative):
    """Entry by entry, in units of the two gradients' lengths."""
    length = expected.diagonal().clamp_min(0).sqrt()
    scale = (length[:, None] * length).clamp_min(1e-3 * float(length.amax()) ** 2)
    assert float(((got - expected).abs() / scale).amax()) <= relative


def rows_of(losses: Any, leaves: Any, **options: Any) -> Tensor:
    """[task, parameter], one backward pass a loss; zeros where it does not read a leaf."""
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    options = {"retain_graph": True, "materialize_grads": True} | options
    rows = [torch.autograd.grad(loss, leaves, **options) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def rows_by_name(losses: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as {name: [task, *shape]}, of leaves that require grad."""
    whole = rows_of(losses, leaves.values())
    parts = whole.split([leaf.numel() for leaf in leaves.values()], 1)
    shaped = zip(leaves.items(), parts, strict=True)
    return {name: part.reshape(-1, *leaf.shape) for (name, leaf), part in shaped}


def literal(losses_fn: Any, params: dict[str, Tensor], batch: Any) -> Tensor:
    """Rows [entry, parameter], one backward pass each."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    return rows_of(losses_fn(leaves, batch).flatten(), leaves.values())


def literal_metric(optimizer: Any, leaf: Tensor) -> Tensor:
    """P of one parameter by the formulas of the papers, from the state before the step."""
    (group,) = [g for g in optimizer.param_groups if any(x is leaf for x in g["params"])]
    state, kind = optimizer.state.get(leaf, {}), type(optimizer).__name__
    lr, one = float(group["lr"]), torch.ones_like(leaf)
    if kind == "SGD":
        buffer = state.get("momentum_buffer")
        share = 1 if buffer is None else 1 - group["dampening"]
        return lr * one * (1 + group["momentum"] if group["nesterov"] else share)
    t = float(state.get("step", 0))
    if t == 0:
        return lr * one
    if kind == "RMSprop":
        v = state["square_avg"] - (state["grad_avg"] ** 2 if group["centered"] else 0)
        return lr / (v**0.5 + group["eps"])
    b1, b2 = group["betas"]
    v = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"] / (1 - b2**t)
    scale = lr * (1 - b1) / (1 - b1 ** (t + 1)) / (v**0.5 + group["eps"])
    return scale.where(v != 0, 0.0)


def cagrad_threshold(gramian: Tensor) -> Tensor:
    """The least radius c* in [0, 1] at which CAGrad raises no task: ‖v - g₀‖/‖g₀‖, v projected."""
    p = torch.full_like(gramian[0], 1 / len(gramian))
    moved = mf.solvers.auto()(mf.solvers.dual_cone(gramian, p)).weights - p
    square = p @ gramian @ p
    return ((moved @ gramian @ moved).clamp_min(0) / square.where(square != 0, 1.0)).sqrt()


def bisected(point: Tensor, normal: Any = 1.0) -> Tensor:
    """The projection on {y >= 0, normal·y = 1}: max(point - t·normal, 0), with t by bisection."""
    normal = normal * torch.ones_like(point)
    low, high = float(((point * normal - 1) / normal**2).min()) - 1, float((point / normal).max())
    for _ in range(200):
        t = (low + high) / 2
        above = float(normal @ (point - t * normal).clamp_min(0)) > 1
        low, high = (t, high) if above else (low, t)
    return (point - high * normal).clamp_min(0)
