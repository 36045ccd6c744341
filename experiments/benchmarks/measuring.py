"""Time and memory of a call."""

import random
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from common.memory import with_peak

Call = Callable[[], Any]


def timed(call: Call, device: str = "cpu", times: int = 1) -> float:
    """Seconds of a call, the mean over several: the processor's time, as other work shares the
    machine; with a GPU what a clock says, from when it is idle until it is again.
    """
    if device == "cpu":
        start = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - start) / times
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def in_turns(
    calls: Mapping[str, Call],
    seconds: float,
    device: str = "cpu",
    *,
    block: float = 0,
    least: int = 7,
) -> dict[str, list[float]]:
    """All times of every call, which take turns; each at least so often. Every turn has an order of
    its own: a call pays for what the one before it has left in caches and memory. A time is the
    mean over as many calls as fill `block` seconds; without it of one.
    """
    times = dict.fromkeys(calls, 1)
    if block:
        for name, call in calls.items():
            call()
            times[name] = max(1, int(block / max(timed(call, device), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    start, turn, draw = time.perf_counter(), 0, random.Random(0)
    while time.perf_counter() - start < seconds or turn < least:
        for name in draw.sample(list(calls), len(calls)):
            found[name].append(timed(calls[name], device, times[name]))
        turn += 1
    return found


def by_name(
    calls: Mapping[str, Call], seconds: float, by: Callable[[list[float]], float] = median
) -> dict[str, float]:
    """A time of every contender that runs, `by` those of its turns in so many `seconds` for all; a
    peer that does not run is left out with a line.
    """
    able = {}
    for name, call in calls.items():
        try:
            call()
            able[name] = call
        except Exception as error:
            if name != "TorchJD":
                raise
            print(f"TorchJD left out: {str(error).splitlines()[0]}")
    return {name: by(each) for name, each in in_turns(able, seconds, block=8e-3).items()}


def with_memory(call: Call, device: str) -> tuple[Any, int]:
    """What the call returns, and its peak memory in bytes, that of operations inside included."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        answer = call()
        return answer, torch.cuda.max_memory_allocated() - before
    return with_peak(call)
