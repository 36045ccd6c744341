"""Which forwards need no watching, because rows of every leaf were cheapest when they were watched.

Separate losses are then differentiated by the same passes, watched or not: what is remembered here
costs or saves time. Where a forward is of another kind than those before it, and layers would have
been cheaper, it is seen from its next time on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from ...types import Batch, LossesFn, Params
from .graph import Graph
from .taps import Tapped

Kinds = dict[int, bool]
"""By `Graph.kind`, whether it is known to be all rows. Other kinds may still come: 0 stands for
those, where watching was of use, or where there are too many.
"""

_MOST = 64


def unwatched(kinds: Kinds) -> bool:
    """Whether the next forward need not be watched."""
    return bool(kinds) and all(kinds.values())


def learnt(kinds: Kinds, graph: Graph, taps: Tapped | None) -> Kinds:
    """`kinds` after a forward with this graph, and with these taps if it was watched."""
    if 0 in kinds or (taps is None and (not kinds or graph.kind in kinds)):
        return kinds
    if len(kinds) == _MOST or not (taps is None or taps.idle):
        return {0: False}
    return {**kinds, graph.kind: taps is not None}


class Repeated:
    """A `losses_fn` that is called step after step.

    Args:
        losses_fn: is called.
        known: the kinds of graphs, for every shape of what goes in.
    """

    def __init__(self, losses_fn: LossesFn, known: dict[Any, Kinds]) -> None:
        self.losses_fn, self.known = losses_fn, known

    def __call__(self, params: Params, batch: Batch) -> Any:
        return self.losses_fn(params, batch)

    def idle(self, shapes: Any) -> bool:
        """Whether a forward of these shapes need not be watched."""
        return unwatched(self.known.get(shapes, {}))

    def open(self, shapes: Any) -> bool:
        """Whether there is something to learn from one more."""
        return 0 not in self.known.get(shapes, {})

    def learn(self, shapes: Any, graph: Graph, taps: Tapped | None) -> None:
        if len(self.known) == _MOST and shapes not in self.known:
            self.known.clear()
        self.known[shapes] = learnt(self.known.get(shapes, {}), graph, taps)


def shapes_of(params: Params, batch: Batch) -> Any:
    """What the structure of a forward depends on, as far as that can be known before it."""
    leaves, structure = tree_flatten(batch)
    return structure, tuple(params), tuple(map(_shape, (*params.values(), *leaves)))


def _shape(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.shape, x.dtype, x.device
    return x if isinstance(x, int | str) else type(x)
