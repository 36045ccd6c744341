"""A probe that evaluates the last batch again, after the step that was taken on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..gradients.forward import split_output
from ..types import Batch, LossesFn, Params, Probe, State, TaskGradients


class RevisitState(NamedTuple):
    probe: State
    batch: Batch  # of the last step, copied
    losses: Float[Tensor, " task"]  # before the last step
    present: Bool[Tensor, " task"]  # in the last batch; nobody before the first step


def second_evaluation(probe: Probe) -> Probe:
    """`probe`, and the last step's batch evaluated again at this step's parameters: one more
    forward a step, and no backward.

    How far a step lowered the losses is only told by the batch it was taken on; FAMO's weights
    learn from that. `geometry.extra` gets three rows `[task]`: `last_losses`, before the last step;
    `last_losses_now`, after it; and `last_present`, which is false everywhere at the first step.

    Args:
        probe: any probe whose rows are the tasks (no `mix`). The batch is part of its state: any
            nested tuple, list or dict of tensors.

    Returns:
        a probe; all else is as the given one measures it. Under a `vmap` over networks that share a
        batch each keeps a view of it, not a copy.

    Raises:
        TypeError: for a batch with leaves that are not tensors.
        ValueError: where the probe mixes tasks into rows.

    Source:
        Liu et al. 2023 (FAMO), Algorithm 2, the second evaluation of the losses.
    """

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        losses, inner = probe.init(losses_fn, params, batch, key)
        rows = losses.shape[-1:]
        return losses, RevisitState(
            inner, _copied(batch), losses.new_zeros(rows), losses.new_zeros(rows, dtype=torch.bool)
        )

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: RevisitState
    ) -> tuple[TaskGradients, State]:
        measured, inner = probe.update(losses_fn, params, batch, state.probe)
        geometry = measured.geometry
        now = split_output(losses_fn(params, state.batch))[0]
        if geometry.losses.shape != now.shape:
            raise ValueError(
                f"second_evaluation: the probe mixes {len(now)} tasks into "
                f"{len(geometry.losses)} rows; leave mix out"
            )
        last = {
            "last_losses": state.losses,
            "last_losses_now": now.where(state.present, 0.0),
            "last_present": state.present,
        }
        geometry = geometry._replace(extra=geometry.extra | last)
        # Laid out as before: a state of other strides would make the compiler start twice.
        # The losses as losses_fn gives them: the geometry's may be their logarithms, which are not
        # what will be evaluated again.
        kept = (
            torch.zeros_like(state.losses) + measured.losses.where(geometry.present, 0.0),
            torch.zeros_like(state.present) | geometry.present,
        )
        return measured._replace(geometry=geometry), RevisitState(inner, _copied(batch), *kept)

    return Probe(init, update)


def _copied(batch: Batch) -> Batch:
    """A copy, which writing into the original's buffers does not change."""
    for leaf in tree_leaves(batch):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                "batch: second_evaluation keeps it as a part of its state, so its leaves must "
                f"be tensors, got {type(leaf).__name__}; use torch.as_tensor"
            )
    return tree_map(torch.clone, batch)
