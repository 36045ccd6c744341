"""GradNorm (Chen et al. 2018), one question a file."""

from typing import Any

from ..report.decisions import MULTIMNIST, Row
from ..report.options import exported

CLAIMS = {
    "GN-01": Row(
        "One network can beat many, but is hard to balance.", kind="data/RL", needs=MULTIMNIST
    ),
    "GN-26": Row(
        "It beats separate networks and other weightings in many settings.",
        kind="data/RL",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
}

FIGURES = {
    "toy": "toy_figures",
    "rates": "toy_figures",
    "strength": "toy_figures",
    "search": "_search",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
