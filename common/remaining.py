"""How long a job has still to go, by what its tasks took on another machine."""

import time
from collections.abc import Callable, Mapping

import torch

from .machine import threads

PRIOR = 0.1
"""Of all recorded seconds: what the benchmark counts for beside tasks that are done."""


@threads(1)
def unit(clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a fixed piece of work on one thread, as the slowest tasks do it: small products
    of many networks, and passes over 3 MB. It allocates nothing, for that takes a varying time.
    """
    x, begin, count = torch.ones(768, 32, 32), clock(), 0
    product = torch.empty_like(x)
    while count < 5 or clock() - begin < 0.3:
        for _ in range(4):
            torch.bmm(x, x, out=product)
            torch.div(product, 32, out=product)
            torch.tanh(product, out=product)
        count += 1
    return (clock() - begin) / count


class Remaining:
    """What is left, by the pace of this machine: that of a benchmark, then more and more that of
    the tasks that are done.
    """

    def __init__(self, seconds: Mapping[str, float], workers: int, pace: float = 1.0) -> None:
        self.left, self.workers = dict(seconds), workers
        self.recorded = PRIOR * sum(seconds.values())
        self.wall = pace * self.recorded

    def end(self, name: str, wall: float) -> None:
        """A task is done; `wall` are its seconds."""
        self.recorded += self.left.pop(name, 0.0)
        self.wall += wall

    def now(self, work: Mapping[str, float]) -> float | None:
        """Seconds; None is unknown. `work` says how many each task at work has had; one that is
        late is expected to need as long again as it is late.
        """
        if not self.recorded:
            return None
        pace = self.wall / self.recorded
        rest = [abs(pace * x - work.get(name, 0.0)) for name, x in self.left.items()]
        return max(sum(rest) / self.workers, *rest, 0.0)
