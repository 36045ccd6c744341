"""What several probes share: the forward pass that starts them, and batches from which tasks are
absent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import all_present, can_look, check_finite, everyone, visible
from ..gradients.forward import explained_vjp, split_output
from ..gradients.linearize import Linear, linearize
from ..types import Batch, LossesFn, Params

Present = Callable[[Batch], Tensor]
"""From a batch to Bool[task]: which tasks have labels in it."""


class Labelled(NamedTuple):
    """One step's linearisation over the tasks that have labels."""

    losses: Tensor  # [task], as `losses_fn` gave them, absent tasks' too
    present: Tensor  # Bool[row]
    preference: Tensor  # [row], over the present
    share: Tensor | float  # what turns a mean over all tasks into one over the present
    aux: Any


def labels(present: Present | None, batch: Batch) -> Tensor | None:
    """Which tasks have labels in this batch; None where all have them by construction."""
    if present is None:
        return None
    mask = present(batch)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
        found = (
            f"{mask.dtype} of shape {list(mask.shape)}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        )
        raise TypeError(
            f"present: expected a function from the batch to a boolean tensor [task], got {found}"
        )
    return mask


def with_labels(losses_fn: LossesFn, mask: Tensor | None) -> LossesFn:
    """`losses_fn` with constants 0 for the absent tasks' losses; aux is then (the losses as they
    were, aux).
    """
    if mask is None:
        return losses_fn

    def masked(params: Params, batch: Batch) -> Any:
        losses, scalars, aux = split_output(losses_fn(params, batch))
        if mask.shape != losses.shape:
            raise ValueError(
                f"present: one entry a task is needed, {losses.shape[0]}, got {mask.shape[0]}"
            )
        if scalars is None:
            kept = losses if all_present(mask) else torch.where(mask, losses, 0.0)
        # nothing of an absent task enters the graph: no backward pass of its own, and no NaN of its
        elif visible(mask):
            kept = tuple(
                x if here else x.new_zeros(())
                for here, x in zip(mask.tolist(), scalars, strict=True)
            )
        else:
            kept = tuple(
                torch.where(here, x, 0.0) for here, x in zip(mask.unbind(), scalars, strict=True)
            )
        return kept, (losses, aux)

    return masked


def labelled(linear: Linear, mask: Tensor | None) -> Labelled:
    """What `linearize` made of `with_labels(losses_fn, mask)`."""
    if mask is None:
        return Labelled(linear.losses, everyone(linear.mixed), linear.preference, 1.0, linear.aux)
    losses, aux = linear.aux
    if all_present(mask):
        return Labelled(losses, mask, linear.preference, 1.0, aux)
    count = mask.sum().clamp_min(1).to(linear.losses)
    return Labelled(losses, mask, mask.to(linear.losses) / count, len(mask) / count, aux)


def check_leak(found: Labelled, *gradients: Tensor) -> None:
    """Raise where an absent task's loss was NaN or infinite and its derivative has reached these
    gradients, if that can be seen.
    """
    if not (visible(found.present) and can_look(found.losses, gradients)):
        return
    absent = (
        (~found.present & ~found.losses.isfinite()).nonzero().flatten().tolist()
        if found.present.shape == found.losses.shape
        else []
    )
    if absent and not all(bool(x.isfinite().all()) for x in gradients):
        raise ValueError(
            f"present: tasks {absent} are absent and their losses are not finite, like a mean "
            "over nothing, and 0 times their derivative is NaN in the "
            "gradients of the others; pick the labels with torch.where before the sum, or divide "
            "by count.clamp_min(1), or return separate losses "
            "(a tuple or dict), of which the absent ones are left out"
        )


def first_losses(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    shared: tuple[str, ...],
    *,
    hint: bool = False,
    present: Tensor | None = None,
) -> Tensor:
    """Losses `[task]` of one forward, 0 for absent tasks; where values may be looked at, also an
    error about a task that does not depend on `shared` and (`hint`) a warning about a leaf there
    that one task alone depends on.
    """
    reached: list[set[str]] | None = None

    def forward(params: Params) -> tuple[Tensor, Any]:
        nonlocal reached
        losses, scalars, aux = split_output(losses_fn(params, batch))
        if can_look_inside:
            reached = leaves_of_each(losses, scalars, params)
        return losses, aux

    can_look_inside = can_look(batch, params)
    losses, _, _ = explained_vjp(forward, params)
    if present is not None:
        if present.shape != losses.shape:
            raise ValueError(
                f"present: one entry a task is needed, {losses.shape[0]}, got {present.shape[0]}"
            )
        losses = losses.where(present, 0.0)
    check_finite(losses, "losses")
    if not can_look_inside:
        return losses
    if reached is None:
        alone = _independent(losses_fn, params, batch, shared)
    else:
        alone = [task for task, names in enumerate(reached) if not names & set(shared)]
    if present is not None:
        alone = [task for task in alone if bool(present[task])]
    if alone:
        raise ValueError(
            f"shared: the losses of tasks {alone} (counted from 0) depend on none of the shared "
            f"parameters {', '.join(shared)}; "
            "leave these tasks out, or widen the glob to the parameters that they use"
        )
    if hint and reached is not None and len(reached) > 1:
        private = [name for name in shared if sum(name in names for names in reached) == 1]
        if private:
            warnings.warn(
                f"shared: only one task depends on {', '.join(private)}, which then counts in "
                "that task's gradient length alone; "
                "if these are heads, pass a glob for the trunk, such as shared='trunk.*'",
                stacklevel=4,
            )
    return losses


def leaves_of_each(
    losses: Tensor, scalars: tuple[Tensor, ...] | None, params: Params
) -> list[set[str]] | None:
    """Names of the leaves behind each loss, read off the autograd graph; None where a vector was
    computed as a whole.
    """
    if not losses.requires_grad:
        return [set() for _ in range(losses.shape[0])]
    if scalars is None:
        if losses.grad_fn is None or losses.grad_fn.name() != "StackBackward0":
            return None
        nodes = [node for node, _ in losses.grad_fn.next_functions]
    else:
        nodes = [
            torch.autograd.graph.get_gradient_edge(scalar).node if scalar.requires_grad else None
            for scalar in scalars
        ]
    leaf_nodes = {
        torch.autograd.graph.get_gradient_edge(leaf).node: name for name, leaf in params.items()
    }
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


def _independent(
    losses_fn: LossesFn, params: Params, batch: Batch, shared: tuple[str, ...]
) -> list[int]:
    """Tasks whose loss stays finite when every shared parameter is NaN, and whose gradient is zero
    there, too.
    """
    broken = {
        name: torch.full_like(leaf, float("nan")) if name in shared else leaf
        for name, leaf in params.items()
    }
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
