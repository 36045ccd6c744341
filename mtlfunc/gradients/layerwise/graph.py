"""What the autograd graph says of a forward pass.

Who uses a leaf, which losses a call serves, and which calls have no batched backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

from torch import Tensor
from torch._C import _functions
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from ...core.checks import depth, gradient_edge
from ...types import Params

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


@dataclass(frozen=True)
class Graph:
    """The nodes between losses and leaves, read once."""

    below: dict[Node, tuple[Node, ...]]  # what a node's derivative flows to; none for the ends
    reach: dict[Node, int]  # the roots behind a node, one bit each; producers first
    loops: bool = False  # batched passes are out of the question for another reason

    def serves(self, edge: GradientEdge) -> int:
        return self.reach.get(edge.node, 0)

    def serves_leaf(self, leaf: Tensor) -> int:
        if leaf.grad_fn is None and not depth():
            return self._variables.get(id(leaf), (leaf, 0))[1]
        return self.serves(gradient_edge(leaf))

    def variables(self) -> list[Tensor]:
        """The tensors without a graph of their own on which the roots depend."""
        return [variable for variable, _ in self._variables.values()]

    @cached_property
    def _variables(self) -> dict[int, tuple[Tensor, int]]:
        found = [
            (node.variable, self.reach[node])
            for node, below in self.below.items()
            if not below and type(node) is _ACCUMULATE
        ]
        return {id(variable): (variable, bits) for variable, bits in found}

    @cached_property
    def parents(self) -> dict[Node, set[Node]]:
        """Who consumes a node's output; empty for the roots."""
        found: dict[Node, set[Node]] = {node: set() for node in self.reach}
        for node, below in self.below.items():
            for child in below:
                found[child].add(node)
        return found

    def older(self, number: int) -> bool:
        """Whether a node was made before the one of this number, of which leaves have none."""
        return any(node._sequence_nr() < number for node in self.reach)

    @property
    def custom(self) -> bool:
        """Whether somebody's own backward is among the nodes, a compiled one too."""
        return any(isinstance(node, BackwardCFunction) for node in self.reach)

    @cached_property
    def kind(self) -> int:
        """Equal for the same operations on the same shapes in the same order, in any process."""
        names = [type(node).__name__ for node in self.reach]
        # enough of the nodes for their shapes to show those of all
        where = [node for node, below in self.below.items() if len(below) > 1]
        outputs = [x for node in where for x in getattr(node, "_input_metadata", ())]
        shapes = [x.shape for x in outputs if not x.is_nested_tensor]
        return crc32(repr((names, shapes)).encode())

    @cached_property
    def _batching(self) -> tuple[bool, bool]:
        return _batching(self.reach)

    @property
    def batched(self) -> bool:
        """Whether every operation has a batched backward."""
        return not self.loops and self._batching[0]

    @property
    def twice(self) -> bool:
        """Whether a batched backward can be differentiated."""
        return self._batching[1]


_ACCUMULATE = _functions.AccumulateGrad  # pyright: ignore[reportAttributeAccessIssue]


def read_graph(
    losses: Tensor, leaves: Params, loss_edges: Sequence[GradientEdge | None] | None = None
) -> Graph:
    """Walk to the leaves from each loss, if they are separate, else from their vector."""
    ends = _nodes(leaves)
    if loss_edges is None:
        roots = [losses.grad_fn]
    else:
        roots = [None if edge is None else edge.node for edge in loss_edges]
    below: dict[Node, tuple[Node, ...]] = {}
    reach: dict[Node, int] = {}
    todo = [node for node in roots if node is not None]
    while todo:
        node = todo.pop()
        if node in below:  # once more: all below it has its place in the order
            reach.setdefault(node, 0)
            continue
        next_functions = () if node in ends else node.next_functions
        below[node] = found = tuple([child for child, _ in next_functions if child is not None])
        todo.append(node)
        todo += [child for child in found if child not in below]
    _refuse_reentrant(below)
    for bit, node in enumerate(roots):
        if node is not None:
            reach[node] |= 1 << bit
    for node in reversed(reach):  # consumers first
        bits = reach[node]
        for child in below[node]:
            reach[child] |= bits
    return Graph(below, reach)


def _nodes(leaves: Params) -> set[Node]:
    """Where a walk ends: a leaf on which something outside depends has a graph below it."""
    return {gradient_edge(leaf).node for leaf in leaves.values() if not leaf.is_leaf}


def batching(losses: Tensor, leaves: Params) -> tuple[bool, bool]:
    """`batched` and `twice` of `read_graph(losses, leaves)`, and no more."""
    todo = [] if losses.grad_fn is None else [losses.grad_fn]
    seen: set[Node] = _nodes(leaves) | set(todo)
    while todo:
        for child, _ in todo.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                todo.append(child)
    _refuse_reentrant(seen)
    return _batching(seen)


def _refuse_reentrant(nodes: Iterable[Node]) -> None:
    """Raise where a backward of its own would run `backward()` on parameters that nobody sees."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes):
        raise RuntimeError(
            "reentrant activation checkpointing goes with loss.backward() alone: the parameters "
            "inside would get no gradient; pass use_reentrant=False to torch.utils.checkpoint "
            '(in transformers, gradient_checkpointing_kwargs={"use_reentrant": False})'
        )


def _batching(nodes: Iterable[Node]) -> tuple[bool, bool]:
    nodes = list(nodes)
    names = {node.name() for node in nodes}

    def some(kinds: tuple[str, ...]) -> bool:
        return any(name.startswith(kinds) for name in names)

    mixed = some(_NORMS) and some(("ToCopy",))
    # On plain leaves a custom function's own backward, a compiled one's too, runs as it is written.
    custom = not depth() and any(isinstance(node, BackwardCFunction) for node in nodes)
    return not (some(_UNBATCHED) or mixed or custom), not some(_STALE)


def separate(
    losses: Tensor, scalars: tuple[Tensor, ...] | None
) -> tuple[GradientEdge | None, ...] | None:
    """The places of T separate losses in the graph; None for a vector computed as a whole.

    Losses that were stacked to a vector are separate, too.
    """
    if scalars is not None:
        return tuple(gradient_edge(x) if x.requires_grad else None for x in scalars)
    node = losses.grad_fn
    if node is None or node.name() != "StackBackward0":
        return None
    return tuple(
        None if child is None else GradientEdge(child, index)
        for child, index in node.next_functions
    )


def better_apart(graph: Graph, count: int, rows: int | None = None) -> bool:
    """Whether T stacked losses are better differentiated each by itself than as so many rows (T),
    judged by the graph alone.

    One batched pass pays every node's overhead once (twice, for the batching) and its numbers once
    a row, also those of nodes that serve one loss; T single passes pay what is common T times and
    the rest once.
    """
    alone = common = 0.0
    batched = 0.0
    for node, losses in graph.reach.items():
        size = sum(math.prod(place.shape) for place in getattr(node, "_input_metadata", ()))
        batched += 2 * OVERHEAD + (rows or count) * size
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
