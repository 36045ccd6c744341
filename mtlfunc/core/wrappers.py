"""Modules that are wrapped for training in several processes, and where they are refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
_CURE = (
    "every process would balance the gradients of its own part of the data, and weigh them "
    "differently; pass the module inside (.module) and group= to the probe, or the wrapped module "
    "to mtlfunc.Balancer(..., group=)"
)


def refuse_wrapped(
    module: nn.Module, argument: str = "module", *, allowed: tuple[str, ...] = ()
) -> None:
    """Raise where a module, or one inside it, is wrapped for training in several processes."""
    for name, inner in module.named_modules():
        wrapper = wrapper_of(inner)
        if wrapper and wrapper not in allowed:
            where = f"{argument}.{name}" if name else argument
            raise NotImplementedError(
                f"{where} is wrapped in {wrapper}, which mtlfunc does not support here: {_CURE}"
            )


def refuse_wrapped_calls() -> AbstractContextManager[None]:
    """While a forward pass runs: raise where it calls a wrapped module.

    There is none without a process group, and then this costs nothing.
    """
    if torch.compiler.is_compiling() or not dist.is_available():
        return nullcontext()
    return _watching_calls() if dist.is_initialized() else nullcontext()


@contextmanager
def _watching_calls() -> Iterator[None]:
    thread = threading.get_ident()

    def look(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() == thread and wrapper_of(module):
            raise NotImplementedError(
                f"losses_fn calls a module wrapped in {wrapper_of(module)}, which mtlfunc does not "
                f"support: {_CURE}"
            )

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def wrapper_of(module: nn.Module) -> str | None:
    """The wrapper's name, or None: by name, so that nothing of torch.distributed is imported."""
    return _wrapper(type(module))


@lru_cache(maxsize=256)
def _wrapper(which: type[nn.Module]) -> str | None:
    for kind in which.__mro__:
        if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
            return kind.__name__
    return None
