"""What a reproduction yields, figures and claims, and the settings it runs under."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from matplotlib.figure import Figure as Canvas

Verdict = Literal[
    "holds", "holds only when", "does not hold", "inconclusive", "stand-in", "not testable here"
]


class Claim(NamedTuple):
    """What was measured about one statement of a paper, and the verdict that this gives."""

    id: str  # GN-21, SU-34: the ledger's number
    verdict: Verdict
    measured: dict[str, float]
    # configuration, threshold and kind of interval; for "holds only when", the condition
    where: str


class Figure(NamedTuple):
    """A drawing and its caption."""

    name: str  # of the file, after the module's
    caption: str
    canvas: Canvas


Finding = Claim | Figure
Findings = Iterator[Finding]


class Settings(NamedTuple):
    """How much a module's `run(settings)` computes."""

    seeds: int = 16  # >= 2: every interval is over seeds
    full: bool = False  # the papers' own sizes and budgets
    device: torch.device = torch.device("cpu")
    # multiplies numbers of steps and draws; below 1 for a first look, and in tests
    shrink: float = 1.0
    draw: int = 0  # of all random numbers: others for another number

    def count(self, number: int) -> int:
        """A number of steps or draws at this scale, at least 4."""
        return max(4, round(number * self.shrink))


QUICK = Settings(seeds=4, shrink=0.2)
"""First verdicts: a quarter of the seeds, a fifth of the steps and draws."""


def yes(condition: bool) -> str:
    return "yes" if condition else "no"
