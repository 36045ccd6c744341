"""Calls whose output every sample adds: a table of positions, looked up once for all of them.

Nothing in such an output counts samples. But every derivative that reaches it passes through the
sum that broadcasts it, whose output has the samples: it is read there, as one call a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.autograd.graph import GradientEdge

from .formulas import Group, layouts
from .graph import Graph
from .nodes import facts_of
from .uses import Node, Use


def over_samples(
    groups: Mapping[str, list[Group]], graph: Graph, samples: int
) -> dict[str, list[Group]]:
    """The groups, with such calls read where their output is broadcast over samples."""

    def spread(group: Group) -> Group:
        uses = tuple(_where_broadcast(use, graph, samples) for use in group.uses)
        return group._replace(uses=uses)

    return {name: [*map(spread, parts)] for name, parts in groups.items()}


def _where_broadcast(use: Use, graph: Graph, samples: int) -> Use:
    """A call at the first sum above it, in the graph, that broadcasts it over samples."""
    node, place = use.edge.node, use.edge.output_nr
    for _ in range(_FARTHEST):
        found = _only_consumer(node, place, graph)
        if found is None:
            return use
        node, place = found, 0
        (out,) = node._input_metadata
        wide = _broadcast_to(use, tuple(out.shape), GradientEdge(node, 0))
        if out.dtype != use.dtype or wide is None:
            return use
        extra = len(wide.shape) - len(use.shape)
        grown = [x for x in wide.axes if x < extra or wide.shape[x] != use.shape[x - extra]]
        if any(layout.axis in grown for layout in layouts(wide, samples)):
            return wide
    return use


_FARTHEST = 4
"""Operations between a call and the sum that broadcasts it."""


def _only_consumer(node: Node, place: int, graph: Graph) -> Node | None:
    """What alone reads an output, if it hands derivatives on as they are but for their shape."""
    parents = graph.parents.get(node, [])
    if len(parents) != 1 or parents[0][2] != place:
        return None
    parent, index, _ = parents[0]
    first = index == 0 or (parent.name() == "AddBackward0" and parent._saved_alpha == 1)
    same = first and getattr(parent, "_saved_dim", 0) == 0
    return parent if same and "passes" in facts_of(parent).traits else None


def _broadcast_to(use: Use, shape: tuple[int, ...], edge: GradientEdge) -> Use | None:
    """The call as if its output had this shape, of axes that count positions."""
    extra, lead = len(shape) - len(use.shape), len(use.axes)
    if extra < 0 or use.axes != tuple(range(lead)) or (extra and use.op not in _ANY_AXES):
        return None
    if shape[extra + lead :] != tuple(use.shape[lead:]) or any(
        old not in (1, new) for old, new in zip(use.shape[:lead], shape[extra:], strict=False)
    ):
        return None
    fixed, inner = use.fixed, shape[: extra + lead]

    def spread() -> Any:
        assert fixed is not None
        x = fixed()
        return x.expand(*inner, *x.shape[lead:])

    return use._replace(
        edge=edge,
        shape=type(use.shape)(shape),
        axes=tuple(range(extra + lead)),
        fixed=None if fixed is None else spread,
    )


_ANY_AXES = ("linear", "matmul", "embedding", "layer_norm", "rms_norm")
"""Calls that are read alike whatever the number of axes before the last."""
