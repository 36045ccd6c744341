"""How verdicts follow from numbers: every decision loses on data that must make it lose.
Decisions made of conditions are tried on data made from these: all met, then each one missed.
Those made of intervals on data wholly on either side and across; the others on the tables below.
"""

import ast
import functools
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress

import pytest

from paper_repro.claims import DECISIONS
from paper_repro.report import bounds
from paper_repro.report.decisions import APART, OPEN, Condition, Decision, Read, exact, sided
from paper_repro.report.findings import QUICK, Claim, Settings
from paper_repro.report.said import said
from paper_repro.report.verdicts import stated
from tests.support import ROOT
from tests.support.decisions import OTHERS

Numbers = dict[str, float]
MEASURED = json.loads((ROOT / "docs" / "record" / "default.json").read_text())["numbers"]


def spelled(name: str) -> str:
    return name.replace("*", "some")


def value(condition: Condition, *, met: bool) -> float:
    """A number that meets a condition, or misses it; off by a step that rounding does not lose."""
    step = 1e-3 * abs(condition.bound) or 1e-12
    side = {"<": -1, "<=": 0, ">": 1, ">=": 0, "==": 0}[condition.relation]
    miss = {"<": 0, "<=": 1, ">": 0, ">=": -1, "==": 1}[condition.relation]
    return condition.bound + step * (side if met else miss)


def interval(name: str, low: float, high: float) -> Numbers:
    return {name: (low + high) / 2, f"{name}, low": low, f"{name}, high": high}


MADE = [name for name, decision in DECISIONS.items() if decision.conditions]


@pytest.mark.parametrize("identifier", MADE)
def test_conditions_win_and_lose(identifier):
    """On numbers that meet all, as many times as a name has; then with one of them missed."""
    decision = DECISIONS[identifier]
    assert judge(decision, together(decision.conditions, {})) in ("holds", "holds only when")
    for missed in decision.conditions:
        loses = together(decision.conditions, {missed: value(missed, met=False)})
        assert judge(decision, loses) == "does not hold", missed
        assert judge(decision, together(decision.conditions, {missed: math.nan})) == "inconclusive"


def together(conditions: tuple[Condition, ...], given: Mapping[Condition, float]) -> Numbers:
    """Numbers for conditions that may share a name: between their bounds unless given."""
    found: Numbers = {}
    for name in {condition.name for condition in conditions}:
        own = [condition for condition in conditions if condition.name == name]
        points = [value(condition, met=True) for condition in own]
        middle = sum(points) / len(points)
        found[spelled(name)] = next((given[one] for one in own if one in given), middle)
    return found


def judge(decision: Decision, numbers: Numbers):
    """With what else it reads: enough of everything, and no part left out."""
    others = [*decision.enough, *([decision.only_when] if decision.only_when else [])]
    return decision.verdict({spelled(x.name): value(x, met=True) for x in others} | numbers)


@pytest.mark.parametrize("identifier", [name for name in DECISIONS if DECISIONS[name].sides])
def test_intervals_win_lose_and_stay_open(identifier):
    decision = DECISIONS[identifier]

    def numbers(side: int) -> Numbers:
        """All intervals on the claimed side (1), on the other one (-1), across (0)."""
        found = {spelled(x.name): value(x, met=True) for x in decision.enough}
        for one in decision.sides:
            sign = side * (1 if one.relation == ">" else -1)
            half = 0.1 if side else 1
            middle = one.bound + 0.11 * sign
            found |= interval(spelled(one.name), middle - half, middle + half)
            found[spelled(one.name) + APART] = 1.0  # a gap is above
        return found

    assert decision.verdict(numbers(1)) == "holds"
    assert decision.verdict(numbers(-1)) == "does not hold"
    assert decision.verdict(numbers(0)) == "inconclusive"
    settles = {spelled(one.name) + OPEN: 1.0 for one in decision.sides}
    gaps = {spelled(one.name) + APART: 1.01 for one in decision.sides if "best rate" in one.name}
    if gaps:  # of a run that did not look beside its best rates
        with pytest.raises(LookupError):
            decision.verdict({x: y for x, y in numbers(1).items() if x not in gaps})
    for side in (1, -1):
        assert decision.verdict(numbers(side) | settles) == "inconclusive"
        if len(gaps) == len(decision.sides):
            assert decision.verdict(numbers(side) | gaps) == "inconclusive"


