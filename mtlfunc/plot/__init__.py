"""Pictures of rules, runs and Gramians; matplotlib is loaded at the first one."""

from typing import Any

from ..core.gone import gone_names
from .rules import cone, heatmap, portrait, simplex
from .runs import cosines_over_time, front, gap, weights

__all__ = [
    "cone",
    "cosines_over_time",
    "front",
    "gap",
    "heatmap",
    "portrait",
    "simplex",
    "weights",
]


def __dir__() -> list[str]:  # for completion: public names alone
    return sorted(__all__)


__getattr__: Any = gone_names("mtlfunc.plot", {"gaps": "a loop over solvers: docs/solvers.md"})
