"""Backward passes from the losses of one forward to leaves and to the nodes that read them.

One pass, and one per row: for all tasks at once, in chunks, in a loop, or each loss alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from ..core.tree import dot, inner_products
from ..types import Params, Rows
from .layerwise.formulas import Deltas
from .layerwise.graph import Graph, Place, run_backward
from .layerwise.plan import Plan
from .layerwise.uses import PLAIN, Node, Use
from .run import Forward, TracedForward
from .safe_ops import is_batching_error


class Target(NamedTuple):
    """A place to differentiate with respect to."""

    place: GradientEdge | Tensor
    like: Callable[[], Tensor]  # zeros, for what no loss depends on


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
        self.params: Params = forward.params
        self.places: dict[str, Place] = forward.places
        self.graph: Graph = forward.graph
        self.root: GradientEdge | None = forward.root
        self.edges: tuple[GradientEdge | None, ...] = forward.edges or ()
        if self.left_out:
            edges = enumerate(self.edges)
            self.edges = tuple([None if t in self.left_out else edge for t, edge in edges])
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
        places = tuple(dict.fromkeys([target.place for target in targets]))  # some come twice
        found = dict(zip(places, self.bare(root, cotangent, places), strict=True))
        pairs = [(target, found[target.place]) for target in targets]
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
        if self.left_out and self.edges:
            pairs = [(e, v) for e, v in zip(self.edges, cotangent, strict=True) if e is not None]
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


class PassResults(NamedTuple):
    """What the passes brought back."""

    groups: tuple[Deltas, ...]  # the plan's, with the deltas of every row
    rows: Rows  # the leaves differentiated row by row
    heads: Params  # gradients of the sum of the losses, where each was differentiated alone
    matrix: Tensor | None = None  # [row, width], if the rows are views of one


@dataclass(frozen=True, eq=False)
class ByTasks:
    """The passes of one forward under a plan."""

    backward: Backward
    value: Tensor  # the losses `[task]`, for their dtype and device
    matrix: Tensor | None  # C [row, task] of the rows, C @ losses; None is the tasks themselves
    scale: Tensor | None  # [task], multiplies the losses first; None is 1
    plan: Plan

    def __call__(self, heads: tuple[str, ...] = (), *, views: bool = False) -> PassResults:
        """Deltas of the plan's uses, and rows of leaves, which may be `views` of one matrix; where
        losses are split, also the gradient of their sum in the `heads`.
        """
        if self.plan.apart:
            return self._apart(heads, views)
        uses, names = self.plan.uses, self.plan.rows
        targets = [self.backward.at(use, self.value) for use in uses]
        targets += map(self.backward.leaf, names)
        mix = self.matrix
        if mix is None:
            mix = torch.eye(len(self.value), dtype=self.value.dtype, device=self.value.device)
        mix = mix if self.scale is None else mix * self.scale
        every = self.backward.each(mix, targets, self.plan.chunk)
        rows = dict(zip(names, every[len(uses) :], strict=True))
        return PassResults(self.plan.groups(every), rows, {})

    def _apart(self, heads: tuple[str, ...], views: bool) -> PassResults:
        """One pass a loss, in few calls, which cost a small network more than its arithmetic."""
        backward, uses, names = self.backward, self.plan.uses, self.plan.rows
        leaves = [backward.params[name] for name in names]
        asked, count = (*names, *heads), len(uses) + len(names)
        places = (*[use.edge for use in uses], *[backward.places[name] for name in asked])
        edges, one, nowhere = backward.edges, self.value.new_ones(()), [None] * len(places)
        final = not (backward.record or backward.inside)  # nothing differentiates what is made
        plain = views and final and self._is_plain(leaves)
        width = sum(map(Tensor.numel, leaves)) if plain else 0
        matrix = leaves[0].new_empty(len(edges), width) if len(edges) * width > SMALL else None
        total: Params = {}

        def passes() -> Iterator[list[Tensor]]:
            for task, edge in enumerate(edges):
                cotangent = one if self.scale is None else self.scale[task]
                grads = nowhere if edge is None else backward.bare(edge, cotangent, places)
                for name, grad in zip(heads, grads[count:], strict=True):
                    if grad is not None:
                        total[name] = total[name] + grad if name in total else grad
                parts = [self._zeros(i) if x is None else x for i, x in enumerate(grads[:count])]
                del grads  # the next pass takes their memory
                if width and matrix is None:
                    parts = [torch.cat([*map(Tensor.flatten, parts)])]
                if width and sum(map(Tensor.numel, parts)) != width:
                    raise RuntimeError(
                        "params: the .data of a parameter got another shape after the forward "
                        "pass; compute the losses anew"
                    )
                yield parts

        if self.matrix is None:
            written = final and not (width and matrix is None)
            every = stacked(passes(), len(edges), matrix, written=written)
        else:
            every = self._mixed(passes(), self.matrix)
        total |= {x: torch.zeros_like(backward.params[x]) for x in heads if x not in total}
        if width:
            return PassResults((), rows_of(every[0], backward.params, names), total, every[0])
        rows = dict(zip(names, every[len(uses) :], strict=True))
        return PassResults(self.plan.groups(every), rows, total)

    def _zeros(self, at: int) -> Tensor:
        uses, names = self.plan.uses, self.plan.rows
        if at < len(uses):
            return self.value.new_zeros(uses[at].shape, dtype=uses[at].dtype)
        return torch.zeros_like(self.backward.params[names[at - len(uses)]])

    def _is_plain(self, leaves: Sequence[Tensor]) -> bool:
        """Whether all that is made are rows of plain numbers, one task's each."""
        backward = self.backward
        if self.plan.tapped or self.matrix is not None:
            return False
        kinds = {(type(x), x.dtype, x.device) for x in leaves}
        plain = len(kinds) == 1 and next(iter(kinds))[0] in PLAIN
        return plain and not (backward.anyway or backward.asked)

    def _mixed(self, passes: Iterable[list[Tensor]], matrix: Tensor) -> list[Tensor]:
        """C times the passes' answers."""
        total: list[Tensor] = []
        for parts, weights in zip(passes, matrix.unbind(1), strict=True):
            rows = [weights.to(x.dtype).reshape(-1, *(1,) * x.ndim) * x for x in parts]
            total = [sum_ + row for sum_, row in zip(total, rows, strict=True)] if total else rows
        return total

    def gramian(self, found: PassResults, dtype: torch.dtype | None) -> Tensor:
        """Inner products of the rows over the shared leaves."""
        wide, matrix = wide_of(self.backward.params, dtype), found.matrix
        if matrix is not None and wide == matrix.dtype:
            gramian = inner_products(matrix, matrix)
            return (gramian + gramian.mT).mul_(0.5)
        parts: list[Tensor] = []
        with recording(self.backward):
            if found.rows:
                parts.append(dot(found.rows, found.rows, found.rows, dtype))
            for (_, form), each in zip(self.plan.tapped, found.groups, strict=True):
                parts.append(each.block(form, wide, wide, fold=False))
            total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            return (total + total.mT).mul_(0.5)

    def pull(self, weights: Tensor, names: tuple[str, ...], record: bool | None = None) -> Params:
        """The gradient of Σ v L, v [task], in these leaves, by one more pass."""
        self.backward.record = self.backward.record if record is None else record
        return self.backward.leaves(names, weights)


