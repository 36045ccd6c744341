"""The forward pass that starts a probe, and what it can tell about which task depends on what."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..checks import can_look, check_finite
from ..gradients import explained_vjp, linearize, split_output
from ..types import Batch, LossesFn, Params


def first_losses(losses_fn: LossesFn, params: Params, batch: Batch, shared: tuple[str, ...], *, hint: bool = False) -> Tensor:
    """Losses `[task]` of one forward; where values may be looked at, also an error about a task that does not depend on
    `shared` and (`hint`) a warning about a leaf there that one task alone depends on."""
    reached: list[set[str]] | None = None

    def forward(params: Params) -> tuple[Tensor, Any]:
        nonlocal reached
        losses, scalars, aux = split_output(losses_fn(params, batch))
        if can_look_inside:
            reached = leaves_of_each(losses, scalars, params)
        return losses, aux

    can_look_inside = can_look(batch, params)
    losses, _, _ = explained_vjp(forward, params)
    check_finite(losses, "losses")
    if not can_look_inside:
        return losses
    if reached is None:
        alone = _independent(losses_fn, params, batch, shared)
    else:
        alone = [task for task, names in enumerate(reached) if not names & set(shared)]
    if alone:
        raise ValueError(
            f"shared: the losses of tasks {alone} (counted from 0) depend on none of the shared parameters {', '.join(shared)}; "
            "leave these tasks out, or widen the glob to the parameters that they use"
        )
    if hint and reached is not None and len(reached) > 1:
        private = [name for name in shared if sum(name in names for names in reached) == 1]
        if private:
            warnings.warn(
                f"shared: only one task depends on {', '.join(private)}, which then counts in that task's gradient length alone; "
                "if these are heads, pass a glob for the trunk, such as shared='trunk.*'",
                stacklevel=4,
            )
    return losses


def leaves_of_each(losses: Tensor, scalars: tuple[Tensor, ...] | None, params: Params) -> list[set[str]] | None:
    """Names of the leaves behind each loss, read off the autograd graph; None where a vector was computed as a whole."""
    if not losses.requires_grad:
        return [set() for _ in range(losses.shape[0])]
    if scalars is None:
        if losses.grad_fn is None or losses.grad_fn.name() != "StackBackward0":
            return None
        nodes = [node for node, _ in losses.grad_fn.next_functions]
    else:
        nodes = [torch.autograd.graph.get_gradient_edge(scalar).node if scalar.requires_grad else None for scalar in scalars]
    leaf_nodes = {torch.autograd.graph.get_gradient_edge(leaf).node: name for name, leaf in params.items()}
    reached = []
    for node in nodes:
        seen, todo = set(), [node]
        while todo:
            current = todo.pop()
            if current is not None and current not in seen:
                seen.add(current)
                todo.extend(following for following, _ in current.next_functions)
        reached.append({name for leaf_node, name in leaf_nodes.items() if leaf_node in seen})
    return reached


def _independent(losses_fn: LossesFn, params: Params, batch: Batch, shared: tuple[str, ...]) -> list[int]:
    """Tasks whose loss stays finite when every shared parameter is NaN, and whose gradient is zero there, too."""
    broken = {name: torch.full_like(leaf, float("nan")) if name in shared else leaf for name, leaf in params.items()}
    try:
        with torch.no_grad():
            losses = split_output(losses_fn(broken, batch))[0]
    except Exception:  # a model may refuse NaN: then there is nothing to be learnt this way
        return []
    suspects = losses.isfinite().nonzero().flatten().tolist()
    if not suspects:
        return []
    rows = linearize(losses_fn, params, batch, shared=shared).rows
    return [task for task in suspects if not any(bool(leaf[task].any()) for leaf in rows.values())]
