"""Gramians and lengths of per-sample gradients, from one backward pass a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import can_look, depth, poison
from ..core.tree import dot
from ..processes import ALONE, Union
from ..types import Batch, LossesFn, Params
from .backward import Backward, target
from .layerwise import (
    Choices,
    Form,
    Graph,
    Layout,
    Plan,
    SampledGroup,
    Use,
    common_plan,
    layouts,
    sample_block,
    sample_factors,
    sample_plan,
    sample_squares,
    sketch,
)
from .losses import parse_samples
from .run import Forward, check_connected, run

ROWS_AT_ONCE = 64
"""Rows in one batched pass where a leaf has to be differentiated sample by sample."""


class Side(NamedTuple):
    """One backward pass by sample."""

    losses: Tensor  # [sample] or [sample, task]
    forward: Forward
    backward: Backward
    graph: Graph
    plan: Plan
    deltas: list[Tensor]
    where: list[Choices]
    sound: list[Tensor]  # whether the samples were found; none where the graph proves it

    def with_plan(self, plan: Plan) -> Side:
        """The same pass under a plan of some of its groups."""
        names = [group.name for group, _ in self.plan.tapped for _ in group.uses]
        order = [
            i for group, _ in plan.tapped for i, name in enumerate(names) if name == group.name
        ]
        return self._replace(
            plan=plan, deltas=[self.deltas[i] for i in order], where=[self.where[i] for i in order]
        )

    def sampled_groups(self) -> Iterator[tuple[SampledGroup, Form]]:
        each = self.plan.split(self.where), self.plan.split(self.deltas)
        for (group, form), where, deltas in zip(self.plan.tapped, *each, strict=True):
            yield SampledGroup(group, where, deltas, len(self.losses)), form

    def biases(self) -> dict[str, str]:
        """The biases that their own calls' weight takes along, with that weight."""
        weights = {
            group.calls: group.name
            for group, form in self.plan.tapped
            if form == "kernel" and group.takes_bias
        }
        return {
            group.name: weights[group.calls]
            for group, _ in self.plan.tapped
            if group.is_bias and group.calls in weights
        }

    def rows(self, entries: slice = slice(None)) -> Params:
        """Rows [sample·task, *shape] of the leaves that also other nodes read."""
        backward, graph, losses = self.backward, self.graph, self.losses
        every = torch.eye(losses.numel(), dtype=losses.dtype, device=losses.device)[entries]
        chunk = ROWS_AT_ONCE if graph.batches(backward.record) else 1
        targets = [backward.leaf(name) for name in self.plan.rows]
        found = backward.each(every.reshape(-1, *losses.shape), targets, chunk)
        return dict(zip(self.plan.rows, found, strict=True))


def sample_by_layers(
    losses_fn: LossesFn,
    params: Params,
    batches: Sequence[Batch],
    names: tuple[str, ...],
    gramian_dtype: torch.dtype | None,
    *,
    diagonal: bool = False,
    union: Union = ALONE,
) -> tuple[Tensor, Tensor]:
    """Losses [sample] or [sample, task] and the Gramian over all of them, entry by entry.

    Where entry i depends on sample i alone, the pullback of the sum of all samples' losses holds
    every sample's own deltas. Where the graph does not prove that, a second pass, with every sample
    weighted differently, shows whether it is so, and which axis of a call's output is the sample.

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
        ValueError: where samples mix, if values can be read; elsewhere the Gramian is NaN.
    """
    look = can_look(params, batches)
    wide = gramian_dtype or torch.promote_types(next(iter(params.values())).dtype, torch.float32)

    def all_sides() -> tuple[list[Side], dict[str, Any]]:
        sides = [_side(losses_fn, params, batch, names, look) for batch in batches]
        return sides, {"the number of tasks": [list(x.losses.shape[1:]) for x in sides]}

    sides = union.agree(all_sides)
    with torch.inference_mode(False), torch.enable_grad():
        if len(sides) == 2 or union.several:
            every = union.lists([sketch(side.plan) for side in sides])
            sides = [side.with_plan(common_plan(side.plan, every)) for side in sides]
        if diagonal:
            gramian = _squares(sides[0], wide)
        else:
            gramian = _gramian(sides[0], sides[-1], wide, gramian_dtype, union)
        sound = [right for side in sides for right in side.sound]
        if sound:
            gramian = torch.where(torch.stack(sound).all(), gramian, float("nan"))
    losses = [side.forward.value for side in sides]
    return losses[0], poison(gramian, *losses)


def _side(
    losses_fn: LossesFn, params: Params, batch: Batch, names: tuple[str, ...], look: bool
) -> Side:
    """One forward, and the passes for the deltas of its nodes."""
    forward = run(losses_fn, params, batch, watch=True, parse=parse_samples, separable=False)
    check_connected(forward)
    losses, graph = forward.value, forward.graph
    if forward.hooked and not depth():
        graph = replace(graph, loops=True)
    with torch.inference_mode(False), torch.enable_grad():
        backward = Backward(forward, forward.recorded)
        plan, proved = Plan((), names), None
        if forward.watched:
            plan, proved = sample_plan(forward.uses, params, names, graph, forward.losses.vector)
        deltas = [], [], []
        if plan.tapped:
            uses = plan.uses
            deltas = deltas_by_sample(backward, uses, graph, losses, len(losses), look, proved)
    return Side(losses, forward, backward, graph, plan, *deltas)


