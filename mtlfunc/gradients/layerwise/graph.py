"""What the autograd graph says of a forward pass.

Who uses a leaf, which losses a call serves, and which calls have no batched backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import islice
from operator import attrgetter, methodcaller
from typing import Any
from zlib import crc32

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from ...core._torch import accumulate_grad
from ...core.checks import depth, gradient_edge

Node = Any  # torch.autograd.graph.Node
Place = GradientEdge | Tensor
"""Where autograd finds a leaf: a plain leaf is a place itself."""

_UNBATCHED = (
    *("ScaledDotProduct", "EmbeddingBag", "MkldnnRnn", "CudnnRnn", "MiopenRnn", "Thnn"),
    *("WeightNorm", "Trilinear", "Cdist", "EuclideanDist", "FusedRmsNorm"),
)
"""Operations whose backward torch runs in a loop under `vmap`, with a warning (one pass a row is as
fast, and quiet), or gets wrong there: cdist.
"""


_STALE = ("NativeLayerNorm", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")
"""Operations whose batched backward takes their statistics for constants when it is differentiated
again; single passes are right (torch 2.13).
"""


_FEW = 1 << 18
"""Entries of activations that cost less in memory until the losses are dropped than a visit of
their nodes in time.
"""

NORMS = (*_STALE, "NativeGroupNorm", "RmsNorm")
"""Their batched backward refuses the mixed dtypes that autocast gives them."""


@dataclass(frozen=True)
class Graph:
    """The nodes between losses and leaves, read once."""

    following: dict[Node, tuple[tuple[Node | None, int], ...]]  # as torch says; none for the ends
    roots: dict[Node, int]  # their nodes, one bit each
    places: Mapping[str, Place]  # of the leaves
    kinds: frozenset[type]  # of the nodes
    counts: tuple[int, ...] = ()  # of each root, in order, how many nodes no root before it reaches
    loops: bool = False  # batched passes are out of the question for another reason

    @cached_property
    def below(self) -> dict[Node, tuple[Node, ...]]:
        """What a node's derivative flows to."""
        return {
            node: tuple([child for child, _ in pairs if child is not None])
            for node, pairs in self.following.items()
        }

    @cached_property
    def reach(self) -> dict[Node, int]:
        """The roots behind a node, one bit each; producers first."""
        below, behind = self.below, dict(self.roots)  # as far as known
        waits = dict.fromkeys(below, 0)  # how many uses of a node's output were not counted yet
        for children in below.values():
            for child in children:
                waits[child] += 1
        ready = [node for node, count in waits.items() if not count]
        for node in ready:  # consumers first; it grows while it is read
            bits = behind[node]
            for child in below[node]:
                behind[child] = behind.get(child, 0) | bits
                waits[child] -= 1
                if not waits[child]:
                    ready.append(child)
        return {node: behind[node] for node in reversed(ready)}

    def serves(self, edge: GradientEdge) -> int:
        return self.reach.get(edge.node, 0)

    def serves_leaf(self, name: str) -> int:
        node = self.leaf_nodes.get(name)
        return 0 if node is None else self.reach[node]

    @cached_property
    def leaf_nodes(self) -> dict[str, Node]:
        """The nodes of the leaves on which some root depends."""
        found = {}
        for name, place in self.places.items():
            node = self._ends.get(id(place)) if isinstance(place, Tensor) else place.node
            if node is not None and node in self.following:
                found[name] = node
        return found

    def reached(self) -> list[str]:
        """The names of the leaves on which some root depends."""
        return list(self.leaf_nodes)

    @cached_property
    def variables(self) -> dict[int, Tensor]:
        """By id the tensors without a graph of their own on which the roots depend."""
        return {key: node.variable for key, node in self._ends.items()}

    @cached_property
    def _ends(self) -> dict[int, Node]:
        ends = [node for node in self.following if type(node) is accumulate_grad]
        return dict(zip(map(id, map(_VARIABLE, ends)), ends, strict=True))

    @cached_property
    def parents(self) -> dict[Node, list[tuple[Node, int, int]]]:
        """Who reads a node's outputs: the node, which of its inputs, and which output it is."""
        found: dict[Node, list[tuple[Node, int, int]]] = {node: [] for node in self.following}
        for node, pairs in self.following.items():
            for index, (child, output) in enumerate(pairs):
                if child is not None:
                    found[child].append((node, index, output))
        return found

    def has_node_before(self, number: int) -> bool:
        """Whether a node was made before the one of this number, of which leaves have none."""
        return min(map(_NUMBER, self.following), default=number) < number

    @cached_property
    def has_custom_backward(self) -> bool:
        """Whether somebody's own backward is among the nodes, a compiled one too."""
        return _has_custom(self.kinds)

    @cached_property
    def has_saved_hooks(self) -> bool:
        """Whether what a node has saved is brought back by a hook: a checkpoint runs its part of
        the forward pass once more, in every pass that visits it.
        """
        return _have_saved_hooks(self.following)

    @cached_property
    def largest(self) -> int:
        """The root with most nodes, of those that share any the first."""
        return self.counts.index(max(self.counts))

    @cached_property
    def frees_elsewhere(self) -> bool:
        """Whether a pass from the largest root should also visit what it does not reach, to free
        it: if that keeps much, and no hook brings it back, such as a checkpoint's.
        """
        first = self.counts[0] if self.largest == 0 else 0
        nodes = list(islice(self.following, first, None))
        outputs = [x for node in nodes for x in getattr(node, "_input_metadata", ())]
        entries = [math.prod(x.shape) for x in outputs if not x.is_nested_tensor]
        return sum(entries) > _FEW and not _have_saved_hooks(nodes)

    @cached_property
    def kind(self) -> int:
        """Equal for the same operations on the same shapes in the same order, in any process."""
        names = [type(node).__name__ for node in self.following]
        # enough of the nodes for their shapes to show those of all
        where = [node for node, following in self.following.items() if len(following) > 1]
        outputs = [x for node in where for x in getattr(node, "_input_metadata", ())]
        shapes = [x.shape for x in outputs if not x.is_nested_tensor]
        return crc32(repr((names, shapes)).encode())

    @cached_property
    def can_batch(self) -> bool:
        """Whether every operation has a batched backward."""
        mixed = _has(self.kinds, NORMS) and _has(self.kinds, ("ToCopy",))
        # on plain leaves a custom backward, a compiled one's too, runs as it is written
        custom = not depth() and self.has_custom_backward
        # torch gets it wrong where one number is written
        copied = _has(self.kinds, ("IndexCopy",)) and any(
            x.name() == "IndexCopyBackward0" and x._saved_source_dim == 0 for x in self.following
        )
        return not (self.loops or _has(self.kinds, _UNBATCHED) or mixed or custom or copied)

    @cached_property
    def can_batch_twice(self) -> bool:
        """Whether a batched backward can be differentiated."""
        return not _has(self.kinds, _STALE)

    def batches(self, record: bool) -> bool:
        """Whether one batched pass is right, to be differentiated if it is recorded."""
        return self.can_batch and (self.can_batch_twice or not record)


