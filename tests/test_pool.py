"""Processes that work: memory that is freed stays theirs."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from experiments.common.pool import keep_memory
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


def faults(what: str) -> int:
    """How often memory was mapped anew for sixteen tensors, one after the other."""
    command = [sys.executable, "-c", PROGRAM, what]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_freed_memory_is_used_again() -> None:
    assert faults("kept") < faults("freed") / 10
