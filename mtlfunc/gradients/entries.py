"""One backward pass whose deltas are split by entry, a sample.

Where entry i of the losses depends on its own part of every activation alone, the pullback of the
sum of all losses holds every entry's own deltas Δ_i. With a layer's inputs X they give the entry's
row X_iᵀΔ_i, the Gramian of all rows, its diagonal, and any combination of them in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..core.checks import depth, enable_grad
from ..core.tree import dot
from ..processes import ALONE, Ranks
from ..types import Batch, LossesFn, Params, Rows
from .backward import Backward, recording, wide_of
from .layerwise import (
    EntryPlan,
    Form,
    Graph,
    Plan,
    SplitGroup,
    block_of,
    common_plan,
    sample_plan,
    signature,
)
from .losses import parse_samples
from .run import check_connected, run

ROWS_AT_ONCE = 64
"""Rows in one batched pass where a leaf has to be differentiated sample by sample."""


@dataclass(frozen=True, eq=False)
class Split:
    """One backward pass split by entry; one for each part, where every entry has several losses."""

    backward: Backward
    graph: Graph
    losses: Tensor  # as the pass starts from them: [entry], [entry, part], or flattened
    plan: Plan
    groups: tuple[SplitGroup, ...]  # the plan's

    def with_plan(self, plan: Plan) -> Split:
        """The same pass under a plan of some of its groups."""
        found = {each.group.name: each for each in self.groups}
        return replace(self, plan=plan, groups=tuple(found[group.name] for group, _ in plan.tapped))

    def products(self, biases: Mapping[str, str]) -> Iterator[tuple[SplitGroup, Form, bool]]:
        """The groups with a part of their own in a Gramian, and whether it is that of their calls'
        bias as well.
        """
        weights = set(biases.values())
        for each, (group, form) in zip(self.groups, self.plan.tapped, strict=True):
            if group.name not in biases:
                yield each, form, group.name in weights

    def by_passes(
        self, names: Sequence[str], cotangents: Tensor, chunk_size: int | None = None
    ) -> Rows:
        """Rows of the leaves that also other nodes read, by one pass a cotangent."""
        chunk = chunk_size if self.graph.batches(self.backward.record) else 1
        found = self.backward.each(cotangents, [*map(self.backward.leaf, names)], chunk)
        return dict(zip(names, found, strict=True))

    def rows(self, entries: slice = slice(None)) -> Rows:
        """Those of the plan's rows [entry·part, *shape]."""
        losses = self.losses
        every = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device)[entries]
        return self.by_passes(self.plan.rows, every.reshape(-1, *losses.shape), ROWS_AT_ONCE)

    @cached_property
    def by_leaf(self) -> dict[str, list[SplitGroup]]:
        found: dict[str, list[SplitGroup]] = {}
        for each in self.groups:
            found.setdefault(each.group.leaf, []).append(each)
        return found

    def assemble(self, name: str, rows: Callable[[SplitGroup], Tensor]) -> Tensor:
        """Rows of a leaf [row, *shape] from those of its parts; zero where no call used it."""
        leaf, parts, at = self.backward.params[name], [], 0
        width = leaf[0].numel() if leaf.ndim else 1
        for each in sorted(self.by_leaf[name], key=lambda each: each.group.start):
            found, start = rows(each), each.group.start * width
            if start > at:
                parts.append(found.new_zeros(len(found), start - at))
            parts.append(found)
            at = start + found.shape[1]
        if at < leaf.numel():
            parts.append(parts[-1].new_zeros(len(parts[-1]), leaf.numel() - at))
        found = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return found.reshape(len(found), *leaf.shape).to(leaf.dtype)


def split(
    backward: Backward,
    graph: Graph,
    losses: Tensor,
    entries: int,
    how: EntryPlan,
) -> Split:
    """The pass.

    Args:
        backward: the open graph.
        graph: of the forward pass.
        losses: [entry] or [entry, part], or the same flattened.
        entries: how many.
        how: its plan, and where the entries are.
    """
    uses, parts = how.plan.uses, losses.numel() // entries
    targets = [backward.at(use, losses) for use in uses]
    eye = torch.eye(parts, dtype=losses.dtype, device=losses.device)
    by_part = eye[:, None].expand(parts, entries, parts)
    chunk = None if graph.batches(backward.record) else 1

    deltas = backward.each(by_part.reshape(parts, *losses.shape), targets, chunk)
    groups = how.plan.groups(deltas, entries, how.where)
    return Split(backward, graph, losses, how.plan, groups)


