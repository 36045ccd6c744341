"""A row of the ledger: what a claim says, how it can be checked, and what decides it."""

from typing import Literal, NamedTuple

Kind = Literal["exact", "synthetic", "data/RL", "not here"]

KINDS: dict[Kind, str] = {
    "exact": "algebra, fractions or a deterministic computation",
    "synthetic": "a seeded experiment on made-up problems",
    "data/RL": "needs real data or a reinforcement-learning benchmark",
    "not here": "a choice or an aim: nothing to measure",
}


class Row(NamedTuple):
    """A claim; an exact or synthetic one without a module is open."""

    id: str
    kind: Kind
    statement: str  # one sentence; Δ, w, g, d as in the papers
    module: str = ""  # the reproduction that decides it, as in pcgrad.theorem1
    needs: str = ""  # what else deciding it takes

    @property
    def paper(self) -> str:
        """The letters that the id starts with."""
        return self.id.split("-")[0]


ONLY_FULL = "--full: the default run leaves it out"
