"""What the autograd graph says of a forward pass, and a backward pass through it.

Who uses a leaf, which losses a call serves, and which calls have no batched backward.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import methodcaller
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from ...core import hooks, internals
from ...core.internals import Trust, accumulate_grad
from ...core.transforms import depth
from ...core.tree import as_real
from . import follow
from .nodes import BEGINNINGS, Trait, facts_of
from .uses import Node, Operand, Part, Unread, Use, View, lacking, shape_of, signed

Place = GradientEdge | Tensor
"""Where autograd finds a leaf: a plain leaf is a place itself."""


def run_backward(
    roots: Place | tuple[Place, ...], cotangents: Tensor | tuple[Tensor, ...],
    places: tuple[Place, ...], *, keep: bool = True, record: bool = False,
) -> Sequence[Tensor | None]:  # fmt: skip
    """`torch.autograd.grad`, without what it does to arguments of all kinds, a third of a small
    pass; complex derivatives, of leaves, as two real ones. `keep`: the graph. What is not recorded
    requires no grad, though somebody's own backward may return a parameter. Raises an error for a
    sparse one, of which no products are made.
    """
    if not isinstance(cotangents, tuple):
        roots, cotangents = (roots,), (cotangents,)  # pyright: ignore
    if not (places and cotangents):  # without places autograd would add to .grad
        return (None,) * len(places)
    run = (internals.autograd_engine if Trust.private else internals.ENGINE).run_backward
    grads = run(roots, cotangents, keep, record, places, True, accumulate_grad=False)
    found = [*grads]
    for i, x in enumerate(grads):
        if x is not None and x.is_sparse:
            raise RuntimeError(
                f"a parameter of shape {list(x.shape)} has sparse gradients, of which no rows are "
                "stacked and no products made, nor sums where it is not shared: make its "
                "embedding with sparse=False"
            )
        if x is not None and (x.is_complex() or (x.requires_grad and not record)):
            found[i] = as_real(x if record else x.detach())
    return found


@dataclass(frozen=True)
class Graph:
    """The nodes between losses and leaves, read once."""

    following: dict[Node, tuple[tuple[Node | None, int], ...]]  # as torch says; none for the ends
    roots: dict[Node, int]  # their nodes, one bit each
    places: Mapping[str, Place]  # of the leaves
    kinds: frozenset[type]  # of the nodes

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
        ends = {id(x): node for node, x in self.variables.items()}
        found = {}
        for name, place in self.places.items():
            node = ends.get(id(place)) if isinstance(place, Tensor) else place.node
            if node is not None and node in self.following:
                found[name] = node
        return found

    @cached_property
    def variables(self) -> dict[Node, Tensor]:
        """The tensors without a graph of their own on which the roots depend."""
        return {node: node.variable for node in self.following if type(node) is accumulate_grad}

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
        return bool(_custom(self.kinds))

    @property
    def talks(self) -> bool | None:
        """Whether a backward exchanges numbers with other processes; None for somebody's own, which
        may. Of torch's it is known: those of its wrappers and compiled functions do not.
        """
        owners = [getattr(kind, "_forward_cls", kind) for kind in _custom(self.kinds)]
        every = [f"{x.__module__}.{x.__name__}" for x in owners]
        if any(x.startswith("torch.distributed.") or x.endswith(".SyncBatchNorm") for x in every):
            return True
        return None if any(not x.startswith("torch.") for x in every) else False

    @cached_property
    def outputs(self) -> list[tuple[Node, int]]:
        """The nodes but for those of leaves, and how many numbers they have given."""
        nodes = [node for node, pairs in self.following.items() if pairs]
        made = [getattr(node, "_input_metadata", ()) for node in nodes]
        sizes = [[math.prod(x.shape) for x in outs if not x.is_nested_tensor] for outs in made]
        return [*zip(nodes, map(sum, sizes), strict=True)]

    @cached_property
    def asked(self) -> tuple[GradientEdge, ...]:
        """What every pass asks for as well: the input of a group norm in channels_last, whose
        kernel on a CPU writes that gradient unasked, and ends the process.
        """
        if "NativeGroupNormBackward0" not in [kind.__name__ for kind in self.kinds]:
            return ()
        norms = [x for x in self.following if x.name() == "NativeGroupNormBackward0"]
        inputs = [x.next_functions[0] for x in norms if depth() or _is_channels_last(x)]
        if any(node is None for node, _ in inputs) and not depth():
            raise RuntimeError(
                "torch's backward of a group norm ends the process where its input is in "
                "channels_last and requires no grad: give it input.contiguous()"
            )
        return tuple([GradientEdge(node, i) for node, i in inputs if node is not None])

    @cached_property
    def can_batch(self) -> bool:
        """Whether every operation has a batched backward."""
        mixed = _has(self.kinds, "norm") and _has(self.kinds, "casts")
        # on plain leaves a custom backward, a compiled one's too, runs as it is written
        custom = not depth() and self.has_custom_backward
        copied = _has(self.kinds, "numbers") and any(
            x.name() == "IndexCopyBackward0" and getattr(x, "_saved_source_dim", 0) == 0
            for x in self.following
        )
        return Trust.private and not (_has(self.kinds, "looped") or mixed or custom or copied)

    @cached_property
    def can_batch_twice(self) -> bool:
        """Whether a batched backward can be differentiated."""
        return not _has(self.kinds, "stale")

    @property
    def has_final_backward(self) -> bool:
        """Whether some backward pass cannot be differentiated even by its cotangent."""
        tables = [x for x in self.following if x.name() == "EmbeddingBackward0"]
        return _has(self.kinds, "final") or any(
            getattr(x, "_saved_scale_grad_by_freq", True) or signed(x._saved_padding_idx) >= 0
            for x in tables
        )

    @property
    def needs_recording(self) -> bool:
        """Whether some backward pass is right under vmap only if recorded."""
        return _has(self.kinds, "recorded")

    def batches(self, record: bool) -> bool:
        """Whether one batched pass is right, to be differentiated if it is recorded."""
        return self.can_batch and (self.can_batch_twice or not record)


# Of the kinds of a few graphs, which a loop makes again at every step.
@lru_cache(64)
def _has(kinds: frozenset[type], trait: Trait) -> bool:
    return any(kind.__name__.startswith(BEGINNINGS[trait]) for kind in kinds)


@lru_cache(64)
def _custom(kinds: frozenset[type]) -> list[type]:
    return [x for x in kinds if issubclass(x, BackwardCFunction) or x.__name__ == "CppFunction"]


def _is_channels_last(node: Node) -> bool:
    raw = getattr(node, "_raw_saved_input", None)
    if raw is None or hooks.is_hooked(raw):  # which would run
        return True
    x = node._saved_input
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = x.ndim in formats and x.is_contiguous(memory_format=formats[x.ndim])
    return x.device.type == "cpu" and last and not x.is_contiguous()


_NUMBER = methodcaller("_sequence_nr")


def read_graph(roots: Sequence[GradientEdge | None], places: Mapping[str, Place]) -> Graph:
    """Walk from the losses' places, each with a bit of its own, to the leaves."""
    # a leaf on which something outside depends has a graph below it
    ends = {place.node for place in places.values() if not isinstance(place, Tensor)}
    behind: dict[Node, int] = {}
    following: dict[Node, tuple[tuple[Node | None, int], ...]] = {}
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
    kinds = frozenset(map(type, following))
    _refuse_reentrant(kinds)
    return Graph(following, behind, places, kinds)


