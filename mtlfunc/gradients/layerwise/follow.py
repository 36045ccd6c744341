"""Whose entries of an operation's output the entries of its inputs are: one rule for each kind of
node, by the shapes and axes that the node holds and never by values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .uses import Node, signed

Place = tuple[Node, int]  # a node and which of its outputs
Shape = tuple[int, ...]

NOBODY, SEVERAL = -1, -2
Owners = int | np.ndarray
"""One for all entries, or an array that broadcasts to the tensor's shape with its number of axes.
"""


class Step(NamedTuple):
    """From one output of a node to one of its inputs."""

    node: Node
    at: int  # which of the inputs
    place: int  # which of the outputs
    out: Shape  # that output's
    shape: Shape  # the input's


Follow = Callable[[Step, np.ndarray], np.ndarray | None]
"""From the output's owners to the input's, or None: then all owners have all of the input."""

LARGEST = 1 << 20
"""Entries of an array of owners; a larger one is not followed."""


def owners_of_input(
    follow: Follow | None, node: Node, index: int, places: Mapping[int, Owners], child: Place
) -> list[Owners]:
    """What every output's owners say of one input."""
    # what one loss owns as a whole is a piece of what went in
    cuts = follow in (piece, recurrent)
    found: list[Owners] = []
    for place, owners in places.items():
        answer: Owners | None = None
        if cuts or not isinstance(owners, int):
            out, shape = _shape(node, place), _shape(child[0], child[1])
            if shape == () and follow is not concatenation:
                shape = None
            if follow and out is not None and shape is not None and (place == 0 or cuts):
                answer = _follow_owners(follow, Step(node, index, place, out, shape), owners)
        if answer is None and not isinstance(owners, int):
            answer = int(reduce_owners(owners, range(owners.ndim)).flat[0])
        found.append(owners if answer is None else answer)
    return found


def _follow_owners(follow: Follow, step: Step, owners: Owners) -> Owners | None:
    out, shape = step.out, step.shape
    if 0 in out or 0 in shape:
        return None
    if follow is by_entry and out == shape:
        return owners
    array = np.full((1,) * len(out), owners) if isinstance(owners, int) else owners
    answer = follow(step, array)
    if (
        answer is None
        or answer.ndim != len(shape)
        or any(size not in (1, full) for size, full in zip(answer.shape, shape, strict=True))
        or answer.size > LARGEST
    ):
        return None
    first = int(answer.flat[0])
    return first if (answer == first).all() else answer


def _shape(node: Node, place: int) -> Shape | None:
    metadata = node._input_metadata
    return tuple(metadata[place].shape) if place < len(metadata) else None


