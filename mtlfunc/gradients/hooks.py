"""Whether hooks can sit on the derivatives of a forward pass, which the graph does not show."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..core._torch import nodes_made

RETAIN = Tensor.retain_grad


class Handles(AbstractContextManager[Any]):
    """Whether hooks can have been put on derivatives, at any time since it was made.

    Every hook on a tensor, a node of the graph or a module has a handle with a number of its own.
    That a tensor retains its gradient has none. Nodes of the graph are also numbered: on those from
    before `since` hooks may have been put earlier.
    """

    retained: bool = False

    def __init__(self) -> None:
        self.first: int = RemovableHandle.next_id
        self.since: int = nodes_made()

    def __exit__(self, *_: object) -> None:
        """Nothing was changed."""

    @property
    def hooked(self) -> bool:
        return self.retained or self.first != RemovableHandle.next_id


class Hooks(TorchFunctionMode, Handles):
    """`Handles` that, while active, also sees tensors that retain their gradient."""

    def __init__(self) -> None:
        super().__init__()
        Handles.__init__(self)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is RETAIN:
            self.retained = True
        return func(*args, **kwargs) if kwargs else func(*args)
