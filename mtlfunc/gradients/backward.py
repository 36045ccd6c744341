"""Backward passes from the losses of one forward to leaves and to the nodes that read them."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import vmap

from ..core.hooks import has_saved_hooks
from ..core.internals import Trust, undefined_grad
from ..types import Params
from .layerwise.graph import Graph, Place, run_backward
from .layerwise.uses import Use
from .run import Forward
from .safe_ops import is_batching_error


class Target(NamedTuple):
    """A place to differentiate with respect to."""

    place: GradientEdge | Tensor
    like: Callable[[], Tensor]  # zeros, for what no loss depends on

    @property
    def key(self) -> object:  # equal for the same place
        place = self.place
        return id(place) if isinstance(place, Tensor) else (place.node, place.output_nr)


@dataclass(eq=False)
class Backward:
    """The graph of one forward, open for backward passes.

    Recorded only where something outside differentiates, or where an unrecorded one is wrong.
    """

    forward: InitVar[Forward]  # of which it keeps places, and no loss
    record: bool  # whether something outside may differentiate the passes
    inside: bool  # a transform
    left_out: frozenset[int] = frozenset()  # separate losses that no pass may enter: may be NaN
    keep: bool = True  # the graph, for another pass

    def __post_init__(self, forward: Forward) -> None:
        edges = forward.edges
        self.params: Params = forward.params
        self.places: dict[str, Place] = forward.places
        self.graph: Graph = forward.graph
        self.root: GradientEdge | None = forward.root
        self.edges: tuple[GradientEdge | None, ...] | None = edges
        self.some: tuple[GradientEdge | None, ...] | None = None  # the edges, if some are left out
        if edges is not None and self.left_out:
            self.some = tuple([None if t in self.left_out else e for t, e in enumerate(edges)])
        self.anyway: bool = self.inside and self.graph.needs_recording
        self.asked: tuple[Place, ...] = self.graph.asked

    def at(self, use: Use, losses: Tensor) -> Target:
        """Where a node has its deltas."""
        return Target(use.edge, lambda: losses.new_zeros(use.shape, dtype=use.dtype))

    def leaf(self, name: str) -> Target:
        return Target(self.places[name], partial(torch.zeros_like, self.params[name]))

    def __call__(
        self,
        root: GradientEdge | tuple[GradientEdge, ...] | None,
        cotangent: Tensor | tuple[Tensor, ...],
        targets: Sequence[Target],
    ) -> list[Tensor]:
        """One pass: the gradients at `targets`, zeros where `root` does not depend on one."""
        if root is None:
            return [target.like() for target in targets]
        places = {target.key: target.place for target in targets}  # one may be asked for twice
        found = dict(zip(places, self.bare(root, cotangent, tuple(places.values())), strict=True))
        pairs = [(target, found[target.key]) for target in targets]
        return [target.like() if grad is None else grad for target, grad in pairs]

    def bare(
        self,
        root: GradientEdge | tuple[GradientEdge, ...],
        cotangent: Tensor | tuple[Tensor, ...],
        places: tuple[Place, ...],
    ) -> Sequence[Tensor | None]:
        """One pass, None where `root` does not depend on a place."""
        record, keep, every = self.record or self.anyway, self.keep, places + self.asked
        grads = run_backward(root, cotangent, every, keep=keep, record=record)[: len(places)]
        if self.record or not self.anyway:
            return grads
        return [x if x is None else x.detach() for x in grads]  # recorded for its own sake

    def each(
        self, cotangents: Tensor, targets: Sequence[Target], chunk_size: int | None = None
    ) -> list[Tensor]:
        """One pass a cotangent, stacked along a new first axis.

        Batched, or single: with `chunk_size` 1, and where torch cannot batch some operation.
        """
        if not targets:
            return []
        if len(cotangents) == 1:
            return [x[None] for x in self(self.root, cotangents[0], targets)]
        if chunk_size == 1:
            passes = (self(self.root, cotangent, targets) for cotangent in cotangents)
            return stacked(passes, len(cotangents), written=not (self.record or self.inside))
        try:
            several = vmap(lambda v: tuple(self(self.root, v, targets)), chunk_size=chunk_size)
            return list(several(cotangents))
        except RuntimeError as error:
            if not is_batching_error(error):
                raise
            return self.each(cotangents, targets, 1)

    def leaves(self, names: tuple[str, ...], cotangent: Tensor) -> Params:
        """One pass: the gradients of the named leaves."""
        if not names:
            return {}
        root, cotangents = self.root, cotangent
        if self.some is not None:
            pairs = [(e, v) for e, v in zip(self.some, cotangent, strict=True) if e is not None]
            root = tuple([edge for edge, _ in pairs]) or None
            cotangents = tuple([value for _, value in pairs])
        return dict(zip(names, self(root, cotangents, [*map(self.leaf, names)]), strict=True))


def wide_of(params: Params, dtype: torch.dtype | None = None) -> torch.dtype:
    """In which a Gramian is accumulated; None is the parameters' own, at least float32."""
    own = next(iter(params.values())).dtype
    return dtype or (own if own.itemsize > 4 else torch.float32)


def recording(backward: Backward) -> AbstractContextManager[Any]:
    return nullcontext() if backward.record else torch.no_grad()


SMALL = 1 << 20
"""Entries of rows that may be held twice for a moment."""


def stacked(
    passes: Iterable[list[Tensor]], count: int, into: Tensor | None = None, *, written: bool
) -> list[Tensor]:
    """The answers of several passes, place by place; one pass's without a copy. Small ones are
    stacked, in fewer calls; large ones are `written` where they stay, if they may be, side by side
    `into` a matrix or alone.
    """
    found, rows = list[list[Tensor]](), list[Tensor]() if into is None else [into]
    for i, answers in enumerate(passes):
        if into is not None:
            torch.cat([x.flatten() for x in answers], out=into[i])
            answers.clear()  # the next pass takes their memory
        elif count == 1 or not written or count * sum([x.numel() for x in answers]) <= SMALL:
            found.append(answers)
        else:
            rows = rows or [x.new_empty(count, *x.shape) for x in answers]
            for row in rows:
                row[i] = answers.pop(0)
    return rows or [x[0][None] if count == 1 else torch.stack(x) for x in zip(*found, strict=True)]


def release(forwards: Sequence[Forward]) -> None:
    """Free the graphs of these losses, if all may be, as a pass without `retain_graph`.

    The nodes are visited with undefined gradients, for which they compute nothing, and once, since
    forwards may have some in common. A backward of somebody's own would be run on zeros, and a
    checkpointed part of the forward pass once more: such a graph stays.
    """
    if False in [x.frees for x in forwards]:  # they may have parts in common
        return
    freed = [
        x
        for x in forwards
        if not (x.root is None or x.graph.has_custom_backward)
        and not has_saved_hooks(x.graph.following)
    ]
    if freed and undefined_grad is not None and Trust.private:
        vectors = [forward.losses.vector for forward in freed]
        nothing = undefined_grad()(vectors[0] if len(vectors) == 1 else torch.cat(vectors))
        every = {i: x for forward in freed for i, x in forward.graph.variables.items()}
        # one may have been frozen since
        places = tuple([x for x in every.values() if x.requires_grad])
        try:
            run_backward(nothing, nothing.detach(), places, keep=False)
        except RuntimeError as error:
            if "second time" not in str(error):  # a pass has freed it on its way
                raise
