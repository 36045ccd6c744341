"""Common descent for Muon, whose steps are measured by the largest singular value of each layer."""

from typing import Any

from ._gradients import gradients
from ._nuclear import nuclear

__all__ = ["gradients", "nuclear"]
__dir__: Any = __all__.copy  # for completion: public names alone
