"""Time and memory of a call."""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Call = Callable[[], Any]
Name = TypeVar("Name")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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


def in_turns(
    calls: Mapping[str, Call],
    seconds: float,
    clock: str = "wall",
    device: str = "cpu",
    *,
    times: int = 1,
    least: int = 7,
) -> dict[str, list[float]]:
    """All times of every call, which take turns; each at least so often.

    Every turn has an order of its own: a call pays for what the one before it has left in caches
    and memory.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    start, turn, draw = time.perf_counter(), 0, random.Random(0)
    while time.perf_counter() - start < seconds or turn < least:
        for name in draw.sample(list(calls), len(calls)):
            found[name].append(timed(calls[name], clock, device, times))
        turn += 1
    return found


def by_name(
    calls: Mapping[str, Call],
    seconds: float,
    clock: str,
    by: Callable[[list[float]], float] = median,
    *,
    unit: str = "",
    least: int = 7,
) -> dict[str, float]:
    """A time of every contender that runs; a peer that does not is left out with a line.

    Args:
        calls: these take turns, after three calls each.
        seconds: for all.
        clock: one of `CLOCKS`.
        by: of the turns' times.
        unit: of which as many calls are a turn as fill two milliseconds; without it one call is.
        least: turns.
    """
    able = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            able[name] = call
        except Exception as error:
            if name != "TorchJD":
                raise
            print(f"TorchJD left out: {str(error).splitlines()[0]}")
    times = max(1, int(2e-3 / timed(able[unit], clock))) if unit else 1
    taken = in_turns(able, seconds, clock, times=times, least=least)
    return {name: by(each) for name, each in taken.items()}


ROUNDS = 9


def in_shares(
    calls: Mapping[Name, Call], seconds: float, clock: str, device: str = "cpu", *, block: float = 0
) -> dict[Name, list[float]]:
    """All times of every call, which take turns and have `seconds` each.

    A quick call is timed several times a turn, each over as many calls as fill `block` seconds; a
    slow one in three turns at least.
    """
    once = {name: timed(call, clock, device) for name, call in calls.items()}
    found: dict[Name, list[float]] = {name: [] for name in calls}
    draw = random.Random(0)
    for turn in range(ROUNDS):
        for name in draw.sample(list(calls), len(calls)):
            took = max(once[name], 1e-6)
            turns = min(ROUNDS, max(3, int(seconds / took)))
            if (turn * turns) % ROUNDS < turns:
                times = max(1, int(block / took))
                for _ in range(max(1, min(200, int(seconds / ROUNDS / took / times)))):
                    found[name].append(timed(calls[name], clock, device, times))
    return found


class Operators(TorchDispatchMode):
    """Counts what torch dispatches, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += not function.is_view
        return function(*args, **kwargs or {})


def operators(call: Call) -> int:
    """Operators that a call dispatches, views left out."""
    with Operators() as seen:
        call()
    return seen.count


def launches(call: Call) -> int:
    """Kernels, copies and graphs that a call launches on a CUDA device."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with silence(), profile(activities=activities) as seen:
        call()
        torch.cuda.synchronize()
    names = (event.name for event in seen.events() or ())
    return sum("Launch" in name and name.startswith(("cuda", "cuLaunch")) for name in names)


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
