"""What is held while something runs, on any device."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Those of the storages that operations return under it; `.peak` is the most."""

    def __init__(self):
        super().__init__()
        self.alive, self.bytes, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self.bytes += storage.nbytes()
        for key in [key for key, (ref, _) in self.alive.items() if ref.expired()]:
            self.bytes -= self.alive.pop(key)[1]
        self.peak = max(self.peak, self.bytes)
        return out


def peak(call):
    """The most bytes that a call holds at once of what it makes, the second time it runs."""
    call()
    with Alive() as seen:
        call()
    return seen.peak


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that an operation returns."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(x.numel() for x in tree_leaves(out) if torch.is_tensor(x))])
        return out
