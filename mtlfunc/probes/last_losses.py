"""A probe that evaluates the last batch again, after the step that was taken on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.expect import expect_probe
from ..core.internals import tree_leaves, tree_map
from ..types import LAST_LOSSES, Batch, Probe, State, TaskGradients, constructor
from .common import Run, check_memory

ONE_BATCH = (
    "probe: the losses before and after a step, which mtlfunc.famo reads, are those of the tasks "
    "on one batch; take a probe of one batch without mix= and weightings="
)


class SecondEvaluationState(NamedTuple):
    """The inner probe's state, and the last step's batch with its losses."""

    probe: State
    batch: Batch  # of the last step, copied
    losses: Float[Tensor, " task"]  # before the last step
    present: Bool[Tensor, " task"]  # in the last batch; no task before the first step
    share: Float[Tensor, " task"]  # of this process in the losses of a group; else 1


@constructor
def second_evaluation(probe: Probe) -> Probe:
    """Another probe, and the last step's batch evaluated again after that step.

    It costs one more forward pass a step, and no backward. How far a step lowered the losses shows
    only on the batch that it was taken on; FAMO's weights learn from that.

    Args:
        probe: any probe of one batch whose rows are the losses (no `mix`, no `weightings`). The
            batch is part of its state: any nested tuple, list or dict of tensors.

    Returns:
        a probe that measures as the given one does; `geometry.extra` gets three rows `[task]`:
        `last_losses`, before the last step; `last_losses_now`, after it; and `last_present`, which
        is false everywhere at the first step. Under a `vmap` over networks that share a batch each
        keeps a view of it, not a copy.

    Raises:
        TypeError: for `probe` that is none; at `init`, for a batch of other leaves than tensors.
        ValueError: for another probe, as far as it says so; else at a step.

    Source:
        Liu et al. 2023 (FAMO), Algorithm 2, the second evaluation of the losses.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: (params["x"] - batch).square()
        >>> probe = second_evaluation(mf.losses_only())
        >>> params, batch = {"x": torch.zeros(())}, torch.tensor([1.0, 2.0])
        >>> _, state = probe.init(mf.Run.of(losses, params), batch, mf.random.key(0))
        >>> _, state = probe.update(mf.Run.of(losses, params), batch, state)
        >>> measured, _ = probe.update(mf.Run.of(losses, {"x": torch.ones(())}), batch, state)
        >>> {name: row.tolist() for name, row in measured.geometry.extra.items()}
        {'last_losses': [1.0, 4.0], 'last_losses_now': [0.0, 1.0], 'last_present': [True, True]}
    """
    expect_probe(probe)
    measures = _measuring(probe)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        losses, inner = probe.init(run, batch, key)
        return losses, SecondEvaluationState(inner, _copied(batch), *_no_step(losses))

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, SecondEvaluationState))
        measured, inner = probe.update(run, batch, state.probe)
        now = run.union.total(run.losses(run.params, state.batch).vector, state.share)
        following = state._replace(probe=inner, batch=_copied(batch))
        return _remember(measured, following, now)

    return probe._replace(init=init, update=update, measures=measures, calls_model=True)


class ObservedState(NamedTuple):
    """The inner probe's state, and the last step's losses."""

    probe: State
    losses: Float[Tensor, " task"]  # before the last step
    present: Bool[Tensor, " task"]  # in the last batch; no task before the first step
    share: Float[Tensor, " task"]  # of this process in the losses of a group; else 1
    now: Float[Tensor, " task"]  # after it, from `Balancer.observe`
    due: Bool[Tensor, ""]  # whether that is to come; on the host


def observed(probe: Probe) -> Probe:
    """What `second_evaluation` measures, of losses that `Balancer.observe` takes after a step."""
    measures = _measuring(probe)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        losses, inner = probe.init(run, batch, key)
        zeros, due = losses.new_zeros(losses.shape[-1:]), torch.zeros((), dtype=torch.bool)
        return losses, ObservedState(inner, *_no_step(losses), zeros, due)

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, ObservedState))
        if bool(state.due):
            raise ValueError(
                "losses: this rule reads those of the last batch after the step: call "
                "balancer.observe(losses) after optimizer.step(), with the losses of that batch "
                "evaluated again (no graph is needed)"
            )
        measured, inner = probe.update(run, batch, state.probe)
        following = state._replace(probe=inner, due=torch.ones_like(state.due))
        return _remember(measured, following, state.now)

    return probe._replace(init=init, update=update, measures=measures)


def _measuring(probe: Probe) -> frozenset[str] | None:
    """What is measured then; an error for rows that are not the losses of one batch."""
    if probe.mixes or probe.weightings or "cross_gramian" in (probe.measures or ()):
        raise ValueError(ONE_BATCH)
    return None if probe.measures is None else probe.measures.union(LAST_LOSSES)


def _no_step(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, tasks and shares to keep before the first step."""
    rows = losses.shape[-1:]
    nobody = losses.new_zeros(rows, dtype=torch.bool)
    return losses.new_zeros(rows), nobody, losses.new_ones(rows)


def _remember(
    measured: TaskGradients, state: SecondEvaluationState | ObservedState, now: Tensor
) -> tuple[TaskGradients, State]:
    """With the last batch's losses, before its step and `now`; and the state with this batch's."""
    geometry = measured.geometry
    if geometry.losses.shape != now.shape:
        raise ValueError(ONE_BATCH)
    last = (state.losses, now.where(state.present, 0.0), state.present)
    extra = geometry.extra | dict(zip(LAST_LOSSES, last, strict=True))
    share = 1.0 if measured.part is None else measured.part
    # Laid out as before: a state of other strides would make the compiler start twice.
    following = state._replace(
        losses=torch.zeros_like(state.losses) + measured.losses.where(geometry.present, 0.0),
        present=torch.zeros_like(state.present) | geometry.present,
        share=torch.zeros_like(state.share) + share,
    )
    return measured._replace(geometry=geometry._replace(extra=extra)), following


def _copied(batch: Batch) -> Batch:
    """A copy, which writing into the original's buffers does not change."""
    for leaf in tree_leaves(batch):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                "batch: second_evaluation keeps it as a part of its state, so its leaves must "
                f"be tensors, got {type(leaf).__name__}; use torch.as_tensor"
            )
    return tree_map(torch.clone, batch)
