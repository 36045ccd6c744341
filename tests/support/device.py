"""What a CUDA device refuses in a CUDA graph, or makes the host wait for, seen without one. A
function runs on the meta device: the package takes the ways of a CUDA device, and reading a value
is torch's error. Two modes watch for what the meta device lets pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo.variables.torch  # its tables hold functions that are replaced below
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtlfunc.core import checks
from mtlfunc.gradients import losses
from mtlfunc.solvers import default, exact

READS = ("local_scalar_dense", "is_nonzero", "equal", "linalg_check_errors")
"""Operators that give the host a number, for which it waits."""
COUNTED = ("nonzero", "masked_select", "unique", "bincount", "repeat_interleave.Tensor")
"""Operators whose shape depends on values, for which the host waits."""
REFUSED = ("cholesky_solve", "linalg_eig", "linalg_qr", "linalg_svd", "linalg_lstsq")
"""Operators that check their answers on the host, or use MAGMA, which no CUDA graph takes."""
BY_LU, MOST_BY_LU = ("linalg_lu", "linalg_solve_ex", "linalg_inv_ex"), 8
"""A CUDA graph takes them for one matrix of any size, and for a batch up to this size."""
COPIES = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)
"""They make a tensor of numbers that the host has, and wait until these are on the device."""


def host_reads(f: Callable[[], object]) -> list[str]:
    """What of f, on tensors of the meta device, waits for CUDA or cannot be in a CUDA graph."""
    found: list[str] = []
    with _as_on_cuda(), _Operators(found), _Functions(found):
        try:
            f()
        except (RuntimeError, TypeError) as error:  # what the meta device cannot do either
            found.append(f"{type(error).__name__}: {error}")
    return found


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """The active-set solver has a kernel for CUDA, its shapes are those of the operator's fake."""
    with (
        patch.object(exact, "kernel_at", lambda gramian: True),
        patch.object(default, "kernel_at", lambda gramian: True),
        patch.object(exact, "_active_set", torch.ops.mtlfunc.active_set),
        patch.object(torch, "is_autocast_enabled", lambda device: False),  # knows no meta device
        patch.object(checks, "refuse_meta", lambda *args: None),
        patch.object(losses, "refuse_meta", lambda *args: None),
    ):
        yield


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        library, _, name = func.name().partition("::")
        name = name.removeprefix("_")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        copied = name.startswith(("to_copy", "copy_"))
        # a number alone that the host has is an argument of the kernel
        devices = {x.device.type for x in given if x.ndim or copied}
        if copied:
            devices.add((kwargs or {}).get("device", given[0].device).type)
        batch = any(x.ndim > 2 and x.shape[-2] > MOST_BY_LU for x in given)
        masks = [x for x in given[1:] if x.dtype in (torch.bool, torch.uint8)]
        key = torch._C.DispatchKey.CUDA
        if (
            name.startswith((*READS, *COUNTED, *REFUSED, *(BY_LU if batch else ())))
            or (masks and name.startswith(("index.", "index_put")))
            or len(devices) > 1
            or (library == "mtlfunc" and not func.has_kernel_for_dispatch_key(key))
        ):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        index = args[1] if func is Tensor.__getitem__ else ()
        listed = any(isinstance(x, list) for x in (index if isinstance(index, tuple) else (index,)))
        if listed or (func in COPIES and not isinstance(args[-1], Tensor) and not answer.is_cpu):
            self.found.append(func.__name__)
        return answer
