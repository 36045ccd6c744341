"""The ledger: every claim of the four texts, one row each, in the papers' order.

Numbers and verdicts are not here: they come from the runs. A row that the reproductions do not
decide says what deciding it would take.
"""

from .cagrad.claims import ROWS as CAGRAD
from .cross_paper.claims import ROWS as CROSS_PAPER
from .gradnorm.claims import ROWS as GRADNORM
from .mgda.claims import ROWS as MGDA
from .pcgrad.claims import ROWS as PCGRAD
from .report.ledger import KINDS

__all__ = ["KINDS", "LEDGER", "PAPERS", "ROWS"]

PAPERS = {
    "PC": "PCGrad (Yu et al. 2020)",
    "SU": "MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022)",
    "CA": "CAGrad (Liu et al. 2021)",
    "GN": "GradNorm (Chen et al. 2018)",
    "X": "Links between the texts",
}
"""Titles by the letters that an id starts with."""

ROWS = (*PCGRAD, *MGDA, *CAGRAD, *GRADNORM, *CROSS_PAPER)
LEDGER = {row.id: row for row in ROWS}