def test_the_others_are_all_in_the_tables():
    others = {
        name
        for name, decision in DECISIONS.items()
        if not decision.conditions and not decision.sides
    }
    assert set(OTHERS) == others
    for identifier, cases in OTHERS.items():
        verdicts = [verdict for _, verdict in cases]
        assert "does not hold" in verdicts, identifier
        assert {"holds", "holds only when"} & set(verdicts), identifier


@pytest.mark.parametrize(
    ("identifier", "case"), [(name, i) for name in OTHERS for i in range(len(OTHERS[name]))]
)
def test_others_win_and_lose(identifier, case):
    """The first case whole; a later one is the first with some numbers changed."""
    first, verdict = OTHERS[identifier][0]
    changed, expected = OTHERS[identifier][case]
    assert DECISIONS[identifier].verdict(first | changed) == (expected if case else verdict)


@pytest.mark.parametrize("identifier", DECISIONS)
def test_what_is_not_a_number_settles_nothing(identifier):
    kept = MEASURED[identifier]
    assert DECISIONS[identifier].verdict(dict.fromkeys(kept, math.nan)) == "inconclusive"
    usual = DECISIONS[identifier].verdict(kept)
    assert said(DECISIONS[identifier], kept)
    assert DECISIONS[identifier].fails.startswith("fails if ")
    for name in kept:
        assert DECISIONS[identifier].verdict(kept | {name: math.nan}) in (usual, "inconclusive")


def test_no_verdict_reads_a_time():
    """What decides is counted: no decision reads a number of seconds or a ratio of times."""
    names = {part.name for x in DECISIONS.values() for part in (*x.conditions, *x.sides)}
    for identifier, cases in OTHERS.items():
        read = Read(cases[0][0])
        DECISIONS[identifier].judge(read)
        names |= {*read.asked}
    assert [x for x in names if re.search(r"\btime\b|\bseconds|microseconds|\bms\b|µs", x)] == []


def test_conditional_open_and_sided():
    part = exact(("x", "<", 1), only_when=("y", ">", 0))
    assert part.verdict({"x": 0, "y": 0}) == "holds"
    assert part.verdict({"x": 0, "y": 1}) == "holds only when"
    assert part.verdict({"x": 2, "y": 1}) == "does not hold"
    assert part.open_unless(("steps", ">=", 10)).verdict({"steps": 9}) == "inconclusive"
    both = sided(("* ratio", "<", 1))
    two = interval("first ratio", 0.5, 0.9) | interval("second ratio", 1.1, 1.2)
    assert both.verdict(two) == "holds only when"
    assert both.verdict(two | {f"first ratio{OPEN}": 1.0}) == "does not hold"
    with pytest.raises(LookupError, match="no number named 'largest"):
        exact(("largest *", "<", 1)).verdict({"smallest": 0.0})


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.5, 0.9, "holds only when"), (1.1, 1.2, "does not hold")]
)
def test_a_configuration_that_settles_nothing_may_hold_no_number(low, high, verdict):
    """As where every rate diverged; one that does settle something has to have its numbers."""
    lost = interval("lost ratio", math.nan, math.nan)
    both, numbers = sided(("* ratio", "<", 1)), interval("other ratio", low, high) | lost
    assert both.verdict(numbers | {f"lost ratio{OPEN}": 1.0}) == verdict
    assert both.verdict(numbers | {f"lost ratio{OPEN}": 0.0}) == "inconclusive"
    assert both.verdict(numbers | {f"lost ratio{OPEN}": math.nan}) == "inconclusive"
    # where equal weights learn nothing there is their loss in place of a ratio
    two = sided(("other ratio", "<", 1), ("lost ratio", "<", 1))
    other = interval("other ratio", low, high)
    assert two.verdict(other | {"lost ratio: learns nothing, mean loss": 1.3}) == verdict
    with pytest.raises(LookupError):
        two.verdict(other)


