"""The Gramian of per-sample gradients, from one backward pass a task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_autocast, differentiated, poison
from ..core.tree import dot
from ..types import Params
from .forward import explained_vjp, forward_pass
from .layerwise import (
    Choices,
    Graph,
    Layout,
    Plan,
    Tapped,
    Use,
    layouts,
    proved_apart,
    read_graph,
    sample_block,
    sample_plan,
)
from .passes import Backward, Target

ROWS_AT_ONCE = 64
"""Rows in one batched pass where a leaf has to be differentiated sample by sample."""


def sample_by_layers(
    losses_fn: Callable[[Params], Tensor],
    params: Params,
    names: tuple[str, ...],
    *,
    look: bool,
    gramian_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Losses [sample] or [sample, task] and the Gramian over all of them, entry by entry.

    Where entry i depends on sample i alone, the pullback of the sum of all samples' losses holds
    every sample's own deltas. Where the graph does not prove that, a second pass, with every sample
    weighted differently, shows whether it is so, and which axis of a call's output is the sample.

    Args:
        losses_fn: from the parameters to losses [sample] or [sample, task].
        params: where to differentiate.
        names: the leaves that the Gramian sums over.
        look: whether values can be read.
        gramian_dtype: dtype of the accumulation; None is the parameters' own, at least float32.

    Returns:
        losses as they came, and G [n, n] over the flattened losses.

    Raises:
        ValueError: where samples mix, if `look`; elsewhere the Gramian is NaN.
    """
    check_autocast(params)
    backward = Backward(params)
    wide = gramian_dtype or torch.promote_types(next(iter(params.values())).dtype, torch.float32)

    def forward_and_backward(level: Params) -> tuple[Tensor, Any]:
        losses, taps, _ = forward_pass(lambda: losses_fn(level), lambda: Tapped(level))
        graph = read_graph(losses)
        samples, tasks, device = losses.shape[0], losses[0].numel(), losses.device.type
        backward.open(level, losses, differentiated(losses, own_levels=1))
        plan = Plan((), names)
        if taps is not None:
            plan = sample_plan(taps, level, names, graph, samples, tasks, device)
        parts, sound = [], []
        if plan.tapped:
            deltas, where, sound = _deltas(backward, plan, graph, losses, look)
            with _recorded(backward):
                parts = _blocks(plan, deltas, where, samples, wide)
        if plan.rows:
            rows = _rows(backward, plan.rows, graph, losses)
            parts.append(dot(rows, rows, plan.rows, gramian_dtype))
        gramian = torch.stack(parts).sum(0)
        gramian = 0.5 * (gramian + gramian.mT)
        if sound:
            gramian = torch.where(torch.stack(sound).all(), gramian, float("nan"))
        return losses.sum(), (losses, gramian)

    _, _, (losses, gramian) = explained_vjp(forward_and_backward, params)
    return losses, poison(gramian, losses)


def _recorded(backward: Backward) -> AbstractContextManager[Any]:
    return nullcontext() if backward.record else torch.no_grad()


def _deltas(
    backward: Backward, plan: Plan, graph: Graph, losses: Tensor, look: bool
) -> tuple[list[Tensor], list[Choices], list[Tensor]]:
    """For every use its deltas [task, *shape] and the layouts that its samples may have; and
    whether one of them is right, unless that is proved.
    """
    uses, samples, tasks = plan.uses, losses.shape[0], losses[0].numel()
    targets = [
        Target(use.edge, lambda use=use: losses.new_zeros(use.shape, dtype=use.dtype))
        for use in uses
    ]
    eye = torch.eye(tasks, dtype=losses.dtype, device=losses.device)
    by_task = eye[:, None].expand(tasks, samples, tasks)
    chunk = None if graph.batched else 1
    deltas = backward.each(by_task.reshape(tasks, *losses.shape), targets, chunk)
    # Nothing between the losses and the parameters can mix samples or move them.
    if proved_apart(uses, losses):
        return deltas, [((Layout(0, True), losses.new_ones((), dtype=torch.bool)),)] * len(uses), []
    shares = _shares(samples, uses, losses)
    weighted = (shares[:, None] * by_task).reshape(tasks, *losses.shape)
    probe = backward.each(weighted, targets, chunk)
    with _recorded(backward):
        where, sound = _sample_axes(uses, deltas, probe, shares, look)
    return deltas, where, sound


