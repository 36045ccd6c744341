"""What the autograd graph says of a forward pass.

Who uses a leaf, which losses a call serves, and which calls have no batched backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

Node = Any  # torch.autograd.graph.Node

_UNBATCHED = (
    "ScaledDotProduct",
    "EmbeddingBag",
    "MkldnnRnn",
    "CudnnRnn",
    "MiopenRnn",
    "Thnn",
    "WeightNorm",
    "Trilinear",
    "Cdist",
    "EuclideanDist",
)
"""Operations whose backward torch runs in a loop under `vmap`, with a warning (one pass a row is as
fast, and quiet), or gets wrong there: cdist.
"""


_STALE = ("NativeLayerNorm", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")
"""Operations whose batched backward takes their statistics for constants when it is differentiated
again; single passes are right (torch 2.13).
"""


_NORMS = (*_STALE, "NativeGroupNorm", "FusedRmsNorm", "RmsNorm")
"""Their batched backward refuses the mixed dtypes that autocast gives them."""


class Graph(NamedTuple):
    parents: dict[Node, set[Node]]  # who consumes a node's output; empty for the roots
    reach: dict[Node, int]  # the roots behind it, one bit each
    batched: bool  # whether every operation has a batched backward
    twice: bool  # whether a batched backward may be differentiated

    def serves(self, edge: GradientEdge) -> int:
        return self.reach.get(edge.node, 0)


def read_graph(losses: Tensor, loss_edges: Sequence[GradientEdge | None] | None = None) -> Graph:
    """Walk to the leaves from each loss, if they are separate, else from their vector."""
    if loss_edges is None:
        roots = [losses.grad_fn]
    else:
        roots = [None if edge is None else edge.node for edge in loss_edges]
    tops = [node for node in roots if node is not None]
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in tops]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend(
                (child, False)
                for child, _ in node.next_functions
                if child is not None and child not in seen
            )
    parents: dict[Node, set[Node]] = {node: set() for node in order}
    reach = dict.fromkeys(order, 0)
    for bit, node in enumerate(roots):
        if node is not None:
            reach[node] |= 1 << bit
    for node in reversed(order):  # consumers first
        for child, _ in node.next_functions:
            if child is not None:
                parents[child].add(node)
                reach[child] |= reach[node]
    return Graph(parents, reach, *_batching(order))


def batching(losses: Tensor) -> tuple[bool, bool]:
    """`batched` and `twice` of `read_graph(losses)`, and no more."""
    todo = [] if losses.grad_fn is None else [losses.grad_fn]
    seen: set[Node] = set(todo)
    while todo:
        for child, _ in todo.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                todo.append(child)
    return _batching(seen)


def _batching(nodes: Iterable[Node]) -> tuple[bool, bool]:
    names = {node.name() for node in nodes}

    def some(kinds: tuple[str, ...]) -> bool:
        return any(name.startswith(kinds) for name in names)

    mixed = some(_NORMS) and some(("ToCopy",))
    return not some(_UNBATCHED) and not mixed, not some(_STALE)


def separate(
    losses: Tensor, scalars: tuple[Tensor, ...] | None
) -> tuple[GradientEdge | None, ...] | None:
    """The places of T separate losses in the graph; None for a vector computed as a whole.

    Losses that were stacked to a vector are separate, too.
    """
    if scalars is not None:
        return tuple(get_gradient_edge(x) if x.requires_grad else None for x in scalars)
    node = losses.grad_fn
    if node is None or node.name() != "StackBackward0":
        return None
    return tuple(
        None if child is None else GradientEdge(child, index)
        for child, index in node.next_functions
    )


def better_apart(graph: Graph, count: int) -> bool:
    """Whether T stacked losses are better differentiated each by itself, judged by the graph alone.

    One batched pass pays every node's overhead once (twice, for the batching) and its numbers T
    times, also those of nodes that serve one loss; T single passes pay what is common T times and
    the rest once.
    """
    alone = common = 0.0
    batched = 0.0
    for node, losses in graph.reach.items():
        size = sum(math.prod(place.shape) for place in getattr(node, "_input_metadata", ()))
        batched += 2 * OVERHEAD + count * size
        if losses.bit_count() == 1:
            alone += OVERHEAD + size
        else:
            common += OVERHEAD + size
    return count * common + alone < batched


OVERHEAD = 1e4
"""What a node costs whatever its size, in numbers read and written."""


def region(edge: GradientEdge, leaf: Node, inputs: frozenset[Node]) -> set[Node]:
    """The nodes of one call between its output and a leaf, not through its other inputs."""
    found: set[Node] = set()
    paths: list[tuple[Node, tuple[Node, ...]]] = [(edge.node, (edge.node,))]
    while paths:
        node, path = paths.pop()
        for child, _ in node.next_functions:
            if child is leaf:
                found.update(path)
            elif child is not None and child not in inputs and len(path) < _DEPTH:
                paths.append((child, (*path, child)))
    return found


_DEPTH = 16
"""Nodes between a call's output and a leaf it reads: reshapes, a transpose, a cast, a split.
Farther is another call.
"""


def only_through(leaf: Node, graph: Graph, regions: Iterable[tuple[Node, set[Node]]]) -> bool:
    """Whether all derivatives that reach a leaf pass through the outputs of the given calls.

    Args:
        leaf: its node.
        graph: of the whole forward pass.
        regions: of every call its output's node and its region.
    """
    pairs = list(regions)
    inside = set().union(*(nodes for _, nodes in pairs))
    outputs = {node for node, _ in pairs}
    return (
        all(bool(nodes) for _, nodes in pairs)
        and (graph.parents.get(leaf, set()) <= inside)
        and all(graph.parents.get(node, set()) <= inside for node in inside - outputs)
    )
