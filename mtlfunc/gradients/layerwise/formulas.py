"""Forms of one layer's Gramian from its inputs and deltas, and what each costs.

With x [position, a] and Δ_t [position, o] the layer's row is Δ_tᵀx, and its part of the Gramian is
one of

    kernel    G_ts = Σ_pq (x_p·x_q)(Δ_tp·Δ_sq)     no row is formed: N² of the N positions
    gemm      G_ts = ⟨Δ_tᵀx, Δ_sᵀx⟩                the rows of one layer at a time, by one product
    rows      the same from rows that autograd made

Per-sample rows are the same sums over the positions of one sample. With R of all samples, the rows
of tasks that are weightings A of samples are A R:

    mixed     G = (A R)(A R)ᵀ, where the others give A G Aᵀ
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...core.tree import HALF, batched_product, inner_products
from .uses import Use

Form = Literal["kernel", "gemm", "rows", "mixed"]


class Group(NamedTuple):
    """All uses of one leaf, or of one part of a leaf that was split."""

    name: str
    uses: tuple[Use, ...]
    numel: int
    # how many separate losses each call serves; None where all losses are one vector
    served: tuple[int, ...] | None = None

    @property
    def alike(self) -> bool:
        """Whether they are one sum over the positions of all of them."""
        first = self.uses[0]
        return first.kind != "local" and all(
            use.layout == first.layout and use.sizes[1:] == first.sizes[1:] for use in self.uses
        )

    @property
    def is_matrix(self) -> bool:
        """Whether they are one sum over positions, where inputs and deltas of some change places:
        the products of a weight in a loss that contains a derivative.
        """
        return not any(use.is_turned is None for use in self.uses)

    @property
    def leaf(self) -> str:
        return self.uses[0].part.leaf

    @property
    def start(self) -> int:
        """Where the part begins along the leaf's first axis."""
        span = self.uses[0].part.span
        return span[0] if span else 0

    @property
    def multiplied(self) -> float:
        """Operations of the products that one backward pass does for its row."""
        outer = [use for use in self.uses if use.kind == "outer"]
        return 2.0 * self.numel * sum(map(positions, outer))

    @property
    def lead(self) -> Use:
        """The use in whose order the rows of all of them are."""
        return next((use for use in self.uses if not use.is_turned), self.uses[0])

    @property
    def calls(self) -> tuple[tuple[object, int, tuple[int, ...]], ...]:
        """The calls' outputs and positions: a weight and its bias have the same ones."""
        return tuple((use.edge.node, use.edge.output_nr, use.axes) for use in self.uses)

    @property
    def dtype(self) -> torch.dtype:
        """Of the deltas, and of the inputs as the calls multiplied them."""
        return reduce(torch.promote_types, [use.dtype for use in self.uses])

    @property
    def is_bias(self) -> bool:
        return all(use.layout == ("local", "shift") for use in self.uses)

    @property
    def takes_bias(self) -> bool:
        """Whether the rows of these calls' bias are those of an input that is 1 everywhere."""
        outer = all(use.kind == "outer" and "transpose" not in use.op for use in self.uses)
        return outer and self.alike

    @property
    def op(self) -> str:
        return "+".join(dict.fromkeys(use.op for use in self.uses)) + (
            f" ×{len(self.uses)}" if len(self.uses) > 1 else ""
        )


def positions(use: Use) -> int:
    return math.prod(use.shape[axis] for axis in use.axes) * use.sizes[0]


