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
    # what else deciding it takes; of one that needs data, what a stand-in says, and its command
    needs: str = ""

    @property
    def paper(self) -> str:
        """The letters that the id starts with."""
        return self.id.split("-")[0]


DIGITS = "`python -m experiments.digits`, two overlaid digits, each method at its own best rate"
JOINT = (
    f"tuned joint and single-task networks on the papers' data. A stand-in ({DIGITS}) says the "
    "same in small: both tasks end worse by the mean loss than alone, paired over seeds. `python "
    "-m experiments.multimnist` finds so with networks twice as wide, trained twice as long and in "
    "three other architectures; with --data it is MultiMNIST"
)
CONTROL = (
    "`python -m experiments.control`, mazes and a point mass, each method at its own best rate"
)
META_WORLD = (
    "Meta-World: `python -m experiments.control --full --parts mt10` or `mt50`, months, at "
    f"one rate; not run. Stand-ins ({CONTROL}) disagree: on mazes with exact gradients CAGrad ends "
    "better than the mean loss; on the point mass it learns more slowly, and at the end no "
    "difference is shown"
)