def reduce_owners(owners: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The owners of what all entries along some axes depend on; these are kept, with length 1."""
    axes = tuple(axis for axis in axes if owners.shape[axis] > 1)
    if not axes:
        return owners
    highest = owners.max(axes, keepdims=True)
    lowest = np.where(owners == NOBODY, highest, owners).min(axes, keepdims=True)
    return np.where(lowest == highest, highest, SEVERAL)


def compress_owners(owners: np.ndarray) -> np.ndarray:
    """With length 1 along axes on which they do not depend."""
    for axis, size in enumerate(owners.shape):
        first = owners.take([0], axis)
        if size > 1 and (owners == first).all():
            owners = first
    return owners


# ---- the rules -----------------------------------------------------------------------------------


def _dims(named: int | Sequence[int] | None, count: int) -> list[int]:
    named = (named,) if isinstance(named, int) else named or ()
    return sorted({signed(dim) % count for dim in named})


def by_entry(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Also where the input was broadcast."""
    shape, lead = step.shape, len(step.out) - len(step.shape)
    if lead < 0 or any(n not in (1, full) for n, full in zip(shape, step.out[lead:], strict=True)):
        return None
    broadcast = [lead + axis for axis, size in enumerate(shape) if size == 1]
    merged = reduce_owners(owners, [*range(lead), *broadcast])
    return merged.reshape(merged.shape[lead:])


def unreduced(step: Step, owners: np.ndarray) -> np.ndarray | None:
    if step.node._saved_reduction != 0:
        return None
    return by_entry(step, owners)


def view(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Other axes for the same entries in the same order, group of axes by group."""
    if step.out == step.shape:
        return owners
    if math.prod(step.out) != math.prod(step.shape):
        return None
    full, after = [], []
    for (i, j), (k, n) in _match_axes(step.out, step.shape):
        varies = any(size > 1 for size in owners.shape[i:j])
        full += step.out[i:j] if varies else owners.shape[i:j]
        after += step.shape[k:n] if varies else [1] * (n - k)
    if math.prod(full) > LARGEST:
        return None
    return compress_owners(np.broadcast_to(owners, full).reshape(after))


def _match_axes(a: Shape, b: Shape) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The shortest runs of axes that hold equally many entries, of two shapes that do."""
    i = k = 0
    found = []
    while i < len(a) or k < len(b):
        start, first = i, k
        i, k = min(i + 1, len(a)), min(k + 1, len(b))
        while math.prod(a[start:i]) != math.prod(b[first:k]):
            if math.prod(a[start:i]) < math.prod(b[first:k]):
                i += 1
            else:
                k += 1
        found.append(((start, i), (first, k)))
    return found


def permutation(step: Step, owners: np.ndarray) -> np.ndarray | None:
    return owners.transpose(np.argsort(order_of(step.node, len(step.out))))


def reduction(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """One number for all entries along some axes."""
    dims = _dims(step.node._saved_dim, len(step.shape))
    if step.at != 0 or not dims or len(step.shape) - len(step.out) not in (0, len(dims)):
        return None
    return owners if len(step.shape) == len(step.out) else np.expand_dims(owners, dims)


def along_axes(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Entries along some axes depend on one another, of which there may be more or fewer."""
    named = step.node._saved_dims if hasattr(step.node, "_saved_dims") else step.node._saved_dim
    dims = _dims(named, len(step.shape))
    known = step.at == 0 and dims and _alike(step.out, step.shape, dims)
    return reduce_owners(owners, dims) if known else None


def _alike(out: Shape, shape: Shape, but: Sequence[int]) -> bool:
    """Whether all axes are as long, but for some."""
    pairs = enumerate(zip(out, shape, strict=False))
    return len(out) == len(shape) and all(a == b or axis in but for axis, (a, b) in pairs)


def scattered(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Entries of the second input are put into the first along one axis, wherever; or all over."""
    if step.at == 0:
        return by_entry(step, owners)
    dims = _dims(getattr(step.node, "_saved_dim", None), len(step.out))
    known = step.at == 1 and dims and _alike(step.out, step.shape, dims)
    return reduce_owners(owners, dims) if known else None


def diagonal(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Two axes as one, the last: what reads none of it is said to read all."""
    whole = reduce_owners(owners, [len(step.out) - 1])[..., 0]
    dims = [signed(dim) % len(step.shape) for dim in (step.node._saved_dim1, step.node._saved_dim2)]
    return np.expand_dims(whole, sorted(dims))


def on_diagonal(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """The last axis as two, of which all belongs to whom any of it does."""
    dims = [signed(dim) % len(step.out) for dim in (step.node._saved_dim1, step.node._saved_dim2)]
    whole = reduce_owners(owners, dims).squeeze(tuple(dims))
    return np.expand_dims(whole, whole.ndim)


def piece(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """A piece of the input along one axis."""
    (dim,), out = _dims(step.node._saved_dim, len(step.shape)), step.out
    length = step.shape[dim]
    cut = piece_of(step.node, step.place, length)
    if len(out) < len(step.shape):
        owners, out = np.expand_dims(owners, dim), (*out[:dim], 1, *out[dim:])
    if len(range(*cut.indices(length))) != out[dim]:
        return None
    found = np.full((*owners.shape[:dim], length, *owners.shape[dim + 1 :]), NOBODY)
    found[(slice(None),) * dim + (cut,)] = owners
    return found


def concatenation(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """All of one of the inputs is a piece of the output."""
    (dim,) = _dims(step.node._saved_dim, len(step.out))
    if step.node.name() == "StackBackward0":
        one = owners.shape[dim] == 1
        return np.asarray(owners.take(0 if one else step.at, dim))
    if owners.shape[dim] == 1:
        return owners if len(step.shape) == len(step.out) else None  # wherever the piece begins
    inputs = step.node.next_functions
    shapes = [None if child is None else _shape(child, at) for child, at in inputs]
    sizes = [x[dim] if x and len(x) == len(step.out) else None for x in shapes]
    before, after = sizes[: step.at], sizes[step.at + 1 :]
    own, full = step.shape[dim], step.out[dim]
    if None not in before:
        start = sum(x or 0 for x in before)
    elif None not in after:
        start = full - own - sum(x or 0 for x in after)
    else:
        return None  # where the piece begins is not known
    if start + own > full:
        return None
    return owners.take(range(start, start + own), dim)


def product(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """The last two axes of the output are one of the first factor's and one of the second's."""
    added = "add" in step.node.name().lower()
    if added and step.at == 0:
        return by_entry(step, owners)
    return reduce_owners(owners, [len(step.out) - 1 - (step.at - added)])


def matrix_vector(step: Step, owners: np.ndarray) -> np.ndarray | None:
    return owners[:, None] if step.at == 0 else None


def first_axis(inputs: int) -> Follow:
    """Entries of the first axis are worked on one by one."""

    def follow(step: Step, owners: np.ndarray) -> np.ndarray | None:
        if step.at >= inputs or step.out[0] != step.shape[0]:
            return None
        merged = reduce_owners(owners, range(1, len(step.out)))
        return merged.reshape(-1, *(1,) * (len(step.shape) - 1))

    return follow


def last_axes(count: int) -> Follow:
    """The last axes depend on one another, all others are worked on one by one."""

    def follow(step: Step, owners: np.ndarray) -> np.ndarray | None:
        lead = len(step.out) - count
        if step.at or lead < 0 or step.out[:lead] != step.shape[:-count]:
            return None
        return reduce_owners(owners, range(lead, len(step.out)))

    return follow


def recurrent(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Samples are the last axis but one of the sequence, of the outputs and of the states."""
    reads = step.at == 0 or step.at > len(step.node.next_functions) - 3
    if not reads or len(step.shape) < 2 or step.shape[-2] != step.out[-2]:
        return None
    ends = [axis for axis in range(len(step.out)) if axis != len(step.out) - 2]
    merged = reduce_owners(owners, ends).reshape(-1, 1)
    return merged.reshape(*(1,) * (len(step.shape) - 2), -1, 1)


def windows(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """One axis more, the last: windows of another, or real and imaginary parts."""
    dim = _dims(getattr(step.node, "_saved_dimension", None), len(step.shape))
    return reduce_owners(owners, [*dim, len(step.shape)])[..., 0]


def connectionist(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """[time, sample, class] to [sample]"""
    return owners[None, :, None] if step.at == 0 and len(step.shape) == 3 else None


def layer_norm(step: Step, owners: np.ndarray) -> np.ndarray | None:
    first, count = len(step.out) - len(step.node._saved_normalized_shape), len(step.out)
    return reduce_owners(owners, range(first, count)) if step.at == 0 else None


def repeated(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Each entry several times along some axes, of which some may be new."""
    lead = len(step.out) - len(step.shape)
    merged = reduce_owners(owners, [i for i, n in enumerate(step.node._saved_repeats) if n != 1])
    merged = reduce_owners(merged, range(lead))
    return merged.reshape(merged.shape[lead:])


def written(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """A tensor into whose piece another was written: what is left of it, or enters by entry."""
    return by_entry(step, owners) if step.at == 0 and len(step.node.next_functions) == 2 else None


def batch_norm(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """A channel by its statistics over all else, or by those that are kept."""
    if step.at != 0 or step.out != step.shape:
        return None
    channels = [axis for axis in range(len(step.out)) if axis != 1]
    return reduce_owners(owners, channels) if step.node._saved_training else owners


def padding(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Wherever the input is along the axes that were padded."""
    last, sizes = len(step.out) - 1, [*map(signed, step.node._saved_pad)]
    return reduce_owners(owners, sorted({last - i // 2 for i, size in enumerate(sizes) if size}))


def likelihood(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """[n, class, …] to [n, …]"""
    shape, out, reduced = step.shape, step.out, step.node._saved_reduction != 0
    whole = step.at > 0 or reduced or len(shape) != len(out) + 1
    return None if whole or shape[0] != out[0] else np.expand_dims(owners, 1)


def order_of(node: Node, count: int) -> list[int]:
    """Which of its input's axes each axis of a permutation's output is."""
    if node.name() == "PermuteBackward0":
        return [signed(dim) % count for dim in node._saved_dims]
    axes = list(range(count))
    if node.name() in ("TransposeBackward0", "TransposeBackward1"):
        i, j = (signed(dim) % count for dim in (node._saved_dim0, node._saved_dim1))
        axes[i], axes[j] = j, i
        return axes
    return axes[::-1]


def piece_of(node: Node, output: int, length: int) -> slice:
    """The entries of one output of a `piece` along their axis, which is so long."""
    kind = node.name()
    if kind == "SelectBackward0":
        start = signed(node._saved_index) % length
        return slice(start, start + 1)
    if kind == "UnbindBackward0":
        return slice(output, output + 1)
    if kind == "SliceBackward0":
        start, end = node._saved_start or 0, node._saved_end
        return slice(signed(start), None if end is None else signed(end), node._saved_step)
    if kind in ("SplitBackward0", "UnsafeSplitBackward0"):
        size = node._saved_split_size
        return slice(output * size, (output + 1) * size)
    sizes = node._saved_split_sizes
    return slice(sum(sizes[:output]), sum(sizes[: output + 1]))
