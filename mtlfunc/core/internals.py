"""Every private name of torch that this package uses, but for what a node of the graph saved, which
its reader asks by name. A release of torch may change any of them. Each is looked up here, with
something that stands in for it: slower, or without what it was for. `torch.utils._pytree`, dispatch
modes and `torch._C._functorch` have no stand-in; they are as they were since torch 2.4.
"""

# ruff: noqa: F401
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

GONE: list[str] = []
"""The names that this torch lacks."""


class Trust:
    """Whether this torch does what the package takes for granted of its private parts; where a
    trial says no (`mtlfunc.analysis.trial`), each row is an ordinary pass of its own.
    """

    private = True


def find(path: str, stand_in: Any) -> Any:
    """What stands at `path`, or else `stand_in`."""
    found: Any = torch
    for name in path.split(".")[1:]:
        found = getattr(found, name, None)
    if found is None:
        GONE.append(path)
        return stand_in
    return found


COPY = lambda to, x: [a.copy_(b) for a, b in zip(to, x, strict=True)]  # noqa: E731
ENGINE = SimpleNamespace(
    run_backward=lambda roots, cotangents, keep, record, places, unused, **_: torch.autograd.grad(
        roots, places, cotangents, keep, record, allow_unused=unused
    )
)
with torch.inference_mode(False):
    accumulate_grad: Any = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)

SUPPORTED_NODES: Any = pytree.SUPPORTED_NODES
keystr: Callable[..., str] = pytree.keystr
tree_map: Callable[..., Any] = pytree.tree_map
tree_flatten: Callable[..., Any] = pytree.tree_flatten
tree_flatten_with_path: Callable[..., Any] = pytree.tree_flatten_with_path
tree_leaves: Callable[..., list[Any]] = pytree.tree_leaves
tree_unflatten: Callable[..., Any] = pytree.tree_unflatten
_C: Any = torch._C
functorch: Any = _C._functorch
compiler_tables = "torch._dynamo.variables.torch"  # whose import takes two seconds
# called before every module's forward; without it tensors that modules re-assign stay so
hooks_of_all_modules: Any = find("torch.nn.modules.module._global_forward_pre_hooks", {})
DisableTorchFunctionSubclass: Any = find("torch._C.DisableTorchFunctionSubclass", torch.no_grad)
# a node that hands no gradient on; without it no graph is freed
undefined_grad: Any = find("torch._C._functions.UndefinedGrad", None)
nn_functions: Any = find("torch._C._nn", None)
copy_each: Callable[..., None] = find("torch._foreach_copy_", COPY)
autograd_engine: Any = find("torch.autograd.Variable._execution_engine", ENGINE)
# how many nodes this thread has made; if that is unknown, hooks may be on each
nodes_made: Callable[[], int] = find("torch._C._autograd._get_sequence_nr", lambda: 2**62)
# modes that see every operation, such as a tracer's; if that is unknown, no value is read
is_traced: Callable[[], int] = find("torch._C._len_torch_dispatch_stack", lambda: 1)
end_pool: Any = getattr(_C, "_cuda_endAllocateToPool", None)  # of memory on a device
# before torch 2.10 a saved tensor does not say which hook brings it back
tells_hooks: bool = hasattr(_C._autograd.SavedTensor, "unpack_hook")


def forward_level() -> int:
    """The innermost level of forward-mode AD, -1 outside of all."""
    found = getattr(torch.autograd.forward_ad, "_current_level", None)
    if found is not None:
        return found
    try:
        with torch.autograd.forward_ad.dual_level():
            return -1
    except RuntimeError:  # within a level torch opens no other
        return 0


def keeps_weights() -> bool:
    """Whether `torch.nn.utils.parametrize.cached()` is open and has kept a weight."""
    return bool(getattr(torch.nn.utils.parametrize, "_cache", None))


def memory(x: Tensor) -> int:
    """Which memory this is a view of; a sparse tensor is its own."""
    return x.untyped_storage()._cdata if x.layout is torch.strided else id(x)
