"""What the texts say of each other, one question a file."""

from typing import Any

from ..report.options import exported

FIGURES = {"main_task": "auxiliaries"}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
