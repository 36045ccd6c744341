"""Claims of later papers (since 2020) about these methods, one question per file; here those that a
study of `experiments` speaks to.
"""

from ..report.decisions import Row

FULL = "`python -m experiments.published qm9 --data FOLDER --full`"
CLAIMS = {
    "SI-29": Row(
        "Kurin et al. 2022, asked of QM9: the plain mean, at a rate of its own, matches or "
        "improves upon the rules.",
        kind="data/RL",
        needs=FULL,
    ),
    "SI-30": Row(
        "Navon et al. 2022 and Liu et al. 2023: how eleven methods rank on QM9.",
        kind="data/RL",
        needs=FULL,
        published="Δm, %: FAMO 58.5, Nash-MTL 62.0, IMTL-G 77.2, SI 77.8, UW 108.0, CAGrad 112.8, "
        "MGDA 120.5, PCGrad 125.7, DWA 175.3, the mean 177.6, RLW 203.8",
    ),
}
