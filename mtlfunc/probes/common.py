"""What several probes share: the first forward pass, and batches from which tasks are absent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.checks import all_present, can_look, check_finite, everyone, gradient_edge, visible
from ..core.distributed import check_gathers
from ..core.expect import expect_function
from ..gradients.forward import check_connected, forward_pass, split_output
from ..gradients.leaves import explained_vjp, without_trace
from ..gradients.linearize import Linear, linearize
from ..types import Batch, LossesFn, Params, Rows, Select, State


@runtime_checkable
class Present(Protocol):
    """From a batch to Bool[task], which tasks have labels in it; with `group=` how many, too."""

    def __call__(self, batch: Batch, /) -> Tensor: ...


class Labelled(NamedTuple):
    """One step's linearisation over the tasks that have labels."""

    losses: Tensor  # [task], as `losses_fn` gave them, absent tasks' too
    present: Tensor  # Bool[row]
    preference: Tensor  # [row], over the present
    share: Tensor | float  # what turns a mean over all tasks into one over the present
    aux: Any


def check_present(present: Present | None) -> None:
    """Raise unless `present` is None or a function of the batch."""
    if present is not None:
        expect_function(present, "present", "batch")


def fixed(which: Select) -> Select:
    """A choice of parameters for every step: an iterator would be used up by the first."""
    if isinstance(which, Iterable) and not isinstance(which, str | Tensor | nn.Module):
        return tuple(which)
    return which


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise unless this is None or a dtype that a Gramian can be accumulated in."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"gramian_dtype: expected None or a floating dtype such as torch.float64, got {dtype!r}"
        )