class ByPullback(NamedTuple):
    """The passes for the compiler, which traces vjp's own pullback and drops what is unused."""

    forward: TracedForward
    columns: tuple[str, ...]
    matrix: Tensor | None
    scale: Tensor | None
    chunk: int | None

    def __call__(self, heads: tuple[str, ...] = (), *, views: bool = False) -> PassResults:
        value, mix = self.forward.value, self.matrix
        if mix is None:
            mix = torch.eye(len(value), dtype=value.dtype, device=value.device)
        mix = mix if self.scale is None else mix * self.scale
        rows = vmap(lambda v: self.pull(v, self.columns), chunk_size=self.chunk)(mix)
        return PassResults((), rows, {})

    def gramian(self, found: PassResults, dtype: torch.dtype | None) -> Tensor:
        return dot(found.rows, found.rows, self.columns, dtype)

    def pull(self, weights: Tensor, names: tuple[str, ...], record: Any = None) -> Params:
        grads = self.forward.pull(weights)[0]
        return {name: grads[name] for name in names}


def rows_of(matrix: Tensor, params: Params, names: Sequence[str]) -> Rows:
    """Views of J, leaf by leaf: `{name: [task, *shape]}`."""
    shapes = [params[name].shape for name in names]
    parts = matrix.split_with_sizes([*map(torch.Size.numel, shapes)], 1)
    return {
        name: part if len(shape) == 1 else part.view(len(matrix), *shape)
        for name, shape, part in zip(names, shapes, parts, strict=True)
    }


def release(forwards: Sequence[Forward]) -> None:
    """Free the graphs of these losses, if all may be, as a pass without `retain_graph`.

    The nodes are visited with undefined gradients, for which they compute nothing, and once, since
    forwards may have some in common. A backward of somebody's own would be run on zeros, and a
    checkpointed part of the forward pass once more: such a graph stays.
    """
    if False in [x.frees for x in forwards]:  # they may have parts in common
        return
    vectors: list[Tensor] = []
    ends: dict[Node, Tensor] = {}
    for forward in forwards:
        graph = forward.graph
        stays = forward.root is None or graph.has_custom_backward
        if not (stays or has_saved_hooks(graph.following)):
            vectors.append(forward.losses.vector)
            ends |= graph.variables
    if vectors and undefined_grad is not None and Trust.private:
        nothing = undefined_grad()(vectors[0] if len(vectors) == 1 else torch.cat(vectors))
        # one may have been frozen since
        places = tuple([x for x in ends.values() if x.requires_grad])
        try:
            run_backward(nothing, nothing.detach(), places, keep=False)
        except RuntimeError as error:
            if "second time" not in str(error):  # a pass has freed it on its way
                raise
