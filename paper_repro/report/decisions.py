"""Claims and decisions: how a verdict follows from numbers, and what would make a claim lose.

A decision is stated before anything runs and reads nothing but the numbers that `claims.json`
keeps, so that every verdict can be worked out again from that file. A mean with an interval is
three numbers: `name`, `name, low` and `name, high`.
"""

import functools
import math
import operator as op
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from .bounds import GAP, at
from .findings import Verdict
from .intervals import OPEN

Measured = Mapping[str, float]
Relation = Literal["<", "<=", ">", ">=", "=="]
Asked = tuple[str, Relation, float]
"""A name, a relation and a bound: what a `Condition` is made of."""
Kind = Literal["exact", "synthetic", "data/RL", "not here"]
KINDS: dict[Kind, str] = {
    "exact": "algebra, fractions or a deterministic computation",
    "synthetic": "a seeded experiment on made-up problems",
    "data/RL": "needs real data or a reinforcement-learning benchmark",
    "not here": "a choice or an aim: nothing to measure",
}
MULTIMNIST = "`python -m experiments.multimnist --data FOLDER --full`, 100 epochs as published"
META_WORLD = (
    "Meta-World: `python -m experiments.control --full --parts mt10` or `mt50`, months at one "
    "rate, not run"
)
RELATIONS = {"<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge, "==": op.eq}
MISSED: dict[Relation, str] = {
    "<": "is {} or more",
    "<=": "is above {}",
    ">": "is {} or less",
    ">=": "is below {}",
    "==": "is not {}",
}
APART = ", rates beside the best, in half widths"
"""Ends the name of a number beside one that speaks of a best rate: how far the losses at the rates
next to the best ones are from theirs, in half widths of the interval. Above `GAP` the grid has a
gap in which a better rate may lie, and the comparison settles nothing.
"""


def settles_nothing(measured: Measured, name: str) -> bool:
    """Whether the number of that name decides neither way; see `OPEN` and `APART`.

    Raises:
        LookupError: where it speaks of a best rate and nothing says what is next to that.
    """
    if name + OPEN in measured and measured[name + OPEN]:
        return True  # and what else there is of it is not asked for: it may be none
    return "best rate" in name and measured[name + APART] > GAP.now


class Condition(NamedTuple):
    """A relation that every number of that name meets; in a name `*` stands for any text."""

    name: str
    relation: Relation
    bound: float

    def met(self, measured: Measured) -> bool:
        """Whether it is; NaN never does."""
        bound = at(self.bound)
        return all(RELATIONS[self.relation](value, bound) for value in self.of(measured))

    def of(self, measured: Measured) -> list[float]:
        """The numbers of that name. Raises LookupError for none: that would check nothing."""
        return [measured[name] for name in named_so(measured, self.name)]

    def missed(self) -> str:
        """What it looks like where it is not met."""
        return f"{self.name.replace('*', '…')} {MISSED[self.relation].format(f'{self.bound:g}')}"


def named_so(measured: Measured, pattern: str) -> list[str]:
    """Names that a pattern fits. Raises LookupError for none."""
    fits = re.compile(re.escape(pattern).replace(r"\*", ".*"), re.DOTALL)
    found = [name for name in measured if fits.fullmatch(name)]
    if not found:
        raise LookupError(f"no number named {pattern!r} among {', '.join(measured)}")
    return found


def ends(measured: Measured, name: str) -> tuple[float, float]:
    """The lower and the upper end of a number's interval."""
    return measured[f"{name}, low"], measured[f"{name}, high"]


class Read(dict[str, float]):
    """Numbers that remember which were asked for, and which of those are none."""

    def __init__(self, measured: Measured) -> None:
        super().__init__(measured)
        self.asked: list[str] = []
        self.missing: list[str] = []

    def __getitem__(self, name: str) -> float:
        value = super().__getitem__(name)
        self.asked.append(name)
        if math.isnan(value):
            self.missing.append(name)
        return value


class Decision(NamedTuple):
    """What would make a claim lose, and the verdict that its numbers give."""

    fails: str
    judge: Callable[[Measured], Verdict]
    # of numbers that a shorter training or fewer draws change: a run below the default's budget
    # cannot refute it
    trained: bool = False
    # what it is made of, where it is not a function of its own
    conditions: tuple[Condition, ...] = ()
    sides: tuple["Side", ...] = ()
    only_when: Condition | None = None  # met: it holds in part
    enough: tuple[Condition, ...] = ()  # not met: it stays open

    def verdict(self, measured: Measured) -> Verdict:
        """What the numbers say: nothing, where one that was asked for is NaN."""
        read = Read(measured)
        found = self.judge(read)
        return "inconclusive" if read.missing else found

    def open_unless(self, *enough: Asked) -> "Decision":
        """The same, which stays open where one of these conditions is not met."""
        parts = tuple(Condition(*each) for each in enough)

        def judge(measured: Measured) -> Verdict:
            return self.judge(measured) if met(measured, parts) else "inconclusive"

        fails = f"{self.fails} (open if {'; '.join(part.missed() for part in parts)})"
        return self._replace(fails=fails, judge=judge, enough=parts)


def exact(*conditions: Asked, only_when: Asked | None = None) -> Decision:
    """It holds where every condition is met, and does not where one is not; of a part alone
    (`holds only when`) where `only_when` is met as well.
    """
    parts = tuple(Condition(*each) for each in conditions)
    further = only_when and Condition(*only_when)

    def judge(measured: Measured) -> Verdict:
        if not met(measured, parts):
            return "does not hold"
        return "holds only when" if further and further.met(measured) else "holds"

    fails = f"fails if {'; or if '.join(part.missed() for part in parts)}"
    if further:
        fails += f"; in part unless {further.missed()}"
    return Decision(fails, judge, conditions=parts, only_when=further)


def met(measured: Measured, conditions: tuple[Condition, ...]) -> bool:
    return all(condition.met(measured) for condition in conditions)


class Side(NamedTuple):
    """Intervals that a claim puts on one side of a bound; in a name `*` stands for any text."""

    name: str
    relation: Literal["<", ">"]
    bound: float

    def cases(self, measured: Measured) -> Iterator[tuple[str, tuple[bool, bool]]]:
        """For each, by its number's name: whether it is wholly on the claimed side, and wholly on
        the other one; what stands in its place settles nothing.
        """
        try:
            lows = named_so(measured, f"{self.name}, low")
        except LookupError:
            named_so(measured, f"{self.name}: *")
            yield self.name, (False, False)
            return
        for end in lows:
            name = end.removesuffix(", low")
            if settles_nothing(measured, name):
                yield name, (False, False)
                continue
            (low, high), bound = ends(measured, name), at(self.bound)
            if self.relation == "<":
                yield name, (high < bound, low > bound)
            else:
                yield name, (low > bound, high < bound)

    def lost(self) -> str:
        side = {"<": "above", ">": "below"}[self.relation]
        return f"one of {self.name.replace('*', '…')} lies {side} {self.bound:g}"


def verdict_of(below: list[bool], above: list[bool]) -> Verdict:
    """One verdict from the intervals of several configurations. "holds" where all are below, wholly
    on the claimed side, "holds only when" where some are, "does not hold" where none is and some
    are above, wholly on the other, else "inconclusive". Each is an interval of 95 %, not widened
    for their number: of k that are chance alone, one is below with a probability of up to k/40.
    """
    if all(below):
        return "holds"
    if any(below):
        return "holds only when"
    return "does not hold" if any(above) else "inconclusive"


def sided(*sides: tuple[str, Literal["<", ">"], float], trained: bool = True) -> Decision:
    """It holds where every interval is on its side; see `verdict_of`."""
    parts = tuple(Side(*each) for each in sides)

    def judge(measured: Measured) -> Verdict:
        cases = [case for side in parts for _, case in side.cases(measured)]
        return verdict_of([shown for shown, _ in cases], [lost for _, lost in cases])

    text = "; or ".join(side.lost() for side in parts)
    fails = f"fails if no interval lies where the claim has it, and {text}"
    return Decision(fails, judge, trained, sides=parts)


def decided(fails: str, *, trained: bool = True) -> Callable[..., Decision]:
    """Makes a decision of a function from numbers to a verdict; `fails` says what makes it lose."""
    return lambda judge: Decision(f"fails if {fails}", judge, trained)


class Row(NamedTuple):
    """A row of the ledger: what a claim says, how it can be checked, and what decides it. An exact
    or synthetic one without a decision is open.
    """

    statement: str  # one sentence; Δ, w, g, d as in the papers
    decision: Decision | None = None
    # of one that may hold only when: when it does, with `{name}` for a number; where it says
    # nothing, the intervals on the claimed side do
    when: str = ""
    finding: str = ""  # what came out of one that says most of its text: the page begins so
    kind: Kind = "synthetic"
    # what else deciding it takes; of one that needs data its command, or why nothing stands in
    needs: str = ""
    published: str = ""  # numbers, of a claim about data that are not here
    # of a claim about those that is decided on made-up problems: what they stand in for
    instead: str = ""
    id: str = ""
    module: str = ""  # the reproduction that decides it, as in pcgrad.theorem1: see `ROWS`

    @property
    def paper(self) -> str:
        """The letters that the id starts with."""
        return self.id.split("-")[0]


Exact = functools.partial(Row, kind="exact")
"""A row of that kind."""
