"""Recorders that need no device: what a captured step does with its memory, on a CPU."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.utils._pytree import tree_leaves

from mtlfunc.training import _recorder


class Rerun:
    """Replays by running again, and writes what it finds where the first answers are.

    `made` lists the recorders of a test; each knows its `calls`, and whether it was `freed`.
    """

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