def _gramian(left: Split, right: Split, dtype: torch.dtype | None, union: Ranks = ALONE) -> Tensor:
    """The Gramian [entry·part, entry·part] of one pass with another, of one plan."""
    same, parts, wide = right is left, [], wide_of(left.backward.params, dtype)
    known = union.lists([x.plan.biases for x in ((left,) if same else (left, right))])
    biases = dict(set.intersection(*(set(each.items()) for each in known)))
    with recording(left.backward, right.backward):
        pairs = zip(left.products(biases), right.products(biases), strict=True)
        for (one, form, biased), (other, _, _) in pairs:
            mine = one.factors(form, wide)
            theirs = mine if same else other.factors(form, wide)
            block = partial(block_of, one.group, form, mine, dtype=wide, biased=biased)
            parts.append(union.columns(theirs, block))
    if left.plan.rows:
        rows = left.rows()
        its = rows if same else right.rows()
        parts.append(dot(rows, its, left.plan.rows, dtype, union.columns))
    gramian = torch.stack(parts).sum(0)
    return 0.5 * (gramian + gramian.mT) if same and not union.several else gramian


def _squares(side: Split, dtype: torch.dtype | None) -> Tensor:
    """Squared lengths [entry·part]; of leaves that other nodes read a few rows at a time."""
    wide = wide_of(side.backward.params, dtype)
    with recording(side.backward):
        parts = [
            each.squares(wide, biased=biased) for each, _, biased in side.products(side.plan.biases)
        ]
    if side.plan.rows:
        found = []
        for start in range(0, side.losses.numel(), ROWS_AT_ONCE):
            rows = side.rows(slice(start, start + ROWS_AT_ONCE)).values()
            each = [x.to(wide).reshape(len(x), -1).square().sum(1) for x in rows]
            found.append(torch.stack(each).sum(0))
        parts.append(torch.cat(found))
    return torch.stack(parts).sum(0)


def sample_by_layers(
    losses_fn: LossesFn,
    params: Params,
    batches: Sequence[Batch],
    names: tuple[str, ...],
    gramian_dtype: torch.dtype | None,
    *,
    diagonal: bool = False,
    union: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """Losses [sample] or [sample, task] and the Gramian over all of them, entry by entry.

    Args:
        losses_fn: `(params, batch) -> [sample]` or `[sample, task]`.
        params: where to differentiate.
        batches: a second one has the samples that make the Gramian's columns.
        names: the leaves that the Gramian sums over.
        gramian_dtype: dtype of the accumulation; None is the parameters' own, at least float32.
        diagonal: the Gramian's diagonal alone.
        union: the processes that call this together, each with samples of its own; all of theirs,
            one rank after the other, make the columns. Nothing is differentiated through it.

    Returns:
        the first losses as they came, and G [n, m] over the flattened losses, or its diagonal [n].

    Raises:
        ValueError: where the graph does not prove that samples stay separate.
    """

    sides = [_side(losses_fn, params, batch, names) for batch in batches]
    union.check({"the number of tasks": [list(x.losses.shape[1:]) for x in sides]})
    with enable_grad():
        if len(sides) == 2 or union.several:
            every = union.lists([signature(side.plan) for side in sides])
            sides = [side.with_plan(common_plan(side.plan, every)) for side in sides]
        if diagonal:
            gramian = _squares(sides[0], gramian_dtype)
        else:
            gramian = _gramian(sides[0], sides[-1], gramian_dtype, union)
    return sides[0].losses, gramian


def _side(losses_fn: LossesFn, params: Params, batch: Batch, names: tuple[str, ...]) -> Split:
    """One forward, and its pass split by sample."""
    forward = run(losses_fn, params, batch, watch=True, parse=parse_samples, separable=False)
    check_connected(forward)
    losses, graph = forward.value, forward.graph
    if forward.hooked and not depth():
        graph = replace(graph, loops=True)
    with enable_grad():
        read = forward.of_read(names).params
        names = tuple([name for name in names if name in read])
        how = EntryPlan(Plan((), names))
        if forward.watched:
            how = sample_plan(forward, names)
        backward = Backward(forward, forward.recorded)
        return split(backward, graph, losses, len(losses), how)
