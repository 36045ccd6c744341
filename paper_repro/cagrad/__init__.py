"""CAGrad (Liu et al. 2021), one question a file."""

from typing import Any

from ..report.options import exported

FIGURES = {
    "toy": "toy_figures",
    "surface": "toy_figures",
    "role_of_c": "_role_of_c",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