@lru_cache(64)
def _refuse_reentrant(kinds: frozenset[type]) -> None:
    """Raise where a backward of its own would run `backward()` on parameters that no one sees."""
    if "CheckpointFunctionBackward" in [kind.__name__ for kind in kinds]:
        raise RuntimeError(
            "reentrant activation checkpointing goes with loss.backward() alone: the parameters "
            "inside would get no gradient. Losses of a module that mtlfunc.Balancer takes may have "
            "use_reentrant=False of torch.utils.checkpoint (in transformers, "
            'gradient_checkpointing_kwargs={"use_reentrant": False}); a pure function has none'
        )


# ---- who reads a leaf ----------------------------------------------------------------------------


class Reading(NamedTuple):
    """What the graph says of some leaves."""

    uses: dict[str, list[Use]]  # of those that known nodes alone read
    others: dict[str, str]  # of the rest the reason


def read_uses(graph: Graph, leaves: Mapping[str, Tensor]) -> Reading:
    """All nodes that read these leaves; none for one on which no loss depends."""
    if not Trust.private:
        return Reading({}, dict.fromkeys(leaves, "graphs of this torch are not read"))
    if not hooks.tells_hooks and hooks.has_checkpoint(graph.following):
        return Reading({}, dict.fromkeys(leaves, "checkpointing has taken its input away"))
    found: dict[str, list[Use]] = {}
    others: dict[str, str] = {}
    for name, leaf in leaves.items():
        node = graph.leaf_nodes.get(name)
        if node is None:
            continue
        place = graph.places[name]
        start = 0 if isinstance(place, Tensor) else place.output_nr
        try:
            reads = list(_uses_of(Part(name), tuple(leaf.shape), (node, start), graph))
            if any(use.device != leaf.device for use in reads):
                raise Unread("it is read on another device")
            if reads:
                found[name] = reads
        except Unread as why:
            others[name] = str(why)
        except AttributeError as error:
            others[name] = lacking(error)
    return Reading(found, others)


