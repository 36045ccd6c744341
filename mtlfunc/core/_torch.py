"""Every private name of torch that this package uses, those of `gradients` aside. A release of
torch may change any of them, so they bound its version in `pyproject.toml`.
"""

# ruff: noqa: F401
import torch
from torch._C import (
    DisableTorchFunctionSubclass,
    _functorch,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    SUPPORTED_NODES,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

functorch = _functorch
copy_each, times_each = torch._foreach_copy_, torch._foreach_mul
holders_of = torch._C._storage_Use_Count  # pyright: ignore


def forward_level() -> int:
    """The innermost level of forward-mode AD, -1 outside of all."""
    return torch.autograd.forward_ad._current_level


def is_traced() -> bool:
    """Whether a mode sees every operation, such as a tracer's."""
    return bool(torch._C._len_torch_dispatch_stack())


def end_pool(device: int, pool: tuple[int, int]) -> None:
    """Ask the allocator of a device for no more memory of a pool."""
    torch._C._cuda_endAllocateToPool(device, pool)
