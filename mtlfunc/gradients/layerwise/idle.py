"""When forwards are watched in vain: rows of every leaf are the cheapest, whatever is seen.

Separate losses are then differentiated by the same passes, watched or not, and give the same bits;
where a forward that was not watched is of another kind, it is rows that it is given, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...types import Batch, LossesFn, Params
from .graph import Graph
from .taps import Tapped

STREAK = 8
"""After so many forwards in a row that were all rows the next is not watched: should it be one of
those that are better watched, the loss is that of one step in nine at most.
"""

_MOST = 64


class Idle(NamedTuple):
    """What a sequence of forwards has shown."""

    kinds: tuple[int, ...] = ()  # `Graph.kind` of those that were watched, and were all rows
    streak: int = 0  # how many of the last ones were of those kinds, up to STREAK

    @property
    def unwatched(self) -> bool:
        """Whether the next one need not be watched."""
        return self.streak == STREAK

    def after(self, graph: Callable[[], Graph], taps: Tapped | None, *, apart: bool) -> Idle:
        """After one more.

        Args:
            graph: its own.
            taps: of it, if it was watched.
            apart: whether its losses were separate.
        """
        if not self.kinds and taps is None:  # none ever was
            return self
        kind = graph().kind if apart and (taps is None or taps.idle) else None
        known = kind in self.kinds
        if kind is None or not (known or taps):
            return self._replace(streak=0)
        kinds = self.kinds if known else (*self.kinds[1 - _MOST :], kind)
        return Idle(kinds, min(self.streak + 1, STREAK))


class Repeated:
    """A `losses_fn` that is called step after step.

    Args:
        losses_fn: is called.
        known: what was shown, for every shape of what goes in.
    """

    def __init__(self, losses_fn: LossesFn, known: dict[Any, Idle]) -> None:
        self.losses_fn, self.known = losses_fn, known

    def __call__(self, params: Params, batch: Batch) -> Any:
        return self.losses_fn(params, batch)

    def unwatched(self, shapes: Any) -> bool:
        """Whether the next one of these shapes need not be watched."""
        return self.known.get(shapes, Idle()).unwatched

    def learn(
        self, shapes: Any, graph: Callable[[], Graph], taps: Tapped | None, *, apart: bool
    ) -> None:
        """After one more of these shapes, as `Idle.after`."""
        if len(self.known) == _MOST and shapes not in self.known:
            self.known.clear()
        self.known[shapes] = self.known.get(shapes, Idle()).after(graph, taps, apart=apart)


def shapes_of(params: Params, batch: Batch) -> Any:
    """What the structure of a forward depends on, as far as that can be known before it."""
    return tuple(params), tuple(map(_shape, (*params.values(), *tree_leaves(batch))))


def _shape(x: Any) -> Any:
    if isinstance(x, Tensor) and not x.is_nested:
        return x.shape, x.dtype, x.device
    return x if isinstance(x, int | str) else type(x)
