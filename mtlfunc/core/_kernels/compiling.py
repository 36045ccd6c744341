"""How the CPU kernels are compiled: once for a machine, cached on disk, and never in silence.

numba keeps what it compiled in `NUMBA_CACHE_DIR` if that is set, else next to this package, else,
where that folder cannot be written, in the user's cache folder.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

SECONDS = {"active_set_cpu": 20, "surgery": 2, "random": 1, "equiangular": 1}
"""About how long compiling the kernels of a module takes on one core."""


class _Notice(event.Listener):
    """One line on stderr when a kernel of this package is compiled; nothing when it is cached."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def on_start(self, event: event.Event) -> None:
        module = (event.data or {})["dispatcher"].py_func.__module__
        name = module.rpartition(".")[2]
        # the hash of `random` is compiled into `surgery`, too
        if not module.startswith("mtlfunc.") or name in self.said:
            return
        self.said.add(name)
        print(
            f"mtlfunc: compiling the kernel {name} for this machine, once, about "
            f"{SECONDS.get(name, 5)} s (ahead of time: python -m mtlfunc.warmup)",
            file=sys.stderr,
            flush=True,
        )

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _Notice())


def jit(fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """numba's `njit` with what all kernels share: cached, without the interpreter's lock.

    It reads a function as it was written, without what enforces annotations at run time
    (jaxtyping's import hook wraps every function). `fastmath` names, as LLVM does, the liberties
    that the compiler has with floating-point sums.
    """
    compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)
    return lambda function: compiled(inspect.unwrap(function))
