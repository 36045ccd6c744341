"""Bytes of the storages that operations return and that are alive at once, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Those of what runs under it, without those of tensors in `aside`; `.peak` is the most."""

    def __init__(self, aside: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.aside = {x.untyped_storage()._cdata for x in aside}
        self.alive: dict[int, Any] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            storage = x.untyped_storage() if isinstance(x, Tensor) else None
            if storage is not None and storage._cdata not in self.aside | self.alive.keys():
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.bytes += storage.nbytes()
        for key in [key for key, (ref, _) in self.alive.items() if ref.expired()]:
            self.bytes -= self.alive.pop(key)[1]
        self.peak = max(self.peak, self.bytes)
        return out


def peak(call: Callable[[], Any], aside: Iterable[Tensor] = ()) -> int:
    """The most bytes that a call holds at once of what it makes, the second time it runs."""
    call()
    with Alive(aside) as seen:
        call()
    return seen.peak
