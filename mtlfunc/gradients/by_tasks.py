"""One backward pass a row: for all tasks at once, in chunks, in a loop, or each loss alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..core.tree import dot, inner_products
from ..types import Params, Rows
from .backward import SMALL, Backward, recording, stacked, wide_of
from .layerwise.formulas import Deltas
from .layerwise.plan import Plan
from .layerwise.uses import PLAIN
from .run import TracedForward


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
        places = [use.edge for use in uses] + [backward.places[name] for name in (*names, *heads)]
        places, count = tuple(places), len(uses) + len(names)
        edges = backward.some or backward.edges or ()
        one, nowhere = self.value.new_ones(()), [None] * len(places)
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
