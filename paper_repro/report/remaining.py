"""How long a run has still to go, by what its questions took when the record was made."""

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
    """What is left, by the pace of the questions that are done; without `seconds` of each question
    that runs nothing is known.
    """

    def __init__(self, seconds: Mapping[str, float], workers: int) -> None:
        self.seconds, self.left, self.workers = seconds, dict(seconds), workers
        self.took = self.recorded = 0.02 * sum(seconds.values())  # so that one question says little

    def end(self, name: str, wall: float) -> None:
        """A question is done; `wall` are its seconds."""
        if self.left.pop(name, None) is not None:
            self.took += wall
            self.recorded += self.seconds[name]

    def now(self, work: Mapping[str, float]) -> float | None:
        """Seconds; None is unknown. `work` says how many each question at work has had; one that is
        late is expected to need as long again as it is late.
        """
        if not self.seconds:
            return None
        pace = self.took / self.recorded if self.recorded else 1.0
        rest = [abs(pace * x - work.get(name, 0.0)) for name, x in self.left.items()]
        return max(sum(rest) / self.workers, *rest, 0.0)
