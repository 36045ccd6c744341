"""The step of most loops in the fewest calls: separate losses of one process, nothing else given.

It answers what the ordinary step does, bit for bit. Where more is asked, where the graph holds
more, and for every error, the step is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import Made
from ..core.checks import all_rows_mask, has_finite_sum, inside_transform, is_differentiated
from ..core.tree import combine as sum_rows
from ..gradients.layerwise import Graph, read_graph, separate_edges
from ..gradients.losses import Tasks, parse_losses
from ..gradients.separate import gramian_of, is_plain, row_matrix, rows_of, times
from ..probes import _jacobian
from ..probes._jacobian import RowOptions
from ..types import Geometry, Params, Probe, TaskGradients
from ._given import as_list, is_whole
from ._live import Seen, outside


class Short(NamedTuple):
    """What such a step has to know of the leaves, while a module keeps them."""

    leaves: Params
    shared: tuple[str, ...]
    others: tuple[str, ...]
    share: Callable[[int], float | None]  # from T, each task's weight on the others


def plain_options(probe: Probe) -> RowOptions | None:
    """Those of a `jacobian` that is given `shared` and `heads` alone; None of every other probe."""
    update = probe.update.function if isinstance(probe.update, Made) else probe.update
    if getattr(update, "func", None) is not _jacobian._update:
        return None
    options: RowOptions = update.args[0]  # pyright: ignore
    plain = options == RowOptions(options.shared, heads=options.heads)
    return options if plain and options.heads != "weighted" else None


def short_of(options: RowOptions, leaves: Params) -> Short:
    shared, _, _ = _jacobian._layout(leaves, options)
    others = tuple(name for name in leaves if name not in set(shared))
    share = _jacobian.share_of(options.heads)
    return Short(leaves, shared, others, share)


def measure_short(
    short: Short, losses: Any, tasks: Tasks, seen: Seen, asks: Callable[[Graph, Params], bool]
) -> tuple[TaskGradients, list[str]] | None:
    """What `jacobian` measures, and the names of the leaves that the losses depend on; the last
    pass has freed the graph.

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
    if elsewhere or not torch.is_grad_enabled() or not is_plain(leaves):
        return None
    parsed = parse_losses(as_list(losses), "losses", tasks=tasks, first="the first step")
    vector, value = parsed.vector, parsed.vector.detach()
    edges = [x for x in separate_edges(vector, parsed.scalars) or () if x is not None]
    if len(edges) < len(value) or not has_finite_sum(value):
        return None
    graph = read_graph(edges, leaves)
    if seen.take(graph, separate=True) or graph.has_custom_backward:
        return None
    if outside(graph, leaves) or asks(graph, leaves):
        return None
    matrix, sums = row_matrix(vector, edges, leaves, leaves, shared, others, frees=True)
    heads = times(share(len(edges)) or 1.0, sums)
    preference = value.new_full((len(edges),), 1 / len(edges))
    geometry = Geometry(value, gramian_of(matrix), preference, all_rows_mask(value), {})

    def combine(weights: Tensor) -> Params:
        grads = sum_rows(weights, rows_of(matrix, leaves, shared)) | heads
        return {name: grads[name] for name in leaves}

    return TaskGradients(value, geometry, combine, (), None), graph.reached()
