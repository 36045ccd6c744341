"""Pictures of rules, runs and Gramians; matplotlib is loaded at the first one."""

from typing import Any

from ..core.gone import gone_names
from .rules import heatmap, portrait, simplex
from .runs import front, gap, weights

__all__ = ["front", "gap", "heatmap", "portrait", "simplex", "weights"]
__dir__: Any = __all__.copy  # for completion: public names alone


__getattr__: Any = gone_names(
    "mtlfunc.plot",
    {
        "cone": "six lines: docs/how-to/pure-recipes.md",
        "cosines_over_time": "eight lines: docs/how-to/logging.md",
        "gaps": "a loop over solvers: docs/solvers.md",
    },
)
