"""Where each sample's deltas are, and that no two samples mix, where the graph does not prove it.

Every sample is weighted differently in one more backward pass: if nothing mixes, the deltas are
those of the first pass times the weights of their own samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .layerwise import Choices, Layout, Use, layouts


class SamplesMix(ValueError):
    """The samples of one pass are not separate, or nothing shows that they are."""


Probe = tuple[Tensor, list[Tensor]]
"""The samples' shares [sample], and for every use the deltas that came of them [task, *shape]."""


def shares_of(
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
    most, shift = 5 if halves else 60, 0
    if halves:
        # as large as they can be: small numbers of float16 have few digits
        largest = torch.stack(halves).amax().float().clamp(2.0**-24, 2.0**15)
        shift = (7 - largest.log2().ceil()).clamp(-most, most)
    period = 2 * most + 1
    index = torch.arange(samples, device=losses.device)
    while True:
        digit = index % (2 * period)
        exponents = digit // 2 - most + shift
        yield torch.ldexp(1.0 - 2.0 * (digit % 2), exponents).to(losses.dtype)
        index = index // (2 * period)
        if samples <= 2 * period:
            return
        samples = -(-samples // (2 * period))


def find_samples(
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
        # whether deltas have digits enough to say where samples are; and whether all are zero
        largest = delta.detach().abs().amax()
        shown.append((~(largest < 64 * _smallest(use.dtype)), largest == 0))
        if not look:
            continue
        right = tuple((layout, right) for layout, right in known[place] if bool(right))
        known[place] = right[:1]
        if not right:
            raise SamplesMix(
                "losses: entry i of them has to depend on sample i alone, but the "
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
        raise SamplesMix(
            "losses: in float16 the gradients are too small to show which entries belong to "
            "which sample: multiply the losses by a larger scale, or use bfloat16"
        )
    sound = [torch.stack([right for _, right in choices]).any() for choices in known.values()]
    return [known[place] for place in places], [*sound, enough]


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

        def by_sample(delta: Tensor, layout: Layout = layout) -> Tensor:
            """[task, *shape] to [task, sample, width], at least float32."""
            x = layout.apart(delta, 1 + layout.axis, samples, 1).flatten(2)
            return x.to(torch.promote_types(x.dtype, torch.float32))

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


def _direction(x: Tensor) -> Tensor:
    """[width] in general position: one number a sample is compared."""
    index = torch.arange(x.shape[-1], dtype=torch.float64, device=x.device)
    return (0.5 + torch.frac(0.6180339887498949 * index)).to(x.dtype)
