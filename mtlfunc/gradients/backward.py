"""Backward passes from the losses of one forward to leaves and to the nodes that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import vmap

from ..core._torch import flatten
from ..core.checks import depth
from ..core.tree import dot, inner_products
from ..types import Params, Rows
from .layerwise import Place, Plan, SplitGroup, Use, block_of
from .levels import run_backward
from .run import PLAIN, Forward
from .safe_ops import is_batching_error


class Measured(NamedTuple):
    """What some backward passes brought back."""

    groups: tuple[SplitGroup, ...]  # the plan's, with the deltas of every row
    rows: Rows  # the leaves differentiated row by row
    heads: Params  # gradients of the sum of the losses, if these are separate
    matrix: Tensor | None = None  # [row, width], if the rows are views of one


class Target(NamedTuple):
    """A place to differentiate with respect to."""

    place: GradientEdge | Tensor
    like: Callable[[], Tensor]  # zeros, for what no loss depends on
    key: object  # equal for the same place


def target(place: GradientEdge | Tensor, like: Callable[[], Tensor]) -> Target:
    tensor = isinstance(place, Tensor)
    return Target(place, like, id(place) if tensor else (place.node, place.output_nr))


class Backward:
    """The graph of one forward, open for backward passes.

    They are recorded only where something outside differentiates, or where an unrecorded one is
    wrong.

    Args:
        forward: it is held by its places alone: a cycle would keep the graph until the next garbage
            collection.
        record: whether something outside may differentiate the passes.
        left_out: separate losses that no pass may enter, since they may be NaN.
    """

    def __init__(
        self, forward: Forward, record: bool, left_out: frozenset[int] = frozenset()
    ) -> None:
        self.params: Params = forward.params
        self.root: GradientEdge | None = forward.root
        self.record = record
        self.edges: tuple[GradientEdge | None, ...] | None = forward.edges
        if self.edges is not None and left_out:
            self.edges = tuple(None if t in left_out else e for t, e in enumerate(self.edges))
        self.some: tuple[GradientEdge | None, ...] | None = self.edges if left_out else None
        self.anyway: bool = depth() > 0 and forward.graph.needs_recording
        self.places: dict[str, Place] = forward.places
        self.asked: tuple[Place, ...] = forward.graph.asked

    def at(self, use: Use, losses: Tensor) -> Target:
        """Where a node has its deltas."""
        return target(use.edge, lambda: losses.new_zeros(use.shape, dtype=use.dtype))

    def leaf(self, name: str) -> Target:
        return target(self.places[name], partial(torch.zeros_like, self.params[name]))

    def __call__(
        self,
        root: GradientEdge | tuple[GradientEdge, ...] | None,
        cotangent: Tensor | tuple[Tensor, ...],
        targets: Sequence[Target],
    ) -> list[Tensor]:
        """One pass: the gradients at `targets`, zeros where `root` does not depend on one."""
        if root is None:
            return [target.like() for target in targets]
        places = {target.key: target.place for target in targets}
        grads = self.bare(root, cotangent, tuple(places.values()))
        if len(places) < len(targets):
            found = dict(zip(places, grads, strict=True))
            grads = [found[target.key] for target in targets]
        return [
            target.like() if grad is None else grad
            for grad, target in zip(grads, targets, strict=True)
        ]

    def bare(
        self,
        root: GradientEdge | tuple[GradientEdge, ...],
        cotangent: Tensor | tuple[Tensor, ...],
        places: tuple[Place, ...],
    ) -> Sequence[Tensor | None]:
        """One pass, None where `root` does not depend on a place."""
        record = self.record or self.anyway
        grads = run_backward(root, cotangent, places + self.asked, record=record)[: len(places)]
        # it was recorded for its own sake
        return grads if self.record else detached(grads)

    def each(
        self,
        cotangents: Tensor,
        targets: Sequence[Target],
        chunk_size: int | None = None,
    ) -> list[Tensor]:
        """One pass a cotangent, stacked along a new first axis.

        Batched, or single: with `chunk_size` 1, and where torch cannot batch some operation.
        """
        if not targets:
            return []
        if len(cotangents) == 1:
            return _stacked([self(self.root, cotangents[0], targets)])
        if chunk_size == 1:
            return _stacked([self(self.root, cotangent, targets) for cotangent in cotangents])
        try:
            return list(
                vmap(lambda v: tuple(self(self.root, v, targets)), chunk_size=chunk_size)(
                    cotangents
                )
            )
        except RuntimeError as error:
            if not is_batching_error(error):
                raise
            return self.each(cotangents, targets, 1)

    def leaves(self, names: tuple[str, ...], cotangent: Tensor) -> Params:
        """One pass: the gradients of the named leaves."""
        if not names:
            return {}
        targets = [self.leaf(name) for name in names]
        root, cotangents = self.root, cotangent
        if self.some is not None:
            pairs = [(e, v) for e, v in zip(self.some, cotangent, strict=True) if e is not None]
            root = tuple([edge for edge, _ in pairs]) or None
            cotangents = tuple([value for _, value in pairs])
        return dict(zip(names, self(root, cotangents, targets), strict=True))


def wide_of(params: Params, dtype: torch.dtype | None = None) -> torch.dtype:
    """In which a Gramian is accumulated; None is the parameters' own, at least float32."""
    own = next(iter(params.values())).dtype
    return dtype or (own if own.itemsize > 4 else torch.float32)