def _uses_of(
    part: Part,
    shape: tuple[int, ...],
    place: tuple[Node, int],
    graph: Graph,
    views: tuple[View, ...] = (),
) -> Iterator[Use]:
    """Those of one part, by whatever views of it."""
    for node, index, output in graph.parents[place[0]]:
        if output != place[1]:
            continue
        name, out, facts = node.name(), node._input_metadata[0], facts_of(node)
        if not out.dtype.is_floating_point or out.is_nested_tensor:
            raise Unread(f"{name} makes a tensor of another kind")
        if 0 in out.shape and facts.rule is not follow.piece:  # of no sample
            continue
        # by the number 1 `torch.func.hessian` multiplies a linear layer's bias
        copied = name == "MulBackward1" and node._saved_other == 1
        if copied or facts.rule in (follow.permutation, follow.view):
            after = shape_of(node, 0)
            turned = facts.rule is follow.permutation
            order = tuple(follow.order_of(node, len(shape))) if turned else None
            steps = views if order is None and after == shape else (*views, View(shape, order))
            yield from _uses_of(part, after, (node, 0), graph, steps)
        elif facts.rule is follow.piece and not views and part.span is None and shape:
            for i, start, size in _pieces(node, shape):
                whole = size == shape[0]
                cut = part if whole else part._replace(span=(start, start + size))
                after, before = shape_of(node, i), (size, *shape[1:])
                steps = () if len(after) == len(shape) else (View(before, None),)
                yield from _uses_of(cut, after, (node, i), graph, steps)
        else:
            reader = facts.read.get(index)
            if reader is None:
                raise Unread(f"{name.removesuffix('0').removesuffix('Backward')} reads it")
            yield reader(Operand(part, shape, views, node, index, _unflattened(node, graph)))


def _unflattened(node: Node, graph: Graph) -> Node:
    """The view that alone reads a product's output and gives its positions their axes back.

    A linear layer works on all positions in one axis, of which samples may be a middle one.
    """
    parents = graph.parents[node]
    product = facts_of(node).rule is follow.product and len(shape_of(node, 0)) == 2
    if not product or len(parents) != 1:
        return node
    view = parents[0][0]
    same = view.name() in ("ViewBackward0", "UnsafeViewBackward0")
    return view if same and shape_of(view, 0)[-1:] == shape_of(node, 0)[-1:] else node


def _pieces(node: Node, shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Of every output where it starts in the first axis, and its length there."""
    if signed(node._saved_dim) % len(shape):
        raise Unread("a piece of it along another axis than the first is read")
    for output in range(len(node._input_metadata)):
        rows = range(*follow.piece_of(node, output, shape[0]).indices(shape[0]))
        if rows.step != 1:
            raise Unread("a slice with a step reads it")
        yield output, rows.start, len(rows)
