"""How long a run has still to go, by what its questions took when the record was made."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .findings import QUICK, Settings

QUICKLY = Path(__file__).parent.parent / "quick.json"
"""The record of the quick run, with the seconds of processor time of each question."""
EARLY = 6
"""Short questions that come first, so that some are soon answered."""


def expected(names: Sequence[str], settings: Settings) -> dict[str, float]:
    """Seconds of each question, as steps and draws are more than the quick run's; of one that it
    lacks the mean. None at the papers' sizes, which are other problems.
    """
    if settings.full:
        return {}
    seconds = json.loads(QUICKLY.read_text(encoding="utf-8"))["seconds"]
    mean, factor = sum(seconds.values()) / len(seconds), settings.shrink / QUICK.shrink
    return {name: factor * seconds.get(name, mean) for name in names}


def in_order(names: Sequence[str]) -> list[str]:
    """The slowest, a few short ones, then the others, slow ones first: so something is soon found,
    and no slow one is last.
    """
    seconds = expected(names, QUICK)
    short, long = (sorted(names, key=seconds.__getitem__, reverse=down) for down in (False, True))
    return list(dict.fromkeys([*long[:1], *short[:EARLY], *long]))


class Remaining:
    """What is left, by the pace of the questions that are done. One may take three times what its
    record lets expect, or a third: so nothing is said while one makes up a third of what is left or
    half of what is done, nor without `seconds` of each question that runs.
    """

    def __init__(self, seconds: Mapping[str, float], workers: int) -> None:
        self.seconds, self.left, self.workers = seconds, dict(seconds), workers
        self.done: list[tuple[float, float]] = []  # pace, and seconds of the record

    def end(self, name: str, wall: float) -> None:
        """A question is done; `wall` are its seconds."""
        recorded = self.left.pop(name, 0.0)
        if recorded:
            self.done.append((wall / recorded, recorded))

    def now(self, work: Mapping[str, float]) -> float | None:
        """Seconds; None is unknown. `work` says how many each question at work has had; one that is
        late is expected to need as long again as it is late. Before any began it is the record's.
        """
        done = sorted(self.done) or [(1.0, 0.0)]
        total = sum(recorded for _, recorded in done)
        if not self.seconds or (work and not self.done) or 2 * max(x for _, x in done) > total:
            return None
        sums = itertools.accumulate(recorded for _, recorded in done)
        pace = next(x for (x, _), part in zip(done, sums, strict=True) if 2 * part >= total)
        rest = [abs(pace * x - work.get(name, 0.0)) for name, x in self.left.items()]
        if 3 * max(*rest, *(pace * x for x in self.left.values()), 0.0, 0.0) > sum(rest):
            return None
        return max(sum(rest) / self.workers, *rest, 0.0)