# Of the kinds of a few graphs, which a loop makes again at every step.
@lru_cache(64)
def _has(kinds: frozenset[type], names: tuple[str, ...]) -> bool:
    return any(kind.__name__.startswith(names) for kind in kinds)


@lru_cache(64)
def _has_custom(kinds: frozenset[type]) -> bool:
    return any(issubclass(x, BackwardCFunction) or x.__name__ == "CppFunction" for x in kinds)


def _have_saved_hooks(nodes: Iterable[Node]) -> bool:
    found = [read(node) for node in nodes if (read := _saved_of(type(node))) is not None]
    for saved in found:  # it grows while it is read
        if type(saved) is tuple:
            found.extend(saved)
        elif saved.unpack_hook is not None:
            return True
    return False


@cache
def _saved_of(kind: type) -> Callable[[Node], Any] | None:
    """What a node of a kind keeps, as it was saved; None for a kind that keeps no tensor."""
    names = [name for name in dir(kind) if name.startswith("_raw_saved_")]
    return attrgetter(*names) if names else None


_NUMBER, _VARIABLE = methodcaller("_sequence_nr"), attrgetter("variable")


def read_graph(roots: Sequence[GradientEdge | None], places: Mapping[str, Place]) -> Graph:
    """Walk from the losses' places, each with a bit of its own, to the leaves."""
    # a leaf on which something outside depends has a graph below it
    ends = {place.node for place in places.values() if not isinstance(place, Tensor)}
    behind: dict[Node, int] = {}
    following: dict[Node, tuple[tuple[Node | None, int], ...]] = {}
    counts: list[int] = []
    for bit, edge in enumerate(roots):
        todo: list[Node] = []
        if edge is not None:
            behind[edge.node] = behind.get(edge.node, 0) | 1 << bit
            if edge.node not in following:
                following[edge.node] = ()
                todo.append(edge.node)
        for node in todo:  # it grows while it is read
            if node not in ends:
                following[node] = pairs = node.next_functions
                for child, _ in pairs:
                    if child not in following and child is not None:
                        following[child] = ()
                        todo.append(child)
        counts.append(len(todo))
    kinds = frozenset(map(type, following))
    _refuse_reentrant(kinds)
    return Graph(following, behind, places, kinds, tuple(counts))


