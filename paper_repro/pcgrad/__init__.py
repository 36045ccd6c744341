"""PCGrad (Yu et al. 2020), one question a file."""

from typing import Any

from ..report.options import exported

FIGURES = {
    "figure1": "_figure1",
    "conditions_along": "_figure1",
    "curvature": "training",
    "onsets": "events",
    "ends": "theorem1",
    "overshoot": "theorem2",
    "all_orders": "orders",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