def costs(
    group: Group, rows: int, samples: int | None = None, weightings: int = 0
) -> dict[Form, float]:
    """Floating-point operations of every form that this group has. `rows` counts tasks; given
    `samples` it counts samples × tasks, from which `weightings` rows are mixed.
    """
    width, tasks = group.numel, rows // (samples or 1)
    dot = 2.0 * rows * rows * width
    total = sum(positions(use) for use in group.uses)
    times = [
        2.0 * positions(use) * (width if use.kind == "outer" else use.sizes[3])
        for use in group.uses
    ]
    found: dict[Form, float] = {"gemm": sum(times) * tasks + dot}
    if weightings:
        made = sum(times) * tasks + 2.0 * weightings * rows * width
        if _mixes_deltas(group.lead, weightings, total / (samples or 1)):
            made = weightings * sum(times)
        found["mixed"] = made + 2.0 * weightings**2 * width
    if samples is None:
        # Differentiated with the other leaves: no products for a loss that a call does not serve.
        served = group.served or (rows,) * len(times)
        found["rows"] = sum(time * n for time, n in zip(times, served, strict=True)) + dot
    if group.alike or (group.is_matrix and rows == samples):
        _, groups, a, o = group.lead.sizes
        square = float(groups * total * total)
        found["kernel"] = square * (2.0 * a if group.lead.kind == "outer" else 1.0)
        if samples is None:
            found["kernel"] += square * 2.0 * rows * o + 2.0 * rows * rows * groups * total * o
        else:
            found["kernel"] += square * tasks * tasks * (2.0 * o + 2.0)
    return found


MADE = 20
"""Products of the deltas, for every number of a sample's row, that take as long as to make and read
it: perceptrons and transformers in float64, one thread.
"""
PIECE, DEVICE_PIECE = 1 << 25, 1 << 28
"""Bytes of samples' rows held at once where they are mixed: more where products are launched."""


class Layout(NamedTuple):
    """Where the samples are in one call's output: the slow (`major`) or fast index of an axis, and
    which of them, as a term of the losses may have points of its own.
    """

    axis: int
    major: bool
    start: int = 0
    several: int | None = None  # None is all of them


def layouts(use: Use, samples: int) -> list[Layout]:
    """Candidates, the likeliest first."""
    found = []
    for axis in use.axes:
        size = use.shape[axis]
        if size == samples:
            found.insert(sum(use.shape[x.axis] == samples for x in found), Layout(axis, True))
        elif size % samples == 0:
            found += [Layout(axis, True), Layout(axis, False)]
    return found


