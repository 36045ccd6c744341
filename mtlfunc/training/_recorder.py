"""What records a step on a device, and what a recording cannot hold."""

import gc
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor

from ..core.internals import TorchDispatchMode, end_pool, memory, tree_leaves

_CURE = (
    "A recording holds work of the device alone: write the loss and the rule without .item(), "
    "float(), print, NumPy, boolean indices, and if or while on tensors (torch.where chooses by "
    "value). To go on without capture, call update of the step that was given to mtlfunc.capture, "
    "with the same state and batch"
)
_READS = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "_linalg_check_errors"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
_SOLVERS = {"_linalg_eigh", "linalg_eig", "_linalg_eigvals", "_linalg_svd", "linalg_qr"}
_PLACES = {"index", "index_put", "index_put_", "_index_put_impl_"}


class HostReads(TorchDispatchMode):
    """Raises where an operation on tensors of a device would make the host wait for it.

    Whatever else fails inside has run before, outside of a recording: the error says that it cannot
    be recorded, and where. `reads` has, by memory, what operations were given and none made.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.last = device, "the first operation"
        self.reads: dict[int, Tensor] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, self.last = kwargs or {}, str(func)
        given = _tensors((args, kwargs))
        devices = {x.device.type for x in given}
        if kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        why = _why(func.overloadpacket.__name__, devices, args, kwargs)
        if why and self.device in devices:
            raise RuntimeError(f"{func} {why}")
        self.reads |= {memory(x): x for x in given if memory(x) not in self.made}
        found = func(*args, **kwargs)
        self.made |= {*map(memory, _tensors(found))} - self.reads.keys()
        return found

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return
        if "out of memory" in str(error):  # of the graph itself
            raise torch.OutOfMemoryError(str(error)) from error
        # where the user's own code led to it
        rooms = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}")
        own = [x for x in extract_tb(trace) if not x.filename.startswith(rooms)][-1:]
        line = "".join(f", at {x.filename}:{x.lineno} ({x.line})," for x in own)
        raise RuntimeError(
            f"capture: this step cannot be recorded. After {self.last}{line} torch said: "
            f"{str(error).splitlines()[0]}. {_CURE}"
        ) from error


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _why(name: str, devices: set[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What keeps an operation out of a graph, or nothing."""
    if name in _READS:
        return "reads a value on the host"
    if name in _SOLVERS:
        return "makes the host wait (a solver of the linear algebra library)"
    if name in ("_to_copy", "copy_", "_copy_from") and len(devices) > 1:
        return f"copies between devices ({' and '.join(sorted(devices))})"
    masks = {torch.bool, torch.uint8} if name in _PLACES else set()
    if masks & {x.dtype for x in _tensors(args[1:2])}:
        return "counts the entries of a boolean index on the host"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "reads repeats on the host (output_size= says how many)"
    return ""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings of a device: its libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)


class CudaRecorder:
    """One recording, as a CUDA graph; `reads` are the tensors from elsewhere that it needs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, _stream(device)
        self.graph, self.pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        self.reads: dict[int, Tensor] = {}

    @staticmethod
    def busy() -> bool:
        """Whether the current stream is being captured."""
        return torch.cuda.is_current_stream_capturing()

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Run it on the stream of the recordings, whose libraries then have their workspaces."""
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            with torch.cuda.stream(self.stream):
                found = run()
            torch.cuda.synchronize()
        return found

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """What it returned, tensors at the addresses to which each call of the second writes.

        An error ends the recording and leaves the device as it was.
        """
        watch, collects = HostReads("cuda"), gc.isenabled()
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            gc.collect()  # what is collected while recording could free memory of a graph
            torch.cuda.empty_cache()
            gc.disable()
            try:
                with torch.cuda.stream(self.stream), watch:
                    self.graph.capture_begin(self.pool, capture_error_mode="thread_local")
                    try:
                        found = run()
                        self.graph.capture_end()
                    except BaseException:
                        self._abandon()
                        raise
            finally:
                if collects:
                    gc.enable()
        self.reads = watch.reads
        return found, self.graph.replay

    def _abandon(self) -> None:
        """End a recording that failed: a stream left in one would refuse all later work."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty graph
            try:
                self.graph.capture_end()
            except RuntimeError:  # older versions of torch then leave their allocator at its memory
                with suppress(RuntimeError, TypeError):
                    end_pool(self.device.index, self.pool)  # pyright: ignore[reportOptionalCall]

    def free(self) -> None:
        """Wait for the last replay, then drop the graph."""
        torch.cuda.synchronize(self.device)
        with suppress(RuntimeError):  # of a recording that failed
            self.graph.reset()
        self.reads.clear()


RECORDERS: dict[str, Any] = {"cuda": CudaRecorder}
"""By type of device; on others a captured step is the step itself."""
