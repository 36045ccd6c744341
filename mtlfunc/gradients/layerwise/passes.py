"""How T losses are differentiated: by one batched pass, or each alone. A model of the device.

T single passes pay every node's overhead once for every loss that it serves. One batched pass pays
it once, with that of the batching; its numbers leave the cache, and it holds those of all rows.
"""

from functools import lru_cache
from typing import NamedTuple

from ...core.internals import forward_level
from ...core.transforms import lanes
from .graph import Graph
from .nodes import BEGINNINGS


class Device(NamedTuple):
    """What backward passes cost on a device, in seconds."""

    start: float  # of a batched pass
    node: float  # whatever its size
    slow_node: float  # the same of a convolution or a norm
    mapped: float  # nodes of a batched pass, in single ones
    mapped_slow: float
    number: float  # of a node's output
    batched: float  # numbers of a batched pass, in those of single ones
    batched_slow: float
    cached: float  # up to this count of a node's numbers these factors are 1
    row: float  # of a number of a row, which a single pass copies into the matrix
    little: float  # numbers that may be held in any case


DEVICES = {
    "cuda": Device(1e-3, 20e-6, 70e-6, 1.4, 6.0, 15e-12, 2.4, 2.4, 0.0, 0.0, 2**26),
    "cpu": Device(20e-6, 6e-6, 80e-6, 2.7, 1.5, 1e-9, 1.9, 3.7, 2**18, 1.9e-9, 2**22),
}
"""Of an H100, from passes of a ResNet-18 in eager mode (10 of 8 small images, 4 and 40 of 64 larger
ones) and of small networks. Of one thread of a CPU, fitted to 98 pairs of steps: perceptrons of
width 16 to 1,024, convolutions with and without norms, a GRU and a ResNet-18, 2 to 64 losses, 4 to
4,096 samples. The choice then costs 1.2 % more than the better one in the mean, 15 % at most; a
batched pass always costs 17 % more and up to 2.6 times, single ones always 29 % and up to 4.2.
Other devices wait for launches as the H100 does.
"""

MEMORY = 1.3
"""What a step may hold, in what T single passes hold."""


def prefers_one_pass(
    graph: Graph, rows: int, numel: int, device: str, *, separate: bool = True
) -> bool:
    """Whether T losses are better differentiated by one batched pass of all `rows`, of leaves of
    `numel` entries, than each alone. `separate`: each is a root; else every node serves all rows.
    """
    if rows == 1 or not graph.can_batch:
        return False
    if forward_level() >= 0:  # torch's forward mode knows more operations in batched passes
        return True
    costs, many = DEVICES.get(device, DEVICES["cuda"]), lanes()
    alone, together, largest = rows * many * numel * costs.row, costs.start, 0
    for node, size in graph.outputs:
        slow = _is_slow(type(node).__name__)
        served = graph.reach[node].bit_count() if separate else rows
        single = costs.slow_node if slow else costs.node
        alone += served * (single + costs.number * many * size)
        together += single * (costs.mapped_slow if slow else costs.mapped)
        factor = costs.batched_slow if slow else costs.batched
        cached = rows * many * size <= costs.cached
        together += rows * many * size * costs.number * (1.0 if cached else factor)
        largest = max(largest, size)
    return together < alone and fits(2 * rows * largest, graph, rows, numel, device)


def fits(extra: int, graph: Graph, rows: int, numel: int, device: str) -> bool:
    """Whether a step may hold `extra` numbers beyond those of single passes: the outputs of all
    nodes, leaves and rows. Arguments as in `prefers_one_pass`.
    """
    if lanes() * extra <= DEVICES.get(device, DEVICES["cuda"]).little:
        return True
    held = sum([size for _, size in graph.outputs]) + (1 + rows) * numel
    return extra <= (MEMORY - 1.0) * held


@lru_cache(512)
def _is_slow(name: str) -> bool:
    return name.startswith(BEGINNINGS["slow"])
