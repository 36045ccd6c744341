"""Time and memory of a call."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK_HELP = "cpu: the processor's time; for one thread of a busy machine"


def synchronize(device: torch.device | str) -> None:
    """Wait for what a GPU is doing."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(call: Call, clock: str, device: str = "cpu", times: int = 1) -> float:
    """Seconds of a call, the mean over several."""
    synchronize(device)
    start = CLOCKS[clock]()
    for _ in range(times):
        call()
    synchronize(device)
    return (CLOCKS[clock]() - start) / times


@contextmanager
def silence() -> Iterator[None]:
    """torch's profiler reports its start and stop on the terminal, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def with_memory(call: Call, device: str) -> tuple[Any, int]:
    """What the call returns, and its peak memory in bytes."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        answer = call()
        return answer, torch.cuda.max_memory_allocated() - before
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        answer = call()
    kineto = seen.profiler.kineto_results if seen.profiler else None
    events = [e for e in kineto.events() if e.name() == "[memory]"] if kineto else []
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, held)
    return answer, most
