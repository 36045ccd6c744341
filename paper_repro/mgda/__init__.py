"""MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022), one question a file."""

from typing import Any

from ..report.options import exported

FIGURES = {
    "two_tasks": "duality",
    "counterexample": "_counterexample",
    "oscillation": "naive",
    "temperatures": "smoothing",
    "raised_tasks": "random_encoders",
}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
