"""The step of most loops in the fewest calls: the losses of one process, nothing else given.

It answers what the ordinary step does, bit for bit. Where more is asked, where the graph holds
more, and for every error, the step is the ordinary one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import Made
from ..core.checks import (
    all_rows_mask,
    gradient_edge,
    has_finite_sum,
    inside_transform,
    is_differentiated,
)
from ..gradients.layerwise import has_rows, key_of, read_graph
from ..gradients.levels import run_backward
from ..gradients.losses import Tasks
from ..gradients.separate import gramian_of, is_plain, row_matrix, times
from ..probes import _jacobian
from ..probes._jacobian import RowOptions
from ..probes._losses_only import losses_only
from ..types import Geometry, Info, Params, Probe, TaskGradients
from ._live import Seen, foreign_parameters


class Short(NamedTuple):
    """What such a step has to know of the leaves, while a module keeps them."""

    leaves: Params
    shared: tuple[str, ...]
    others: tuple[str, ...]
    # from T, each task's weight on the others; where none are shared the rule's weights count
    share: Callable[[int], float | None]


def plain_options(probe: Probe) -> RowOptions | None:
    """Those of a `jacobian` that is given `shared` and `heads` alone, and for `losses_only` those
    of one that shares nothing; None of every other probe.
    """
    if probe == losses_only():
        return RowOptions((), heads="weighted")
    update = probe.update.function if isinstance(probe.update, Made) else probe.update
    if getattr(update, "func", None) is not _jacobian._update:
        return None
    options: RowOptions = update.args[0]  # pyright: ignore
    plain = options == RowOptions(options.shared, heads=options.heads)
    return options if plain and options.heads != "weighted" else None


def short_of(options: RowOptions, leaves: Params) -> Short:
    shared = () if options.heads == "weighted" else _jacobian._layout(leaves, options)[0]
    others = tuple(name for name in leaves if name not in set(shared))
    return Short(leaves, shared, others, _jacobian.share_of(options.heads))


def measure_short(
    short: Short, losses: Any, tasks: Tasks, seen: Seen, asks: Callable[[Params, int], bool]
) -> tuple[TaskGradients, list[str], bool] | None:
    """What `jacobian` or `losses_only` measure, the names of the leaves that the losses depend on,
    and whether each gradient has memory of its own. The last pass frees the graph, unless hooks
    bring back what several passes need.

    Args:
        short: for the module as it is now.
        losses: as the user has them.
        tasks: those of the first step.
        seen: whether hooks can be in the graph.
        asks: whether another way than rows may be the cheaper one.
    """
    leaves, shared, others, share = short
    scalars = _separate(losses, tasks)
    elsewhere = is_differentiated(()) or inside_transform() or torch.is_autocast_enabled("cpu")
    pieces = not all(map(attrgetter("is_leaf"), leaves.values()))  # of other tensors
    if not scalars or elsewhere or pieces or not torch.is_grad_enabled() or not is_plain(leaves):
        return None
    vector = torch.stack(scalars)
    value, edges = vector.detach(), list(map(gradient_edge, scalars))
    if not value.is_cpu or not value.is_floating_point() or not has_finite_sum(value):
        return None
    graph = read_graph(edges, leaves)
    if seen.take(graph, separate=True) or graph.has_custom_backward:
        return None
    reached = graph.reached()
    if not reached or (len(reached) < len(graph.variables) and foreign_parameters(graph, leaves)):
        return None
    if asks(leaves, len(edges)) and not has_rows(key_of(graph, len(edges), shared)):
        return None
    preference, present = value.new_full((len(edges),), 1 / len(edges)), _all_present(len(edges))
    if present._version:  # a rule has written there
        present = all_rows_mask(value)
    if not shared:
        geometry = Geometry(value, None, preference, present, {})
        return TaskGradients(value, geometry, weighted_pass(vector, leaves), ()), reached, False
    freed = None if graph.has_saved_hooks else vector  # a task's checkpoint would run once more
    matrix, sums = row_matrix(edges, value, leaves, leaves, shared, others, freed=freed)
    heads = times(share(len(edges)) or 1.0, sums)
    geometry = Geometry(value, gramian_of(matrix), preference, present, {})

    def combine(weights: Tensor) -> Params:
        grads, weights = heads.copy(), weights.to(matrix.dtype)
        parts = matrix.split_with_sizes([leaves[name].numel() for name in shared], 1)
        for name, part in zip(shared, parts, strict=True):
            grads[name] = (weights @ part).view(leaves[name].shape)
        return {name: grads[name] for name in leaves}

    apart = heads is not sums or not sums
    return TaskGradients(value, geometry, combine, ()), reached, apart


def is_bounded(info: Info) -> bool:
    """Whether the combination of the rows is surely finite: no entry is above Σ |w_t| ‖g_t‖."""
    pairs = zip(info.weights.tolist(), info.gramian.diagonal().tolist(), strict=True)
    longest = sum([abs(weight) * (1 + math.sqrt(square)) for weight, square in pairs])
    return longest < torch.finfo(info.gramian.dtype).max / 2


def _separate(losses: Any, tasks: Tasks) -> list[Tensor] | None:
    """Scalars with a graph in the order of the tasks, if these are their losses; None of others."""
    if isinstance(losses, dict) and isinstance(tasks, dict) and losses.keys() == tasks.keys():
        found = [losses[name] for name in tasks]
    elif isinstance(losses, list | tuple) and isinstance(tasks, tuple):
        found = list(losses) if len(losses) == len(tasks) else []
    else:
        return None
    plain = [type(x) is Tensor and x.ndim == 0 and x.grad_fn is not None for x in found]
    return found if all(plain) else None


@lru_cache(16)
def _all_present(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool, device="cpu")


def weighted_pass(losses: Tensor, leaves: Params) -> Callable[[Tensor], Params]:
    """From weights to the gradient of the weighted loss, by one pass that frees the graph."""

    def combine(weights: Tensor) -> Params:
        given = weights.detach().to(losses.dtype, copy=True)  # it may be a leaf's gradient
        found = run_backward(losses, given, tuple(leaves.values()), keep=False)
        pairs = zip(leaves.items(), found, strict=True)
        return {name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in pairs}

    return combine
