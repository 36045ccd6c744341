"""The Gramian of per-sample gradients, from one backward pass a task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..core.checks import differentiated, poison
from ..core.tree import dot
from ..types import Params
from .layerwise import (
    Choices,
    Layout,
    Tapped,
    Use,
    layouts,
    proved_apart,
    read_graph,
    sample_block,
    sample_plan,
)
from .passes import Backward, Target
from .rows import explained_vjp, forward_pass

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

    Raises:
        ValueError: where it is not so, if `look` says that values may be looked at; elsewhere the
            Gramian is NaN.
    """
    backward = Backward(params)

    def forward_and_backward(level: Params) -> tuple[Tensor, Any]:
        taps, (losses,) = forward_pass(lambda: (losses_fn(level),), lambda: Tapped(level))
        graph = read_graph(losses)
        samples, tasks, device = losses.shape[0], losses[0].numel(), losses.device.type
        backward.open(level, losses, differentiated(losses, own_levels=1))
        plan = sample_plan(taps, level, names, graph, samples, tasks, device)
        uses = plan.uses
        targets = [
            Target(use.edge, lambda use=use: losses.new_zeros(use.shape, dtype=use.dtype))
            for use in uses
        ]
        wide = gramian_dtype or torch.promote_types(
            next(iter(params.values())).dtype, torch.float32
        )
        parts, sound = [], []
        if uses:
            eye = torch.eye(tasks, dtype=losses.dtype, device=losses.device)
            by_task = eye[:, None].expand(tasks, samples, tasks)
            batched = None if graph.batched else 1
            deltas = backward.each(by_task.reshape(tasks, *losses.shape), targets, batched)
            # A pass that the graph makes needless: nothing between the losses and the parameters
            # can mix samples or move them.
            if proved_apart(taps, uses, losses):
                where = [((Layout(0, True), losses.new_ones((), dtype=torch.bool)),)] * len(uses)
            else:
                shares = _shares(samples, uses, losses)
                probe = backward.each(
                    (shares[:, None] * by_task).reshape(tasks, *losses.shape), targets, batched
                )
                with nullcontext() if backward.record else torch.no_grad():
                    where, sound = _sample_axes(uses, deltas, probe, shares, look)
            with nullcontext() if backward.record else torch.no_grad():
                kernels = {
                    group.calls
                    for group, form in plan.tapped
                    if form == "kernel" and group.takes_bias
                }
                # a weight takes its bias along
                merged = kernels & {group.calls for group, _ in plan.tapped if group.is_bias}
                at = 0
                for group, form in plan.tapped:
                    mine = slice(at, at + len(group.uses))
                    at = mine.stop
                    if not (group.is_bias and group.calls in merged):
                        parts.append(
                            sample_block(
                                group,
                                form,
                                where[mine],
                                deltas[mine],
                                samples,
                                wide,
                                biased=group.calls in merged,
                            )
                        )
        if plan.rows:
            every = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device).reshape(
                -1, *losses.shape
            )
            chunk = ROWS_AT_ONCE if graph.batched and (graph.twice or not backward.record) else 1
            rows = dict(
                zip(
                    plan.rows,
                    backward.each(every, [backward.targets[name] for name in plan.rows], chunk),
                    strict=True,
                )
            )
            parts.append(dot(rows, rows, plan.rows, gramian_dtype))
        gramian = torch.stack(parts).sum(0)
        gramian = 0.5 * (gramian + gramian.mT)
        return losses.sum(), (
            losses,
            torch.where(torch.stack(sound).all(), gramian, float("nan")) if sound else gramian,
        )

    _, _, (losses, gramian) = explained_vjp(forward_and_backward, params)
    return losses, poison(gramian, losses)


def _shares(samples: int, uses: list[Use], losses: Tensor) -> Tensor:
    """Powers of two: what does not mix is multiplied by them without rounding, so that a sample's
    deltas may be compared at rounding level.

    Every run of 11 or 61 samples has all different ones, and each run has its own order, so that no
    shift of the samples goes unseen.
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
    second is the first times the shares. Where values may be looked at, one layout is left.
    """
    samples = len(shares)
    # a layer's weight and bias share their deltas
    known: dict[tuple[Any, ...], tuple[Choices, Tensor]] = {}
    for use, delta, weighted in zip(uses, deltas, probe, strict=True):
        place = use.edge.node, use.edge.output_nr, use.axes
        if place in known:
            continue
        choices: list[tuple[Layout, Tensor]] = []
        for layout in layouts(use, samples):
            axis = 1 + layout.axis
            split = (samples, -1) if layout.major else (-1, samples)
            plain, scaled = (
                _projected(
                    x.unflatten(axis, split)
                    .movedim(axis if layout.major else axis + 1, 1)
                    .flatten(2)
                )
                for x in (delta, weighted)
            )
            # In units of the sample's own deltas; what the shares may have made underflow counts as
            # zero.
            slack = (
                min(1e3 * torch.finfo(use.dtype).eps, 0.1) * plain.abs()
                + 1e3 * torch.finfo(use.dtype).tiny / shares.amin()
            )
            same = ((scaled / shares - plain).abs() <= slack).all()
            # NaN is reported by the Gramian itself
            choices.append((layout, (same | ~plain.isfinite().all()).detach()))
            if look and bool(choices[-1][1]):
                choices = choices[-1:]
                break
        found = torch.stack([verdict for _, verdict in choices]).any()
        if look and not bool(found):
            raise ValueError(
                "losses_fn: entry i of the losses has to depend on sample i alone, but the "
                f"samples mix at {use.part.leaf} ({use.op}): train-mode batch "
                "norm, a loss that compares samples, losses that are not in the order of the "
                "samples, or an axis there that counts something else and is "
                f'as long as {samples} samples. Call module.eval(), or use engine="rows", which '
                "differentiates every entry whatever it depends on"
            )
        known[place] = tuple(choices), found
    places = [(use.edge.node, use.edge.output_nr, use.axes) for use in uses]
    return [known[place][0] for place in places], [verdict for _, verdict in known.values()]


def _projected(x: Tensor) -> Tensor:
    """[..., width] on a fixed direction in general position: one number a sample is compared, not
    all of its deltas.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    fractions = torch.frac(
        0.6180339887498949 * torch.arange(x.shape[-1], dtype=torch.float64, device=x.device)
    )
    return x @ (0.5 + fractions).to(x.dtype)
