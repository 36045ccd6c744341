"""Modules wrapped for training in several processes, which a step refuses: it would see one
process's part of the batch, or of a parameter, and say nothing.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
_CURE = (
    "every process would balance the gradients of its own part of the data, and weigh them "
    "differently; pass the module inside (.module) in one process, or average the losses yourself"
)


def refuse_wrapped(module: nn.Module, argument: str = "module") -> None:
    """Raise where a module, or one inside it, is wrapped for training in several processes."""
    for name, inner in module.named_modules():
        wrapper = _wrapper(inner)
        if wrapper:
            where = f"{argument}.{name}" if name else argument
            raise NotImplementedError(
                f"{where} is wrapped in {wrapper}, which mtlfunc does not support: {_CURE}"
            )


def refuse_sharded(params: Mapping[str, Any]) -> None:
    """Raise for parameters that are shards (FSDP2, tensor parallel), or a wrapper's own."""
    for name, leaf in params.items():
        if type(leaf).__name__ == "DTensor":
            raise NotImplementedError(
                f"params[{name!r}] is a DTensor, a shard of a parameter (fully_shard, tensor "
                "parallel), which mtlfunc does not support: inner products of shards are not "
                "those of the gradients; pass whole parameters, leaf.full_tensor()"
            )


def refusing_wrapped_calls() -> AbstractContextManager[None]:
    """While a forward pass runs: raise where it calls a wrapped module.

    There is none without a process group, and then this costs nothing.
    """
    if torch.compiler.is_compiling() or not torch.distributed.is_available():
        return nullcontext()
    return _watching_calls() if torch.distributed.is_initialized() else nullcontext()


@contextmanager
def _watching_calls() -> Iterator[None]:
    thread = threading.get_ident()

    def look(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() == thread and _wrapper(module):
            raise NotImplementedError(
                f"losses_fn calls a module wrapped in {_wrapper(module)}, which mtlfunc does not "
                f"support: {_CURE}"
            )

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _wrapper(module: nn.Module) -> str | None:
    """The wrapper's name, or None: by name, so that nothing of torch.distributed is imported."""
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
            return kind.__name__
    return None