def _gramian(
    left: Side, right: Side, wide: torch.dtype, dtype: torch.dtype | None, union: Union
) -> Tensor:
    """The Gramian [sample·task, sample·task] of one side with another, of one plan."""
    same, parts = right is left, []
    known = union.lists([left.biases()] if same else [left.biases(), right.biases()])
    biases = {
        name: weight
        for name, weight in known[0].items()
        if all(each.get(name) == weight for each in known)
    }
    with _recording_context(left.backward, right.backward):
        for (one, form), (other, _) in zip(
            left.sampled_groups(), right.sampled_groups(), strict=True
        ):
            name = one.group.name
            if name in biases:
                continue
            mine = sample_factors(one, form, wide)
            theirs = mine if same else sample_factors(other, form, wide)
            block = partial(
                sample_block, one.group, form, mine, dtype=wide, biased=name in biases.values()
            )
            parts.append(union.columns(theirs, block))
    if left.plan.rows:
        rows = left.rows()
        parts.append(
            dot(rows, rows if same else right.rows(), left.plan.rows, dtype, union.columns)
        )
    gramian = torch.stack(parts).sum(0)
    return 0.5 * (gramian + gramian.mT) if same and not union.several else gramian


def _squares(side: Side, dtype: torch.dtype) -> Tensor:
    """Squared lengths [sample·task]; of leaves that other nodes read a few rows at a time."""
    biases, parts = side.biases(), []
    with _recording_context(side.backward):
        for sampled, _ in side.sampled_groups():
            name = sampled.group.name
            if name not in biases:
                parts.append(sample_squares(sampled, dtype, biased=name in biases.values()))
    if side.plan.rows:
        found = []
        for start in range(0, side.losses.numel(), ROWS_AT_ONCE):
            rows = side.rows(slice(start, start + ROWS_AT_ONCE)).values()
            each = [x.to(dtype).reshape(len(x), -1).square().sum(1) for x in rows]
            found.append(torch.stack(each).sum(0))
        parts.append(torch.cat(found))
    return torch.stack(parts).sum(0)


def _recording_context(*backwards: Backward) -> AbstractContextManager[Any]:
    return nullcontext() if any(x.record for x in backwards) else torch.no_grad()


def deltas_by_sample(
    backward: Backward,
    uses: list[Use],
    graph: Graph,
    losses: Tensor,
    samples: int,
    look: bool,
    proved: Sequence[Layout] | None,
    *,
    keep: bool = True,
) -> tuple[list[Tensor], list[Choices], list[Tensor]]:
    """For every use its deltas [task, *shape] and the layouts that its samples may have; and
    whether one of them is right, unless that is proved.

    Args:
        backward: the open graph.
        uses: the calls.
        graph: of the forward pass.
        losses: [sample] or [sample, task], or the same flattened.
        samples: how many.
        look: whether values can be read.
        proved: the layouts, where they are known; None compares the samples by a second pass.
        keep: the graph. With one task and the layouts known the pass may free it.
    """
    tasks = losses.numel() // samples
    targets = [
        target(use.edge, lambda use=use: losses.new_zeros(use.shape, dtype=use.dtype))
        for use in uses
    ]
    eye = torch.eye(tasks, dtype=losses.dtype, device=losses.device)
    by_task = eye[:, None].expand(tasks, samples, tasks)
    chunk = None if graph.batches(backward.record) else 1
    cotangents = by_task.reshape(tasks, *losses.shape)
    deltas = backward.each(cotangents, targets, chunk, keep=keep)
    if proved is not None:
        sure = losses.new_ones((), dtype=torch.bool)
        return deltas, [((layout, sure),) for layout in proved], []
    probes = []
    for shares in _shares(samples, uses, deltas, losses):
        weighted = (shares[:, None] * by_task).reshape(tasks, *losses.shape)
        probes.append((shares, backward.each(weighted, targets, chunk)))
    with _recording_context(backward):
        where, sound = _sample_axes(uses, deltas, probes, samples, look)
    return deltas, where, sound


Probe = tuple[Tensor, list[Tensor]]
"""The samples' shares [sample], and for every use the deltas that came of them [task, *shape]."""


