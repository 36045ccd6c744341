"""Many steps in a row, with a record; what was computed is kept, whatever ends them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..core._torch import tree_flatten, tree_map
from ..core.checks import check_count, inside_transform
from ..core.expect import expect_function, expect_state, expect_step
from ..core.progress import progress_bar
from ..types import Batch, Info, State, Step, TrainState
from ._capture import Captured

_NOTE = (
    "rollout: the state and the record before this step are .state and .record of this error. "
    "batches yields one batch a step; for the same batch at every step: itertools.repeat(batch, n)"
)


class Interrupted(KeyboardInterrupt):
    """Raised by `rollout` on Ctrl-C, with what was computed: `.state` and `.record`."""

    def __init__(self, state: State, record: Any) -> None:
        super().__init__("rollout interrupted; .state and .record hold what was computed")
        self.state: State = state
        self.record = record


def rollout(
    step: Step,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    record: Callable[[TrainState, Info], Any] | None = None,
    every: int = 1,
) -> tuple[TrainState, Any]:
    """Many steps, one for each batch: with a progress bar, or as a plain loop inside transforms.

    Args:
        step: from `mtlfunc.descend`.
        state: from `step.init`, or of an earlier rollout.
        batches: any iterable; `itertools.repeat(batch, 1000)` for a full batch.
        record: `(state after the step, info) -> ` tensors or numbers, one or a nested tuple or
            dict of them, the same shapes at every step; None records info without aux.
        every: record one step of `every`, from the first.

    Returns:
        the final state and the record, each tensor stacked along a new first axis (None if there
        was no step).

    Raises:
        TypeError: for a step or a state that is something else; for a record with anything but
            tensors and numbers, at the first step.
        Interrupted: a KeyboardInterrupt that carries state and record, on Ctrl-C.
        Exception: whatever a step, a batch or `record` raises, with `.state` and `.record` up to
            then.

    Examples:
        >>> import itertools, torch, mtlfunc as mf
        >>> losses = lambda params, batch: (params["x"] - batch).square()
        >>> step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.sgd(0.25))
        >>> batch = torch.tensor([1.0, 3.0])
        >>> state = step.init({"x": torch.zeros(())}, batch)
        >>> state, record = mf.rollout(step, state, itertools.repeat(batch, 3))
        >>> state.params["x"].item(), tuple(record.losses.shape)
        (1.75, (3, 2))
    """
    expect_step(step)
    expect_state(state, TrainState, "step.init")
    check_count(every, "every")
    if record is not None:
        expect_function(record, "record", "state, info")
    take = record or (lambda state, info: info._replace(aux=()))
    # a captured step overwrites the states that it returned
    own = torch.clone if record and isinstance(step.update, Captured) else None
    kept: list[Any] = []
    # One assignment binds the state and the length of its record: no interrupt comes between them.
    done = state, 0
    quiet = inside_transform() or torch.compiler.is_compiling()
    try:
        for count, batch in enumerate(batches if quiet else _progress(batches)):
            state, info = step.update(done[0], batch)
            if count % every == 0:
                entry = _entry(take(state, info), kept)
                kept.append(tree_map(own, entry) if own else entry)
            done = state, len(kept)
        return done[0], _stack_entries(kept)
    except KeyboardInterrupt as stop:
        raise Interrupted(done[0], _stack_entries(kept[: done[1]])) from stop
    except Exception as error:
        if not quiet:
            error.add_note(_NOTE)
            # a type checker knows of no such attributes
            vars(error).update(state=done[0], record=_stack_entries(kept[: done[1]]))
        raise


def _progress(batches: Iterable[Batch]) -> Iterable[Batch]:
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches: expected an iterable of batches, got {type(batches).__name__}; for a full "
            "batch use itertools.repeat(batch, steps)"
        )
    total = operator.length_hint(batches) or None
    return progress_bar(batches, total=total, desc="steps")


def _entry(entry: Any, kept: list[Any]) -> Any:
    """One step's record as tensors, of the structure and shapes of those before."""
    leaves, structure = tree_flatten(entry)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | int | float) and not hasattr(leaf, "__array__"):
            raise TypeError(
                "record: expected tensors or numbers, one or a nested tuple or dict of them, got "
                f"{'None' if leaf is None else type(leaf).__name__}; return () for nothing"
            )
    entry = tree_map(_tensor, entry)
    if kept:
        first, expected = tree_flatten(kept[0])
        shapes = [[list(leaf.shape) for leaf in part] for part in (first, tree_flatten(entry)[0])]
        if structure != expected or shapes[0] != shapes[1]:
            raise ValueError(
                "record: every step's must have the structure and shapes of the first's, "
                f"{shapes[0]} in {expected}, got {shapes[1]} in {structure}"
            )
    return entry


def _tensor(leaf: Any) -> Tensor:
    dtype = torch.float64 if isinstance(leaf, float) else None
    return leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf, dtype=dtype)


def _stack_entries(kept: list[Any]) -> Any:
    return tree_map(lambda *leaves: torch.stack(leaves), *kept) if kept else None
