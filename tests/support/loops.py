"""Many steps in a row."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_map

import mtlfunc as mf


def rollout(
    step: mf.Step,
    state: mf.TrainState,
    batches: Iterable[Any],
    record: Callable[[mf.TrainState, mf.Info], Any] = lambda _, info: info._replace(aux=()),
) -> tuple[mf.TrainState, Any]:
    """The last state, and what was recorded after each step, stacked."""
    kept = []
    for batch in batches:
        state, info = step.update(state, batch)
        kept.append(tree_map(torch.clone, record(state, info)))  # captured states are overwritten
    return state, tree_map(lambda *each: torch.stack(each), *kept)
