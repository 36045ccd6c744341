"""Pictures of rules, runs and Gramians; matplotlib is loaded at the first one."""

from typing import Any

from .rules import heatmap, portrait, simplex
from .runs import front, gap, weights

__all__ = ["front", "gap", "heatmap", "portrait", "simplex", "weights"]
__dir__: Any = __all__.copy  # for completion: public names alone
