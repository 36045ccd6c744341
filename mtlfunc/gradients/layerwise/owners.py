"""Which loss reads which entries of every activation, as far as the autograd graph alone proves it.

Each place in the graph is given owners: for every entry the one loss that depends on it, none, or
several. They are walked from the losses to the parameters. An operation is followed entry by entry
if it is known, by the shapes and axes that its node holds and never by values; any other is taken
to let every output depend on all of its inputs. What is said to be separate is so for all
numbers, and so are all of its derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .formulas import Layout, layouts
from .graph import PERMUTATIONS, PIECES, RESHAPES, Graph, order_of, piece_of, signed
from .uses import Use

Node = Any  # torch.autograd.graph.Node
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
"""From the output's owners to the input's, or None: then all of the input belongs to all owners of
the output.
"""

LARGEST = 1 << 20
"""Entries of an array of owners; a larger one is not followed."""


def entry_layouts(
    graph: Graph,
    losses: Tensor,
    loss_edges: Sequence[GradientEdge | None] | None,
    uses: Sequence[Use],
    samples: int | None = None,
    *,
    terms: bool = False,
) -> tuple[Layout, ...] | None:
    """Where the calls' outputs have what each entry of the losses' first axis depends on.

    Args:
        graph: of the whole forward pass, from separate losses if `loss_edges`.
        losses: [task], [sample] or [sample, task].
        loss_edges: the separate losses, each of them an entry.
        uses: the calls.
        samples: a flat vector of losses has that many equal runs, each of which is an entry.
        terms: a call may have some of the entries alone, one after the other.

    Returns:
        the layout of every call's output, or None unless the graph proves one for each.
    """
    if losses.grad_fn is None:
        return None
    count = samples or len(losses)
    roots: list[tuple[Place, Owners]] = [
        ((edge.node, edge.output_nr), task)
        for task, edge in enumerate(loss_edges or ())
        if edge is not None
    ]
    if loss_edges is None:
        each = np.arange(len(losses)) // (len(losses) // count)
        each = each.reshape(-1, *(1,) * (losses.ndim - 1))
        roots = [((losses.grad_fn, losses.output_nr), each)]
    wanted: dict[Place, list[Use]] = {}
    for use in uses:
        wanted.setdefault((use.edge.node, use.edge.output_nr), []).append(use)
    found: dict[Place, Layout] = {}

    def visit(place: Place, owners: Owners) -> bool:
        calls = wanted.get(place)
        if calls is None:
            return True
        layout = layout_of(owners, calls, count, terms=terms)
        if layout is not None:
            found[place] = layout
        return layout is not None

    if not walk(tuple(graph.reach), roots, visit):
        return None
    for place, calls in wanted.items():
        if place not in found:  # no loss reads it: its deltas are zero, wherever they are
            possible = layouts(calls[0], count)
            if not possible or not all(possible[0] in layouts(use, count) for use in calls):
                return None
            found[place] = possible[0]
    return tuple(found[use.edge.node, use.edge.output_nr] for use in uses)


def layout_of(
    owners: Owners, uses: Sequence[Use], count: int, *, terms: bool = False
) -> Layout | None:
    """Owners 0, 1, … in equal runs, or by turns, along one axis of positions of one output; of
    `terms` some of them, one after the other.
    """
    if isinstance(owners, int):
        return None
    owners = _compress_owners(owners)
    for axis in range(owners.ndim):
        size = owners.shape[axis]
        if size == 1 or size != uses[0].shape[axis] or not all(axis in use.axes for use in uses):
            continue
        # entries along the other axes may be unread, such as positions of one sample
        others = [i for i in range(owners.ndim) if i != axis]
        along = _reduce_owners(owners, others).reshape(-1)
        ranges = [(0, count)]
        known = along[along >= 0]
        if terms and known.size:
            ranges.append((int(known.min()), int(np.ptp(known)) + 1))
        index = np.arange(size)
        for start, several in ranges:
            each, rest = divmod(size, several)
            if rest:
                continue
            for major, expected in ((True, index // each), (False, index % several)):
                if ((along == start + expected) | (along == NOBODY)).all():
                    own = (start, several) if several < count else (0, None)
                    return Layout(axis, major, *own)
    return None


def walk(
    order: Sequence[Node],
    roots: Sequence[tuple[Place, Owners]],
    visit: Callable[[Place, Owners], bool],
) -> bool:
    """Give every place its owners, consumers first, until `visit` is false of one."""
    known: dict[Node, dict[int, Owners]] = {}
    inside = set(order)

    def add(node: Node, place: int, owners: Owners) -> None:
        places = known.setdefault(node, {})
        places[place] = _merge_owners(places[place], owners) if place in places else owners

    for (node, place), owners in roots:
        add(node, place, owners)
    for node in reversed(order):
        places = known.pop(node, {})
        if not all(visit((node, place), owners) for place, owners in places.items()):
            return False
        for index, (child, at) in enumerate(node.next_functions):
            if child is not None and child in inside and child.next_functions:  # no leaf
                for owners in _owners_of_input(node, index, places, (child, at)):
                    add(child, at, owners)
    return True


def _owners_of_input(
    node: Node, index: int, places: Mapping[int, Owners], child: Place
) -> list[Owners]:
    """What every output's owners say of one input."""
    follow = _KNOWN.get(node.name())
    found: list[Owners] = []
    for place, owners in places.items():
        answer: Owners | None = None
        if follow in _CUTS or not isinstance(owners, int):
            out, shape = _shape(node, place), _shape(child[0], child[1])
            if follow and out is not None and shape and (place == 0 or follow in _CUTS):
                answer = _follow_owners(follow, Step(node, index, place, out, shape), owners)
        found.append(_owner_of_all(owners) if answer is None else answer)
    return found


