"""Bytes alive at once: of what operations return, on any device, or of all that a call takes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
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


@contextmanager
def silence() -> Iterator[None]:
    """torch's profiler writes of itself to the file descriptor of stderr, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def with_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call on a CPU returns, and the most bytes that it holds beyond what there was, by
    torch's profiler: those that operations take inside and give back are counted too.
    """
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        answer = call()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes: Any = (event.nbytes() for event in events)  # pyright: ignore
    return answer, max(itertools.accumulate(sizes, initial=0))
