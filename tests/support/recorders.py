"""Recorders on a CPU that show what a captured step does; captured runs beside plain ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, ClassVar

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc.training import _recorder
from tests.support.oracles import near
from tests.support.steps import step_of


class Rerun:
    """Runs again, into the first answers; `made` has all, each its `calls` and if it is `freed`."""

    made: ClassVar[list[Rerun]] = []
    recording = False

    def __init__(self, device: torch.device) -> None:
        self.device, self.freed, self.calls, self.reads = device, False, [], {}
        self.made.append(self)

    @classmethod
    def busy(cls) -> bool:
        return cls.recording

    def warm_up(self, run):
        self.calls.append("warm up")
        return run()

    def record(self, run):
        self.calls.append("record")
        type(self).recording = True
        try:
            found = run()
        finally:
            type(self).recording = False

        def replay():
            assert not self.freed
            self.calls.append("replay")
            type(self).recording = True
            try:
                again = run()
            finally:
                type(self).recording = False
            for here, there in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(here, torch.Tensor):
                    here.copy_(there)

        return found, replay

    def free(self) -> None:
        self.freed = True
        self.reads.clear()


class Watched(Rerun):
    """The same, which refuses what a graph cannot hold."""

    def record(self, run):
        seen = {}

        def watched():
            with _recorder.HostReads(self.device.type) as watch:
                found = run()
            seen.update(watch.reads)
            return found

        answer = super().record(watched)
        self.reads |= seen
        return answer


def captured_run(
    step: mf.Step, state: Any, batches: Any, steps: int, equal: Callable[[Any, Any], Any]
) -> Any:
    """The state after captured updates, which are the plain ones: when they come and at the end."""
    captured, plain, kept = mf.capture(step), state, []
    for batch in islice(cycle(batches), steps):
        plain, info = step.update(plain, batch)
        state, seen = captured.update(state, batch)
        assert type(seen) is mf.Info
        assert type(state) is mf.TrainState
        kept.append(((plain, info), (state, seen)))
        equal(*kept[-1])
    for one, other in kept:  # none is overwritten
        equal(one, other)
    return state


def captured_lanes(name: str, params: Any, batch: Any, equal: Any, *close: float) -> None:
    """Runs of three networks side by side, captured as one, are a loop of captured runs."""
    step, keys = step_of(name), torch.arange(3, device=batch[0].device)
    state = vmap(step.init, (0, None, 0))(params, batch, keys)
    lanes = step._replace(update=vmap(step.update, (0, None)))
    ends, captured = captured_run(lanes, state, [batch], 5, equal), mf.capture(step)
    for lane in range(3):
        own = step.init({k: x[lane] for k, x in params.items()}, batch, keys[lane])
        for _ in range(5):
            own, _ = captured.update(own, batch)
        for leaf, alone in own.params.items():
            near(ends.params[leaf][lane], alone, *close)