def recording(*backwards: Backward) -> AbstractContextManager[Any]:
    return nullcontext() if any(x.record for x in backwards) else torch.no_grad()


@dataclass(eq=False)
class Passes:
    """One backward pass per row: batched, in chunks, in a loop, or from separate losses."""

    backward: Backward
    value: Tensor  # the losses `[task]`, for their dtype and device
    matrix: Tensor | None  # C [row, task] of the rows, C @ losses; None is the tasks themselves
    scale: Tensor | None  # [task], multiplies the losses first; None is 1
    # the places of T separate losses, each to be differentiated alone; None pulls back the vector
    loss_edges: tuple[GradientEdge | None, ...] | None
    chunk_size: int | None  # rows in one batched pass; None is all, 1 a plain loop

    def __call__(
        self,
        plan: Plan,
        names: tuple[str, ...],
        heads: tuple[str, ...] = (),
        *,
        views: bool = False,
    ) -> Measured:
        """Deltas of the plan's uses, and rows of leaves."""
        uses = plan.uses
        if self.loss_edges is not None:
            return self._separate(plan, names, heads, views)
        targets = [self.backward.at(use, self.value) for use in uses]
        targets += map(self.backward.leaf, names)
        mix = self.matrix
        if mix is None:
            mix = torch.eye(len(self.value), dtype=self.value.dtype, device=self.value.device)
        matrix = mix if self.scale is None else mix * self.scale
        stacked = self.backward.each(matrix, targets, self.chunk_size)
        by_name = dict(zip(names, stacked[len(uses) :], strict=True))
        return Measured(plan.groups(stacked), by_name, {})

    def _separate(
        self,
        plan: Plan,
        names: tuple[str, ...],
        heads: tuple[str, ...],
        views: bool,
    ) -> Measured:
        """One pass a loss; what they bring back for the heads is added up."""
        backward, edges, uses = self.backward, self.loss_edges, plan.uses
        assert edges is not None
        params = backward.params
        if views and names and not uses and self._is_plain(names):
            matrix, total = row_matrix(
                edges, self.value, params, backward.places, names, heads, scale=self.scale
            )
            return Measured((), rows_of(matrix, params, names), total, matrix)
        places = [use.edge for use in uses] + [backward.places[name] for name in (*names, *heads)]
        places, count = tuple(places), len(uses) + len(names)

        def zeros(place: int) -> Tensor:
            at = place - len(uses)
            found = backward.at(uses[place], self.value) if at < 0 else backward.leaf(names[at])
            return found.like()

        nowhere: Sequence[Tensor | None] = [None] * len(places)
        one = self.value.new_ones(())
        found: list[list[Tensor]] = []
        total: Params = {}
        for task, edge in enumerate(edges):
            cotangent = one if self.scale is None else self.scale[task]
            grads = nowhere
            if edge is not None:
                grads = backward.bare(edge, cotangent, places)
            for name, grad in zip(heads, grads[count:], strict=True):
                if grad is not None:
                    total[name] = total[name] + grad if name in total else grad
            found.append([zeros(i) if x is None else x for i, x in enumerate(grads[:count])])
            if self.matrix is not None:
                found = [self._mixed(found, self.matrix[:, task])]
        for name in heads:
            if name not in total:
                total[name] = torch.zeros_like(params[name])
        stacked = _stacked(found) if self.matrix is None else found[0]
        by_name = dict(zip(names, stacked[len(uses) :], strict=True))
        return Measured(plan.groups(stacked), by_name, total)

    def _is_plain(self, names: tuple[str, ...]) -> bool:
        """Whether rows are plain numbers, one task's each."""
        backward = self.backward
        if (
            self.matrix is not None
            or backward.record
            or backward.anyway
            or backward.asked
            or depth()
        ):
            return False
        kinds = {(type(x), x.dtype, x.device) for x in map(backward.params.__getitem__, names)}
        return len(kinds) == 1 and next(iter(kinds))[0] in PLAIN

    def _mixed(self, found: list[list[Tensor]], weights: Tensor) -> list[Tensor]:
        """The last of `found`, times its weight in every row, added to the sum before it."""
        *before, last = found
        rows = [weights.to(x.dtype).reshape(-1, *(1,) * x.ndim) * x for x in last]
        if not before:
            return rows
        return [total + row for total, row in zip(before[0], rows, strict=True)]

    def gramian(
        self, plan: Plan, found: Measured, measured: tuple[str, ...], dtype: torch.dtype | None
    ) -> Tensor:
        """Inner products of the rows over the measured leaves."""
        wide, matrix = wide_of(self.backward.params, dtype), found.matrix
        if matrix is not None and wide == matrix.dtype and len(measured) == len(found.rows):
            return gramian_of(matrix).to(wide)
        parts: list[Tensor] = []
        with recording(self.backward):
            names = [name for name in measured if name in found.rows]
            if names:
                parts.append(dot(found.rows, found.rows, names, dtype))
            for (group, form), each in zip(plan.tapped, found.groups, strict=True):
                factors = each.factors(form, wide, fold=False)
                parts.append(block_of(group, form, factors, factors, wide))
            total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            return (total + total.mT).mul_(0.5)


