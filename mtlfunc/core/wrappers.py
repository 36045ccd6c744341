"""Modules and parameters of several processes, by name, and where they are refused."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

DDP = "DistributedDataParallel"
_CURE = "wrap it in DistributedDataParallel instead, and pass that to mtlfunc.Balancer(..., group=)"
_SHARDED = (
    "each process holds shards of its parameters, and inner products of shards are not those of "
    f"the gradients; {_CURE}"
)
_REFUSED = {
    DDP: "every process would balance the gradients of its own part of the data, and weigh them "
    "differently; pass the module inside (.module) and group= to the probe, or the wrapped module "
    "to mtlfunc.Balancer(..., group=)",
    "DataParallel": "each forward runs new copies of it; pass the module inside (.module), on one "
    f"device, or start a process for each device (torchrun), and {_CURE}",
    "FSDPModule": f"by fully_shard (FSDP2) {_SHARDED}",
    "FullyShardedDataParallel": f"under FSDP1 {_SHARDED}",
}
"""Why, and what to do instead, by the class of torch."""


def refuse_wrapped(module: nn.Module) -> None:
    """Raise where a module, or one inside it, is wrapped for training in several processes."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    for name, inner in module.named_modules():
        if kind := wrapper_of(inner):
            where = f"module.{name}" if name else "module"
            raise NotImplementedError(f"{where} is wrapped in {kind}: {_REFUSED[kind]}")


def refuse_twice(module: nn.Module) -> None:
    """Raise for one that functional_call would leave without parameters (pytorch issue 164759)."""
    first: dict[nn.Module, str] = {}
    for name, inner in module.named_modules(remove_duplicate=False):
        known, own = first.setdefault(inner, name), inner.parameters(recurse=False)
        if known != name and any(x.requires_grad for x in own):
            raise ValueError(
                f"module: {known} is registered again as {name}, and functional_call would leave "
                "tensors in place of its parameters; register it once, and call it in `forward` "
                "where the other name stands (a Balancer on live losses takes it as it is)"
            )


def refuse_shards(params: Any, argument: str = "params") -> None:
    """Raise for a parameter that is a DTensor, of which a process holds a part."""
    if not (dist.is_available() and dist.is_initialized() and isinstance(params, Mapping)):
        return
    for name, leaf in params.items():
        if type(leaf).__name__ == "DTensor":  # by name: nothing more of torch.distributed
            raise NotImplementedError(
                f"{argument}[{name!r}] is a DTensor (fully_shard, tensor parallel), a shard, and "
                "inner products of shards are not those of the gradients; pass whole parameters, "
                "leaf.full_tensor(), and train in several processes by DistributedDataParallel "
                "and group="
            )


def refuse_wrapped_calls() -> AbstractContextManager[Any]:
    """Raise where a forward pass calls a wrapped module; without a process group there is none."""
    if torch.compiler.is_compiling() or not dist.is_available() or not dist.is_initialized():
        return nullcontext()
    thread = threading.get_ident()

    def look(module: nn.Module, inputs: Any) -> None:
        kind = wrapper_of(module)
        if threading.get_ident() == thread and kind:
            where = "losses_fn calls a module"
            raise NotImplementedError(f"{where} wrapped in {kind}: {_REFUSED[kind]}")

    return register_module_forward_pre_hook(look)  # which goes at the end of a `with`


def wrapper_of(module: nn.Module) -> str | None:
    """The wrapper's name, or None: by name, so that nothing of torch.distributed is imported."""
    own = [x.__name__ for x in type(module).__mro__ if x.__module__.startswith("torch.")]
    return next((name for name in own if name in _REFUSED), None)
