"""Backward passes from the losses of one forward to leaves and to outputs of tapped calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import vmap

from ..core.checks import depth
from ..core.tree import dot
from ..types import Params, Rows
from .layerwise import Graph, Plan, read_graph, task_block
from .safe_ops import factored, unbatched


class Measured(NamedTuple):
    """What some backward passes brought back."""

    deltas: list[Tensor]  # for every use of the plan, [row, *shape of its call's output]
    rows: Rows  # the leaves differentiated row by row
    own: Params  # leaves that one loss alone depends on: the gradient of that loss


class Target(NamedTuple):
    """A place to differentiate with respect to."""

    edge: GradientEdge
    like: Callable[[], Tensor]  # zeros, for what no loss depends on


class Backward:
    """The graph of one forward, open for backward passes.

    They are recorded only where something outside differentiates, or where an unrecorded one is
    wrong. It holds places in the graph, not tensors of the transform's level, so that it can be
    used after the level is closed.

    Args:
        params: the leaves `{name: tensor}`, outside the transform's level.
    """

    def __init__(self, params: Params) -> None:
        self.params, self.record, self.factored = params, True, False
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
        self.factored = depth() > 1 and factored(losses)
        self.root = get_gradient_edge(losses) if losses.requires_grad else None
        # a closure over self would be a cycle, and keep the graph until the next garbage collection
        params = self.params
        self.targets = {
            name: Target(get_gradient_edge(leaf), lambda name=name: torch.zeros_like(params[name]))
            for name, leaf in level.items()
        }

    def __call__(
        self, root: GradientEdge | None, cotangent: Tensor, targets: Sequence[Target]
    ) -> list[Tensor]:
        """One pass: the gradients at `targets`, zeros where `root` does not depend on one."""
        if root is None:
            return [target.like() for target in targets]
        places: dict[tuple[object, int], GradientEdge] = {
            (target.edge.node, target.edge.output_nr): target.edge for target in targets
        }
        grads = torch.autograd.grad(
            [root],
            list(places.values()),
            [cotangent],
            retain_graph=True,
            create_graph=self.record or self.factored,
            allow_unused=True,
        )
        if not self.record:  # factored: recorded for its own sake
            grads = [None if grad is None else grad.detach() for grad in grads]
        found = dict(zip(places, grads, strict=True))
        answers = [found[target.edge.node, target.edge.output_nr] for target in targets]
        return [
            target.like() if answer is None else answer
            for answer, target in zip(answers, targets, strict=True)
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
    """

    def __init__(
        self,
        backward: Backward,
        losses: Tensor,
        matrix: Tensor,
        loss_edges: tuple[GradientEdge | None, ...] | None,
        chunk_size: int | None,
    ) -> None:
        self.backward, self.losses, self.matrix = backward, losses, matrix
        self.loss_edges, self.chunk_size = loss_edges, chunk_size

    def private(self, names: tuple[str, ...], graph: Graph | None) -> dict[str, int]:
        """Those leaves that one separate loss alone depends on, with the number of that loss.

        Their gradient can come with that loss's row.
        """
        if self.loss_edges is None or not names:
            return {}
        graph = graph or read_graph(self.losses, self.loss_edges)
        reached = {name: graph.serves(self.backward.targets[name].edge) for name in names}
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
            Target(use.edge, lambda use=use: self.losses.new_zeros(use.shape, dtype=use.dtype))
            for use in uses
        ]
        targets += [self.backward.targets[name] for name in names]
        own: Params = {}
        if self.loss_edges is None:
            stacked = self.backward.each(self.matrix[rows], targets, self.chunk_size)
        else:
            found = []
            for task in range(len(self.loss_edges))[rows]:
                mine = [name for name, owner in (private or {}).items() if owner == task]
                answers = self.backward(
                    self.loss_edges[task],
                    self.losses.new_ones(()),
                    [*targets, *(self.backward.targets[name] for name in mine)],
                )
                found.append(answers[: len(targets)])
                own |= dict(zip(mine, answers[len(targets) :], strict=True))
            stacked = _stacked(found)
        return Measured(
            stacked[: len(uses)], dict(zip(names, stacked[len(uses) :], strict=True)), own
        )

    def gramian(
        self,
        plan: Plan,
        left: Measured,
        right: Measured,
        measured: tuple[str, ...],
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Inner products over the measured leaves, of one set of rows with another."""
        wide = dtype or torch.promote_types(
            next(iter(self.backward.params.values())).dtype, torch.float32
        )
        parts, at = [], 0
        with nullcontext() if self.backward.record else torch.no_grad():
            names = [name for name in measured if name in left.rows]
            if names:
                parts.append(dot(left.rows, right.rows, names, dtype))
            for group, form in plan.tapped:
                mine = slice(at, at + len(group.uses))
                parts.append(
                    task_block(
                        group,
                        form,
                        left.deltas[mine],
                        None if right is left else right.deltas[mine],
                        wide,
                    )
                )
                at = mine.stop
            total = torch.stack(parts).sum(0)
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


def _stacked(found: list[list[Tensor]]) -> list[Tensor]:
    """The passes' answers, place by place; one pass's without a copy."""
    return [
        answers[0][None] if len(answers) == 1 else torch.stack(answers)
        for answers in zip(*found, strict=True)
    ]
