"""The step of most loops in the fewest calls: the losses of one process, nothing else given.

It answers what the ordinary step does, bit for bit. Where more is asked, where the graph holds
more, and for every error, the step is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import Made
from ..core.checks import all_rows_mask, has_finite_sum, inside_transform, is_differentiated
from ..core.tree import combine as sum_rows
from ..gradients.layerwise import Graph, read_graph, separate_edges
from ..gradients.levels import run_backward
from ..gradients.losses import Tasks, parse_losses
from ..gradients.separate import gramian_of, is_plain, row_matrix, rows_of, times
from ..probes import _jacobian
from ..probes._jacobian import RowOptions
from ..probes._losses_only import losses_only
from ..types import Geometry, Params, Probe, TaskGradients
from ._given import as_list, is_whole
from ._live import Seen, outside


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
    short: Short, losses: Any, tasks: Tasks, seen: Seen, asks: Callable[[Graph, Params, int], bool]
) -> tuple[TaskGradients, list[str]] | None:
    """What `jacobian` or `losses_only` measure, and the names of the leaves that the losses depend
    on. The last pass frees the graph, unless hooks bring back what several passes need.

    Args:
        short: for the module as it is now.
        losses: as the user has them.
        tasks: those of the first step.
        seen: whether hooks can be in the graph.
        asks: whether another way than rows may be the cheaper one.
    """
    leaves, shared, others, share = short
    if not isinstance(losses, dict | list | tuple) or any(map(is_whole, losses)):
        return None
    elsewhere = inside_transform() or is_differentiated(()) or torch.is_autocast_enabled("cpu")
    pieces = not all(map(attrgetter("is_leaf"), leaves.values()))  # of other tensors
    if elsewhere or pieces or not torch.is_grad_enabled() or not is_plain(leaves):
        return None
    parsed = parse_losses(as_list(losses), "losses", tasks=tasks, first="the first step")
    vector, value = parsed.vector, parsed.vector.detach()
    edges = [x for x in separate_edges(vector, parsed.scalars) or () if x is not None]
    if len(edges) < len(value) or not has_finite_sum(value):
        return None
    graph = read_graph(edges, leaves)
    if seen.take(graph, separate=True) or graph.has_custom_backward:
        return None
    if outside(graph, leaves) or asks(graph, leaves, len(edges)):
        return None
    if not (reached := graph.reached()):
        return None
    present, preference = all_rows_mask(value), value.new_full((len(edges),), 1 / len(edges))
    if not shared:
        geometry = Geometry(value, None, preference, present, {})
        return TaskGradients(value, geometry, weighted_pass(vector, leaves), (), None), reached
    freed = None if graph.has_saved_hooks else vector  # a task's checkpoint would run once more
    matrix, sums = row_matrix(edges, value, leaves, leaves, shared, others, freed=freed)
    heads = times(share(len(edges)) or 1.0, sums)
    geometry = Geometry(value, gramian_of(matrix), preference, present, {})

    def combine(weights: Tensor) -> Params:
        grads = sum_rows(weights, rows_of(matrix, leaves, shared)) | heads
        return {name: grads[name] for name in leaves}

    return TaskGradients(value, geometry, combine, (), None), reached


def weighted_pass(losses: Tensor, leaves: Params) -> Callable[[Tensor], Params]:
    """From weights to the gradient of the weighted loss, by one pass that frees the graph."""

    def combine(weights: Tensor) -> Params:
        given = weights.detach().to(losses.dtype, copy=True)  # it may be a leaf's gradient
        found = run_backward(losses, given, tuple(leaves.values()), keep=False)
        pairs = zip(leaves.items(), found, strict=True)
        return {name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in pairs}

    return combine