@lru_cache(64)
def _refuse_reentrant(kinds: frozenset[type]) -> None:
    """Raise where a backward of its own would run `backward()` on parameters that no one sees."""
    if "CheckpointFunctionBackward" in [kind.__name__ for kind in kinds]:
        raise RuntimeError(
            "reentrant activation checkpointing goes with loss.backward() alone: the parameters "
            "inside would get no gradient; pass use_reentrant=False to torch.utils.checkpoint "
            '(in transformers, gradient_checkpointing_kwargs={"use_reentrant": False})'
        )


def separate_edges(
    losses: Tensor, scalars: tuple[Tensor, ...] | None
) -> tuple[GradientEdge | None, ...] | None:
    """The places of T separate losses in the graph; None for a vector computed as a whole.

    Losses that were stacked to a vector are also separate.
    """
    if scalars is not None:
        return tuple([gradient_edge(x) if x.requires_grad else None for x in scalars])
    node = losses.grad_fn
    if node is None or node.name() != "StackBackward0":
        return None
    return tuple(
        None if child is None else GradientEdge(child, index)
        for child, index in node.next_functions
    )


PERMUTATIONS = ("TBackward0", "TransposeBackward0", "PermuteBackward0")
RESHAPES = (
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0"),
    *("UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2"),
    *("CloneBackward0", "ToCopyBackward0"),
)
"""Nodes that hand on all entries of their input, in their order, and no others."""
PIECES = (
    *("SelectBackward0", "UnbindBackward0", "SliceBackward0"),
    *("SplitBackward0", "SplitWithSizesBackward0"),
)
"""Nodes whose outputs are pieces of their input along one axis, `_saved_dim`."""


def signed(n: int) -> int:
    return n - 2**64 if n >= 2**63 else n  # torch keeps negative ones as unsigned


def order_of(node: Node, count: int) -> list[int]:
    """Which of its input's axes each axis of a permutation's output is."""
    if node.name() == "PermuteBackward0":
        return [signed(dim) % count for dim in node._saved_dims]
    axes = list(range(count))
    if node.name() == "TransposeBackward0":
        i, j = (signed(dim) % count for dim in (node._saved_dim0, node._saved_dim1))
        axes[i], axes[j] = j, i
        return axes
    return axes[::-1]


def piece_of(node: Node, output: int, length: int) -> slice:
    """The entries of one output of `PIECES` along their axis, which is so long."""
    kind = node.name()
    if kind == "SelectBackward0":
        start = signed(node._saved_index) % length
        return slice(start, start + 1)
    if kind == "UnbindBackward0":
        return slice(output, output + 1)
    if kind == "SliceBackward0":
        start, end = node._saved_start or 0, node._saved_end
        return slice(signed(start), None if end is None else signed(end), node._saved_step)
    if kind == "SplitBackward0":
        size = node._saved_split_size
        return slice(output * size, (output + 1) * size)
    sizes = node._saved_split_sizes
    return slice(sum(sizes[:output]), sum(sizes[: output + 1]))
