"""Many steps in a row."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

import mtlfunc as mf
from tests.support.problems import PARAMS


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
        kept.append(record(state, info))
    return state, tree_map(lambda *each: torch.stack(each), *kept)


def reloaded(state: Any) -> Any:
    """From a file that `torch.load` takes with its defaults."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def trained(step: mf.Step, batches: Sequence[Any], params: Any = PARAMS, **options: Any) -> Any:
    """The state after a step on each batch, begun on the first one."""
    state = step.init(params, batches[0], **options)
    for batch in batches:
        state, _ = step.update(state, batch)
    return state
