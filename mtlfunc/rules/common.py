"""What several rules share: the demand for a Gramian, and rules without state."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType

from jaxtyping import Float
from torch import Tensor

from ..types import Geometry, Rule, State


def gramian_of(geometry: Geometry, rule: str) -> Float[Tensor, "row row"]:
    """The Gramian, or an error that says which probe to use."""
    count = geometry.losses.shape[0]
    if tuple(geometry.gramian.shape) != (count, count):
        raise ValueError(
            f"{rule} needs the Gramian of {count} rows, but the geometry holds one of shape {list(geometry.gramian.shape)}; "
            "use mtlfunc.jacobian(...) or mtlfunc.representation(...) as probe, not losses_only()"
        )
    return geometry.gramian


def stateless(f: Callable[..., Tensor]) -> Rule:
    """A rule from a function of the Gramian `[row, row]`, or of the Gramian and the losses `[row]`, to weights `[row]`.

    Raises: TypeError for a function with neither one nor two positional arguments.

    >>> import torch, mtlfunc as mf
    >>> mf.weights(mf.stateless(lambda gramian: torch.softmax(-gramian.diagonal(), -1)), torch.eye(2)).tolist()
    [0.5, 0.5]
    """
    count = _arguments(f)
    if count not in (1, 2):
        raise TypeError(f"stateless: expected f(gramian) or f(gramian, losses), got {count} arguments without defaults")
    name = getattr(f, "__name__", "the rule")

    def init(losses: Tensor, key: Tensor) -> State:
        return ()

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry, name)
        return (f(gramian) if count == 1 else f(gramian, geometry.losses)), ()

    return Rule(init, update)


def _arguments(f: Callable[..., Tensor]) -> int:
    """How many positional arguments without defaults `f` has."""
    if isinstance(f, FunctionType):  # so that a rule may be built while the compiler traces: it cannot follow inspect
        return f.__code__.co_argcount - len(f.__defaults__ or ())
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in inspect.signature(f).parameters.values())
