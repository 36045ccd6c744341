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
    # what else deciding it takes; of one that needs data its command, or why nothing stands in
    needs: str = ""
    published: str = ""  # numbers, of a claim about data that are not here
    # of a claim about those that is decided on made-up problems: what they stand in for
    instead: str = ""

    @property
    def paper(self) -> str:
        """The letters that the id starts with."""
        return self.id.split("-")[0]


MULTIMNIST = "`python -m experiments.multimnist --data FOLDER --full`, 100 epochs as published"
META_WORLD = (
    "Meta-World: `python -m experiments.control --full --parts mt10` or `mt50`, months at one "
    "rate, not run"
)
