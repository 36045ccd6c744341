"""A rule, whatever it was given as: from Jacobians and losses to the weights of a few updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..core import random
from ..rules.common import BY_HAND, makes_rules, required_arguments
from ..types import Geometry, Rule
from .cases import Case

Evaluate = Callable[..., Tensor]
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
    """A rule from a rule, a factory of one, or a function of the Gramian or Gramian and losses.

    Args:
        rule: a `Rule`, a callable that needs no arguments and gives one, or `f(gramian[, losses])`.

    Returns:
        the rule, its name, and whether it was a mere function.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(rule, Rule):
        return rule, _called(rule.update, 0), False
    if not callable(rule):
        raise TypeError(
            "rule: expected a mtlfunc.Rule, a factory of one, or a function of the Gramian [T, "
            f"T], got {type(rule).__name__}"
        )
    count, name = required_arguments(rule), _called(rule, -1)
    if count == 0:
        made = rule()
        if not isinstance(made, Rule):
            raise TypeError(
                f"rule: {name}() needs no arguments, so it was called, but it gave a "
                f"{type(made).__name__} and not a mtlfunc.Rule"
            )
        return made, name, False
    if count > 2:
        raise TypeError(
            f"rule: expected f(gramian) or f(gramian, losses), but {name} needs {count} arguments"
        )
    if makes_rules(rule):
        raise TypeError(
            f"rule: {name} makes rules and needs arguments for that; pass the rule, {name}(...)"
        )

    def update(geometry: Any, state: Any) -> Any:
        seen = (geometry.gramian, geometry.losses)[:count]
        return rule(*seen), ()

    return Rule(lambda losses, key: (), update), name, True


def _called(f: Any, part: int) -> str:
    """The name of a function (-1), or of the one that it was made in (0)."""
    name = getattr(f, "__qualname__", type(f).__name__).split(".<locals>")[part].lstrip(".")
    return "rule" if name == "<lambda>" else name


def geometry(
    jacobian: Tensor, losses: Tensor, extra: Extra | None = None, present: Tensor | None = None
) -> Geometry:
    """What a probe would hand to the rule; every tensor is new.

    Absent tasks have zero gradients, losses and preferences.
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


def evaluator(rule: Rule, extra: Extra | None = None) -> Evaluate:
    """The function from one Jacobian and the losses of each update to the weights of each update.

    Weights of another dtype are converted, unless `strict`: that they are is a finding of its own.
    `present` [task] is who is there at the updates; the state, fresh each time, begins with all.
    """

    def evaluate(
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

    return evaluate


class Outcome(NamedTuple):
    """What a property's check saw, in one instance or a batch."""

    # [variant, update]: more than what is tolerated is a failure; a negative one says that this
    # instance is no case
    violation: Tensor
    before: Tensor  # [variant, update, …]: the numbers that the sentence tells
    after: Tensor


Check = Callable[[Evaluate, Tensor, Tensor, float], Outcome]
"""One instance under one property: (evaluate, jacobian, losses, unit); pure, so vmap batches it.

`unit` is what Σ|w_t|‖g_t‖ / max‖g_t‖ usually is for this rule and so many tasks.
"""


class Batch(NamedTuple):
    """A check's outcomes over a batch; None where nothing could be computed at all."""

    outcome: Outcome | None
    errors: dict[int, str]  # by instance: what the rule raised


def together(check: Check, evaluate: Evaluate, cases: Case, unit: float) -> Batch | None:
    """All instances in one vmapped call; None where that raises."""
    with quiet():
        try:
            found = vmap(lambda rows, losses: check(evaluate, rows, losses, unit))(*cases)
            return Batch(found, {})
        except Exception:  # whatever a rule may raise
            return None


def one_by_one(check: Check, evaluate: Evaluate, cases: Case, unit: float) -> Batch:
    """The same in a loop, in which it shows which instance raises."""
    found: list[Outcome | None] = []
    errors = {}
    with quiet():
        for i, case in enumerate(zip(*cases, strict=True)):
            try:
                found.append(check(evaluate, *case, unit))
            except Exception as error:
                errors[i] = describe_error(error)
                found.append(None)
    like = next((outcome for outcome in found if outcome is not None), None)
    if like is None:
        return Batch(None, errors)
    blank = Outcome(*(torch.full_like(x, float("nan")) for x in like))
    parts = zip(*(outcome or blank for outcome in found), strict=True)
    return Batch(Outcome(*(torch.stack(x) for x in parts)), errors)


def quiet() -> warnings.catch_warnings:
    """A rule's warnings are not the audit's."""
    return warnings.catch_warnings(action="ignore")


def describe_error(error: Exception) -> str:
    """An exception in one line."""
    line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, Invalid):
        return line
    if len(line) > MOST_LETTERS:
        line = line.split(". ")[0][:MOST_LETTERS]
    return f"raises {type(error).__name__}" + (f": {line}" if line else "")


def _kind(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"
