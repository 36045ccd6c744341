"""Whether hooks can sit on the derivatives of a forward pass, which the graph does not show."""

from __future__ import annotations

from torch.utils.hooks import RemovableHandle

from ..core._torch import nodes_made


class Handles:
    """Whether hooks can have been put on derivatives, at any time since it was made.

    Every hook on a tensor, a node of the graph or a module has a handle with a number of its own.
    Nodes of the graph are also numbered: on those from before `since` hooks may have been put
    earlier. That a tensor retains its gradient has no number, and changes no derivative.
    """

    def __init__(self) -> None:
        self.first: int = RemovableHandle.next_id
        self.since: int = nodes_made()

    @property
    def hooked(self) -> bool:
        return self.first != RemovableHandle.next_id
