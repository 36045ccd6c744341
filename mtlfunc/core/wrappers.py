"""Modules that are wrapped for training in several processes, and where they are refused."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
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
_CURES = {
    "DataParallel": "each forward runs new copies of it; pass the module inside (.module), on one "
    "device, or start a process for each device (torchrun), with mtlfunc.Balancer(..., group=)"
}


def refuse_wrapped(module: nn.Module, *, allowed: tuple[str, ...] = ()) -> None:
    """Raise where a module, or one inside it, is wrapped for training in several processes."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    for name, inner in module.named_modules():
        wrapper = wrapper_of(inner)
        if wrapper and wrapper not in allowed:
            where = f"module.{name}" if name else "module"
            raise NotImplementedError(
                f"{where} is wrapped in {wrapper}, which mtlfunc does not support here: "
                f"{_CURES.get(wrapper, _CURE)}"
            )


def check_averaging(module: nn.Module) -> None:
    """Raise where a wrapper does not average gradients over its processes, or not now.

    Raises:
        NotImplementedError: naming the setting.
    """
    join = getattr(module, "_join_config", None)
    if wrapper_of(module) == "DistributedDataParallel" and join is not None and join.enable:
        raise NotImplementedError(
            "module: DistributedDataParallel.join answers the other ranks' own collectives, not "
            "those of a step with group=; let every rank take every step, one without data with "
            "present= of zeros"
        )
    for name, part in module.named_modules():
        if wrapper_of(part) != "FSDPModule":
            continue
        state: Any = part._get_fsdp_state()  # pyright: ignore
        for group in getattr(state, "_fsdp_param_groups", ()):
            size = group.mesh_info.mesh.size()
            found = [words for words, off in _unusual(group, state, size) if off]
            if found:
                where = f"module.{name}" if name else "module"
                raise NotImplementedError(
                    f"{where}: {found[0]} changes what fully_shard makes of a gradient, and with "
                    "it the Gramian; leave the default. Every step with group= averages over the "
                    "ranks, and gradients add up over calls of backward without any setting"
                )


def _unusual(group: Any, state: Any, size: int) -> list[tuple[str, bool]]:
    """Settings of fully_shard by their functions, and whether each is another than by default."""
    factor = group.gradient_divide_factor
    return [
        (f"set_gradient_divide_factor({factor})", factor not in (None, size)),
        ("set_requires_gradient_sync(False)", not group.reduce_grads),
        ("set_requires_all_reduce(False)", not group.all_reduce_grads),
        ("set_all_reduce_hook(...)", group._all_reduce_hook is not None),
        ("set_is_last_backward(False)", not state._state_ctx.is_last_backward),
    ]


def refuse_wrapped_calls() -> AbstractContextManager[Any]:
    """While a forward pass runs: raise where it calls a wrapped module.

    There is none without a process group, and then this costs nothing.
    """
    if torch.compiler.is_compiling() or not dist.is_available() or not dist.is_initialized():
        return nullcontext()
    thread = threading.get_ident()

    def look(module: nn.Module, inputs: Any) -> None:
        wrapper = wrapper_of(module)
        if threading.get_ident() == thread and wrapper:
            raise NotImplementedError(
                f"losses_fn calls a module wrapped in {wrapper}, which mtlfunc does not support: "
                f"{_CURES.get(wrapper, _CURE)}"
            )

    return register_module_forward_pre_hook(look)  # which goes at the end of a `with`


def wrapper_of(module: nn.Module) -> str | None:
    """The wrapper's name, or None: by name, so that nothing of torch.distributed is imported."""
    return _wrapper(type(module))


@lru_cache(maxsize=256)
def _wrapper(which: type[nn.Module]) -> str | None:
    for kind in which.__mro__:
        if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
            return kind.__name__
    return None
