"""States in files: `torch.load` takes them with its safe defaults."""

import sys

import torch

from ..types import Geometry, Info, Solution
from .random import Stream


def allow_loading(package: str) -> None:
    """Let `torch.load(weights_only=True)` make the states that the loaded package defines.

    They are named tuples of tensors called `…State` or `…Sums`; making one runs no code of a file.
    """
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(package)]
    named = [x for module in modules for x in vars(module).items()]
    states = {x for name, x in named if name.endswith(("State", "Sums")) and hasattr(x, "_fields")}
    torch.serialization.add_safe_globals([Geometry, Info, Solution, Stream, *states])