def labels(present: Present | None, batch: Batch, *, counts: bool = False) -> Tensor | None:
    """Which tasks have labels in this batch, or `counts` of them; None where all have them by
    construction.
    """
    if present is None:
        return None
    mask = present(batch)
    numbers = isinstance(mask, Tensor) and (mask.dtype == torch.bool or counts)
    if not isinstance(mask, Tensor) or not numbers or mask.ndim != 1:
        found = (
            f"{mask.dtype} of shape {list(mask.shape)}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        )
        raise TypeError(
            f"present: expected a function from the batch to a boolean tensor [task], got {found}"
            + ("" if counts else "; numbers of labels are for group=")
        )
    return mask


def mask_of(counts: Tensor | None) -> Tensor | None:
    """Bool[task] from labels, or from numbers of them."""
    return counts if counts is None or counts.dtype == torch.bool else counts > 0


def with_labels(losses_fn: LossesFn, mask: Tensor | None) -> LossesFn:
    """`losses_fn` with 0 for absent tasks' losses; aux is then (the losses as they were, aux)."""
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
        elif visible(mask):
            # nothing of an absent task enters the graph: no backward pass of it, and no NaN
            both = zip(mask.tolist(), scalars, strict=True)
            kept = tuple(x if here else x.new_zeros(()) for here, x in both)
        else:
            both = zip(mask.unbind(), scalars, strict=True)
            kept = tuple(torch.where(here, x, 0.0) for here, x in both)
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


def is_empty(state: State) -> bool:
    """Whether this is the state of a probe without memory."""
    return isinstance(state, tuple) and not state


def same_rows(state: State, rows: Rows) -> bool:
    """Whether a state holds rows of the same leaves and shapes as `rows`."""
    return (
        isinstance(state, dict)
        and state.keys() == rows.keys()
        and all(state[name].shape == row.shape for name, row in rows.items())
    )


def check_memory(fits: bool) -> None:
    """Raise unless a probe's state fits that probe."""
    if not fits:
        raise ValueError(
            "state: its probe's part is not what this step's probe started with; it comes from a "
            "step with another probe, other parameters or another number of tasks: use init of "
            "this step"
        )


def check_leak(found: Labelled, *gradients: Tensor) -> None:
    """Raise where an absent task's loss is not finite and spoils these gradients, if that shows."""
    if not (visible(found.present) and can_look(found.losses, gradients)):
        return
    if all_present(found.present):
        return
    if found.present.shape != found.losses.shape:
        return
    absent = (~found.present & ~found.losses.isfinite()).nonzero().flatten().tolist()
    if absent and not all(bool(x.isfinite().all()) for x in gradients):
        raise ValueError(
            f"present: tasks {absent} are absent and their losses are not finite, like a mean over "
            "nothing, and 0 times their derivative is NaN in the gradients of the others; pick the "
            "labels with torch.where before the sum, or divide by count.clamp_min(1), or return "
            "separate losses (a tuple or dict), of which the absent ones are left out"
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
    """Losses `[task]` of one forward pass that leaves no trace, 0 for absent tasks.

    Where values can be read, also an error about a task that does not depend on `shared`, and
    (`hint`) a warning about a leaf there that one task alone depends on.
    """
    reached: list[set[str]] | None = None

    def forward(params: Params) -> tuple[Tensor, Any]:
        nonlocal reached
        with without_trace(params):
            ran = forward_pass(lambda: losses_fn(params, batch), params, outside=outside)
        losses, scalars, aux = split_output(ran.out)
        check_connected(losses, params)
        check_gathers(losses, params)
        if can_look_inside:
            reached = leaves_of_each(losses, scalars, params)
        return ran.released((losses, aux))

    can_look_inside, outside = can_look(batch, params), torch.is_grad_enabled()
    losses, _, _ = explained_vjp(forward, params)
    return checked_first(
        losses,
        reached,
        shared,
        heads=weights_of(params, shared) if hint else (),
        present=present,
        otherwise=lambda: _independent(losses_fn, params, batch, shared),
        look=can_look_inside,
    )


def checked_first(
    losses: Tensor,
    reached: list[set[str]] | None,
    shared: tuple[str, ...],
    *,
    heads: tuple[str, ...],
    present: Tensor | None,
    otherwise: Callable[[], list[int]],
    look: bool,
) -> Tensor:
    """The first losses `[task]`, 0 for absent tasks, after the checks that `first_losses` promises.

    Args:
        losses: of one forward pass.
        reached: the leaves behind each; None where the graph does not tell.
        shared: names of the shared leaves.
        heads: the names that call for a warning where one task alone depends on them.
        present: as in `first_losses`.
        otherwise: finds the tasks without shared leaves where the graph does not tell.
        look: whether values can be read.
    """
    if present is not None:
        if present.shape != losses.shape:
            raise ValueError(
                f"present: one entry a task is needed, {losses.shape[0]}, got {present.shape[0]}"
            )
        losses = losses.where(present, 0.0)
    check_finite(losses, "losses")
    if not look:
        return losses
    if reached is None:
        alone = otherwise()
    else:
        alone = [task for task, names in enumerate(reached) if not names & set(shared)]
    if present is not None:
        alone = [task for task in alone if bool(present[task])]
    if alone:
        raise ValueError(
            f"shared: the losses of tasks {alone} (counted from 0) depend on none of the shared "
            f"parameters {', '.join(shared)}; leave these tasks out, or widen the glob to the "
            "parameters that they use"
        )
    if heads and reached is not None and len(reached) > 1:
        private = [name for name in shared if sum(name in names for names in reached) == 1]
        if not set(private).isdisjoint(heads):
            warnings.warn(
                f"shared: only one task depends on {', '.join(private)}, which then counts in that "
                "task's gradient length alone; if these are heads, pass a glob for the trunk, such "
                "as shared='trunk.*'",
                stacklevel=5,
            )
    return losses


def weights_of(params: Params, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that may be a head's: a bias alone is not, as the last of a network in a loss of its
    derivatives.
    """
    return tuple(name for name in names if params[name].ndim > 1)


def leaves_of_each(
    losses: Tensor, scalars: tuple[Tensor, ...] | None, params: Params
) -> list[set[str]] | None:
    """Names of the leaves behind each loss, by the autograd graph; None for an opaque vector."""
    if not losses.requires_grad:
        return [set() for _ in range(losses.shape[0])]
    if scalars is None:
        if losses.grad_fn is None or losses.grad_fn.name() != "StackBackward0":
            return None
        nodes = [node for node, _ in losses.grad_fn.next_functions]
    else:
        nodes = [gradient_edge(scalar).node if scalar.requires_grad else None for scalar in scalars]
    leaf_nodes = {gradient_edge(leaf).node: name for name, leaf in params.items()}
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
    """Tasks whose loss stays finite when the shared parameters are NaN, and has no gradient."""
    broken = {
        name: torch.full_like(leaf, float("nan")) if name in shared else leaf
        for name, leaf in params.items()
    }
    try:
        with torch.no_grad(), without_trace(broken):
            losses = split_output(losses_fn(broken, batch))[0]
    except Exception:  # a model may refuse NaN: then there is nothing to be learnt this way
        return []
    suspects = losses.isfinite().nonzero().flatten().tolist()
    if not suspects:
        return []
    with without_trace(params):
        rows = linearize(losses_fn, params, batch, shared=shared).rows
    return [task for task in suspects if not any(bool(leaf[task].any()) for leaf in rows.values())]
