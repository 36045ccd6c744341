"""Backward passes from the losses of one forward to leaves and to outputs of tapped calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge
from torch.func import vmap

from ..core.checks import depth, gradient_edge
from ..core.tree import dot
from ..types import Params, Rows
from .layerwise import Graph, Plan, task_block
from .leaves import strided
from .safe_ops import recorded, unbatched


class Measured(NamedTuple):
    """What some backward passes brought back."""

    deltas: list[Tensor]  # for every use of the plan, [row, *shape of its call's output]
    rows: Rows  # the leaves differentiated row by row
    own: Params  # leaves that one loss alone depends on: the gradient of that loss


class Target(NamedTuple):
    """A place to differentiate with respect to."""

    place: GradientEdge | Tensor
    like: Callable[[], Tensor]  # zeros, for what no loss depends on
    key: object  # equal for the same place


def target(place: GradientEdge | Tensor, like: Callable[[], Tensor]) -> Target:
    tensor = isinstance(place, Tensor)
    return Target(place, like, id(place) if tensor else (place.node, place.output_nr))


_PLAIN = (Tensor, nn.Parameter)
_engine: Any = Variable._execution_engine


def run_backward(
    root: GradientEdge | Tensor,
    cotangent: Tensor,
    places: tuple[GradientEdge | Tensor, ...],
    *,
    keep: bool = True,
    record: bool = False,
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad`, without a third of a small pass: what it does to arguments of all
    kinds before it calls this. `keep`: the graph.
    """
    if not places:  # autograd would take that for backward(), which adds to .grad
        return ()
    return strided(
        _engine.run_backward(
            (root,), (cotangent,), keep, record, places, True, accumulate_grad=False
        )
    )


class Backward:
    """The graph of one forward, open for backward passes.

    They are recorded only where something outside differentiates, or where an unrecorded one is
    wrong. It holds places in the graph, not tensors of the transform's level, so that it can be
    used after the level is closed.

    Args:
        params: the leaves `{name: tensor}`, outside the transform's level.
    """

    def __init__(self, params: Params) -> None:
        self.params, self.record, self.anyway = params, True, False
        self.root: GradientEdge | None = None
        self.targets: dict[str, Target] = {}

    def open(self, level: Params, losses: Tensor, record: bool) -> None:
        """Take in the forward that was run.

        Args:
            level: the leaves as the forward saw them.
            losses: what it returned, `[task]` or `[sample, task]`.
            record: whether something outside may differentiate the passes.
        """
        self.record = record
        self.anyway = depth() > 1 and recorded(losses)
        self.root = gradient_edge(losses) if losses.requires_grad else None
        # a closure over self would be a cycle, and keep the graph until the next garbage collection
        params = self.params
        plain = not depth()
        self.targets = {
            name: target(
                # autograd finds a plain leaf's place faster than Python
                leaf if plain and type(leaf) in _PLAIN else gradient_edge(leaf),
                lambda name=name: torch.zeros_like(params[name]),
            )
            for name, leaf in level.items()
        }

    def __call__(
        self, root: GradientEdge | None, cotangent: Tensor, targets: Sequence[Target]
    ) -> list[Tensor]:
        """One pass: the gradients at `targets`, zeros where `root` does not depend on one."""
        if root is None:
            return [target.like() for target in targets]
        places = {target.key: target.place for target in targets}
        record = self.record or self.anyway
        grads = run_backward(root, cotangent, tuple(places.values()), record=record)
        if record and not self.record:  # recorded for its own sake
            grads = [x.detach() if x is not None and x.requires_grad else x for x in grads]
        if len(places) < len(targets):
            found = dict(zip(places, grads, strict=True))
            grads = [found[target.key] for target in targets]
        return [
            target.like() if grad is None else grad
            for grad, target in zip(grads, targets, strict=True)
        ]

    def each(
        self, cotangents: Tensor, targets: Sequence[Target], chunk_size: int | None = None
    ) -> list[Tensor]:
        """One pass a cotangent, stacked along a new first axis.

        Batched, or single: with `chunk_size` 1, and where torch cannot batch some operation.
        """
        if not targets:
            return []
        if chunk_size == 1 or len(cotangents) == 1:
            return _stacked([self(self.root, cotangent, targets) for cotangent in cotangents])
        try:
            return list(
                vmap(lambda v: tuple(self(self.root, v, targets)), chunk_size=chunk_size)(
                    cotangents
                )
            )
        except RuntimeError as error:
            if not unbatched(error):
                raise
            return self.each(cotangents, targets, 1)

    def leaves(self, names: tuple[str, ...], cotangent: Tensor) -> Params:
        """One pass: the gradients of the named leaves."""
        if not names:
            return {}
        grads = self(self.root, cotangent, [self.targets[name] for name in names])
        return dict(zip(names, grads, strict=True))


