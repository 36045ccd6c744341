"""GradNorm (Chen et al. 2018), one question a file."""

from ..report.decisions import MULTIMNIST, Claims, Row
from ._search import search
from .toy_figures import rates, strength, toy

claim = Claims(
    Row(
        "GN-01",
        "One network can beat many, but is hard to balance.",
        kind="data/RL",
        needs=MULTIMNIST,
    ),
    Row(
        "GN-26",
        "It beats separate networks and other weightings in many settings.",
        kind="data/RL",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
)


FIGURES = (toy, rates, strength, search)
"""Every figure that takes options: `python -m paper_repro figure --list`."""
