"""Pictures of rules, runs and Gramians; matplotlib is loaded at the first one."""

from .rules import cone, heatmap, portrait, simplex
from .runs import cosines_over_time, front, gap, gaps, weights

__all__ = [
    "cone",
    "cosines_over_time",
    "front",
    "gap",
    "gaps",
    "heatmap",
    "portrait",
    "simplex",
    "weights",
]


def __dir__() -> list[str]:  # for completion: public names alone
    return sorted(__all__)
