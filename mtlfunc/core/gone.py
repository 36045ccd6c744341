"""Options and names that 1.0 removed: for one minor version each says what replaces it."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RENAMED = {
    "excess": "excess_risk",
    "gauss_newton": "physics.gauss_newton",
    "jets": "physics",
    "kernel_traces": "physics.kernel_traces",
    "muon_gradients": "muon.gradients",
    "ntk": "physics.ntk",
    "revisit": "second_evaluation",
    "sample_lengths": "sample_norms",
    "scalars": "log_dict",
    "tracked": "moving_average",
}
"""Old names of `mtlfunc`, and the new ones."""


def gone(**instead: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function that refuses the options it had, each with the recipe that replaces it."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        what = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs.keys() & instead.keys():
                raise TypeError(f"{what}: {name}= went in 1.0; {instead[name]}")
            return function(*args, **kwargs)

        return call

    return decorate


def meant(function: Callable[P, T]) -> Callable[P, T]:
    """A method that says what is meant by options which other libraries have, and by several losses
    instead of one argument.
    """
    what = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if len(args) > 2 and what != "Balancer":
            one = f"one list of losses, {what}([l0, l1])"
            raise TypeError(f"{what}: got {len(args) - 1} arguments; did you mean {one}?")
        for name in kwargs.keys() & MEANT.keys():
            raise TypeError(f"{what}: there is no {name}=; did you mean {MEANT[name]}?")
        return function(*args, **kwargs)

    return call


MEANT = {
    "aggregator": "rule= of Balancer",
    "weighting": "rule= of Balancer",
    "optimizer": "metric= of Balancer",
    "preference": "that of a rule, as in mtlfunc.mean(preference=...)",
}
"""Options of other libraries for a Balancer and its methods, and what they are here."""


def gone_names(module: str, instead: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that it had, each with what replaces it."""

    def refuse(name: str) -> Any:
        if name in instead:
            raise AttributeError(f"{module}.{name} went in 1.0; {instead[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return refuse
