"""One backward pass whose deltas are split by sample: rows, Gramians and combinations of them.

Where entry i of the losses depends on its own part of every activation alone, the pullback of the
sum of all losses holds every sample's own deltas Δ_i. With a layer's inputs X they give the
sample's row R_i = X_iᵀΔ_i, the Gramian of all rows, and its diagonal. Tasks that are weightings A
of the samples have the rows A R, and their combination with weights w is one product more,
Σ_i v_i X_iᵀΔ_i with v = Aᵀw.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.transforms import depth, enable_grad
from ..core.tree import HALF, dot, inner_products
from ..types import Params, Rows
from .backward import Backward, recording, wide_of
from .layerwise.formulas import Deltas, Form, Group
from .layerwise.plan import ROWS_AT_ONCE, Plan, plan_samples, widest
from .run import Forward

ROUNDING = 8.0
"""Times the precision of a sum of products, what rounding may make of it."""


@dataclass(frozen=True, eq=False)
class BySamples:
    """The pass; one for each task, where every sample has several losses."""

    backward: Backward
    losses: Tensor  # as the pass starts from them: [sample], [sample, task], or flattened
    plan: Plan
    groups: tuple[Deltas, ...]  # the plan's
    dtype: torch.dtype | None  # of a Gramian; None is the parameters' own, at least float32

    def products(self, of: Collection[str]) -> Iterator[tuple[Deltas, Form, bool]]:
        """Groups `of` leaves with their own part in a Gramian, and if it is their biases' too."""
        pairs = zip(self.groups, self.plan.tapped, strict=True)
        every = [(each, *pair) for each, pair in pairs if pair[0].leaf in of]
        takes = {x.calls: x.name for _, x, form in every if form == "kernel" and x.takes_bias}
        biases = {x.name: takes[x.calls] for _, x, _ in every if x.is_bias and x.calls in takes}
        for each, group, form in every:
            if group.name not in biases:
                yield each, form, group.name in biases.values()

    def passed(self, names: Sequence[str], cotangents: Tensor, chunk: int | None = None) -> Rows:
        """Rows of leaves that also other nodes read, by one pass a cotangent."""
        chunk = chunk if self.backward.graph.batches(self.backward.record) else 1
        found = self.backward.each(cotangents, [*map(self.backward.leaf, names)], chunk)
        return dict(zip(names, found, strict=True))

    def left(self, which: slice = slice(None)) -> Rows:
        """Those of the plan's rows [sample·task, *shape]."""
        losses = self.losses
        every = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device)[which]
        return self.passed(self.plan.rows, every.reshape(-1, *losses.shape), self.plan.chunk)

    @property
    def wide(self) -> torch.dtype:
        return wide_of(self.backward.params, self.dtype)

    def is_half(self, group: Group) -> bool:
        """Whether its samples' gradients stay halves, as they do but for a wide Gramian."""
        return group.dtype in HALF and self.wide == torch.float32

    def rows(self, names: Sequence[str], mix: Tensor, chunk: int | None = None) -> Rows:
        """[row, *shape] by `mix` [row, sample·part]: of samples' gradients, or one pass a row."""
        known, wide = {each.group.leaf for each in self.groups}, wide_of(self.backward.params)
        found = self.passed([name for name in names if name not in known], mix, chunk)
        mix = mix.to(wide)
        return {
            name: found[name] if name in found else self._assembled(name, mix) for name in names
        }

    def _assembled(self, name: str, mix: Tensor) -> Tensor:
        """Rows of a leaf [row, *shape] from those of its parts; zero where no call used it."""
        leaf, parts, at = self.backward.params[name], [], 0
        width, own = leaf.shape[1:].numel(), mix.dtype
        mine = [each for each in self.groups if each.group.leaf == name]
        for each in sorted(mine, key=lambda each: each.group.start):
            found = each.rows(each.group.dtype if self.is_half(each.group) else own, mix)
            start = each.group.start * width
            if start > at:
                parts.append(found.new_zeros(len(found), start - at))
            parts.append(found)
            at = start + found.shape[1]
        if at < leaf.numel():
            parts.append(parts[-1].new_zeros(len(parts[-1]), leaf.numel() - at))
        found = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return found.reshape(len(found), *leaf.shape).to(leaf.dtype)

    def measure(
        self, shared: tuple[str, ...], wanted: bool, matrix: Tensor, chunk: int | None
    ) -> tuple[Rows, Tensor | None]:
        """Of weightings A [task, sample·part]: the rows made, and the Gramian if it is `wanted`."""
        with recording(self.backward):
            names = (*self.plan.rows, *self.plan.kept) if wanted else shared
            rows = self.rows([name for name in names if name in set(shared)], matrix, chunk)
            gramian = self._gramian(shared, matrix, rows) if wanted else None
        return rows, gramian

    def pull(self, weights: Tensor, names: Sequence[str], record: bool | None = None) -> Params:
        """The gradient of Σ v ℓ, v [sample·part], in these leaves, from the same deltas."""
        self.backward.record |= bool(record)
        with enable_grad() if self.backward.record else torch.no_grad():
            return {name: row[0] for name, row in self.rows(names, weights[None]).items()}

    def _gramian(self, shared: Sequence[str], matrix: Tensor, rows: Rows) -> Tensor:
        """A G Aᵀ [task, task], of what forms no rows and of these."""
        parts = [dot(rows, rows, rows, self.dtype)] if rows else []
        # Weightings may leave little of what samples have in common: products of samples are wider
        # than what is left of them.
        wide, most = self.wide, widest(matrix.device.type)
        blocks, mix, halves = [], matrix.to(wide), False
        for each, form, biased in self.products(set(shared).difference(rows)):
            if form == "mixed":
                mixed = each.rows(wide, mix)
                parts.append(inner_products(mixed, mixed))
                continue
            half = self.is_half(each.group)
            halves |= half
            if form == "gemm":
                blocks.append(each.products(each.group.dtype if half else wide, most))
                continue
            dtype = each.group.dtype if half else most
            blocks.append(each.block(form, dtype, most, biased=biased).to(most))
        if blocks:
            by_sample = blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)
            matrix = matrix.to(most)
            found = matrix @ by_sample @ matrix.mT
            # What rounding makes of products that cancel has either sign; a Gramian has not.
            precision = torch.finfo(torch.float32 if halves else most).eps
            left = ROUNDING * precision * (matrix.square() @ by_sample.diagonal())
            parts.append((found + left.diag_embed()).to(wide))
        gramian = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return 0.5 * (gramian + gramian.mT)


