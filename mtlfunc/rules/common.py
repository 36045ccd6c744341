"""What several rules share: rules without state, what a rule demands of its probe, absent rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import normalized_preference
from ..core.expect import reads_of, rule_name
from ..core.transforms import all_present, values_readable
from ..types import GRAMIANS, Geometry, Rule, State, constructor


def no_state(
    preference: Tensor | None = None, argument: str = "preference"
) -> Callable[[Tensor, Tensor], State]:
    """The `init` of a rule without state: it checks the preference, if there is one."""

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses, argument)
        return ()

    return init


def may_read(rule: Rule, field: str) -> bool:
    """Whether a rule reads a field of the geometry, or a key of its `extra`, as far as known."""
    names = GRAMIANS if field == "gramian" else {field}
    reads = reads_of(rule)
    return reads is None or not reads.isdisjoint(names)


def reading_also(rule: Rule, *names: str) -> frozenset[str] | None:
    """`Rule.reads` of a rule around another one, which itself reads these fields."""
    reads = reads_of(rule)
    return None if reads is None else reads.union(names)


def reading(*names: str, preference: Tensor | None = None) -> frozenset[str]:
    """`Rule.reads` of a rule that calls `preference_of` with this preference."""
    return frozenset((*names, "present", *(("preference",) if preference is None else ())))


def gramian_of(geometry: Geometry) -> Float[Tensor, "row row"]:
    """The Gramian, or an error if the probe measured none."""
    if geometry.gramian is None:
        raise ValueError(
            "gramian: this rule needs the Gramian, and the probe measures none; use "
            "mtlfunc.jacobian(...) as probe"
        )
    return geometry.gramian


def preference_of(
    geometry: Geometry, preference: Tensor | None = None, like: Tensor | None = None
) -> Float[Tensor, " row"]:
    """The rule's own preference, or else the geometry's, over the present rows.

    It sums to 1, or is 0 where no row is present, in the dtype of `like` (None: of the losses).
    """
    given = geometry.preference.to(geometry.losses if like is None else like)
    own = normalized_preference(preference, given)
    if all_present(geometry.present):
        return own
    kept = own.where(geometry.present, 0.0)
    total = kept.sum().where(~geometry.present.all(), 1.0)  # none absent: not one bit changes
    return kept / total.where(total > 0, 1.0)


def preference_if_any(
    geometry: Geometry, preference: Tensor | None, like: Tensor
) -> tuple[Float[Tensor, " row"], Bool[Tensor, ""]]:
    """`preference_of`, and whether a task that counts is present; without one 1/T, to be zeroed."""
    p = preference_of(geometry, preference, like)
    some = p.sum() != 0
    return p.where(some, 1 / len(p)), some


def fill_absent(gramian: Tensor, present: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The Gramian with copies of the first present row instead of absent ones, and `restore`.

    For rules whose direction stays the same when a gradient without a share in the mean is listed
    twice: min-norm points, CAGrad, dual cones. `restore` turns the weights of the copies into those
    of the rows: a copy's goes to its original, absent rows get 0.
    """
    if all_present(present):
        return gramian, lambda weights: weights
    tasks = torch.arange(len(present), device=present.device)
    first = torch.where(present, tasks, len(present)).amin().clamp_max(len(present) - 1)
    owner = torch.where(present, tasks, first)

    def restore(weights: Tensor) -> Tensor:
        return (weights @ (owner[:, None] == tasks).to(weights)).where(present, 0.0)

    return gramian.index_select(0, owner).index_select(1, owner), restore


def mean_present(x: Tensor, present: Tensor) -> Tensor:
    """The mean of `x` [row] over the present rows; 0 if there are none."""
    if all_present(present):
        return x.mean()
    return x.where(present, 0.0).sum() / present.sum().clamp_min(1)


