"""What the autograd graph alone proves about samples: that they stay apart.

Row i of every activation serves entry i of the losses and no other. Only operations that are known
to keep the rows of their first axis apart are accepted, with the shapes they had; anything else
proves nothing, and is left to a second backward pass (see `mtlfunc.gradients.samples`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .uses import Use

Node = Any  # torch.autograd.graph.Node
Keeps = Callable[[Node, int, tuple[int, ...], tuple[int, ...]], bool]
"""(node, which of its inputs, that input's shape, the output's shape), both with the samples as
their first axis; is sample i still row i?
"""


def proved_apart(uses: Sequence[Use], losses: Tensor) -> bool:
    """Whether the graph shows that every use has a sample's own deltas in row i for sample i."""
    samples = len(losses)
    return all(use.shape[0] == samples and 0 in use.axes for use in uses) and rows_apart(
        losses.grad_fn, samples
    )


def rows_apart(root: Node | None, samples: int) -> bool:
    """Whether all operations from the losses to the parameters keep the first axis' rows apart."""
    todo, seen = [root], {root}
    while todo:
        node = todo.pop()
        keeps = None if node is None else _KEEPS.get(node.name())
        if node is None or keeps is None:
            return False
        out = _shape(node, 0)
        for index, (child, place) in enumerate(node.next_functions):
            if child is None or _parameter(child):
                continue
            shape = _shape(child, place)
            if (
                not shape
                or shape[0] != samples
                or out[0] != samples
                or not keeps(node, index, shape, out)
            ):
                return False
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return True


def _shape(node: Node, place: int) -> tuple[int, ...]:
    return tuple(node._input_metadata[place].shape)


def _parameter(node: Node) -> bool:
    """A leaf, or a leaf seen transposed, reshaped or cast."""
    while node.name() in _TURNS:
        ((node, _),) = node.next_functions
        if node is None:
            return False
    return node.name() == "torch::autograd::AccumulateGrad"


_TURNS = {
    "TBackward0",
    "TransposeBackward0",
    "PermuteBackward0",
    "ViewBackward0",
    "ToCopyBackward0",
}


def _dims(node: Node, shape: tuple[int, ...]) -> set[int]:
    """Axes of the input that a node names, from 0 (torch keeps negative ones as unsigned)."""
    named = node._saved_dim
    named = named if isinstance(named, tuple) else (named,)
    return {(dim - 2**64 if dim >= 2**63 else dim) % len(shape) for dim in named}


def _elementwise(node: Node, index: int, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    return len(shape) == len(out)  # else the samples would be broadcast along another axis


def _unreduced(node: Node, index: int, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    return node._saved_reduction == 0 and len(shape) == len(out)


def _along(node: Node, index: int, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Works along axes other than the first."""
    dims = _dims(node, shape)
    return bool(dims) and 0 not in dims


def _first_operand(node: Node, index: int, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    return index == 0


def _always(node: Node, index: int, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    return True


_ELEMENTWISE = """
    Add Sub Mul Div Neg Abs Pow Sqrt Rsqrt Exp Log Log1P Sin Cos Tanh Sigmoid LogSigmoid
    Softplus Relu LeakyRelu Gelu Silu Elu Hardtanh Clamp ClampMin ClampMax Where Clone ToCopy
    Expand
"""

_KEEPS: dict[str, Keeps] = {
    **{f"{name}Backward{i}": _elementwise for name in _ELEMENTWISE.split() for i in (0, 1)},
    **{
        f"{name}Backward0": _unreduced
        for name in (
            "MseLoss",
            "SmoothL1Loss",
            "HuberLoss",
            "BinaryCrossEntropy",
            "BinaryCrossEntropyWithLogits",
        )
    },
    **dict.fromkeys(
        (
            "SumBackward1",
            "MeanBackward1",
            "SoftmaxBackward0",
            "LogSoftmaxBackward0",
            "SelectBackward0",
            "CatBackward0",
        ),
        _along,
    ),
    # With the samples first before and after, these cannot have moved them.
    **{
        f"{name}Backward0": _always
        for name in (
            "View",
            "UnsafeView",
            "Unsqueeze",
            "Squeeze",
            "Slice",
            "Bmm",
            "MaxPool2DWithIndices",
            "AvgPool2D",
        )
    },
    "SqueezeBackward1": _always,
    "NllLossBackward0": lambda node, index, shape, out: index == 0 and node._saved_reduction == 0,
    "MmBackward0": _first_operand,
    "AddmmBackward0": lambda node, index, shape, out: (
        index == 1 or (index == 0 and len(shape) == len(out))
    ),
    "ConvolutionBackward0": _first_operand,
    "NativeGroupNormBackward0": _first_operand,
    "NativeLayerNormBackward0": lambda node, index, shape, out: (
        index == 0 and len(node._saved_normalized_shape) < len(out)
    ),
}
