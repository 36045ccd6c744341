"""A rule, whatever it was given as, put to work: from Jacobians and losses to the weights of a few
updates, never with a traceback.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..core import random
from ..rules.common import BY_HAND
from ..types import Geometry, Rule
from .cases import Case

Weigh = Callable[..., Tensor]
"""(jacobian [task, param], losses [update, task]) -> weights [update, task]."""

Extra = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(jacobian [task, param], losses [task]) -> what a special probe would have put into
`Geometry.extra`.
"""


MOST_LETTERS = 160
"""Of what an exception says."""


class Invalid(Exception):
    """The rule answered, but not with weights."""


def as_rule(rule: Any) -> tuple[Rule, str, bool]:
    """A rule from a rule, a factory that needs no arguments, or a function of the Gramian, or of
    the Gramian and the losses.

    Returns:
        the rule, its name, and whether it was a mere function.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(rule, Rule):
        return rule, _called(rule.update), False
    if not callable(rule):
        raise TypeError(
            "rule: expected a mtlfunc.Rule, a factory of one, or a function of the Gramian [T, "
            f"T], got {type(rule).__name__}"
        )
    count = _required(rule)
    if count == 0:
        made = rule()
        if not isinstance(made, Rule):
            raise TypeError(
                f"rule: {_called(rule)}() needs no arguments, so it was called, but it gave a "
                f"{type(made).__name__} and not a mtlfunc.Rule"
            )
        return made, _called(rule), False
    if count > 2:
        raise TypeError(
            f"rule: expected f(gramian) or f(gramian, losses), but {_called(rule)} needs {count} "
            "arguments"
        )
    if _makes_rules(rule):
        raise TypeError(
            f"rule: {_called(rule)} makes rules and needs arguments for that; pass the rule, "
            f"{_called(rule)}(...)"
        )

    def init(losses: Any, key: Any) -> Any:
        return ()

    def update(geometry: Any, state: Any) -> Any:
        return (
            rule(geometry.gramian) if count == 1 else rule(geometry.gramian, geometry.losses)
        ), ()

    return Rule(init, update), _called(rule), True


def _called(f: Any) -> str:
    name = getattr(f, "__qualname__", type(f).__name__).split(".<locals>")[0]
    return "rule" if name == "<lambda>" else name


def _makes_rules(f: Any) -> bool:
    """Whether that is what it is annotated with."""
    try:
        return inspect.signature(f).return_annotation in (Rule, "Rule", "mf.Rule", "mtlfunc.Rule")
    except (TypeError, ValueError):
        return False


def _required(f: Any) -> int:
    """How many positional arguments without defaults it has; 1 where that cannot be read."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.kind in kinds and p.default is p.empty for p in parameters)
    return 1 if required == 0 and any(p.kind is p.VAR_POSITIONAL for p in parameters) else required


def geometry(
    jacobian: Tensor, losses: Tensor, extra: Extra | None = None, present: Tensor | None = None
) -> Geometry:
    """What a probe would hand to the rule; every tensor is new. Absent tasks have zero gradients,
    losses and preferences.
    """
    here = torch.ones_like(losses, dtype=torch.bool)
    share = torch.full_like(losses, 1 / len(losses))
    if present is not None:
        here, share = here & present, present.to(losses) / present.sum().clamp_min(1)
        jacobian, losses = jacobian * present[:, None], losses * present
    measured = {BY_HAND: here} | ({} if extra is None else extra(jacobian, losses))
    return Geometry(losses.clone(), jacobian @ jacobian.mT, share, here, measured)


@cache
def first_key() -> Tensor:
    return random.fold_in(random.key(0), 1)


def start(rule: Rule, losses: Tensor, key: Tensor | None = None) -> Any:
    """The state with which `mtlfunc.weights(rule, …, key=key)` begins; None is 0."""
    return rule.init(losses.clone(), first_key().clone() if key is None else random.fold_in(key, 1))


def step(rule: Rule, seen: Geometry, state: Any) -> tuple[Tensor, Any]:
    """One update; raises Invalid for an answer that is no vector `[task]`."""
    answer = rule.update(seen, state)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise Invalid(f"update returned {_kind(answer)} in place of (weights, state)")
    weights, state = answer
    if not isinstance(weights, Tensor):
        raise Invalid(f"returned {_kind(weights)} in place of a tensor [{len(seen.losses)}]")
    if weights.shape != seen.losses.shape:
        raise Invalid(
            f"returned weights of shape {list(weights.shape)} for {len(seen.losses)} "
            f"task{'s' * (len(seen.losses) != 1)}"
        )
    return weights, state


def weigher(rule: Rule, extra: Extra | None = None) -> Weigh:
    """The weights of successive updates, on one Jacobian and the losses of each update, from a
    fresh state.

    Weights of another dtype are converted, unless `strict`: that they are is a finding of its own.
    `present` [task]: who is there at the updates; the state begins with all.
    """

    def weigh(
        jacobian: Tensor,
        losses: Tensor,
        key: Tensor | None = None,
        strict: bool = False,
        present: Tensor | None = None,
    ) -> Tensor:
        state, kept = start(rule, losses[0], key), []
        for now in losses.unbind(0):
            weights, state = step(rule, geometry(jacobian, now, extra, present), state)
            if strict and weights.dtype != jacobian.dtype:
                raise Invalid(
                    f"returned {weights.dtype} weights for a {jacobian.dtype} Gramian".replace(
                        "torch.", ""
                    )
                )
            kept.append(weights.to(jacobian.dtype))
        return torch.stack(kept)

    return weigh


class Outcome(NamedTuple):
    """What a property's check saw, in one instance or a batch."""

    # [variant, update]: more than what is tolerated is a failure; a negative one says that this
    # instance is no case
    violation: Tensor
    before: Tensor  # [variant, update, …]: the numbers that the sentence tells
    after: Tensor


Check = Callable[[Weigh, Tensor, Tensor], Outcome]
"""One instance under one property: pure, so that a vmap makes it a batch."""


class Batch(NamedTuple):
    """A check's outcomes over a batch; None where nothing could be computed at all."""

    outcome: Outcome | None
    errors: dict[int, str]  # by instance: what the rule raised


def together(check: Check, weigh: Weigh, cases: Case) -> Batch | None:
    """All instances in one vmapped call; None where that raises."""
    with quiet():
        try:
            return Batch(vmap(lambda rows, losses: check(weigh, rows, losses))(*cases), {})
        except Exception:  # whatever a rule may raise
            return None


def one_by_one(check: Check, weigh: Weigh, cases: Case) -> Batch:
    """The same in a loop, in which it shows which instance raises."""
    found: list[Outcome | None] = []
    errors = {}
    with quiet():
        for i, case in enumerate(zip(*cases, strict=True)):
            try:
                found.append(check(weigh, *case))
            except Exception as error:
                errors[i] = told(error)
                found.append(None)
    like = next((outcome for outcome in found if outcome is not None), None)
    if like is None:
        return Batch(None, errors)
    blank = Outcome(*(torch.full_like(x, float("nan")) for x in like))
    return Batch(
        Outcome(
            *(torch.stack(x) for x in zip(*(outcome or blank for outcome in found), strict=True))
        ),
        errors,
    )


def quiet() -> warnings.catch_warnings:
    """A rule's warnings are not the audit's."""
    return warnings.catch_warnings(action="ignore")


def told(error: Exception) -> str:
    """An exception in one line."""
    line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, Invalid):
        return line
    if len(line) > MOST_LETTERS:
        line = line.split(". ")[0][:MOST_LETTERS]
    return f"raises {type(error).__name__}" + (f": {line}" if line else "")


def _kind(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"