def total_present(x: Tensor, present: Tensor, whole: float) -> Tensor:
    """The sum of `x` [row] over the present rows: `whole` where none is absent, 1 where all are."""
    if all_present(present):
        return torch.full_like(x[0], whole)
    total = x.where(present, 0.0).sum()
    return torch.where(present.all(), whole, total.where(total > 0, 1.0))


def refuse_absent(weights: Callable[[], Tensor], geometry: Geometry, rule: str) -> Tensor:
    """`weights()`; raises an error first where a row is absent, or NaN where that is not seen."""
    if all_present(geometry.present):
        return weights()
    if values_readable(geometry.present) and not bool(geometry.present.all()):
        absent = (~geometry.present).nonzero().flatten().tolist()
        said = f"{rule} needs every task in every batch, but tasks {absent} are absent from this"
        raise ValueError(f"{said}; leave such a batch out, or take a rule that reads `present`")
    return weights().where(geometry.present.all(), float("nan"))


@constructor
def stateless(f: Callable[..., Tensor]) -> Rule:
    """A rule from a function of the Gramian, or of the Gramian and the losses, to weights.

    `f` sees every row, so a batch from which tasks are absent is refused; a rule that reads
    `geometry.present` is written as a `Rule`.

    Args:
        f: `f(gramian)` or `f(gramian, losses)`, with the Gramian `[row, row]` and the losses
            `[row]`; returns weights `[row]`.

    Returns:
        a rule without state.

    Raises:
        TypeError: unless it is a function with one or two positional arguments without defaults.
        ValueError: at a step, for absent tasks.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> rule = mf.stateless(lambda gramian: torch.softmax(-gramian.diagonal(), -1))
        >>> mf.weights(rule, torch.eye(2)).tolist()
        [0.5, 0.5]
    """
    if not callable(f):
        raise TypeError(f"stateless: expected a function of the Gramian, got {type(f).__name__}")
    count, names = required_arguments(f), getattr(getattr(f, "__code__", None), "co_varnames", ())
    if count not in (1, 2) or names[:1] == ("losses",):
        got = "losses first" if count in (1, 2) else f"{count} arguments without defaults"
        raise TypeError(f"stateless: expected f(gramian) or f(gramian, losses), got {got}")
    name = getattr(f, "__name__", "the rule")

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        known = gramian_of(geometry), geometry.losses
        return refuse_absent(lambda: f(*known[:count]), geometry, name), ()

    reads = ("gramian", "losses")[:count]
    return Rule(no_state(), update, frozenset((*reads, "present")))


def as_rule(rule: Any) -> Rule:
    """The rule of a rule, a maker without arguments, or a function for `stateless`; or an error."""
    if isinstance(rule, Rule):
        return rule
    if not callable(rule):
        raise TypeError(
            "rule: expected a mtlfunc.Rule, a function that makes one, or a function of the "
            f"Gramian [T, T], got {type(rule).__name__}"
        )
    name = rule_name(rule)
    if required_arguments(rule) == 0:
        made = rule()
        if not isinstance(made, Rule):
            raise TypeError(
                f"rule: {name}() needs no arguments, so it was called, but it gave a "
                f"{type(made).__name__} and not a mtlfunc.Rule"
            )
        return made
    returned = getattr(rule, "__annotations__", {}).get("return")
    if returned in (Rule, "Rule", "mf.Rule", "mtlfunc.Rule"):
        raise TypeError(
            f"rule: {name} makes rules and needs arguments for that; pass the rule, {name}(...)"
        )
    function: Callable[..., Any] = rule
    return stateless(function)


def required_arguments(f: Any) -> int:
    """How many positional arguments without defaults `f` has; 1 where that cannot be read."""
    if isinstance(f, FunctionType) and not f.__code__.co_flags & inspect.CO_VARARGS:
        # not by inspect: the compiler cannot follow it, and may be tracing
        return f.__code__.co_argcount - len(f.__defaults__ or ())
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in kinds and p.default is p.empty for p in parameters)
    return 1 if count == 0 and any(p.kind is p.VAR_POSITIONAL for p in parameters) else count
