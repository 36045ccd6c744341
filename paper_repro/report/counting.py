"""What a computation costs, counted: the same on every machine and under every load."""

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
