"""What one call of a forward pass did with a parameter, and what the parameter's row is made of.

The gradient of a weight is a sum over positions p (samples, pixels, tokens) of inputs times deltas,
δ = ∂L/∂(the call's output):

    outer    row = Σ_p  δ_p ⊗ x_p           linear, convolutions, matmul, einsum
    lookup   row = Σ_p  δ_p ⊗ onehot(i_p)   embedding
    local    row = Σ_p  δ_p ∘ s_p           biases, scales and shifts of norms, broadcast sums and
                                            products
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...types import Params

Kind = Literal["outer", "lookup", "local"]


class Part(NamedTuple):
    """A leaf, or the rows start…stop of one that was split."""

    leaf: str
    span: tuple[int, int] | None = None
    transposed: bool = False  # as the call saw it


class Use(NamedTuple):
    """One call that consumed (a part of) a leaf."""

    part: Part
    op: str
    kind: Kind
    edge: GradientEdge  # of the call's output
    shape: torch.Size  # of the call's output
    dtype: torch.dtype
    # what the row is computed from, with its version when the call read it
    inputs: tuple[tuple[Tensor, int], ...]
    # axes of the output that count positions; a sample is one entry of one of them
    axes: tuple[int, ...]
    sizes: tuple[int, int, int, int]  # inner positions, groups, a, o
    fixed: Callable[[], Tensor]  # outer: x [*axes, inner, group, a]; lookup: indices [*axes]
    # Δ [row, *shape] -> [row, *axes, inner, group, o]; local: the summands [row, *axes, inner, 1,
    # leaf]
    varied: Callable[[Tensor], Tensor]
    # rows [row, group, o, a] -> [row, *shape of the part]; a = 1 for local
    fold: Callable[[Tensor], Tensor]
    layout: tuple[Any, ...]  # two outer or lookup uses with equal layout and sizes fold alike
    stops: frozenset[Any] = frozenset()  # nodes of the call's other inputs

    @property
    def intact(self) -> bool:
        """Whether nothing has been written into the inputs since the call."""
        return all(tensor._version == version for tensor, version in self.inputs)


class Parts:
    """The leaves, and the pieces of them that the forward pass cut, by the tensors that hold them.

    Args:
        leaves: the leaves of the pass.
        local: whether biases, scales and shifts count.
    """

    def __init__(self, leaves: Params, local: bool) -> None:
        self.local = local
        self.lengths = {name: len(leaf) if leaf.ndim else 1 for name, leaf in leaves.items()}
        self.known = {id(leaf): Part(name) for name, leaf in leaves.items()}
        # an id is a name only while its tensor lives
        self.alive: list[Tensor] = []

    def part(self, x: Any) -> Part | None:
        return self.known.get(id(x)) if isinstance(x, Tensor) else None

    def local_part(self, x: Any) -> Part | None:
        return self.part(x) if self.local else None

    def cut(self, tensor: Tensor, part: Part) -> None:
        whole = part.span == (0, self.lengths[part.leaf])
        self.known[id(tensor)] = part._replace(span=None) if whole else part
        self.alive.append(tensor)


class UnknownCall(Exception):
    """This form of the call is left to ordinary differentiation."""


def use_of(
    part: Part,
    op: str,
    kind: Kind,
    out: Tensor,
    inputs: tuple[Tensor, ...],
    axes: Any,
    sizes: Any,
    fixed: Any,
    varied: Any,
    fold: Any,
    layout: Any = (),
    alike: str = "",
) -> Use:
    """`alike`: the operation's name in its layout, where several operations fold alike."""
    # computed under no_grad: no derivative passes here
    if not isinstance(out, Tensor) or out.grad_fn is None:
        raise UnknownCall
    if not out.is_floating_point() or any(
        x.layout != torch.strided or x.is_complex() or x.is_inference() for x in (out, *inputs)
    ):
        raise UnknownCall
    read = tuple((x, x._version) for x in inputs)
    return Use(
        part,
        op,
        kind,
        GradientEdge(out.grad_fn, out.output_nr),
        out.shape,
        out.dtype,
        read,
        axes,
        sizes,
        fixed,
        varied,
        fold,
        (kind, alike or op, *layout),
    )


def by_leaf(calls: Iterable[Use]) -> dict[str, list[Use]]:
    """The calls that consumed each leaf."""
    found: dict[str, list[Use]] = {}
    for use in calls:
        found.setdefault(use.part.leaf, []).append(use)
    return found