def _shares(
    samples: int, uses: list[Use], deltas: list[Tensor], losses: Tensor
) -> Iterator[Tensor]:
    """Signed powers of two [sample]: what does not mix is multiplied by them without rounding.

    A sample's deltas can then be compared at rounding level. Any two samples differ in one of the
    answers, of which there is one up to 242 samples, or 22 where a call is in float16.
    """
    halves = [
        delta.detach().abs().amax()
        for use, delta in zip(uses, deltas, strict=True)
        if use.dtype == torch.float16
    ]
    most, shift = (5, torch.zeros((), device=losses.device)) if halves else (60, None)
    if halves:
        # as large as they can be: small numbers of float16 have few digits
        largest = torch.stack(halves).amax().float().clamp(2.0**-24, 2.0**15)
        shift = (7 - largest.log2().ceil()).clamp(-most, most)
    period = 2 * most + 1
    index = torch.arange(samples, device=losses.device)
    while True:
        digit = index % (2 * period)
        exponents = digit // 2 - most
        exponents = exponents if shift is None else exponents + shift
        yield torch.ldexp(1.0 - 2.0 * (digit % 2), exponents).to(losses.dtype)
        index = index // (2 * period)
        if samples <= 2 * period:
            return
        samples = -(-samples // (2 * period))


def _sample_axes(
    uses: list[Use], deltas: list[Tensor], probes: Sequence[Probe], samples: int, look: bool
) -> tuple[list[Choices], list[Tensor]]:
    """For every use the layouts that its samples may have, each with whether it is so; and whether
    one of them is.

    `deltas` came with every sample's cotangent 1, those of the probes with its share: if nothing
    mixes, the second are the first times the shares. Where values can be read, one layout is left.
    """
    # a layer's weight and bias share their deltas
    known: dict[tuple[Any, ...], Choices] = {}
    places = [(use.edge.node, use.edge.output_nr, use.axes) for use in uses]
    shown = []
    for i, (place, use, delta) in enumerate(zip(places, uses, deltas, strict=True)):
        if place in known:
            continue
        seen = [(shares, weighted[i]) for shares, weighted in probes]
        known[place] = _candidate_layouts(use, delta, seen, samples)
        shown.append(_shows_samples(use, delta))
        if not look:
            continue
        right = tuple((layout, right) for layout, right in known[place] if bool(right))
        known[place] = right[:1]
        if not right:
            raise ValueError(
                "losses_fn: entry i of the losses has to depend on sample i alone, but the "
                f"samples mix at {use.part.leaf} ({use.op}): train-mode batch norm, a loss that "
                "compares samples, losses that are not in the order of the samples, or an axis "
                f"there that counts something else, a multiple of {samples} samples long. Call "
                "module.eval(), give every sample a row of its own, or use "
                'engine="rows", which differentiates entry by entry, or weighting by weighting, '
                "whatever they depend on"
            )
    enough = torch.stack([any_shown for any_shown, _ in shown]).any()
    enough = enough | torch.stack([still for _, still in shown]).all()
    if look and not bool(enough):
        raise ValueError(
            "losses_fn: in float16 the gradients are too small to show which entries belong to "
            "which sample: multiply the losses by a larger scale, or use bfloat16"
        )
    sound = [torch.stack([right for _, right in choices]).any() for choices in known.values()]
    return [known[place] for place in places], [*sound, enough]


def _shows_samples(use: Use, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Whether deltas have digits enough to say where samples are; and whether all are zero."""
    largest = delta.detach().abs().amax()
    return ~(largest < 64 * _smallest(use.dtype)), largest == 0


def _smallest(dtype: torch.dtype) -> float:
    """Positive number."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def _candidate_layouts(
    use: Use, delta: Tensor, probes: Sequence[tuple[Tensor, Tensor]], samples: int
) -> Choices:
    """The layouts that fit one use's output, each with whether its samples stay separate in it."""
    choices = ()
    # A multiple of a power of two has the same digits. Devices may add in another order.
    relative = min(256 * torch.finfo(use.dtype).eps, 0.05)
    for layout in layouts(use, samples):
        by_sample = partial(_by_sample, layout=layout, samples=samples)
        plain = by_sample(delta)
        along = _direction(plain)
        size, right = (plain.square() @ along.square()).sqrt(), None
        for shares, weighted in probes:
            # in units of the sample's own deltas; the smallest number has one digit
            least = 16 * plain.shape[-1] ** 0.5 * _smallest(use.dtype) * (1 + 1 / shares.abs())
            off = by_sample(weighted) @ along / shares - plain @ along
            same = (off.abs() <= relative * size + least).all()
            right = same if right is None else right & same
        assert right is not None
        # NaN is reported by the Gramian itself
        choices += ((layout, (right | ~plain.isfinite().all()).detach()),)
    return choices


def _by_sample(delta: Tensor, layout: Layout, samples: int) -> Tensor:
    """[task, *shape] to [task, sample, width], at least float32."""
    axis, split = 1 + layout.axis, (samples, -1) if layout.major else (-1, samples)
    x = delta.unflatten(axis, split).movedim(axis if layout.major else axis + 1, 1).flatten(2)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _direction(x: Tensor) -> Tensor:
    """[width] in general position: one number a sample is compared."""
    index = torch.arange(x.shape[-1], dtype=torch.float64, device=x.device)
    return (0.5 + torch.frac(0.6180339887498949 * index)).to(x.dtype)