def _follow_owners(follow: Follow, step: Step, owners: Owners) -> Owners | None:
    out, shape = step.out, step.shape
    if 0 in out or 0 in shape:
        return None
    if follow is _elementwise and out == shape:
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


def _merge_owners(one: Owners, other: Owners) -> Owners:
    """Of an entry that two consumers read."""
    if isinstance(one, int) and isinstance(other, int):
        return one if other in {one, NOBODY} else other if one == NOBODY else SEVERAL
    a, b = np.asarray(one), np.asarray(other)
    return np.where((a == b) | (b == NOBODY), a, np.where(a == NOBODY, b, SEVERAL))


def _reduce_owners(owners: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The owners of what all entries along some axes depend on; these are kept, with length 1."""
    axes = tuple(axis for axis in axes if owners.shape[axis] > 1)
    if not axes:
        return owners
    highest = owners.max(axes, keepdims=True)
    lowest = np.where(owners == NOBODY, highest, owners).min(axes, keepdims=True)
    return np.where(lowest == highest, highest, SEVERAL)


def _owner_of_all(owners: Owners) -> int:
    return (
        owners
        if isinstance(owners, int)
        else int(_reduce_owners(owners, range(owners.ndim)).flat[0])
    )


def _compress_owners(owners: np.ndarray) -> np.ndarray:
    """With length 1 along axes on which they do not depend."""
    for axis, size in enumerate(owners.shape):
        first = owners.take([0], axis)
        if size > 1 and (owners == first).all():
            owners = first
    return owners


# ---- known operations ----------------------------------------------------------------------------


def _dims(named: int | Sequence[int] | None, count: int) -> list[int]:
    named = (named,) if isinstance(named, int) else named or ()
    return sorted({signed(dim) % count for dim in named})


def _elementwise(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Also where the input was broadcast."""
    shape, lead = step.shape, len(step.out) - len(step.shape)
    if lead < 0 or any(n not in (1, full) for n, full in zip(shape, step.out[lead:], strict=True)):
        return None
    broadcast = [lead + axis for axis, size in enumerate(shape) if size == 1]
    merged = _reduce_owners(owners, [*range(lead), *broadcast])
    return merged.reshape(merged.shape[lead:])


def _follow_unreduced(step: Step, owners: np.ndarray) -> np.ndarray | None:
    if step.node._saved_reduction != 0:
        return None
    return _elementwise(step, owners)


def _follow_view(step: Step, owners: np.ndarray) -> np.ndarray | None:
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
    return _compress_owners(np.broadcast_to(owners, full).reshape(after))


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


def _follow_permutation(step: Step, owners: np.ndarray) -> np.ndarray | None:
    return owners.transpose(np.argsort(order_of(step.node, len(step.out))))


def _follow_reduction(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """One number for all entries along some axes."""
    dims = _dims(step.node._saved_dim, len(step.shape))
    if step.at != 0 or not dims or len(step.shape) - len(step.out) not in (0, len(dims)):
        return None
    return owners if len(step.shape) == len(step.out) else np.expand_dims(owners, dims)


def _follow_along_axes(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Entries along some axes depend on one another."""
    dims = _dims(step.node._saved_dim, len(step.shape))
    known = step.at == 0 and step.out == step.shape and dims
    return _reduce_owners(owners, dims) if known else None


def _follow_gather(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Entries picked along one axis, wherever they are there."""
    (dim,) = _dims(step.node._saved_dim, len(step.shape))
    sizes = zip(step.out, step.shape, strict=True)
    alike = all(a == b or axis == dim for axis, (a, b) in enumerate(sizes))
    return _reduce_owners(owners, [dim]) if step.at == 0 and alike else None


def _follow_diagonal(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """Two axes as one, the last: what reads none of it is said to read all."""
    whole = _reduce_owners(owners, [len(step.out) - 1])[..., 0]
    dims = [signed(dim) % len(step.shape) for dim in (step.node._saved_dim1, step.node._saved_dim2)]
    return np.expand_dims(whole, sorted(dims))


def _follow_slice(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """A piece of the input along one axis."""
    (dim,), out = _dims(step.node._saved_dim, len(step.shape)), step.out
    length = step.shape[dim]
    piece = piece_of(step.node, step.place, length)
    if len(out) < len(step.shape):
        owners, out = np.expand_dims(owners, dim), (*out[:dim], 1, *out[dim:])
    if len(range(*piece.indices(length))) != out[dim]:
        return None
    found = np.full((*owners.shape[:dim], length, *owners.shape[dim + 1 :]), NOBODY)
    found[(slice(None),) * dim + (piece,)] = owners
    return found


def _follow_concatenation(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """All of one of the inputs is a piece of the output."""
    (dim,) = _dims(step.node._saved_dim, len(step.out))
    if step.node.name() == "StackBackward0":
        one = owners.shape[dim] == 1
        return owners.take(0 if one else step.at, dim)
    if owners.shape[dim] == 1:
        return owners if len(step.shape) == len(step.out) else None  # wherever the piece begins
    inputs = step.node.next_functions
    shapes = [None if child is None else _shape(child, at) for child, at in inputs]
    if any(x is None or len(x) != len(step.out) for x in shapes):
        return None  # where the piece begins is not known
    ends = np.cumsum([0, *(x[dim] for x in shapes if x is not None)])
    if ends[-1] != step.out[dim]:
        return None
    return owners.take(range(*ends[step.at : step.at + 2]), dim)


def _product(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """The last two axes of the output are one of the first factor's and one of the second's."""
    added = "add" in step.node.name().lower()
    if added and step.at == 0:
        return _elementwise(step, owners)
    return _reduce_owners(owners, [len(step.out) - 1 - (step.at - added)])


def _matrix_vector(step: Step, owners: np.ndarray) -> np.ndarray | None:
    return owners[:, None] if step.at == 0 else None


def _follow_by_entry(inputs: int) -> Follow:
    """Entries of the first axis are worked on one by one."""

    def follow(step: Step, owners: np.ndarray) -> np.ndarray | None:
        if step.at >= inputs or len(step.out) != len(step.shape) or step.out[0] != step.shape[0]:
            return None
        return _reduce_owners(owners, range(1, len(step.out)))

    return follow


def _layer_norm(step: Step, owners: np.ndarray) -> np.ndarray | None:
    first, count = len(step.out) - len(step.node._saved_normalized_shape), len(step.out)
    return _reduce_owners(owners, range(first, count)) if step.at == 0 else None


def _likelihood(step: Step, owners: np.ndarray) -> np.ndarray | None:
    """[n, class, …] to [n, …]"""
    shape, out, reduced = step.shape, step.out, step.node._saved_reduction != 0
    whole = step.at > 0 or reduced or len(shape) != len(out) + 1
    return None if whole or shape[0] != out[0] else np.expand_dims(owners, 1)


_NAMES: dict[Follow, str] = {
    _elementwise: """
        Add:0 Add:1 Sub:0 Sub:1 Rsub:0 Rsub:1 Mul:0 Mul:1 Div:0 Div:1 Neg:0 Abs:0 Pow:0 Pow:1 Pow:2
        Sqrt:0 Rsqrt:0 Reciprocal:0 Exp:0 Exp2:0 Expm1:0 Log:0 Log1P:0 Log2:0 Log10:0 Sin:0 Cos:0
        Tan:0 Atan:0 Sinh:0 Cosh:0 Erf:0 Tanh:0 Sigmoid:0 LogSigmoid:0 Softplus:0 Relu:0
        LeakyRelu:0 LeakyRelu:1 Gelu:0 Silu:0 Mish:0 Elu:0 Elu:1 Hardtanh:0 Hardtanh:1 Hardswish:0
        Hardsigmoid:0 Clamp:0 Clamp:1 ClampMin:0 ClampMin:1 ClampMax:0 ClampMax:1 Minimum:0
        Maximum:0 Where:0 Where:1 Expand:0 Addcmul:0 Addcdiv:0 Lerp:0
        Lerp:1 MaskedFill:0 NativeDropout:0 TanhBackward:0 SigmoidBackward:0 SoftplusBackward:0
        GeluBackward:0 SiluBackward:0 EluBackward:0 LeakyReluBackward:0 ThresholdBackward:0
        LogSigmoidBackward:0 HardtanhBackward:0 HardswishBackward:0
        """,
    _follow_unreduced: "MseLoss:0 SmoothL1Loss:0 HuberLoss:0 BinaryCrossEntropy:0 "
    "BinaryCrossEntropyWithLogits:0",
    _follow_reduction: "Sum:1 Mean:1 Amax:0 Amin:0 Max:0 Min:0 Logsumexp:0 "
    "LinalgVectorNorm:0 Norm:1 Var:0 Std:0",
    _follow_along_axes: "Softmax:0 LogSoftmax:0 Cumsum:0",
    _follow_gather: "Gather:0",
    _follow_diagonal: "Diagonal:0",
    _follow_concatenation: "Cat:0 Stack:0",
    _product: "Mm:0 Addmm:0 Bmm:0 Baddbmm:0",
    _matrix_vector: "Mv:0",
    _follow_by_entry(1): "Convolution:0 NativeGroupNorm:0 MaxPool2DWithIndices:0 AvgPool2D:0 "
    "AdaptiveAvgPool2D:0",
    _follow_by_entry(3): "ScaledDotProductFlashAttentionForCpu:0 ScaledDotProductFlashAttention:0 "
    "ScaledDotProductEfficientAttention:0 ScaledDotProductCudnnAttention:0",
    _layer_norm: "NativeLayerNorm:0 FusedRmsNorm:0",
    _likelihood: "NllLoss:0 NllLoss2D:0",
}
_KNOWN: dict[str, Follow] = {
    **dict.fromkeys(RESHAPES, _follow_view),
    **dict.fromkeys(PERMUTATIONS, _follow_permutation),
    **dict.fromkeys(PIECES, _follow_slice),
}
_KNOWN |= {
    name.replace(":", "Backward"): follow
    for follow, names in _NAMES.items()
    for name in names.split()
}
_CUTS = (_follow_slice,)  # what belongs to one loss as a whole is a piece of what went in
