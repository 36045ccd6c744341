"""Tasks that are weightings of samples, L = A ℓ, for the price of one backward pass.

The pullback of Σ ℓ_n holds every sample's own deltas Δ_n. With a layer's inputs X they give its
rows of samples R_n = X_nᵀΔ_n, those of the tasks A R, and the combination of these with weights w
in one product, Σ_n v_n X_nᵀΔ_n with v = Aᵀw, without another pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.checks import enable_grad, is_differentiated
from ..core.tree import HALF, dot, inner_products
from ..types import Params, Rows
from .backward import Backward, recording, wide_of
from .entries import Split, split
from .layerwise import (
    Asked,
    Group,
    Plan,
    block_of,
    dtypes_of,
    has_rows,
    remember_rows,
    weighted_plan,
    widest,
)
from .linearize import Linearization, Request
from .run import Forward

ROUNDING = 8.0
"""Times the precision of a sum of products, what rounding may make of it."""


def linearize_weightings(forward: Forward, request: Request) -> Linearization | None:
    """One backward pass for all tasks; None if one per task is cheaper, or the graph does
    not prove that samples are apart, or hooks may sit on its derivatives.

    Args:
        forward: of losses of samples.
        request: its mix are the weightings, flattened as the losses are.
    """
    value = forward.value
    with enable_grad():
        key, shape = None, forward.losses.shape or value.shape
        if forward.watched and request.engine == "auto":
            key = Asked(
                forward.graph.kind, request.weightings, request.measured,
                dtypes_of(value, forward.params), value.device.type, request.shared,
                request.keep, weighed=(shape, request.gramian_dtype),
            )  # fmt: skip
            if has_rows(key):
                return None
        how = weighted_plan(forward, request)
        if how is None or not how.worth:
            if key:
                remember_rows(key)
            return None
        samples = shape[0]
        matrix, preference = request.cotangents(value)
        assert matrix is not None
        record = forward.recorded or is_differentiated(matrix)
        backward = Backward(forward, record)
        side = split(backward, forward.graph, value, samples, how)
        return _Weighings(side, forward, request, how.kept, matrix, preference).linearization()


@dataclass(frozen=True, eq=False)
class _Weighings:
    """What one backward pass by sample answers for weightings."""

    side: Split
    forward: Forward
    request: Request
    kept: tuple[str, ...]  # the leaves whose rows are kept, to be combined
    matrix: Tensor  # the weightings A [task, entry]
    preference: Tensor  # [task]

    def linearization(self) -> Linearization:
        request, matrix, backward = self.request, self.matrix, self.side.backward
        params, value = self.forward.params, self.forward.value
        with recording(backward):
            others = tuple(name for name in params if name not in set(request.shared))
            names = (*self.side.plan.rows, *self.kept)
            rows = self.rows(request.shared if request.keep == "rows" else names)
            gramian = self.gramian(rows) if request.measured else None
            share = request.heads(len(matrix)) if others and request.heads else None
            heads = {}
            if share is not None:
                heads = self.combination(share * matrix.sum(0), others)
        losses = matrix @ value
        kept = {name: row for name, row in rows.items() if name in request.shared}

        def pullback(weights: Tensor, names: tuple[str, ...] = tuple(params)) -> Params:
            backward.record |= is_differentiated((value, weights, matrix))
            with enable_grad() if backward.record else torch.no_grad():
                return self.combination(weights.to(matrix.dtype) @ matrix, names)

        aux = self.forward.aux
        return Linearization(losses, losses, self.preference, kept, gramian, heads, pullback, aux)

    @cached_property
    def wide(self) -> torch.dtype:
        return wide_of(self.forward.params, self.request.gramian_dtype)

    def dtype_of(self, group: Group) -> torch.dtype:
        """In which its samples' gradients are made: halves stay halves, but for a wide Gramian."""
        half = group.dtype in HALF and self.wide == torch.float32
        return group.dtype if half else wide_of(self.forward.params)

    def rows(self, names: Sequence[str]) -> Rows:
        """The tasks' rows of these leaves: mixed of those of the samples, or by a pass per task."""
        side, mix = self.side, self.matrix.to(wide_of(self.forward.params))
        passed = [name for name in names if name not in side.by_leaf]
        found = side.by_passes(passed, self.matrix, self.request.chunk_size)
        return {
            name: found[name]
            if name in found
            else side.assemble(name, lambda each: each.rows(self.dtype_of(each.group), mix))
            for name in names
        }

    def combination(self, weights: Tensor, names: Sequence[str]) -> Params:
        """The gradient of Σ v ℓ, v [entry], in these leaves."""
        side = self.side
        passed = tuple(name for name in names if name not in side.by_leaf)
        found = side.backward.leaves(passed, weights)
        mix = weights[None].to(wide_of(self.forward.params))
        return {
            name: found[name]
            if name in found
            else side.assemble(name, lambda each: each.rows(self.dtype_of(each.group), mix))[0]
            for name in names
        }

    def gramian(self, rows: Rows) -> Tensor:
        """[task, task], of what forms no rows and of these."""
        measured, dtype = self.request.measured, self.request.gramian_dtype
        given = [name for name in measured if name in rows]
        parts = [dot(rows, rows, given, dtype)] if given else []
        # Weightings may leave little of what samples have in common: products of samples are wider
        # than what is left of them.
        wide, most = self.wide, widest(self.matrix.device.type)
        asked = set(measured).difference(rows)
        tapped = tuple(pair for pair in self.side.plan.tapped if pair[0].leaf in asked)
        side = self.side.with_plan(Plan(tapped, ()))
        blocks, mix, halves = [], self.matrix.to(wide), False
        for each, form, biased in side.products(side.plan.biases):
            if form == "mixed":
                mixed = each.rows(wide, mix)
                parts.append(inner_products(mixed, mixed))
                continue
            half = self.dtype_of(each.group) in HALF
            halves |= half
            if form == "gemm":
                blocks.append(each.products(each.group.dtype if half else wide, most))
                continue
            factors = each.factors(form, each.group.dtype if half else most)
            found = block_of(each.group, form, factors, factors, most, biased=biased)
            blocks.append(found.to(most))
        if blocks:
            by_sample = blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)
            matrix = self.matrix.to(most)
            found = matrix @ by_sample @ matrix.mT
            # What rounding makes of products that cancel has either sign; a Gramian has not.
            precision = torch.finfo(torch.float32 if halves else most).eps
            left = ROUNDING * precision * (matrix.square() @ by_sample.diagonal())
            parts.append((found + left.diag_embed()).to(wide))
        gramian = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return 0.5 * (gramian + gramian.mT)
