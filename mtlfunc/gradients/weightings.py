"""Tasks that are weightings of samples, L = A ℓ, for the price of one backward pass.

The pullback of Σ ℓ_n holds every sample's own deltas Δ_n. With a layer's inputs X they give its
rows of samples R_n = X_nᵀΔ_n, those of the tasks A R, and the combination of these with weights w
in one product, Σ_n v_n X_nᵀΔ_n with v = Aᵀw, without another pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..core.checks import can_look, enable_grad, is_differentiated
from ..core.tree import dot, inner_products
from ..types import Params, Rows
from .backward import Backward
from .layerwise import (
    HALF,
    Form,
    Group,
    Layout,
    Plan,
    SampledGroup,
    Weighted,
    entry_layouts,
    groups_of,
    sample_block,
    sample_factors,
    sampled_groups,
    spread_groups,
    weighted_plan,
    widest,
)
from .linearize import Linearization, Request
from .run import Forward
from .samples import Side, deltas_by_sample
from .slices import rows_of_leaf

ROUNDING = 8.0
"""Times the precision of a sum of products, what rounding may make of it."""

FEW = 4
"""Up to so many tasks one pass for all may cost more than one a task."""


def linearize_weightings(forward: Forward, request: Request) -> Linearization | None:
    """One backward pass for all tasks; None if one per task is cheaper, or the samples are not
    found: nothing was seen of the forward pass, or hooks may sit on its derivatives.

    Args:
        forward: of losses of samples.
        request: its mix are the weightings, flattened as the losses are.
    """
    value = forward.value
    with enable_grad():
        found = plan_weightings(forward, request)
        if found is None or not found[0].worth:
            return None
        (plan, kept, _), proved = found
        graph, shape = forward.graph, forward.losses.shape or value.shape
        samples = shape[0]
        matrix, preference = request.cotangents(value)
        assert matrix is not None
        record = forward.recorded or is_differentiated(matrix)
        backward = Backward(forward, record)
        # then no pass follows: rows and combination are products of inputs and deltas
        last = request.last and not (record or plan.rows)
        frees = last and proved is not None and shape.numel() == samples
        look = can_look(forward.params, value)
        deltas, where, sound = deltas_by_sample(
            backward, plan.uses, graph, value, samples, look, proved, keep=not frees
        )
        side = Side(value.reshape(shape), forward, backward, graph, plan, deltas, where, sound)
        found = _Weighings(side, request, kept, matrix, preference).linearization()
        return found._replace(frees=frees)


def plan_weightings(
    forward: Forward, request: Request
) -> tuple[Weighted, Sequence[Layout] | None] | None:
    """The form of every leaf, whether one pass is worth it, and where the samples are, if known;
    None where the graph is not asked.
    """
    if not forward.watched or request.weightings < 2 or forward.root is None:
        return None
    shape = forward.losses.shape or forward.value.shape
    entries = samples, parts = shape[0], shape[1:].numel()
    if samples == 1:
        return None
    graph, params = forward.graph, forward.params
    rows = request.keep == "rows"
    exact = request.gramian_dtype in (None, torch.promote_types(forward.value.dtype, torch.float32))
    groups = groups_of(forward.uses, params, tuple(params), graph)

    def planned(passes: int) -> Weighted:
        found = weighted_plan(
            groups,
            params,
            request.shared if rows else request.measured,
            entries,
            request.weightings,
            forward.value.device.type,
            passes=passes,
            rows=rows,
            keep=request.keep == "combination" and exact,
            plain=exact,
        )
        worth = found.worth or request.engine == "layerwise"
        return found._replace(worth=worth and bool(groups))

    if request.weightings <= FEW and not (found := planned(parts)).worth:
        return found, None
    groups = sampled_groups(spread_groups(groups, graph, samples), graph, samples)
    found = planned(parts)
    if not found.worth:
        return found, None
    proved = entry_layouts(graph, forward.losses.vector, None, found.plan.uses, samples)
    return found if proved else planned(2 * parts), proved


class _Weighings:
    """What one backward pass by sample answers for weightings.

    Args:
        side: the pass.
        request: what is wanted.
        kept: the leaves whose rows are kept, to be combined.
        matrix: the weightings A [task, entry].
        preference: [task].
    """

    def __init__(
        self,
        side: Side,
        request: Request,
        kept: tuple[str, ...],
        matrix: Tensor,
        preference: Tensor,
    ) -> None:
        self.side, self.request, self.preference, self.kept = side, request, preference, kept
        self.params, self.backward, value = side.forward.params, side.backward, side.forward.value
        for right in side.sound:  # where samples mix unseen, nothing that is found is right
            matrix = torch.where(right, matrix, torch.nan)
        self.matrix, self.value = matrix, value
        plain = next(iter(self.params.values())).dtype
        self.own = torch.promote_types(plain, torch.float32)
        self.wide = request.gramian_dtype or self.own
        # Weightings may leave little of what samples have in common: products of samples are wider
        # than what is left of them.
        self.widest = widest(self.value.device.type)
        self.groups: dict[str, list[SampledGroup]] = {}
        for each, _ in side.sampled_groups():
            self.groups.setdefault(each.group.uses[0].part.leaf, []).append(each)

    def linearization(self) -> Linearization:
        request, matrix = self.request, self.matrix
        with nullcontext() if self.backward.record else torch.no_grad():
            others = tuple(name for name in self.params if name not in set(request.shared))
            names = (*self.side.plan.rows, *self.kept)
            rows = self.rows(request.shared if request.keep == "rows" else names)
            gramian = self.gramian(rows) if request.measured else None
            share = request.heads(len(matrix)) if others and request.heads else None
            heads = {}
            if share is not None:
                heads = self.combination(share * matrix.sum(0), others)
        losses = matrix @ self.value
        kept = {name: row for name, row in rows.items() if name in request.shared}

        def pullback(weights: Tensor, names: tuple[str, ...] = tuple(self.params)) -> Params:
            self.backward.record |= is_differentiated((self.value, weights, matrix))
            with enable_grad() if self.backward.record else torch.no_grad():
                return self.combination(weights.to(matrix.dtype) @ matrix, names)

        aux = self.side.forward.aux
        return Linearization(losses, losses, self.preference, kept, gramian, heads, pullback, aux)

    def dtype_of(self, group: Group) -> torch.dtype:
        """In which its samples' gradients are made: halves stay halves, but for a wide Gramian."""
        half = group.dtype in HALF and self.wide == torch.float32
        return group.dtype if half else self.own

    def rows(self, names: Sequence[str]) -> Rows:
        """The tasks' rows of these leaves: mixed of those of the samples, or by a pass per task."""
        passed = [name for name in names if name not in self.groups]
        found = {}
        if passed:
            targets = [self.backward.leaf(name) for name in passed]
            batched = self.side.forward.graph.batches(self.backward.record)
            chunk = self.request.chunk_size if batched else 1
            found = dict(zip(passed, self.backward.each(self.matrix, targets, chunk), strict=True))
        mix = self.matrix.to(self.own)
        for name in names:
            if name not in found:
                found[name] = self._whole(
                    name, lambda each: each.rows(self.dtype_of(each.group), mix)
                )
        return {name: found[name] for name in names}

    def combination(self, weights: Tensor, names: Sequence[str]) -> Params:
        """The gradient of Σ v ℓ, v [entry], in these leaves."""
        passed = tuple(name for name in names if name not in self.groups)
        found = self.backward.leaves(passed, weights) if passed else {}
        for name in names:
            if name not in found:
                one = self._whole(
                    name, lambda each: each.combined(weights, self.dtype_of(each.group))
                )
                found[name] = one[0]
        return {name: found[name] for name in names}

    def _whole(self, name: str, rows: Callable[[SampledGroup], Tensor]) -> Tensor:
        """Rows [row, *shape] of a leaf from those of its parts [row, width]."""
        pieces = []
        for each in self.groups[name]:
            span = each.group.uses[0].part.span
            pieces.append((span[0] if span else 0, rows(each)))
        return rows_of_leaf(self.params[name], pieces, None)

    def gramian(self, rows: Rows) -> Tensor:
        """[task, task], of what forms no rows and of these."""
        measured, dtype = self.request.measured, self.request.gramian_dtype
        given = [name for name in measured if name in rows]
        parts = [dot(rows, rows, given, dtype)] if given else []
        tapped: list[tuple[Group, Form]] = [
            (group, form)
            for group, form in self.side.plan.tapped
            if group.uses[0].part.leaf in measured and group.uses[0].part.leaf not in rows
        ]
        side = self.side.with_plan(Plan(tuple(tapped), ()))
        biases, blocks, mix, halves = side.biases(), [], self.matrix.to(self.wide), False
        for each, form in side.sampled_groups():
            group, name = each.group, each.group.name
            if form == "mixed" and name not in biases:
                mixed = each.rows(self.wide, mix)
                parts.append(inner_products(mixed, mixed))
            elif name not in biases:
                half = self.dtype_of(group) in HALF
                halves |= half
                if form == "gemm":
                    data = group.dtype if half else self.wide
                    blocks.append(each.products(data, self.widest))
                    continue
                factors = sample_factors(each, form, group.dtype if half else self.widest)
                biased = name in biases.values()
                found = sample_block(group, form, factors, factors, self.widest, biased=biased)
                blocks.append(found.to(self.widest))
        if blocks:
            by_sample = blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)
            wide = self.matrix.to(self.widest)
            found = wide @ by_sample @ wide.mT
            # What rounding makes of products that cancel has either sign; a Gramian has not.
            precision = torch.finfo(torch.float32 if halves else self.widest).eps
            left = ROUNDING * precision * (wide.square() @ by_sample.diagonal())
            parts.append((found + left.diag_embed()).to(self.wide))
        gramian = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return 0.5 * (gramian + gramian.mT)
