"""A claim's numbers in words: what was claimed of which, and what came out."""

import re
from collections.abc import Callable, Iterator

from .decisions import OPEN, Condition, Decision, Measured, Relation, Side, ends, named_so

SHOWN = 4
"""Numbers that are told; the others are in the table."""
CLAIMED: dict[Relation, str] = {
    "<": "below",
    "<=": "at most",
    ">": "above",
    ">=": "at least",
    "==": "equal to",
}
NEAREST: dict[Relation, Callable[[list[float]], float]] = {
    "<": max,
    "<=": max,
    ">": min,
    ">=": min,
    "==": lambda values: max(values, key=lambda value: abs(value - values[0])),
}
"""Of several numbers the one that is nearest to missing what is claimed of all."""


def said(decision: Decision, measured: Measured) -> str:
    """What the numbers say, without a full stop.

    Args:
        decision: the claim's.
        measured: the claim's numbers.

    Returns:
        For every condition and interval that the decision is made of what came out, what was
        claimed, and whether it is so; of a decision that is a function of its own, and of numbers
        that an earlier decision asked for, the numbers.
    """
    try:
        judged = [
            *(_condition(condition, measured) for condition in decision.conditions),
            *(case for side in decision.sides for case in _side(side, measured)),
        ]
    except LookupError:
        judged = []
    told = [f"{text}: {answer}" for text, answer in judged]
    if not told:
        told = [f"{name}: {shown(measured, name)}" for name in measured if _is_own(name)]
    more = len(told) - SHOWN
    if more <= 0:
        return "; ".join(told)
    answers = [answer for _, answer in judged]
    head = f"{answers.count('yes')} of {len(judged)} as claimed; " if judged else ""
    # one of every answer at least
    first = {answers.index(answer) for answer in set(answers)}
    picked = sorted([*first, *(i for i in range(len(told)) if i not in first)][:SHOWN])
    return f"{head}{'; '.join(told[i] for i in picked)}; and {more} more"


def shown(measured: Measured, name: str) -> str:
    """A number, with its interval if it has one."""
    if f"{name}, low" not in measured:
        return f"{measured[name]:.3g}"
    low, high = ends(measured, name)
    return f"{measured[name]:.3g} [{low:.3g}, {high:.3g}]"


def _is_own(name: str) -> bool:
    """Whether it is neither an end of an interval nor a mark."""
    return not name.endswith((", low", ", high", OPEN))


def _condition(condition: Condition, measured: Measured) -> tuple[str, str]:
    values, name = condition.of(measured), condition.name.replace("*", "…")
    value = f"{NEAREST[condition.relation](values):.3g}"
    found = f"the worst of {len(values)} is {value}" if len(values) > 1 else value
    claimed = f"claimed {CLAIMED[condition.relation]} {condition.bound:g}"
    return f"{name}: {found}, {claimed}", "yes" if condition.met(measured) else "no"


def _side(side: Side, measured: Measured) -> Iterator[tuple[str, str]]:
    names = [end.removesuffix(", low") for end in named_so(measured, f"{side.name}, low")]
    claimed = f"claimed {CLAIMED[side.relation]} {side.bound:g}"
    for name, (on_side, lost) in zip(names, side.cases(measured), strict=True):
        answer = "yes" if on_side else "no" if lost else "open"
        yield f"{name}: {shown(measured, name)}, {claimed}", answer


def filled(template: str, measured: Measured) -> str:
    """A sentence with `{name}` for a number and its interval.

    Raises:
        LookupError: where there is no number of a name.
    """
    return re.sub("{([^}]*)}", lambda found: shown(measured, found[1]), template)
