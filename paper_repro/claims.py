"""The ledger: every claim of the four texts, and some that the field has made since, a row each.

Numbers and verdicts are not here: they come from the runs. How a verdict follows from the numbers,
and what makes it lose, is here before any run: `DECISIONS`. A row that the reproductions do not
decide says what deciding it would take.
"""

from .cagrad.claims import ROWS as CAGRAD
from .cagrad.decisions import DECISIONS as CAGRAD_DECISIONS
from .cross_paper.claims import ROWS as CROSS_PAPER
from .cross_paper.decisions import DECISIONS as CROSS_PAPER_DECISIONS
from .gradnorm.claims import ROWS as GRADNORM
from .gradnorm.decisions import DECISIONS as GRADNORM_DECISIONS
from .mgda.claims import ROWS as MGDA
from .mgda.decisions import DECISIONS as MGDA_DECISIONS
from .pcgrad.claims import ROWS as PCGRAD
from .pcgrad.decisions import DECISIONS as PCGRAD_DECISIONS
from .report.decisions import Decision
from .report.ledger import KINDS
from .since.claims import ROWS as SINCE
from .since.decisions import DECISIONS as SINCE_DECISIONS

__all__ = ["DECISIONS", "KINDS", "LEDGER", "PAPERS", "ROWS"]

PAPERS = {
    "PC": "PCGrad (Yu et al. 2020)",
    "SU": "MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022)",
    "CA": "CAGrad (Liu et al. 2021)",
    "GN": "GradNorm (Chen et al. 2018)",
    "X": "Links between the texts",
    "SI": "Since 2020",
}
"""Titles by the letters that an id starts with."""

ROWS = (*PCGRAD, *MGDA, *CAGRAD, *GRADNORM, *CROSS_PAPER, *SINCE)
LEDGER = {row.id: row for row in ROWS}
DECISIONS: dict[str, Decision] = {
    **PCGRAD_DECISIONS,
    **MGDA_DECISIONS,
    **CAGRAD_DECISIONS,
    **GRADNORM_DECISIONS,
    **CROSS_PAPER_DECISIONS,
    **SINCE_DECISIONS,
}
"""By the ids of the claims that reproductions decide."""