class Passes:
    """One backward pass a row: batched, in chunks, in a loop, or from separate losses.

    Args:
        backward: the open graph.
        losses: `[task]`.
        matrix: cotangents of the losses [row, task].
        loss_edges: the places of T separate losses, each to be differentiated by itself; None
            pulls back the vector.
        chunk_size: rows in one batched pass; None is all, 1 a plain loop.
        mixed: whether the rows are mixtures of the tasks.
    """

    def __init__(
        self,
        backward: Backward,
        losses: Tensor,
        matrix: Tensor,
        loss_edges: tuple[GradientEdge | None, ...] | None,
        chunk_size: int | None,
        mixed: bool = False,
    ) -> None:
        self.backward, self.losses, self.matrix = backward, losses, matrix
        self.loss_edges, self.chunk_size, self.mixed = loss_edges, chunk_size, mixed

    def private(self, names: tuple[str, ...], level: Params, graph: Graph) -> dict[str, int]:
        """Those leaves that one separate loss alone depends on, with the number of that loss.

        Their gradient can come with that loss's row.
        """
        reached = {name: graph.serves_leaf(level[name]) for name in names}
        return {
            name: bits.bit_length() - 1 for name, bits in reached.items() if bits.bit_count() == 1
        }

    def __call__(
        self,
        plan: Plan,
        names: tuple[str, ...],
        private: dict[str, int] | None = None,
        rows: slice = slice(None),
    ) -> Measured:
        """Deltas of the plan's uses, rows of `names`, and the private leaves' own gradients."""
        uses = plan.uses
        targets = [
            target(use.edge, lambda use=use: self.losses.new_zeros(use.shape, dtype=use.dtype))
            for use in uses
        ]
        targets += [self.backward.targets[name] for name in names]
        own: Params = {}
        one = self.losses.new_ones(())
        if self.loss_edges is None:
            stacked = self.backward.each(self.matrix[rows], targets, self.chunk_size)
        else:
            found = []
            for task in range(len(self.loss_edges))[rows]:
                mine = [name for name, owner in (private or {}).items() if owner == task]
                answers = self.backward(
                    self.loss_edges[task],
                    one,
                    [*targets, *(self.backward.targets[name] for name in mine)],
                )
                found.append(answers[: len(targets)])
                own |= dict(zip(mine, answers[len(targets) :], strict=True))
                if self.mixed:
                    found = [self._mixed(found, self.matrix[:, task])]
            stacked = found[0] if self.mixed else _stacked(found)
        return Measured(
            stacked[: len(uses)], dict(zip(names, stacked[len(uses) :], strict=True)), own
        )

    def _mixed(self, found: list[list[Tensor]], weights: Tensor) -> list[Tensor]:
        """The last of `found`, times its weight in every row, added to the sum before it."""
        *before, last = found
        rows = [weights.to(x.dtype).reshape(-1, *(1,) * x.ndim) * x for x in last]
        if not before:
            return rows
        return [total + row for total, row in zip(before[0], rows, strict=True)]

    def gramian(
        self,
        plan: Plan,
        left: Measured,
        right: Measured,
        measured: tuple[str, ...],
        dtype: torch.dtype | None,
        across: tuple[Passes, Plan] | None = None,
    ) -> Tensor:
        """Inner products over the measured leaves, of one set of rows with another.

        `across`: the right set is of another forward, with its passes and its plan of the same
        parts.
        """
        wide = dtype or torch.promote_types(
            next(iter(self.backward.params.values())).dtype, torch.float32
        )
        parts, at = [], 0
        others = across[1].tapped if across else [(None, None)] * len(plan.tapped)
        record = self.backward.record or (across is not None and across[0].backward.record)
        with nullcontext() if record else torch.no_grad():
            names = [name for name in measured if name in left.rows]
            if names:
                parts.append(dot(left.rows, right.rows, names, dtype))
            there = 0
            for (group, form), (other, _) in zip(plan.tapped, others, strict=True):
                mine = slice(at, at + len(group.uses))
                theirs = slice(there, there + len((other or group).uses))
                at, there = mine.stop, theirs.stop
                deltas = None if right is left else right.deltas[theirs]
                parts.append(task_block(group, form, left.deltas[mine], deltas, wide, other))
            total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            return 0.5 * (total + total.mT) if right is left else total

    def gramian_in_chunks(
        self, plan: Plan, measured: tuple[str, ...], size: int, dtype: torch.dtype | None
    ) -> Tensor:
        """The Gramian by blocks: two chunks of rows held, for about T/2·size times the passes."""
        count = len(self.matrix)
        starts = range(0, count, size)
        blocks: dict[tuple[int, int], Tensor] = {}
        for i in starts:
            left = self(plan, plan.rows, rows=slice(i, i + size))
            blocks[i, i] = self.gramian(plan, left, left, measured, dtype)
            for j in starts[i // size + 1 :]:
                blocks[i, j] = self.gramian(
                    plan, left, self(plan, plan.rows, rows=slice(j, j + size)), measured, dtype
                )
                blocks[j, i] = blocks[i, j].mT
        return torch.cat([torch.cat([blocks[i, j] for j in starts], 1) for i in starts])


def cross_in_chunks(
    sides: tuple[tuple[Passes, Plan], tuple[Passes, Plan]],
    measured: tuple[str, ...],
    size: int | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """The Gramian [row, row] of one forward's rows with another's; `size` None is all at once."""
    (one, plan), (other, its_plan) = sides

    def chunks(passes: Passes) -> list[slice]:
        count = len(passes.matrix)
        return [slice(i, i + (size or count)) for i in range(0, count, size or count)]

    blocks = []
    for mine in chunks(one):
        left = one(plan, plan.rows, rows=mine)
        row = []
        for theirs in chunks(other):
            right = other(its_plan, its_plan.rows, rows=theirs)
            row.append(one.gramian(plan, left, right, measured, dtype, (other, its_plan)))
        blocks.append(torch.cat(row, 1))
    return torch.cat(blocks)


def _stacked(found: list[list[Tensor]]) -> list[Tensor]:
    """The passes' answers, place by place; one pass's without a copy."""
    return [
        answers[0][None] if len(answers) == 1 else torch.stack(answers)
        for answers in zip(*found, strict=True)
    ]