@pytest.mark.parametrize("identifier", DECISIONS)
def test_bounds_that_no_mathematics_gives_are_in_the_table(identifier):
    """What is left as a plain number is what a sentence says, or what float64 rounds."""
    decision = DECISIONS[identifier]
    for bound in (part.bound for part in (*decision.conditions, *decision.sides)):
        plain = any(abs(abs(bound) - x) <= bounds.ROUNDING for x in (0, 1, 0.5))
        counted = identifier == "CA-15"  # 100 times the parameters, twice for two terms
        assert isinstance(bound, bounds.Bound) or plain or counted, bound


def test_no_decision_compares_with_a_number_of_its_own():
    """But with what a sentence says: 0, 1, twice, most, a third of three weights, and steps."""
    said, decided = {0, 1, 2, 3, 0.5}, 0
    for path in (ROOT / "paper_repro").glob("*/*.py"):
        for function in ast.parse(path.read_text()).body:
            if not isinstance(function, ast.FunctionDef) or "decided(" not in ast.unparse(function):
                continue
            decided += 1
            for node in (x for x in ast.walk(function) if isinstance(x, ast.Compare)):
                for x in (x.value for x in ast.walk(node) if isinstance(x, ast.Constant)):
                    own = isinstance(x, int | float) and x not in said and abs(x) > bounds.ROUNDING
                    assert not own or "steps" in ast.unparse(node), f"{path}:{node.lineno}"
    assert decided > 30


@pytest.mark.parametrize("bound", bounds.TABLE, ids=lambda bound: bound.name)
def test_every_bound_has_a_reason_and_a_use(bound):
    assert len(bound.reason) > 5
    assert [x.name for x in bounds.TABLE].count(bound.name) == 1
    assert any(bound in bounds_used(i) for i in DECISIONS), "no decision asks for it"


@functools.cache
def bounds_used(identifier: str) -> frozenset:
    first = OTHERS[identifier][0][0] if identifier in OTHERS else MEASURED[identifier]
    with bounds.watched() as asked:
        for changed, _ in OTHERS.get(identifier, [({}, "")]):
            with suppress(LookupError):
                DECISIONS[identifier].verdict(first | changed)
    parts = (*DECISIONS[identifier].conditions, *DECISIONS[identifier].sides)
    parts += tuple(x for x in (DECISIONS[identifier].only_when, *DECISIONS[identifier].enough) if x)
    return frozenset(asked) | {x.bound for x in parts if isinstance(x.bound, bounds.Bound)}


def test_a_verdict_near_its_bound_hangs_on_it():
    for origin, near, far in ((0.0, 1.5, 2.1), (1.0, 1.03, 1.5)):
        decision = exact(("x", "<", bounds.Bound(1.02, "near", "a reason", origin)))
        assert bounds.perturbed(decision.verdict, {"x": near}) == {"near": {2.0: "holds"}}
        assert bounds.perturbed(decision.verdict, {"x": far}) == {}
    tight = exact(("x", "<", 1e-9))
    assert bounds.perturbed(tight.verdict, {"x": 1.5e-9}) == {"rounding": {2.0: "holds"}}
    assert bounds.perturbed(tight.verdict, {"x": 1e-12}) == {}


def test_a_small_budget_refutes_nothing_that_training_could_change():
    claim = Claim("GN-04", interval("their ratio", 1.2, 1.3) | {"their ratio": 1.25}, "here")
    whole, short = stated(claim, Settings()), stated(claim, QUICK)
    assert whole.verdict == "does not hold"
    assert short.verdict == "inconclusive"
    for found in (whole, short):
        assert DECISIONS["GN-04"].fails in found.where
    assert stated(Claim("PC-30", {}, "here", "does not hold"), QUICK).verdict == "does not hold"
