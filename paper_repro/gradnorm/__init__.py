"""GradNorm (Chen et al. 2018), one question a file."""

from typing import Any

from ..report.options import exported

FIGURES = {
    "toy": "toy_figures",
    "rates": "toy_figures",
    "strength": "toy_figures",
    "search": "_search",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
