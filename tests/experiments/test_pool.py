"""Processes that work: memory that is freed stays theirs."""

import ctypes
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common import pool

PROGRAM = """
import resource, sys
import torch
from common.pool import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(16):
        torch.ones(16 * 2**20)  # 64 MiB
work()  # until the blocks that alignment leaves have grown together
before = faults()
work()
print(faults() - before)
"""

PINNED = """
import os, sys, time
import torch
from common import pool
pool.RETURNED = float(sys.argv[1])
pool.keep_memory()
def resident():  # MiB
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
before, blocks, pins = resident(), [], []
for _ in range(200):
    blocks.append(torch.ones(2**20))  # 4 MiB
    pins.append(torch.ones(2**14))
blocks.clear()
for _ in range(100 if pool.RETURNED < 1 else 1):
    if resident() - before < 200:
        break
    time.sleep(0.2)
print(resident() - before)
"""

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc"
)


def told(program: str, argument: str) -> float:
    command = [sys.executable, "-c", program, argument]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal; what a shell starts with "&" ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_the_last(first: int) -> None:
    """Whatever others come, what follows it comes to its end."""
    written = []
    with pool.terminable():
        try:
            signal.raise_signal(first)
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                with pool.unbroken():
                    signal.raise_signal(number)
                signal.raise_signal(number)
            written.append(first)
    assert written == [first]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@glibc
@pytest.mark.skipif(
    [int(part) for part in platform.libc_ver()[1].split(".") if part] < [2, 35],
    reason="an older glibc keeps blocks of at most 32 MiB",
)
def test_freed_memory_is_used_again() -> None:
    """Counted is how often memory was mapped anew for sixteen tensors, one after the other."""
    assert told(PROGRAM, "kept") < told(PROGRAM, "freed") / 10


@glibc
def test_gaps_that_nothing_fits_in_are_given_back() -> None:
    assert told(PINNED, "0.1") < 200
    assert told(PINNED, "3600") > 600
