"""Taps: which calls of one forward pass consumed which parameters.

A `Recorder` mode watches the forward pass of any stateless `losses_fn` and notes, for each such
call, its input and the place of its output in the autograd graph (before anything can change that
output in place). The deltas are then derivatives at these places, and no weight's own gradient is
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._autograd import (  # pyright: ignore[reportMissingImports]
    _get_sequence_nr as _nodes_made,  # in this thread
)
from torch._C._autograd import (  # pyright: ignore[reportMissingImports]
    _top_saved_tensors_default_hooks as _saved_tensor_hooks,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils.hooks import RemovableHandle

from ...core.checks import depth
from ...types import Params
from ..safe_ops import SafeOps, unwrap_override
from .calls import Parts, UnknownCall, Use
from .elementwise import ELEMENTWISE
from .products import PRODUCTS

_EVERY = PRODUCTS | ELEMENTWISE
_PLAIN = frozenset({Tensor, nn.Parameter})
RETAIN = Tensor.retain_grad


class Handles(AbstractContextManager[Any]):
    """Whether hooks can have been put on derivatives, at any time since it was made.

    Every hook on a tensor, a node of the graph or a module has a handle with a number of its own.
    That a tensor retains its gradient has none. Nodes of the graph are also numbered: on those from
    before `since` hooks may have been put earlier.
    """

    def __init__(self) -> None:
        self.first, self.since = RemovableHandle.next_id, _nodes_made()

    def __exit__(self, *_: object) -> None:
        """Nothing was changed."""

    @property
    def hooked(self) -> bool:
        return self.first != RemovableHandle.next_id


class Hooks(TorchFunctionMode):
    """`Handles` that, while active, also sees tensors that retain their gradient.

    And in `checkpointed` whether calls ran with hooks on saved tensors (activation checkpointing,
    offloading).
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.since = RemovableHandle.next_id, _nodes_made()
        self.retained = self.checkpointed = False

    @property
    def hooked(self) -> bool:
        return self.retained or self.first != RemovableHandle.next_id

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is RETAIN:
            self.retained = True
        if not torch.compiler.is_compiling() and _saved_tensor_hooks(False) is not None:
            self.checkpointed = True
        return func(*args, **kwargs) if kwargs else func(*args)


class Recorder(Hooks):
    """While active, notes in `uses` every call that it understands and that consumes a leaf.

    What is `checkpointed` is not noted: taps would hold the inputs that it gives up.

    Args:
        leaves: the leaves of the pass.
        local: whether biases, scales and shifts count.
    """

    def __init__(self, leaves: Params, *, local: bool = True) -> None:
        super().__init__()
        self.ops = _EVERY if local else PRODUCTS
        if not torch.compiler.is_compiling() and any(
            map(_alters, _get_current_function_mode_stack())
        ):
            self.ops = {}  # what a call computes is known to that mode alone
        self.parts = Parts(leaves, local)
        self.uses: list[Use] = []
        self.depth = depth()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is RETAIN:
            self.retained = True
        # losses_fn is compiled inside: nothing of it is seen, and its leaves are differentiated row
        # by row
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if not _PLAIN.issuperset(types):  # a subclass may make anything of any call
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:  # it calls F.linear inside, which must be seen
                return unwrap_override(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        reader = self.ops.get(func)
        if reader is None:
            return out
        if _saved_tensor_hooks(False) is not None:
            self.checkpointed = True
            return out
        leaves, stops = [], []
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                part = self.parts.part(x)
                if part is not None:
                    leaves.append(part.leaf)
                elif x.grad_fn is not None:
                    stops.append(x.grad_fn)
        # Where a call reads one leaf twice, the graph cannot tell the one from the other; a vmap
        # inside losses_fn has tensors of its own.
        if 0 < len(leaves) == len(set(leaves)) and self.depth == depth():
            # TypeError: another spelling of the arguments
            with suppress(UnknownCall, TypeError):
                self.uses.extend(
                    use._replace(stops=frozenset(stops))
                    for use in reader(self.parts, out, *args, **kwargs)
                )
        return out


def _alters(mode: TorchFunctionMode) -> bool:
    """Whether a mode around this one may compute something else than what is called."""
    return not isinstance(mode, Hooks | SafeOps | DeviceContext)
