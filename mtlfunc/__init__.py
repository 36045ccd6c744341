"""mtlfunc: multi-task optimisation as pure functions; a method is a probe and a rule."""

# ruff: noqa: F403 (these rooms say in `__all__` what is public)
from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

from . import gradients, probes, rules, solvers, training
from .analysis import diagnostics
from .audit import audit  # not later: its package has the same name
from .core import NEWEST as _NEWEST
from .core import VERSION as _VERSION
from .core import extras as _extras
from .core import optim, random
from .core.gone import RENAMED as _RENAMED
from .core.gone import gone_names as _gone_names
from .core.optim import adam, sgd
from .core.saving import allow_loading as _allow_loading
from .core.tree import assign_gradients, parameters, stack
from .gradients import *
from .probes import *
from .rules import *
from .training import *
from .types import Geometry, Info, Optimizer, Probe, Rule, Solution, Step, TaskGradients, TrainState

if TYPE_CHECKING:
    from . import muon, physics, plot, testing
    from .studies import grid
    from .studies.arena import arena

__version__ = "1.0.0"

_allow_loading(__name__)

__all__ = [
    "Geometry", "Info", "Optimizer", "Probe", "Rule", "Solution", "Step", "TaskGradients",
    "TrainState", "adam", "arena", "assign_gradients", "audit", "diagnostics", "grid", "muon",
    "optim", "parameters", "physics", "plot", "random", "sgd", "solvers", "stack", "testing",
]  # fmt: skip
__all__ += gradients.__all__
__all__ += probes.__all__
__all__ += rules.__all__
__all__ += training.__all__

_GONE = {  # a name that 1.0 removed: what replaces it
    "Balance": "it is mtlfunc.types.Balance now",
    "Interrupted": "a loop of your own: docs/how-to/pure-recipes.md",
    "Unfinished": "write `except KeyboardInterrupt as stop`, and read `stop.dataset`",
    "log_losses": "take the logarithms in losses_fn: docs/how-to/pure-recipes.md",
    "pareto": "two calls of moocore: docs/how-to/pure-recipes.md",
    "rollout": "a loop: docs/how-to/pure-recipes.md",
    "trimmed_mean": "eight lines: docs/how-to/pure-recipes.md",
    "update_every": "ten lines: docs/how-to/pure-recipes.md",
}

_DEPRECATED: dict[str, tuple[str, str]] = {}  # an old name: the new one, the version of its end

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
            _extras.expect_installed(
                *_NEEDS.get(room.partition(".")[0], ()), what=f"mtlfunc.{name}"
            )
            module = import_module(f"{__name__}.{room}")
            return globals().setdefault(name, getattr(module, name, module))
        if name in _DEPRECATED:
            new, end = _DEPRECATED[name]
            words = f"{__name__}.{name} is {__name__}.{new} now; the old name goes in {end}"
            warn(words, DeprecationWarning, stacklevel=2)
            return getattr(import_module(__name__), new)
        if name in _RENAMED:
            raise AttributeError(f"mtlfunc.{name} is called mtlfunc.{_RENAMED[name]} now")
        return _gone_names(__name__, _GONE)(name)


__dir__: Any = __all__.copy  # for completion: public names alone

if _VERSION > _NEWEST:  # which CI has not tested: it is tried at its first use
    import_module(f"{__name__}.analysis.trial").at_the_doors()
