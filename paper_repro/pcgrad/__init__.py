"""PCGrad (Yu et al. 2020), one question a file."""

from typing import Any

from ..report.decisions import META_WORLD, MULTIMNIST, Row
from ..report.options import exported

CLAIMS = {
    "PC-01": Row(
        "Joint training on shared parameters can end below separate networks.",
        kind="data/RL",
        needs=MULTIMNIST,
    ),
    "PC-07": Row(
        "PCGrad adds to the gain of other multi-task architectures.",
        kind="data/RL",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
    "PC-08": Row(
        "PCGrad needs less data, optimises faster and ends better.",
        kind="data/RL",
        needs=META_WORLD,
    ),
    "PC-21": Row(
        "PCGrad wins on Meta-World MT10 and MT50, on supervised and on goal-conditioned "
        "benchmarks.",
        kind="data/RL",
        needs=f"{META_WORLD}; {MULTIMNIST}",
    ),
    "PC-22": Row(
        "The baselines there: one policy for all, a head a task, independent policies.",
        kind="data/RL",
        needs="a list of baselines, which no number could refute; the point mass has all three "
        "(`python -m experiments.control --parts points`), and so has Meta-World",
    ),
}

FIGURES = {
    "figure1": "_figure1",
    "conditions_along": "_figure1",
    "curvature": "training",
    "overshoot": "theorem2",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