class Deltas(NamedTuple):
    """A group with its deltas of one backward pass, which are split by sample.

    Passes of one row each, summed over all positions, are those of one sample with a task a row.
    """

    group: Group
    deltas: Sequence[Tensor]  # for every use [task, *shape]
    samples: int = 1
    where: Sequence[Layout] | None = None  # for every use where its samples are, if several

    def by_use(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """For every use x [sample, position, group, a], lookup: indices [sample, position]; and
        deltas [task, sample, position, group, o].
        """
        where = [None] * len(self.deltas) if self.where is None else self.where
        inputs, parts = list[Tensor](), list[Tensor]()
        for use, delta, layout in zip(self.group.uses, self.deltas, where, strict=True):
            parts.append(split(use.varied(delta), use, layout, self.samples, 1).to(dtype))
            if use.fixed is None:
                inputs.append(torch.empty(0))
            elif use.kind == "outer":
                inputs.append(split(use.fixed(), use, layout, self.samples, 0).to(dtype))
            else:
                indices = use.fixed()[..., None, None, None]
                inputs.append(split(indices, use, layout, self.samples, 0)[..., 0, 0])
        return inputs, parts

    @property
    def is_joined(self) -> bool:
        """Whether all uses are one sum over their positions."""
        # a single row of products costs as much use by use
        turned = self.group.is_matrix and self.samples > len(self.deltas[0]) == 1
        return self.group.alike or turned

    def by_position(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x and deltas as of one use, over all uses' positions."""
        inputs, parts = self.by_use(dtype)
        if not self.group.alike:  # of the transpose, inputs and deltas are exchanged
            for i, use in enumerate(self.group.uses):
                if use.is_turned:
                    inputs[i], parts[i] = parts[i][0], inputs[i][None]
        return _joined(inputs, 1), _joined(parts, 2)

    def rows(self, dtype: torch.dtype, mix: Tensor | None = None, *, fold: bool = True) -> Tensor:
        """[sample·task, width], in the leaf's own order if `fold`; with `mix` [row, sample·task]
        the rows that it makes of them.
        """
        if self.is_joined:
            sums = [(self.group.lead, *self.by_position(dtype))]
        else:
            sums = zip(self.group.uses, *self.by_use(dtype), strict=True)
        folded = []
        for use, x, part in sums:
            made = self._rows_of(use, x, part) if mix is None else self._mixed_of(use, x, part, mix)
            folded.append(use.fold(made) if fold or not self.is_joined else made)
        total = sum(folded[1:], start=folded[0])
        return total.reshape(len(total), -1)

    def block(
        self,
        form: Form,
        dtype: torch.dtype,
        wide: torch.dtype,
        *,
        biased: bool = False,
        fold: bool = True,
    ) -> Tensor:
        """The group's part of the Gramian [sample·task, sample·task], from factors in this dtype
        accumulated in the `wide` one. `form`: "gemm", or if the uses are alike "kernel", to which
        the part of the same calls' bias is added if `biased`: its input is 1 everywhere.
        """
        if form == "gemm":
            rows = self.rows(dtype, fold=fold)
            return inner_products(rows, rows).to(wide)
        # by the inner products of all pairs of positions
        x, deltas = self.by_position(dtype)
        ids = self.group.uses[0].kind == "lookup"
        if len(x) == 1:  # one entry
            kernel = _kernel(self.group, x.flatten() if ids else x[0].transpose(0, 1), wide)
            kernel = kernel + 1 if biased else kernel
            y = deltas[:, 0].transpose(1, 2)
            return inner_products(y.flatten(1), (kernel @ y).flatten(1))
        # positions before samples: a sum over them then adds whole rows
        u = x.mT.flatten() if ids else x.permute(2, 1, 0, 3).flatten(1, 2)
        kernel = _kernel(self.group, u, wide)[:, None, :, None, :]  # of (position sample)²
        # [group, (task position sample), o]
        y = deltas.permute(3, 0, 2, 1, 4).flatten(1, 3)
        tasks, samples, count = deltas.shape[:3]
        pairs = batched_product(y, y.mT).unflatten(2, (tasks, -1)).unflatten(1, (tasks, -1))
        found = torch.addcmul(pairs, pairs, kernel) if biased else pairs * kernel
        small = found.unflatten(4, (count, samples)).unflatten(2, (count, samples))
        small = small.sum((0, 2)) if len(y) * count > 1 else small[0, :, 0]  # one needs no sum
        small = small.sum(3) if count > 1 else small[:, :, :, 0]
        return small.permute(1, 0, 3, 2).reshape(samples * tasks, samples * tasks)

    def squares(self, dtype: torch.dtype, *, biased: bool = False) -> Tensor:
        """The diagonal of `block` [sample·task], from each sample's own positions alone."""
        group, each = self.group, sum(map(positions, self.group.uses)) / self.samples
        cheaper = not biased and rows_are_cheaper(group, each, len(self.deltas[0]))
        if cheaper or not self.is_joined:
            return self.rows(dtype).square().sum(1)
        x, y = self.by_position(dtype)
        if group.uses[0].kind == "lookup":
            kernel = (x[:, :, None] == x[:, None]).to(dtype)[:, None]
        else:
            x = x.movedim(2, 1)  # [sample, group, position, a]
            kernel = x @ x.mT
        kernel = kernel + 1 if biased else kernel
        y = y.movedim(3, 2)  # [task, sample, group, position, o]
        return (kernel * (y @ y.mT)).sum((2, 3, 4)).mT.flatten()

    def products(self, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
        """Inner products of the rows [sample·task, sample·task], of rows and deltas in half
        precision by products that are accumulated in float32.
        """
        if self.is_joined:
            several = self._some_rows_of(self.group.lead, *self.by_position(dtype))
        else:
            several = iter([self.rows(dtype)])
        flat = (rows.flatten(1) for rows in several)
        wider = (rows if rows.dtype in HALF else rows.to(wide) for rows in flat)
        return reduce(Tensor.add, (inner_products(rows, rows) for rows in wider)).to(wide)

    def _mixed_of(self, use: Use, x: Tensor, part: Tensor, mix: Tensor) -> Tensor:
        """One call's [row, group, o, a]."""
        if _mixes_deltas(use, len(mix), float(part.shape[2])):
            weights = mix.unflatten(1, (-1, len(part)))
            mixed = torch.einsum("rst,tspgo->rspgo", weights, part.to(mix)).to(part)
            return self._rows_of(use, x.flatten(0, 1)[None], mixed.flatten(1, 2)[:, None])
        found = [
            (mix @ rows.flatten(1).to(mix.dtype)).unflatten(1, rows.shape[1:])
            for rows in self._some_rows_of(use, x, part)
        ]
        return _joined(found, 2)

    def _some_rows_of(self, use: Use, x: Tensor, part: Tensor) -> Iterator[Tensor]:
        """[sample·task, group, some of o, a]: of all samples, the next product's inner size."""
        a = 1 if use.kind == "local" else use.sizes[2]
        each = len(part) * self.samples * part.shape[-2] * a * part.element_size()
        count = max(1, (DEVICE_PIECE if part.is_cuda else PIECE) // max(1, each))
        for start in range(0, max(1, part.shape[-1]), count):
            yield self._rows_of(use, x, part[..., start : start + count])

    def _rows_of(self, use: Use, x: Tensor, part: Tensor) -> Tensor:
        """One call's [sample·task, group, o, a], of these o."""
        samples = part.shape[1]
        if use.kind == "local":
            summed = part.sum(2)[..., None]
        elif use.kind == "lookup":
            # one by one in half precision, a token's many sums would not grow
            wide = part[..., 0, :].to(torch.promote_types(part.dtype, torch.float32))
            empty = wide.new_zeros(()).expand(samples, use.sizes[2], part.shape[-1])
            if samples == 1:
                found = empty.expand(len(part), -1, -1).index_add(1, x[0], wide[:, 0])[:, None]
            else:  # copied where it is added to
                index = x[:, :, None].expand(-1, -1, part.shape[-1])
                each = [empty.scatter_add(1, index, task) for task in wide]
                found = each[0][None] if len(each) == 1 else torch.stack(each)
            summed = found.to(part.dtype).mT[:, :, None]
        elif len(part) == samples == 1:
            return (part.flatten(0, 2).permute(1, 2, 0) @ x.flatten(0, 1).transpose(0, 1))[None]
        else:
            summed = torch.einsum("tspgo,spga->tsgoa", part, x)
        return (summed if samples == 1 else summed.transpose(0, 1)).flatten(0, 1)


def split(x: Tensor, use: Use, layout: Layout | None, samples: int, lead: int) -> Tensor:
    """[*lead, *axes, inner, group, k] to [*lead, sample, position, group, k]; without a layout all
    positions are one sample's.
    """
    if layout is None:
        return x.flatten(lead, -3).unsqueeze(lead)
    axis, count = lead + use.axes.index(layout.axis), layout.several or samples
    sizes = (count, -1) if layout.major else (-1, count)
    x = x.unflatten(axis, sizes).movedim(axis if layout.major else axis + 1, lead)
    x = x.flatten(lead + 1, -3)
    if count == samples:
        return x
    around = (layout.start, samples - layout.start - count)
    before, after = (x.new_zeros(*x.shape[:lead], n, *x.shape[lead + 1 :]) for n in around)
    return torch.cat([before, x, after], lead)


def _mixes_deltas(use: Use, rows: int, positions: float) -> bool:
    """Whether mixed rows cost less of mixed deltas [row·position, o] than of every sample's own row
    [o, a], a sum over its positions.
    """
    if use.kind != "outer" or rows == 1:
        return use.kind != "local"
    return 2 * rows * positions <= use.sizes[2] and (rows - 1) * (positions - 1) <= MADE


def rows_are_cheaper(group: Group, each: float, tasks: int) -> bool:
    """Whether a sample's rows cost less than the products of its positions, `each` of them."""
    _, groups, a, o = group.lead.sizes
    reading = a if group.lead.kind == "outer" else 1
    return 2 * tasks * group.numel < groups * each * (reading + tasks * o)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Several in one axis; one without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _kernel(group: Group, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products of the inputs at all pairs of positions [group, position, position]."""
    if group.uses[0].kind == "lookup":
        return (x[:, None] == x).to(dtype)[None]
    return batched_product(x, x.mT)
