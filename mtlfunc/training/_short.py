"""The step of most loops in the fewest calls: the losses of one process, nothing else given.

It answers what the ordinary step does, bit for bit. Where more is asked, where the graph holds
more, and for every error, the step is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import Made
from ..core._torch import flatten, unflatten
from ..core.checks import check_gradients, has_finite_sum, inside_transform, is_differentiated
from ..gradients.layerwise import (
    Asked,
    Ending,
    dtypes_of,
    has_rows,
    is_worth_recording,
    read_graph,
    separate_edges,
)
from ..gradients.levels import run_backward
from ..gradients.losses import Tasks
from ..gradients.separate import gramian_of, is_plain, row_matrix
from ..probes import _jacobian
from ..probes._jacobian import RowOptions
from ..probes._losses_only import losses_only
from ..types import Geometry, Params, Probe, TaskGradients
from ._live import Seen, foreign_parameters


class Short(NamedTuple):
    """What such a step has to know of the leaves, while a module keeps them."""

    leaves: Params
    shared: tuple[str, ...]
    others: tuple[str, ...]
    # from T, each task's weight on the others; where none are shared the rule's weights count
    share: Callable[[int], float | None]
    # by counts, of graphs whose last pass frees what it visits alone: the mark, and its entries
    light: dict[tuple[int, ...], tuple[int, int]]

    def of(self, reached: Sequence[str]) -> Short:
        """Without leaves on which no loss depends, unless all that are shared are such."""
        shared, others = (
            tuple([name for name in names if name in reached])
            for names in (self.shared, self.others)
        )
        return self._replace(shared=shared or self.shared, others=others)


def plain_options(probe: Probe) -> RowOptions | None:
    """Those of a `jacobian` that is given `shared` and `heads` alone, and for `losses_only` those
    of one that shares nothing; None of every other probe.
    """
    if probe == losses_only():
        return RowOptions((), heads="weighted")
    options = row_options(probe)
    plain = options and options == RowOptions(options.shared, heads=options.heads)
    return options if options and plain and options.heads != "weighted" else None


def row_options(probe: Probe) -> RowOptions | None:
    """The arguments of a `jacobian`; None of every other probe."""
    update = probe.update.function if isinstance(probe.update, Made) else probe.update
    found = getattr(update, "func", None) is _jacobian._update
    return update.args[0] if found else None  # pyright: ignore


def short_of(options: RowOptions, leaves: Params) -> Short:
    shared = () if options.heads == "weighted" else _jacobian._layout(leaves, options)[0]
    others = tuple(name for name in leaves if name not in set(shared))
    return Short(leaves, shared, others, _jacobian.share_of(options.heads), {})


def measure_short(
    short: Short, losses: Any, tasks: Tasks, seen: Seen, asks: Callable[[Params, int], bool]
) -> tuple[TaskGradients, list[str], bool] | None:
    """What `jacobian` or `losses_only` measure, the names of the leaves that the losses depend on,
    and whether no gradient has an entry in common with another. The last pass frees the graph.

    Args:
        short: for the module as it is now.
        losses: as the user has them.
        tasks: those of the first step.
        seen: whether hooks can be in the graph.
        asks: whether another way than rows may be the cheaper one.
    """
    leaves, light = short.leaves, short.light
    scalars = _separate(losses, tasks)
    elsewhere = is_differentiated(()) or inside_transform() or torch.is_autocast_enabled("cpu")
    if not scalars or elsewhere or not torch.is_grad_enabled() or not is_plain(leaves):
        return None
    vector = torch.stack(scalars)
    value, edges = vector.detach(), separate_edges(vector, scalars) or ()
    if not value.is_cpu or not value.is_floating_point() or not has_finite_sum(value):
        return None
    graph = read_graph(edges, leaves)
    if seen.take(graph, separate=True) or graph.has_custom_backward:
        return None
    reached = list(graph.leaf_nodes)
    if not reached or foreign_parameters(graph, leaves):
        return None
    whole = len(reached) == len(leaves)
    short = short if whole else short.of(reached)
    shared, others, share = short.shared, short.others, short.share
    if asks(leaves, len(edges)) and (whole or is_worth_recording(leaves, shared, len(edges))):
        dtypes = dtypes_of(value, leaves)
        if not has_rows(Asked(graph.kind, len(edges), shared, dtypes, "cpu", shared)):
            return None
    gramian, apart, combine = None, False, partial(_weighted, vector, leaves)
    if shared:
        ending = Ending(graph.largest, frees=True, others=None)
        mark, most = light.get(graph.counts, (0, -1))
        if graph.entries_at(mark) > most:  # a graph of other operations, or of larger ones
            ending = graph.ending(vector, frees=True)
            if ending.others is None:
                if len(light) > 64:  # such as sequences of all lengths
                    light.clear()
                light[graph.counts] = graph.mark, graph.entries_at(graph.mark)
        matrix, sums = row_matrix(edges, value, leaves, leaves, shared, others, ending=ending)
        gramian, apart = gramian_of(matrix), True
        combine = partial(_combined, matrix, sums, share(len(edges)) or 1.0, short)
    geometry = Geometry(value, gramian, torch.full_like(value, 1 / len(edges)), value.eq(value), {})
    return TaskGradients(value, geometry, combine, ()), reached, apart


def _separate(losses: Any, tasks: Tasks) -> tuple[Tensor, ...]:
    """Scalars with a graph in the order of the tasks, if these are their losses; () for others."""
    form: Any = dict if isinstance(tasks, dict) else list | tuple
    if not isinstance(losses, form) or len(losses) != len(tasks):
        return ()
    found = tuple(losses) if isinstance(tasks, tuple) else tuple(map(losses.get, tasks))
    plain = [type(x) is Tensor and x.ndim == 0 and x.grad_fn is not None for x in found]
    return found if all(plain) else ()


def _combined(matrix: Tensor, sums: Params, share: float, short: Short, weights: Tensor) -> Params:
    """The weighted sum of the rows, and of the others' gradients their share: parts of two vectors,
    in which a number that is not finite shows at once.
    """
    leaves, whole = short.leaves, [weights.to(matrix.dtype) @ matrix]
    parts = unflatten(whole[0], [leaves[name] for name in short.shared])
    if others := [sums[name] for name in short.others]:
        whole.append(flatten(others).mul_(share))
        parts += unflatten(whole[1], others)
    grads = dict(zip((*short.shared, *short.others), parts, strict=True))
    if not has_finite_sum(*whole):
        check_gradients({name: grads[name] for name in leaves if name in grads})
    return grads


def _weighted(losses: Tensor, leaves: Params, weights: Tensor) -> Params:
    """The gradient of the weighted loss, by one pass that frees the graph."""
    given = weights.detach().to(losses.dtype, copy=True)  # it may be a leaf's gradient
    found = run_backward(losses, given, tuple(leaves.values()), keep=False)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in pairs}
