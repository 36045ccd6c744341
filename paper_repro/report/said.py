"""A claim's numbers in words: what was found, what the claim needs, and whether it is so."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from .decisions import (
    OPEN,
    Condition,
    Decision,
    Measured,
    Read,
    Relation,
    Row,
    Side,
    named_so,
    settles_nothing,
)

SHOWN = 4
"""Numbers that are told; the others are in the table."""
HOLDS_IF: dict[Relation, str] = {
    "<": "below",
    "<=": "at most",
    ">": "above",
    ">=": "at least",
    "==": "equal to",
}
SETTLES_NOTHING = "settles nothing: at an edge of its grid or a gap in it, or nothing is learnt"


def said(decision: Decision, measured: Measured) -> str:
    """What a claim's numbers say, without a full stop. For every condition and interval that the
    decision is made of what was found, where the claim has it, and whether it is so: yes, no or
    open. Of a decision that is a function of its own the numbers that it reads. "" where there are
    none of these, as in older results.
    """
    try:
        unmet = [f"open, as {part}" for part in _unmet(decision.enough, measured)]
        judged = [_condition(condition, measured) for condition in decision.conditions]
        judged += [case for side in decision.sides for case in _side(side, measured)]
        if not judged:
            return "; ".join([*unmet, *_read(decision, measured)])
        part = decision.only_when
        limits = [": ".join(_condition(part, measured, "in part alone"))] if part else []
    except LookupError:
        return ""
    return "; ".join([*unmet, *_some(judged), *limits])


def when(row: Row, measured: Measured) -> str:
    """Of a claim that holds only when: when it does, without a full stop. Its clause, or the
    intervals on the claimed side; "" for one that has neither.
    """
    if row.when or row.decision is None:
        return filled(row.when, measured)
    shown = [
        name
        for side in row.decision.sides
        for name, (on_side, _) in side.cases(measured)
        if on_side
    ]
    more = f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return f"only of: {'; '.join(shown[:SHOWN])}{more}" if shown else ""


def filled(template: str, measured: Measured) -> str:
    """A sentence with `{name}` for a number and its interval.

    Raises:
        LookupError: where a name has no number.
    """
    return re.sub("{([^}]*)}", lambda found: shown(measured, found[1]), template)


def shown(measured: Measured, name: str) -> str:
    """A number, with its interval if it has one, and what it settles if that is nothing."""
    ends = [measured.get(f"{name}, {end}") for end in ("low", "high")]
    text = number(measured[name])
    if None not in ends:
        text += f" [{', '.join(number(end) for end in ends if end is not None)}]"
    nothing = name + OPEN in measured and settles_nothing(measured, name)
    return text + (f" ({SETTLES_NOTHING})" if nothing else "")


def number(value: float) -> str:
    """Three digits; all of them of a whole number."""
    whole = math.isfinite(value) and value == round(value) and abs(value) < 1e12
    return f"{value:,.0f}" if whole else f"{value:.3g}"


def _some(judged: list[tuple[str, str]]) -> Iterator[str]:
    """Those that are shown; of many the count of each answer, and first those that lose."""
    if len(judged) > SHOWN:
        judged = sorted(judged, key=lambda case: case[1])
        counts = Counter(answer for _, answer in judged)
        each = ", ".join(f"{count} {answer}" for answer, count in counts.items())
        yield f"{each}, of {len(judged)}"
    for text, answer in judged[:SHOWN]:
        yield f"{text}: {answer}"


def _condition(condition: Condition, measured: Measured, then: str = "holds") -> tuple[str, str]:
    """A number and what follows if it is where the condition has it, and whether it is."""
    values = {name: measured[name] for name in named_so(measured, condition.name)}
    # the one that is farthest to the wrong side
    sign = {"<": 1, "<=": 1, ">": -1, ">=": -1}.get(condition.relation)
    amiss = (lambda x: sign * x) if sign else (lambda x: abs(x - condition.bound))
    name = max(values, key=lambda name: (math.isnan(values[name]), amiss(values[name])))
    worst = f", the worst of {len(values)}" if len(values) > 1 else ""
    answer = "yes" if condition.met(measured) else "open" if math.isnan(values[name]) else "no"
    return f"{name}: {number(values[name])}{worst}, {then} if {asked(condition)}", answer


def asked(part: Condition | Side) -> str:
    """What is asked of a number; with the digits by which a bound allows for rounding."""
    return f"{HOLDS_IF[part.relation]} {part.bound:.10g}"


def _side(side: Side, measured: Measured) -> Iterator[tuple[str, str]]:
    for name, (on_side, lost) in side.cases(measured):
        answer = "yes" if on_side else "no" if lost else "open"
        yield f"{name}: {shown(measured, name)}, holds if {asked(side)}", answer


def _unmet(conditions: Iterable[Condition], measured: Measured) -> Iterator[str]:
    """What there has to be for a decision, and is not."""
    for condition in conditions:
        if not condition.met(measured):
            yield _condition(condition, measured, "decides")[0]


def _read(decision: Decision, measured: Measured) -> Iterator[str]:
    """Numbers that a decision reads, in their order."""
    read = Read(measured)
    decision.judge(read)
    names = (name.removesuffix(", low").removesuffix(", high") for name in read.asked)
    told = [name for name in dict.fromkeys(names) if name in measured and OPEN not in name]
    for name in told[:SHOWN]:
        yield f"{name}: {shown(measured, name)}"
    if told[SHOWN:]:
        yield f"and {len(told) - SHOWN} more"
