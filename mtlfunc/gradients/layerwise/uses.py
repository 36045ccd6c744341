"""What the row of a leaf is made of, by one node that reads it: the autograd graph says it.

The gradient of a weight is a sum over positions p (samples, pixels, tokens) of inputs times deltas,
δ = ∂L/∂(the node's output):

    outer    row = Σ_p  δ_p ⊗ x_p           products and convolutions
    lookup   row = Σ_p  δ_p ⊗ onehot(i_p)   embeddings, rows picked by index
    local    row = Σ_p  δ_p ∘ s_p           biases, scales and shifts of norms, broadcast sums and
                                            products

The node of an operation holds what the operation read, since its backward needs it, and the
derivative at the node's place in the graph is δ. So nothing watches the forward pass, and a weight
that a loss reads once more, because it contains a derivative, has one more node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ...core.checks import user_level
from ...core.hooks import is_hooked

Node = Any  # torch.autograd.graph.Node
Kind = Literal["outer", "lookup", "local"]


class Unread(Exception):
    """A node that is left to ordinary differentiation; the text says why."""


def lacking(error: AttributeError) -> str:
    """That nodes of this torch have no such name any more, which is warned of once."""
    if not isinstance(error.obj, torch.autograd.graph.Node):
        raise error
    if (why := f"in torch {torch.__version__} a {error}") not in WARNED:
        WARNED.add(why)
        warn(f"{why}: rows for its layers, slower and right", RuntimeWarning, user_level())
    return why


WARNED: set[str] = set()


class Part(NamedTuple):
    """A leaf, or the rows start…stop of one that was split."""

    leaf: str
    span: tuple[int, int] | None = None


class Use(NamedTuple):
    """One node that reads (a part of) a leaf."""

    part: Part
    op: str
    kind: Kind
    edge: GradientEdge  # of the node's output
    shape: torch.Size  # of the node's output
    dtype: torch.dtype
    device: torch.device
    # axes of the output that count positions; a sample is one entry of one of them
    axes: tuple[int, ...]
    sizes: tuple[int, int, int, int]  # inner positions, groups, a, o
    # outer: x [*axes, inner, group, a]; lookup: indices [*axes]; local: None
    fixed: Callable[[], Tensor] | None
    # Δ [row, *shape] -> [row, *axes, inner, group, o]; local: the summands [row, *axes, inner, 1,
    # leaf]
    varied: Callable[[Tensor], Tensor]
    # rows [row, group, o, a] -> [row, *shape of the part]; a = 1 for local
    fold: Callable[[Tensor], Tensor]
    layout: tuple[Any, ...]  # two outer or lookup uses with equal layout and sizes fold alike

    @property
    def is_turned(self) -> bool | None:
        """Whether rows [o, a] are the transpose of the leaf, a matrix; None if it is none."""
        return self.layout[2] if self.layout[1:2] == ("matrix",) else None


class View(NamedTuple):
    """A step from a leaf to what a node read: other axes for the same entries."""

    before: tuple[int, ...]  # its input's shape
    order: tuple[int, ...] | None  # of the axes; None is another shape for entries in one order


class Operand(NamedTuple):
    """A leaf, or what views made of it, as one node reads it."""

    part: Part
    shape: tuple[int, ...]
    views: tuple[View, ...]  # from the part on
    node: Node
    at: int  # which of the node's inputs it is
    top: Node  # whose output has the deltas: the node, or a view of its output

    @property
    def out(self) -> tuple[int, ...]:
        """The shape of the deltas."""
        return shape_of(self.top, 0)

    def saved(self, name: str) -> Tensor:
        """What the node keeps of its inputs and outputs; `Unread` where a hook has taken it away,
        as checkpoints and offloading do, or something was written into it since.
        """
        return _checked(self.node, name, getattr(self.node, f"_raw_saved_{name}"))

    def several(self, name: str) -> list[Tensor | None]:
        """The same, of a list."""
        raw = getattr(self.node, f"_raw_saved_{name}")
        return [None if x is None else _checked(self.node, name, x, i) for i, x in enumerate(raw)]

    def shaped(self, rows: Tensor) -> Tensor:
        """[row, …], in the order of what the node read, to [row, *shape]."""
        return rows.reshape(len(rows), *self.shape)

    def rows_of_part(self, rows: Tensor) -> Tensor:
        """[row, *shape] to [row, *shape of the part]."""
        for before, order in reversed(self.views):
            if order is None:
                rows = rows.reshape(len(rows), *before)
            else:
                back = sorted(range(len(order)), key=order.__getitem__)
                rows = rows.permute(0, *(1 + axis for axis in back))
        return rows

    def matrix(self, *, turned: bool) -> tuple[str, bool] | None:
        """A layout of a leaf that is a matrix, and whether rows [o, a] are its transpose, if the
        node's operand is `turned`; None if views of the leaf are more than transposes.
        """
        if any(len(step.before) != 2 or step.order is None for step in self.views):
            return None
        crossed = sum(step.order == (1, 0) for step in self.views)
        return "matrix", turned == (crossed % 2 == 0)

    def use(
        self,
        op: str,
        kind: Kind,
        axes: Sequence[int],
        sizes: tuple[int, int, int, int],
        fixed: Callable[[], Tensor] | None,
        varied: Callable[[Tensor], Tensor],
        fold: Callable[[Tensor], Tensor],
        layout: tuple[Any, ...] = (),
    ) -> Use:
        """`fold` gives [row, *shape]; `layout` tells it from others of its kind."""
        out, views = self.top._input_metadata[0], self.views

        def whole(rows: Tensor) -> Tensor:
            return self.rows_of_part(fold(rows))

        return Use(
            self.part,
            op,
            kind,
            GradientEdge(self.top, 0),
            out.shape,
            out.dtype,
            out.device,
            tuple(axes),
            sizes,
            fixed,
            varied,
            whole if views else fold,
            (kind, *layout) if layout[:1] == ("matrix",) else (kind, *layout, *views),
        )


def _checked(node: Node, name: str, raw: Any, at: int | None = None) -> Tensor:
    if raw is None:
        raise Unread(f"{node.name()} keeps no {name}")
    if is_hooked(raw):
        raise Unread("checkpointing, or another hook on saved tensors, has taken its input away")
    try:
        found = getattr(node, f"_saved_{name}")
    except RuntimeError as error:  # written to since, or freed
        raise Unread(str(error)) from None
    x = found if at is None else found[at]
    plain = type(x) in PLAIN and x.layout == torch.strided
    if not plain or x.is_complex() or x.is_inference():
        raise Unread(f"{node.name()} keeps a tensor of another kind")
    return x


PLAIN = frozenset({Tensor, nn.Parameter})

Reader = Callable[[Operand], Use]


def shape_of(node: Node, output: int) -> tuple[int, ...]:
    return tuple(node._input_metadata[output].shape)


def signed(n: int) -> int:
    return n - 2**64 if n >= 2**63 else n  # torch keeps negative ones as unsigned