def _blocks(
    plan: Plan, deltas: list[Tensor], where: list[Choices], samples: int, dtype: torch.dtype
) -> list[Tensor]:
    """The tapped groups' parts of the Gramian; a weight takes the bias of its own calls along."""
    kernels = {group.calls for group, form in plan.tapped if form == "kernel" and group.takes_bias}
    merged = kernels & {group.calls for group, _ in plan.tapped if group.is_bias}
    parts, at = [], 0
    for group, form in plan.tapped:
        mine = slice(at, at + len(group.uses))
        at = mine.stop
        biased = group.calls in merged
        if not (group.is_bias and biased):
            parts.append(
                sample_block(group, form, where[mine], deltas[mine], samples, dtype, biased=biased)
            )
    return parts


def _rows(backward: Backward, names: tuple[str, ...], graph: Graph, losses: Tensor) -> Params:
    """Rows [sample·task, *shape] of the leaves that no tap serves."""
    every = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device)
    chunk = ROWS_AT_ONCE if graph.batched and (graph.twice or not backward.record) else 1
    targets = [backward.targets[name] for name in names]
    found = backward.each(every.reshape(-1, *losses.shape), targets, chunk)
    return dict(zip(names, found, strict=True))


def _shares(samples: int, uses: list[Use], losses: Tensor) -> Tensor:
    """Powers of two: what does not mix is multiplied by them without rounding.

    A sample's deltas can then be compared at rounding level. Every run of 11 or 61 samples has all
    different ones, and each run has its own order, so that no shift of the samples goes unseen.
    """
    most = 5 if any(use.dtype == torch.float16 for use in uses) else 30
    period = 2 * most + 1  # a prime
    index = torch.arange(samples, device=losses.device)
    place, run = index % period, index // period
    exponents = ((1 + (36 + 11 * run) % (period - 1)) * place + 29 * run) % period - most
    return torch.ldexp(losses.new_ones(samples), exponents)


def _sample_axes(
    uses: list[Use], deltas: list[Tensor], probe: list[Tensor], shares: Tensor, look: bool
) -> tuple[list[Choices], list[Tensor]]:
    """For every use the layouts that its samples may have, each with whether it is so, and whether
    one of them is.

    `deltas` came with every sample's cotangent 1, `probe` with its share: if nothing mixes, the
    second is the first times the shares. Where values can be read, one layout is left.
    """
    # a layer's weight and bias share their deltas
    known: dict[tuple[Any, ...], Choices] = {}
    places = [(use.edge.node, use.edge.output_nr, use.axes) for use in uses]
    for place, use, delta, weighted in zip(places, uses, deltas, probe, strict=True):
        if place in known:
            continue
        known[place] = _candidates(use, delta, weighted, shares, look)
        if look and not any(bool(right) for _, right in known[place]):
            raise ValueError(
                "losses_fn: entry i of the losses has to depend on sample i alone, but the "
                f"samples mix at {use.part.leaf} ({use.op}): train-mode batch norm, a loss that "
                "compares samples, losses that are not in the order of the samples, or an axis "
                f"there that counts something else and is as long as {len(shares)} samples. Call "
                'module.eval(), or use engine="rows", which differentiates every entry whatever '
                "it depends on"
            )
    sound = [torch.stack([right for _, right in choices]).any() for choices in known.values()]
    return [known[place] for place in places], sound


def _candidates(use: Use, delta: Tensor, weighted: Tensor, shares: Tensor, look: bool) -> Choices:
    """The layouts that fit one use's output, each with whether its samples stay apart in it; the
    first of which that can be read, alone.
    """
    samples, choices = len(shares), ()
    for layout in layouts(use, samples):
        axis = 1 + layout.axis
        split = (samples, -1) if layout.major else (-1, samples)
        plain, scaled = (
            _projected(
                x.unflatten(axis, split).movedim(axis if layout.major else axis + 1, 1).flatten(2)
            )
            for x in (delta, weighted)
        )
        # In units of the sample's own deltas; what the shares may have made underflow is zero.
        slack = (
            min(1e3 * torch.finfo(use.dtype).eps, 0.1) * plain.abs()
            + 1e3 * torch.finfo(use.dtype).tiny / shares.amin()
        )
        same = ((scaled / shares - plain).abs() <= slack).all()
        # NaN is reported by the Gramian itself
        right = (same | ~plain.isfinite().all()).detach()
        if look and bool(right):
            return ((layout, right),)
        choices += ((layout, right),)
    return choices


def _projected(x: Tensor) -> Tensor:
    """[..., width] on a fixed direction in general position: one number a sample is compared."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    fractions = torch.frac(
        0.6180339887498949 * torch.arange(x.shape[-1], dtype=torch.float64, device=x.device)
    )
    return x @ (0.5 + fractions).to(x.dtype)
