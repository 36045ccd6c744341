"""MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022), one question a file."""

from typing import Any

from ..report.decisions import MULTIMNIST, Row
from ..report.options import exported

CLAIMS = {
    "SU-04": Row(
        "Equal importance of tasks means that no step may raise any loss.", kind="not here"
    ),
    "SU-37": Row(
        "The original experiments with the bound look good.",
        kind="data/RL",
        published="MultiMNIST, left and right, %: one task alone 97.23 and 95.90, mean loss 96.46 "
        "and 94.99, uncertainty weighting 96.47 and 95.29, GradNorm 96.27 and 94.84, the bound "
        "97.26 and 95.90 (Sener & Koltun 2018, Table 3)",
        needs=f"{MULTIMNIST}; `python -m experiments.scenes --data FOLDER --rules "
        "mean,mgda,mgda_ub`, on CityScapes, with a small network: the papers' has no one "
        "representation for the bound",
    ),
}

FIGURES = {
    "counterexample": "_counterexample",
    "oscillation": "naive",
    "raised_tasks": "random_encoders",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
