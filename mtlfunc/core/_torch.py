"""Every private name of torch that this package uses, but for what a node of the graph saved, which
its reader asks by name. A release of torch may change any of them, so they bound its version in
`pyproject.toml`.
"""

# ruff: noqa: F401
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _global_forward_pre_hooks as hooks_of_all_modules
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

SUPPORTED_NODES, keystr, tree_map = pytree.SUPPORTED_NODES, pytree.keystr, pytree.tree_map
tree_flatten, tree_flatten_with_path = pytree.tree_flatten, pytree.tree_flatten_with_path
tree_leaves, tree_unflatten = pytree.tree_leaves, pytree.tree_unflatten
_C: Any = torch._C
functorch, nn_functions = _C._functorch, _C._nn
DisableTorchFunctionSubclass = _C.DisableTorchFunctionSubclass
# nodes: that of a leaf, and one that hands no gradient on; below how many this thread has made
accumulate_grad, undefined_grad = _C._functions.AccumulateGrad, _C._functions.UndefinedGrad
attention_math = torch._scaled_dot_product_attention_math
compiler_tables = "torch._dynamo.variables.torch"  # whose import takes two seconds
flatten, unflatten = nn_functions.flatten_dense_tensors, nn_functions.unflatten_dense_tensors
copy_each = torch._foreach_copy_
autograd_engine: Any = torch.autograd.Variable._execution_engine
nodes_made, holders_of = _C._autograd._get_sequence_nr, _C._storage_Use_Count
is_traced = _C._len_torch_dispatch_stack  # modes that see every operation, such as a tracer's
end_pool = getattr(_C, "_cuda_endAllocateToPool", None)  # of memory on a device


def forward_level() -> int:
    """The innermost level of forward-mode AD, -1 outside of all."""
    return torch.autograd.forward_ad._current_level


def memory(x: Tensor) -> int:
    """Which memory this is a view of; a sparse tensor is its own."""
    return x.untyped_storage()._cdata if x.layout is torch.strided else id(x)