def split(
    backward: Backward, losses: Tensor, samples: int, plan: Plan, dtype: torch.dtype | None
) -> BySamples:
    """The pass of losses of this number of samples; `dtype`: of a Gramian."""
    tasks, targets = losses.numel() // samples, [backward.at(use, losses) for use in plan.uses]
    eye = torch.eye(tasks, dtype=losses.dtype, device=losses.device)
    by_task = eye[:, None].expand(tasks, samples, tasks).reshape(tasks, *losses.shape)
    chunk = None if backward.graph.batches(backward.record) else 1
    deltas = backward.each(by_task, targets, chunk)
    return BySamples(backward, losses, plan, plan.groups(deltas, samples), dtype)


def split_samples(
    forward: Forward, names: tuple[str, ...], gramian_dtype: torch.dtype | None
) -> BySamples:
    """The pass for every sample and task; an error where the graph does not separate samples."""
    names = tuple([name for name in names if name in forward.params])
    with enable_grad():
        inside = depth() > 0
        plan = Plan(rows=names, chunk=ROWS_AT_ONCE if inside else 1)
        plan = plan if forward.hooked else plan_samples(forward, names)
        backward = Backward(forward, forward.recorded, inside)
        return split(backward, forward.value, forward.samples[0], plan, gramian_dtype)


def gramian_of_samples(side: BySamples) -> Tensor:
    """The Gramian [sample·task, sample·task] of one pass."""
    with recording(side.backward):
        parts = [
            each.block(form, side.wide, side.wide, biased=biased)
            for each, form, biased in side.products(side.backward.params)
        ]
    if side.plan.rows:
        rows = side.left()
        parts.append(dot(rows, rows, side.plan.rows, side.dtype))
    return torch.stack(parts).sum(0)


def squares_of_samples(side: BySamples) -> Tensor:
    """Squared lengths [sample·task]; of leaves that other nodes read a few rows at a time."""
    with recording(side.backward):
        parts = [
            each.squares(side.wide, biased=biased)
            for each, _, biased in side.products(side.backward.params)
        ]
    if side.plan.rows:
        found = []
        for start in range(0, side.losses.numel(), ROWS_AT_ONCE):
            rows = side.left(slice(start, start + ROWS_AT_ONCE)).values()
            each = [x.to(side.wide).reshape(len(x), -1).square().sum(1) for x in rows]
            found.append(torch.stack(each).sum(0))
        parts.append(torch.cat(found))
    return torch.stack(parts).sum(0)