def _stacked(found: list[list[Tensor]]) -> list[Tensor]:
    """The passes' answers, place by place; one pass's without a copy."""
    return [
        answers[0][None] if len(answers) == 1 else torch.stack(answers)
        for answers in zip(*found, strict=True)
    ]


_SMALL = 1 << 20
"""Entries of a matrix that may be held twice for a moment."""


def row_matrix(
    edges: Sequence[GradientEdge | None],
    losses: Tensor,
    params: Params,
    places: Mapping[str, Place],
    shared: Sequence[str],
    others: Sequence[str],
    *,
    scale: Tensor | None = None,
) -> tuple[Tensor, Params]:
    """J `[task, width]` over the shared leaves, side by side, and the others' sums of gradients.

    One pass a loss, in the fewest calls, which cost a small network more than its arithmetic.
    Nothing is recorded.

    Args:
        edges: the place of each loss in the graph; None for one that no pass enters.
        losses: like them, `[task]`.
        params: plain leaves.
        places: where the graph has them.
        shared: names of those that have rows.
        others: of those that have none.
        scale: `[task]`, multiplies the losses first; None is 1.
    """
    every = tuple([places[name] for name in (*shared, *others)])
    leaves = [params[name] for name in shared]
    width = sum([leaf.numel() for leaf in leaves])
    one, nowhere = losses.new_ones(()), [None] * len(every)
    sums: dict[str, Tensor] = {}
    # small rows are stacked, in fewer calls; large ones are written where they stay
    matrix = leaves[0].new_empty(len(edges), width) if len(edges) * width > _SMALL else None
    rows = [one] * len(edges) if matrix is None else list(matrix.unbind())
    for task, edge in enumerate(edges):
        cotangent = one if scale is None else scale[task]
        found = nowhere if edge is None else detached(run_backward(edge, cotangent, every))
        pairs = zip(leaves, found, strict=False)
        parts = [torch.zeros_like(x) if grad is None else grad for x, grad in pairs]
        if sum([x.numel() for x in parts]) != width:  # `cat` would write elsewhere
            raise RuntimeError(
                "params: the .data of a parameter got another shape after the forward pass; "
                "compute the losses anew"
            )
        if matrix is None:
            rows[task] = flatten(parts)
        else:
            torch.cat([x.flatten() for x in parts], out=rows[task])
        for name, grad in zip(others, found[len(leaves) :], strict=True):
            if grad is not None:
                sums[name] = sums[name] + grad if name in sums else grad
        del found, parts  # the next pass takes their memory
    for name in others:
        if name not in sums:
            sums[name] = torch.zeros_like(params[name])
    return torch.stack(rows) if matrix is None else matrix, sums


def detached(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Without a graph: somebody's own backward may return a parameter."""
    return [x.detach() if x is not None and x.requires_grad else x for x in grads]


def gramian_of(matrix: Tensor) -> Tensor:
    """J Jᵀ, symmetric to the last bit."""
    gramian = inner_products(matrix, matrix)
    return (gramian + gramian.mT).mul_(0.5)


def rows_of(matrix: Tensor, params: Params, names: Sequence[str]) -> Rows:
    """Views of J, leaf by leaf: `{name: [task, *shape]}`."""
    shapes = [params[name].shape for name in names]
    parts = matrix.split_with_sizes([shape.numel() for shape in shapes], 1)
    return {
        name: part if len(shape) == 1 else part.view(len(matrix), *shape)
        for name, shape, part in zip(names, shapes, parts, strict=True)
    }
