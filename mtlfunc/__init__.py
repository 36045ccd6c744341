"""mtlfunc: multi-task optimisation as pure functions; a method is a probe and a rule."""

# ruff: noqa: F403 (these rooms say in `__all__` what is public)
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import gradients, probes, rules, solvers, training
from .analysis import diagnostics
from .audit import audit  # not later: its package has the same name
from .core import NEWEST as _NEWEST
from .core import VERSION as _VERSION
from .core import extras as _extras
from .core import optim, random
from .core.optim import adam, sgd
from .core.saving import allow_loading as _allow_loading
from .core.tree import assign_gradients, parameters, stack
from .gradients import *
from .probes import *
from .rules import *
from .training import *
from .types import Geometry, Info, Optimizer, Probe, Rule, Step, TrainState

if TYPE_CHECKING:
    from . import muon, physics, plot, testing
    from .studies import grid
    from .studies.arena import arena

__version__ = "1.0.0"

_allow_loading(__name__)

__all__ = [
    "Geometry", "Info", "Optimizer", "Probe", "Rule", "Step", "TrainState", "adam", "arena",
    "assign_gradients", "audit", "diagnostics", "grid", "muon", "optim", "parameters", "physics",
    "plot", "random", "sgd", "solvers", "stack", "testing",
]  # fmt: skip
__all__ += gradients.__all__
__all__ += probes.__all__
__all__ += rules.__all__
__all__ += training.__all__


_LATER = {
    "arena": "studies.arena",
    "grid": "studies",
    "muon": "muon",
    "physics": "physics",
    "plot": "plot",
    "testing": "testing",
}
"""What stands above training, and its module, which is imported at the first use."""
_NEEDS = {"plot": _extras.PLOT, "studies": _extras.LAB}


if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            room = _LATER[name]
            needs = _NEEDS.get(room.partition(".")[0], ())
            _extras.expect_installed(*needs, what=f"mtlfunc.{name}")
            module = import_module(f"{__name__}.{room}")
            return globals().setdefault(name, getattr(module, name, module))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__dir__: Any = __all__.copy  # for completion: public names alone

if _VERSION > _NEWEST:  # which CI has not tested
    import_module(f"{__name__}.analysis.trial").try_torch()
